"""One forward of a model as an `fx.Graph`, and the modules that ran its nodes.

Every tensor is a node: a `placeholder` for what the model was given, a `get_attr` for what it owns
or was there before, a `call_function` for what an operator made. An operator with several results
has an `item` node for each; what a tensor is once other code has written to its memory is an
`after` node. So the graph runs again under an `fx.Interpreter`, and walks see what depends on what.

Nodes tell of themselves in ``meta``, read by the functions here: a value's shape, dtype, strides,
memory and, where it is one whole number, count; an operator's name, number, call, inputs and outputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from surgery.anatomy.tensors import tensors_inside

Key = int | str | None
"""Where a tensor stands in an output: an index, a key, or None for the output itself."""


# values


def shape_of(value: Node) -> tuple[int, ...]:
    return value.meta["shape"]


def dtype_of(value: Node) -> torch.dtype:
    return value.meta["dtype"]


def strides_of(value: Node) -> tuple[int, ...]:
    """() where the memory of ``value`` has another layout."""
    return value.meta["strides"]


def storage_of(value: Node) -> int:
    """What tells the memory of ``value`` from others; -1 where it cannot be told."""
    return value.meta["storage"]


def count_of(value: Node) -> int | None:
    """The one whole number that ``value`` was, where that could be read."""
    return value.meta.get("count")


def maker_of(value: Node) -> Node | None:
    """The operator that made ``value``, or wrote to it; None for what was there before."""
    return value.meta["maker"]


def before_of(value: Node) -> Node | None:
    """What ``value`` was before others wrote to its memory, if it is what they made of it."""
    return value.args[0] if value.target is after else None  # pyright: ignore[reportReturnType]


# operators


def kind_of(op: Node) -> str:
    """What an operator does: one name for a function, its method and its in-place form."""
    return op.meta["kind"]


def name_of(op: Node) -> str:
    """The name of the function that ran."""
    return op.meta["name"]


def index_of(op: Node) -> int:
    """The number of an operator, in the order in which they ran."""
    return op.meta["index"]


def call_of(op: Node) -> int:
    """The number of the innermost module call that ran an operator."""
    return op.meta["call"]


def inputs_of(op: Node) -> tuple[Node, ...]:
    """The values among an operator's arguments, in their order, each as often as it is there."""
    return op.meta["inputs"]


def outputs_of(op: Node) -> list[Node]:
    """The values that an operator made, then those that it has written to."""
    return op.meta["outputs"]


def function_of(op: Node) -> Callable[..., Any] | None:
    """What ran, or None where it was not seen, inside a custom autograd function."""
    return None if op.target is hidden else op.target  # pyright: ignore[reportReturnType]


def append(graph: fx.Graph, target: Callable[..., Any], args: Any, kwargs: Any, name: str) -> Node:
    """A node at the end of ``graph`` that calls ``target``; ``name`` is no other's.

    `Graph.create_node` looks for symbolic sizes in all arguments, and for a free name: that takes as
    long as all else that is done to record an operator.
    """
    node = Node(graph, name, "call_function", target, args, kwargs)
    graph._insert(node)  # pyright: ignore[reportPrivateUsage]
    graph._find_nodes_lookup_table.insert(node)  # pyright: ignore[reportPrivateUsage]
    graph._len += 1  # pyright: ignore[reportPrivateUsage]
    return node


def argument_of(op: Node, at: int, name: str, default: Any = None) -> Any:
    """What an operator was given at the place ``at``, or as ``name``."""
    return op.args[at] if len(op.args) > at else op.kwargs.get(name, default)


def after(value: Any, written: Any) -> Any:
    """``value``, once ``written`` has been: the same tensor, with what others wrote to it."""
    return value


def item(results: Any, key: Any) -> Any:
    """One of several results."""
    return results[key]


def hidden(base: Any, made: Any) -> Any:
    """What was made of the memory of ``base`` where no function was seen."""
    return made


