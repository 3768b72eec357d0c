"""Nodes on the fake tensors that a program holds: added ones become operators of ATen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from surgery.graft.programs.sizes import any_size
from surgery.graft.programs.undoing import run
from surgery.graft.weights.effective_nodes import on_each, on_one_after_another
from surgery.language.diagnostics import SurgeryError, error


class Tracer:
    """Traces nodes on the fake tensors of ``mode``; what does the same on alike values, once.

    The layers of a model are adapted alike, and tracing takes longer than all else.
    """

    def __init__(self, mode: Any):
        self.mode = mode
        self.known: dict[Any, fx.GraphModule] = {}

    def __call__(
        self,
        nodes: list[fx.Node],
        given: Mapping[fx.Node, Any],
        free: list[fx.Node],
        results: list[fx.Node],
        values: list[Any],
    ) -> fx.GraphModule:
        """A graph of operators that gives ``results`` of ``nodes`` for the ``values`` of what is ``free``.

        ``given`` is all that they read: of it, what is not free is known as it is.

        Raises:
            SurgeryError: S441 or S442 if one of them cannot stand in the program.

        """
        key = _content(nodes, given, free, results, values)
        if key not in self.known:
            self.known[key] = _traced(nodes, given, free, results, values, self.mode)
        return self.known[key]


def _content(
    nodes: list[fx.Node],
    given: Mapping[fx.Node, Any],
    free: list[fx.Node],
    results: list[fx.Node],
    values: list[Any],
) -> Any:
    """What ``nodes`` do, whichever they are: functions, what these are given, and sizes."""
    place: dict[fx.Node, Any] = {n: ("known", id(given[n])) for n in given}
    place |= {n: ("free", i) for i, n in enumerate(free)}
    place |= {n: ("made", i) for i, n in enumerate(nodes)}
    done = [
        (n.op, n.target, repr(fx.map_arg((n.args, n.kwargs), place.__getitem__))) for n in nodes
    ]
    return tuple(done), tuple(place[n] for n in results), repr([*map(_facts, values)])


def _facts(value: Any) -> Any:
    """What can be told of a fake tensor, or of a size that is a symbol."""
    if isinstance(value, Tensor):
        sizes = ([*value.shape], [*value.stride()], value.storage_offset())
        return value.dtype, value.device, value.requires_grad, sizes
    return type(value).__name__, str(value)


def _traced(
    nodes: list[fx.Node],
    given: Mapping[fx.Node, Any],
    free: list[fx.Node],
    results: list[fx.Node],
    values: list[Any],
    mode: Any,
) -> fx.GraphModule:
    def function(*arguments: Any) -> list[Any]:
        known: dict[fx.Node, Any] = {**given, **dict(zip(free, arguments, strict=True))}
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = _run(node, args, kwargs)
        return [known[n] for n in results]

    from torch._dispatch.python import enable_python_dispatcher

    try:
        with any_size(mode), enable_python_dispatcher(), mode or nullcontext():
            graph = make_fx(function, pre_dispatch=True)(*values)
    except SurgeryError:
        raise
    except Exception as cause:
        raise error(
            "S442",
            f"what is added behind `{nodes[0].name}` cannot be traced into the program: "
            f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}",
        ) from cause
    graph.graph.eliminate_dead_code()
    return graph


def _run(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = on_one_after_another if node.target is on_each else node.target
    return target(*args, **kwargs)


def value_of(node: fx.Node, root: nn.Module, mode: Any) -> Any:
    """The value of a ``node`` of the base on other fake tensors.

    Raises:
        SurgeryError: S445 if the program has the sizes built in that it had.

    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _known(n, root))
    try:
        with any_size(mode):
            target: Any = node.target
            return run(target, args, kwargs, mode)
    except SurgeryError:
        raise
    except Exception as cause:
        raise error(
            "S445",
            "this program has sizes built in, so no tokens can join its own: "
            f"`{node.name}` takes no longer sequence",
            help="export it with a dynamic length, or apply the spec to the model and export that",
        ) from cause


def _known(node: fx.Node, root: nn.Module) -> Any:
    """The value of ``node`` on fake tensors; a graph within the program is itself."""
    return node.meta["val"] if node.op != "get_attr" else getattr(root, str(node.target))
