"""What one forward of a model did: operators, the values between them, and the modules called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.fx import Node

from surgery.anatomy import graph
from surgery.anatomy.graph import Recording

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
    None where some have gradients of their own.
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


def numbered(recording: Recording) -> Record:
    """A recording with numbers for its values and operators, as roles read it."""
    values = recording.values
    number = {value: i for i, value in enumerate(values)}

    def noted(thing: Any) -> Any:
        if isinstance(thing, Node):
            return Value(number[thing])
        if isinstance(thing, (tuple, list)):
            return tuple(noted(x) for x in thing)
        if isinstance(thing, dict):
            return {k: noted(v) for k, v in thing.items()}
        return thing

    ops = []
    for op in recording.ops:
        function = graph.function_of(op)
        befores = [
            b
            for v in graph.outputs_of(op)
            if (b := graph.before_of(v)) is not None and b not in graph.inputs_of(op)
        ]
        inputs = (*graph.inputs_of(op), *befores)
        args = noted(op.args) if function else (noted(op.args[0]),)
        ops.append(
            Op(
                graph.index_of(op),
                graph.name_of(op),
                args,
                noted(op.kwargs),
                tuple(number[v] for v in inputs),
                tuple(number[v] for v in graph.outputs_of(op)),
                graph.call_of(op),
                function,
            )
        )

    def keyed(items: Any) -> Any:
        return [(k, number[v]) for k, v in items]

    calls = [
        Call(
            c.number,
            c.path,
            c.parent,
            {n: keyed(v) for n, v in c.inputs.items()},
            c.first,
            keyed(c.outputs),
            c.last,
            c.virtual,
            c.kind,
        )
        for c in recording.calls
    ]
    return Record(
        ops,
        calls,
        [graph.shape_of(v) for v in values],
        [graph.dtype_of(v) for v in values],
        [-1 if (m := graph.maker_of(v)) is None else graph.index_of(m) for v in values],
        {number[v]: n for v, n in recording.parameters.items()},
        {number[v]: n for v, n in recording.buffers.items()},
        recording.how,
        {number[v]: c for v in values if (c := graph.count_of(v)) is not None},
        {number[v]: t for v, t in recording.indices.items()},
        [graph.strides_of(v) for v in values],
        [graph.storage_of(v) for v in values],
        {number[v] for v in recording.kept},
        recording.accesses,
        recording.direct,
        recording.followed,
        {number[v] for v in recording.strangers},
        None if recording.blind is None else {graph.index_of(op) for op in recording.blind},
    )