@dataclass(slots=True)
class ModuleCall:
    """One run of a module: what went in under which parameter name, and what came out.

    ``first`` and ``last`` are the numbers of the operators that it ran. A ``virtual`` call is one
    that a traced graph has flattened: its module can't be hooked. ``kind`` is the full name of the
    module's class, or of what that was; None if nothing tells.
    """

    number: int
    path: str
    parent: int
    inputs: dict[str, list[tuple[Key, Node]]]
    first: int
    outputs: list[tuple[Key, Node]] = field(default_factory=list[tuple[Key, Node]])
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
class Recording:
    """The graph of one forward, its operators ``ops`` and its module ``calls``, as they ran.

    ``parameters`` and ``buffers`` name the values that are the model's own, and ``constants`` has
    other tensors that were there before, by the targets of their nodes. ``indices`` are the integers among both. ``kept`` are the values that leave the forward: returned, left somewhere for later, or
    read by Python on the way. ``accesses`` are the parameters that were taken from their modules by
    name; ``direct`` are the modules whose forward was called by its name, which is no call here. What
    ran where it could not be ``followed`` is missing, and of ``strangers`` it is not known where they
    come from. ``blind`` are the operators that the model ran without gradients; None where some have
    gradients of their own. ``numbers`` are the values of which Python was shown what they are. It ran
    on ``how``: real or fake tensors.
    """

    graph: fx.Graph
    ops: list[Node]
    calls: list[ModuleCall]
    parameters: dict[Node, str]
    buffers: dict[Node, str]
    how: str
    constants: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    indices: dict[Node, torch.Tensor] = field(default_factory=dict[Node, torch.Tensor])
    kept: set[Node] = field(default_factory=set[Node])
    accesses: list[Access] = field(default_factory=list[Access])
    direct: frozenset[str] = frozenset()
    followed: bool = True
    strangers: set[Node] = field(default_factory=set[Node])
    blind: set[Node] | None = None
    numbers: set[Node] = field(default_factory=set[Node])

    def release(self) -> bool:
        """Let go of the model's modules; whether nothing of it, and no tensor, is held now."""
        for op in self.ops:
            if name_of(op) == "attention_interface":
                # Which module asks for an attention is among its arguments.
                known: Any = [weakref.proxy(a) if isinstance(a, nn.Module) else a for a in op.args]
                op.args = tuple(known)
        # What was there before is cloned, but for tensors of classes of their own.
        copied = all(type(t) in (torch.Tensor, FakeTensor) for t in self.constants.values())
        return copied and not any(map(_holds, ((op.args, op.kwargs) for op in self.ops)))

    @cached_property
    def values(self) -> list[Node]:
        """The tensors in the order in which they were met."""
        return [node for node in self.graph.nodes if "shape" in node.meta]

    @cached_property
    def calls_of(self) -> dict[str, list[ModuleCall]]:
        """The calls of each module path."""
        found: dict[str, list[ModuleCall]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    @cached_property
    def arguments(self) -> set[Node]:
        """The values the model was given."""
        root = self.calls[0]
        return {value for values in root.inputs.values() for _, value in values}

    def stack(self, call: int) -> Iterator[ModuleCall]:
        """``call`` and the calls around it, innermost first."""
        while call >= 0:
            yield self.calls[call]
            call = self.calls[call].parent

    def path_stack(self, op: Node) -> tuple[str, ...]:
        """The modules that ran ``op``, outermost first."""
        return tuple(call.path for call in self.stack(call_of(op)))[::-1]


def readers(value: Node) -> list[Node]:
    """The operators that take ``value``, or write to its memory, once the recording is finished."""
    known: list[Node] | None = value.meta.get("readers")
    if known is None:
        own = maker_of(value)
        found: dict[Node, None] = {}
        for user in value.users:
            op: Node | None = user.meta.get("maker")
            if op is not None and op is not own:
                found[op] = None
        known = value.meta["readers"] = list(found)
    return known


_PLAIN = frozenset((int, float, bool, str, type(None), Node, torch.dtype, torch.device))


def _holds(thing: Any) -> bool:
    """Whether what is among noted arguments may lead to the model, or to a tensor."""
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
