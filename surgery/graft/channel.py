"""What passes between modules beside their arguments: hidden states, masks, prompts.

Such a value belongs to one running call of the module in which those run that give and take it. It
is in a :class:`Slot`, which is opened when that call begins and closed when it ends, whichever way
it does. Each thread has its own; a call within a call, of a model in its own hook, hides what is
around it and leaves it as it was. Behind the outermost call nothing is left.

Under checkpointing a module runs a second time during backward, when its call is long over, other
forwards may have come since (two views of a batch, the two texts of a preference), and the thread
may be another. What it reads is remembered with marks of the states that it was read with, by which
the second run finds it again; the gradients' graph of that forward holds what is remembered.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from surgery.graft.hooks import around, in_hook
from surgery.language.diagnostics import SurgeryError, error

Where = tuple[int, bool, Any]
"""The running backward, whether gradients are recorded, and what hooks see of what is saved."""

_KEY = "surgery"
_LOCK = threading.Lock()


class Slot:
    """Carries one value at a time, in each thread that of its running call.

    ``source`` says whose value it is. What is read ``again`` under checkpointing is found again.
    """

    __slots__ = ("again", "here", "past", "source", "was_open")

    def __init__(self, source: str, again: bool = False):
        self.source = source
        self.again = again
        self.here = threading.local()
        # The compiler guards on whether this is there at all.
        self.here.scope = None
        self.past: list[weakref.ref[_Remembered]] = []
        self.was_open = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        copy = memo.setdefault(id(self), type(self)(self.source, self.again))
        return copy

    def __reduce__(self) -> tuple[type[Slot], tuple[str, bool]]:
        return type(self), (self.source, self.again)


class _Scope:
    """One call in which a slot is open, begun at ``where``; ``beginning`` tells it on the stack."""

    __slots__ = ("beginning", "remembered", "value", "where", "written")

    def __init__(self, where: Where | None, beginning: int):
        self.where = where
        self.beginning = beginning
        self.written = False
        self.value: Any = None
        self.remembered: list[_Remembered] = []


class _Remembered:
    """A value that may be read again, and marks of the states with which it was."""

    __slots__ = ("__weakref__", "marks", "value")

    def __init__(self, value: Any):
        self.value = value
        self.marks: list[Tensor] = []


def within(
    slots: Sequence[Slot],
    run: Callable[..., Any],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a forward of ``module`` with ``slots`` open."""
    if torch.compiler.is_compiling():
        # From here on what the compiler does not follow runs as it is.
        from surgery.graft import uncompiled  # noqa: F401  # pyright: ignore[reportUnusedImport]
    beginning = around(0)
    outer = [begin(slot, beginning) for slot in slots]
    try:
        output = run(module, *args, **kwargs)
        if not torch.compiler.is_compiling():
            for slot in slots:
                _hold(slot, output)
        return output
    finally:
        for slot, scope in zip(slots, outer, strict=True):
            slot.here.scope = scope


@contextmanager
def holding(slot: Slot, value: Any) -> Generator[None]:
    """Inside, ``slot`` is open in this thread, and has ``value``."""
    outer = begin(slot)
    put(slot, value)
    try:
        yield
    finally:
        slot.here.scope = outer


def begin(slot: Slot, beginning: int = 0) -> _Scope | None:
    """Open ``slot`` in this thread; what was open, to be put back as ``slot.here.scope``.

    ``beginning`` tells the call that opens it, as :func:`around` does.
    """
    outer = getattr(slot.here, "scope", None)
    where = None
    if not torch.compiler.is_compiling():
        slot.was_open = True
        where = _where() if slot.again else None
    slot.here.scope = _Scope(where, beginning)
    return outer


def is_open(slot: Slot) -> bool:
    """Whether the call that ``slot`` belongs to runs."""
    return getattr(slot.here, "scope", None) is not None


def put(slot: Slot, value: Any) -> None:
    """Give ``value`` to what reads ``slot`` in the running call; a hook's module gives none."""
    scope = getattr(slot.here, "scope", None)
    if scope is not None and _is_of_hook(scope):
        return
    if scope is not None:
        scope.value, scope.written = value, True
    elif not slot.again:
        _put_alone(slot, value)


def _is_of_hook(scope: _Scope) -> bool:
    """Whether what runs is no part of the call, but of a hook in it."""
    compiles = torch.compiler.is_compiling()
    return not compiles and bool(scope.beginning) and in_hook(scope.beginning)


def _put_alone(slot: Slot, value: Tensor | None) -> None:
    """Give ``value`` where modules are called by hand, one after the other.

    It is not kept alive then; only where the model itself calls them so, and never the module
    around both.
    """
    keep = torch.compiler.is_compiling() or not slot.was_open
    slot.here.alone = weakref.ref(value) if value is not None and not keep else value


def take(slot: Slot) -> Any:
    """The value in ``slot``, which leaves it.

    Raises:
        SurgeryError: S434 if what gives it did not run before in this call.

    """
    scope = getattr(slot.here, "scope", None)
    if scope is not None:
        value, scope.value = scope.value, None
    else:
        value, slot.here.alone = getattr(slot.here, "alone", None), None
        if isinstance(value, weakref.ref):
            value = cast("weakref.ref[Tensor]", value)()
    if value is None:
        raise _untold(slot, scope is None)
    return value


