"""What one forward of a model did: operators, the values between them, and the modules called."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from surgery.anatomy.tensors import tensors_inside

if TYPE_CHECKING:
    import networkx as nx

Key = int | str | None
"""Where a tensor stands in an output: an index, a key, or None for the output itself."""


@dataclass(slots=True)
class Op:
    """One function call on tensors. Values are numbers; ``args`` holds them as :class:`Value`.

    ``function`` is None where what ran was not seen, inside a custom autograd function.
    """

    index: int
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    call: int
    function: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor among the arguments of an operator."""

    number: int


@dataclass(slots=True)
class Call:
    """One run of a module: what went in under which parameter name, and what came out.

    A ``virtual`` call is one that a traced graph has flattened: its module can't be hooked. ``kind``
    is the full name of the module's class, or of what that was; None if nothing tells.
    """

    number: int
    path: str
    parent: int
    inputs: dict[str, list[tuple[Key, int]]]
    first: int
    outputs: list[tuple[Key, int]] = field(default_factory=list[tuple[Key, int]])
    last: int = -1
    virtual: bool = False
    kind: str | None = None


class Access(NamedTuple):
    """A parameter taken by its name from the module at ``path``, before the operator ``before``.

    It was taken in ``call``, and it was its ``own`` if code of the module's forward took it.
    """

    path: str
    name: str
    call: int
    before: int
    own: bool


@dataclass
class Record:
    """Operators and module calls in the order they ran.

    Values are numbered; ``shapes``, ``dtypes`` and ``producer`` (an operator's index, or -1) are
    indexed by them. ``parameters`` and ``buffers`` name the values that are the model's own.
    ``counts`` are the values that were one whole number each, where these could be read, and
    ``indices`` integers that were there before; ``strides`` and ``storages`` tell how and in which
    memory values lay. ``kept`` are those that leave the forward: returned, left somewhere for later,
    or read by Python on the way. ``accesses`` are the parameters that were taken from their modules
    by name; ``direct`` are the modules whose forward was called by its name, which is no call
    here. What ran where it could not be ``followed`` is missing, and of ``strangers`` it is not
    known where they come from. ``blind`` are the operators that the model ran without gradients;
    None where some have gradients of their own. ``numbers`` are the values of which Python was
    shown what they are.
    """

    ops: list[Op]
    calls: list[Call]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    producer: list[int]
    parameters: dict[int, str]
    buffers: dict[int, str]
    how: str
    counts: dict[int, int] = field(default_factory=dict[int, int])
    indices: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    strides: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    storages: list[int] = field(default_factory=list[int])
    kept: set[int] = field(default_factory=set[int])
    accesses: list[Access] = field(default_factory=list[Access])
    direct: frozenset[str] = frozenset()
    followed: bool = True
    strangers: set[int] = field(default_factory=set[int])
    blind: set[int] | None = None
    numbers: set[int] = field(default_factory=set[int])

    def release(self) -> bool:
        """Let go of the model's modules; whether nothing of it, and no tensor, is held now."""
        for op in self.ops:
            if op.name == "attention_interface":
                # Which module asks for an attention stands among its arguments.
                op.args = tuple(_proxy(a) if isinstance(a, nn.Module) else a for a in op.args)
        return not any(map(_holds, ((op.args, op.kwargs) for op in self.ops)))

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For each value the operators that read it."""
        found: list[list[int]] = [[] for _ in self.shapes]
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found[value].append(op.index)
        return found

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """The calls of each module path."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    @cached_property
    def arguments(self) -> set[int]:
        """The values the model was given."""
        root = self.calls[0]
        return {value for values in root.inputs.values() for _, value in values}

    def stack(self, call: int) -> Iterator[Call]:
        """``call`` and the calls around it, innermost first."""
        while call >= 0:
            yield self.calls[call]
            call = self.calls[call].parent

    def path_stack(self, op: Op) -> tuple[str, ...]:
        """The modules that ran ``op``, outermost first."""
        return tuple(call.path for call in self.stack(op.call))[::-1]

    def graph(self) -> nx.DiGraph[int]:
        """Operators as a networkx graph; edges carry the value that passes."""
        import networkx as nx

        result: nx.DiGraph[int] = nx.DiGraph()
        for op in self.ops:
            shapes = [self.shapes[value] for value in op.outputs]
            result.add_node(op.index, name=op.name, modules=self.path_stack(op), shapes=shapes)
            for value in op.inputs:
                if self.producer[value] >= 0:
                    result.add_edge(self.producer[value], op.index, value=value)
        return result


_PLAIN = frozenset((int, float, bool, str, type(None), Value, torch.dtype, torch.device))


def _proxy(module: nn.Module) -> Any:
    return weakref.proxy(module)


def _holds(thing: Any) -> bool:
    """Whether what stands among noted arguments may lead to the model, or to a tensor."""
    if type(thing) in _PLAIN or type(thing) is weakref.ProxyType:
        return False
    if isinstance(thing, tuple | list):
        return any(map(_holds, cast("tuple[Any, ...]", thing)))
    if isinstance(thing, dict):
        return any(map(_holds, cast("dict[Any, Any]", thing).values()))
    if isinstance(thing, partial):
        bound = cast("partial[Any]", thing)
        return any(map(_holds, (bound.func, bound.args, bound.keywords)))
    if isinstance(thing, MethodType) or getattr(thing, "__closure__", None):
        return True
    return isinstance(thing, nn.Module) or bool(tensors_inside(thing))
