"""The values that base parameters had before specs trained them, kept beside the parameters.

They are to be what the base would be, also after the model was cast or moved, and a module's own
`_apply` is what all of PyTorch's casts and moves go through. So they are held by an object that
stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import all_modules
from surgery.graft.owner import Owner
from surgery.graft.structure import Structure, address, set_flag
from surgery.language.diagnostics import error

STANDS_IN = "_apply"


class First(NamedTuple):
    """A first value, in memory of its own.

    ``memory`` is where the parameter had it, and ``claim`` the name of the parameter that specs
    train: itself, or one that it shares memory with.
    """

    value: Tensor
    memory: int
    claim: str


class FirstValues:
    """Those of one module, by name; called in place of its `_apply`."""

    BESIDE_FORWARDS: ClassVar[bool] = True

    def __init__(self, module: nn.Module, values: Mapping[str, First]):
        self.owner = Owner(module)
        self.values: dict[str, First] = dict(values)

    def __call__(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        module = self.owner.module
        if module is None:
            raise error(
                "S522",
                "this is a shallow copy of an adapted module that is gone",
                help="copy models with `copy.deepcopy`",
            )
        cls: Any = type(module)
        cls._apply(module, fn, *args, **kwargs)
        self._apply(fn)
        return module

    @torch.no_grad()
    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.values = {n: f._replace(value=fn(f.value)) for n, f in self.values.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstValues:
        copy = FirstValues.__new__(FirstValues)
        copy.owner = self.owner.__deepcopy__(memo)
        # The copy of the parameter is elsewhere.
        copy.values = {n: First(f.value.clone(), 0, f.claim) for n, f in self.values.items()}
        return copy


def first_values(model: nn.Module) -> Iterator[tuple[nn.Module, FirstValues]]:
    """All that ``model`` has, each with its module."""
    for module in all_modules(model):
        held = module.__dict__.get(STANDS_IN)
        if isinstance(held, FirstValues):
            yield module, held


def remember(model: nn.Module, trained: Iterable[str]) -> None:
    """Keep the values of the parameters ``trained``, and of those that share memory with them.

    Values that are kept already stay: the first ones count.
    """
    wanted = set(trained)
    if not wanted:
        return
    spans: dict[object, list[_Span]] = {}
    for name, parameter in model.named_parameters():
        if name in wanted:
            spans.setdefault(_memory(parameter), []).append(_Span(*_range(parameter), name))
    for module in all_modules(model):
        fresh: dict[str, First] = {}
        for name, parameter in module._parameters.items():
            if parameter is None or not (near := spans.get(_memory(parameter))):
                continue
            start, end = _range(parameter)
            claim = next((s.claim for s in near if s.start < end and start < s.end), None)
            if claim is not None or near[0].start == near[0].end:
                value = parameter.detach().clone()
                fresh[name] = First(value, address(parameter), claim or near[0].claim)
        if fresh:
            held = module.__dict__.get(STANDS_IN)
            known = held.values if isinstance(held, FirstValues) else dict[str, First]()
            module.__dict__[STANDS_IN] = FirstValues(module, {**fresh, **known})


class _Span(NamedTuple):
    """Where in memory a parameter is that a spec trains."""

    start: int
    end: int
    claim: str


def _range(parameter: nn.Parameter) -> tuple[int, int]:
    start = address(parameter)
    if not parameter.numel() or parameter.layout is not torch.strided:
        return start, start
    steps = zip(parameter.shape, parameter.stride(), strict=True)
    return start, start + (1 + sum((n - 1) * s for n, s in steps)) * parameter.element_size()


def _memory(parameter: nn.Parameter) -> object:
    """What is equal for parameters that may share memory."""
    try:
        start = parameter.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        start = 0
    return (start, parameter.device) if start else id(parameter)


def show_first(model: nn.Module) -> None:
    """Give parameters their first values, in memory of their own, and forget these."""
    for module, held in list(first_values(model)):
        del module.__dict__[STANDS_IN]
        for name, first in held.values.items():
            parameter = _at(module, name, first)
            if parameter is not None:
                parameter.data = _like(parameter, first).clone()


@torch.no_grad()
def forget(model: nn.Module, claimed: set[str], keeping: Structure | None) -> None:
    """Let go of the values that no spec claims any more.

    ``keeping`` the structure of the model, they are given back to their parameters; where these
    are where they were then, the numbers are written there, so that all who share that memory see
    them. Without it the parameters stay as they are.
    """
    for module, held in list(first_values(model)):
        left = {n: f for n, f in held.values.items() if f.claim in claimed}
        if len(left) == len(held.values):
            continue
        if left:
            module.__dict__[STANDS_IN] = FirstValues(module, left)
        else:
            del module.__dict__[STANDS_IN]
        if keeping is not None:
            for name in held.values.keys() - left.keys():
                _give_back(module, name, held.values[name], keeping)


def _give_back(module: nn.Module, name: str, first: First, keeping: Structure) -> None:
    parameter = _at(module, name, first)
    if parameter is None:
        return
    value = _like(parameter, first)
    if same_bits(parameter, value):
        return
    if parameter.is_inference() or address(parameter) != first.memory or 0 in parameter.stride():
        parameter.data = value
    else:
        keeping.keep(parameter)
        parameter.copy_(value)


def _at(module: nn.Module, name: str, first: First) -> nn.Parameter | None:
    """The parameter that is to have a first value; a new one, where it was replaced by another form."""
    parameter = module._parameters.get(name)
    if parameter is not None and parameter.shape == first.value.shape:
        return parameter
    fresh = nn.Parameter(first.value.clone(), requires_grad=False)
    if parameter is not None:
        set_flag(fresh, parameter.requires_grad)
    module._parameters[name] = fresh
    return None


def _like(parameter: nn.Parameter, first: First) -> Tensor:
    return first.value.to(device=parameter.device, dtype=parameter.dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one form hold the same bits; False where that cannot be told."""
    if one.is_meta or other.is_meta or one.layout is not torch.strided:
        return False
    left, right = (t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (one, other))
    return torch.equal(left, right)