def _untold(slot: Slot, alone: bool) -> SurgeryError:
    reason = "which did not run before it in this call"
    if alone:
        reason = "and runs by itself, outside of the call that this is known in"
        if not torch.compiler.is_compiling() and _in_backward():
            reason += ", as in the backward of reversible layers"
    return error(
        "S434",
        f"a method here reads {slot.source}, {reason}",
        help="run the module around both, or apply a method that reads no other module there",
    )


def look(slot: Slot, states: Tensor) -> Any:
    """The value in ``slot`` for the forward that made ``states``; it stays there.

    None outside of any call: nothing is known then.

    Raises:
        SurgeryError: S433 if a module runs again and it is not known in which forward it did
            before; S438 if what gives the value does not run in the running call.

    """
    scope = getattr(slot.here, "scope", None)
    if torch.compiler.is_compiling():
        # What begins outside may be over when what is compiled runs again.
        begun: Any = None if scope is None else scope.where
        records = torch.is_grad_enabled() or (begun is not None and begun[1])
        if records and (scope is None or begun is not None):
            from surgery.graft import uncompiled

            return uncompiled.look(slot, states)
        return None if scope is None else scope.value
    if scope is None:
        return _found_again(slot, states) if _in_backward() else _unknown(slot, states)
    where = _where()
    started: Where = scope.where or where
    if where[0] != started[0]:
        return _found_again(slot, states)
    if not scope.written:
        raise error(
            "S438",
            f"a method here reads {slot.source}, which did not run before it in this call",
            help="run both in one call of the model",
        )
    if where != started:
        _remember(slot, scope.value, states, scope.remembered)
    return scope.value


def fetch(slot: Slot, states: Tensor) -> Any:
    """As :func:`look`, for the first that asks; others, and what a hook runs, find None."""
    scope = getattr(slot.here, "scope", None)
    if scope is not None and scope.value is not None and _is_of_hook(scope):
        return None
    value = look(slot, states)
    if value is not None and scope is not None:
        scope.value = None
    return value


def peek(slot: Slot) -> Any:
    """The value in ``slot``; None if there is none."""
    scope = getattr(slot.here, "scope", None)
    return None if scope is None else scope.value


def _unknown(slot: Slot, states: Tensor) -> None:
    """Remember that nothing was known where a module is called by hand, if it may run again."""
    if torch.is_grad_enabled() and _hooks() is not None:
        _remember(slot, None, states, [])


def _remember(slot: Slot, value: Any, states: Tensor, remembered: list[_Remembered]) -> None:
    """Note that ``value`` was read with ``states`` where that may happen again."""
    record = next((r for r in remembered if r.value is value), None)
    if record is None:
        record = _Remembered(value)
        remembered.append(record)
        with _LOCK:
            slot.past[:] = [ref for ref in slot.past if ref() is not None]
            slot.past.append(weakref.ref(record))
    record.marks.append(_mark(states))
    _attach(record, states)


def _hold(slot: Slot, output: Any) -> None:
    """Have the graph of ``output`` hold what the open call remembers."""
    scope = slot.here.scope
    if scope.remembered:
        for tensor in _tensors(output):
            for record in scope.remembered:
                _attach(record, tensor)


def _attach(record: _Remembered, tensor: Tensor) -> None:
    node: Any = tensor.grad_fn
    # A node that held itself would never go.
    if node is not None and node is not getattr(record.value, "grad_fn", None):
        node.metadata.setdefault(_KEY, set()).add(record)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in cast("dict[Any, Any]", output).values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in cast("list[Any]", output):
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        yield from _tensors(vars(output))


def _found_again(slot: Slot, states: Tensor) -> Any:
    """What was remembered with ``states``."""
    mark = _mark(states)
    with _LOCK:
        known = [record for ref in slot.past if (record := ref()) is not None]
    fits = [record.value for record in known if _fits(record, mark)]
    if not fits or not all(_equal(value, fits[0]) for value in fits):
        raise error(
            "S433",
            f"a checkpointed module runs again, and reads {slot.source}, which is not that of one "
            "forward: " + ("several fit" if fits else "none does"),
            help="run backward before other forwards, or batch what is compared into one",
        )
    return fits[0]


def _fits(record: _Remembered, mark: Tensor) -> bool:
    """Whether ``mark`` is one of the record's; one of states that are no numbers fits its like."""
    marks = [other for other in record.marks if other.device == mark.device]
    return bool(marks) and bool(torch.stack(marks).isclose(mark, 0, 0, equal_nan=True).any())


def _where() -> Where:
    return _backward(), torch.is_grad_enabled(), _hooks()


def _backward() -> int:
    return torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]


def _in_backward() -> bool:
    return _backward() != -1


def _hooks() -> Any:
    library: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return library._autograd._top_saved_tensors_default_hooks(True)


def _mark(states: Tensor) -> Tensor:
    """One number that tells states from others."""
    return states.detach()[..., :8].sum(dtype=torch.float64)


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    return one.shape == other.shape and torch.equal(one, other)
