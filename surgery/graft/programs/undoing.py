"""What an adapted program keeps of its base graph, as data in the meta of nodes, and the way back.

Nodes that were added say so; those of the base that read others now keep their own arguments; those
that nothing reads any more are written down whole. All of it is JSON under `custom`, which
`torch.export.save` writes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from surgery.language.diagnostics import SurgeryError, error

KEY = "surgery"
"""The entry of `custom`, in the meta of nodes and of the graph."""
CUSTOM = "custom"
_STACK = "nn_module_stack"


def mark(node: fx.Node, **facts: Any) -> None:
    """Note on ``node`` what is to be known of it when the base is wanted."""
    node.meta[CUSTOM] = {**(node.meta.get(CUSTOM) or {}), KEY: facts}


def marked(node: fx.Node) -> Mapping[str, Any]:
    """What was noted on ``node``."""
    custom: dict[str, Any] = node.meta.get(CUSTOM) or {}
    return custom.get(KEY) or {}


def reading(node: fx.Node) -> dict[str, Any]:
    """What ``node`` reads, as data, with its name."""
    return {"name": node.name, "args": _plain(node.args), "kwargs": _plain(node.kwargs)}


def written(node: fx.Node, after: str | None) -> dict[str, Any]:
    """All of ``node``, a function of the base, which stands ``after`` another, as data."""
    stack: dict[str, tuple[str, str]] = node.meta.get(_STACK) or {}
    return {
        "after": after,
        "target": _name_of(node.target),
        **reading(node),
        "stack": {k: list(v) for k, v in stack.items()},
    }


def noted(base: fx.Graph, copied: Container[str]) -> dict[str, Any]:
    """What is to be known of ``base``: its nodes that were not ``copied``, and what it returned."""
    gone: list[dict[str, Any]] = []
    before: str | None = None
    for node in base.nodes:
        if node.op == "call_function" and node.name not in copied:
            gone.append(written(node, before))
        before = node.name
    return {"gone": gone, "output": reading(base.output_node())}


def undo(graph: fx.Graph, record: Mapping[str, Any]) -> None:
    """Make the graph of an adapted program that of its base again.

    ``record`` has the nodes that are ``gone``, the names of the ``inputs`` that it has got, and what its
    ``output`` was.

    Raises:
        SurgeryError: S443 if the graph is no longer as it was made.

    """
    try:
        named = {_name(node): node for node in graph.nodes}
        for facts in record["gone"]:
            named[facts["name"]] = _again(graph, facts, named)
        for node in list(graph.nodes):
            facts = marked(node)
            # A file gives the note of a node to the parts of its result, too, and to graphs it runs.
            if facts.get("name") == node.name:
                node.args = _made(facts["args"], named)
                node.kwargs = _made(facts["kwargs"], named)
        graph.output_node().args = _made(record["output"]["args"], named)
        fresh = {named[name] for name in record["inputs"]}
        for node in reversed(list(graph.nodes)):
            if node in fresh or marked(node).get("added"):
                graph.erase_node(node)
            elif marked(node):
                unmark(node)
        for facts in record["gone"]:
            _propagate(named[facts["name"]])
    except (KeyError, AttributeError, RuntimeError, TypeError) as cause:
        raise changed_since(f"its graph lacks {cause}") from cause


def changed_since(how: str) -> SurgeryError:
    """The error for a program that was made another after it was adapted."""
    return error(
        "S443",
        f"this program was changed after it was adapted: {how}",
        help="decompose, or transform, a program whose adaptation is merged, or that is not to be undone",
    )


def _again(graph: fx.Graph, facts: Mapping[str, Any], named: Mapping[str, fx.Node]) -> fx.Node:
    before = named[facts["after"]]
    with graph.inserting_after(before):
        node = graph.create_node(
            "call_function",
            _target(facts["target"]),
            _made(facts["args"], named),
            _made(facts["kwargs"], named),
            name=facts["name"],
        )
    if node.name != facts["name"]:
        raise KeyError(facts["name"])
    node.meta[_STACK] = {k: tuple(v) for k, v in facts["stack"].items()}
    return node


def _propagate(node: fx.Node) -> None:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    target: Any = node.target
    node.meta["val"] = run(target, args, kwargs)


def run(target: Callable[..., Any], args: Any, kwargs: Any, mode: Any = None) -> Any:
    """What a function of a program gives for fake tensors, and sizes that are symbols."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._guards import detect_fake_mode

    if target is torch.ops.aten.sym_size.int:
        return args[0].shape[args[1]]  # called, the operator would fix the size
    mode = mode or detect_fake_mode(pytree.tree_leaves((args, kwargs)))
    if mode is None:
        return target(*args, **kwargs)
    with mode, enable_python_dispatcher():
        return target(*args, **kwargs)


def unmark(node: fx.Node) -> None:
    """Take away what was noted on ``node``."""
    left = {k: v for k, v in node.meta[CUSTOM].items() if k != KEY}
    node.meta[CUSTOM] = left
    if not left:
        del node.meta[CUSTOM]


def _name(node: fx.Node) -> str:
    """What ``node`` is known by, also in a file, which keeps no names of graphs within the graph."""
    return f"self.{node.target}" if node.op == "get_attr" else node.name


def _plain(thing: Any) -> Any:
    """Arguments as JSON: what JSON lacks is a dict with one key that says what it is."""
    if isinstance(thing, fx.Node):
        return {"node": _name(thing)}
    if isinstance(thing, Mapping):
        mapping = cast("Mapping[str, Any]", thing)
        return {"dict": {key: _plain(value) for key, value in mapping.items()}}
    if isinstance(thing, tuple | list):
        kind = "tuple" if isinstance(thing, tuple) else "list"
        return {kind: [_plain(item) for item in cast("list[Any]", thing)]}
    if isinstance(thing, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(thing).removeprefix("torch.")}
    if isinstance(thing, torch.device):
        return {"device": str(thing)}
    if isinstance(thing, slice):
        cut = cast("Any", thing)
        return {"slice": [_plain(x) for x in (cut.start, cut.stop, cut.step)]}
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise TypeError(f"{type(thing).__name__} among the arguments of an operator")


def _made(data: Any, named: Mapping[str, fx.Node]) -> Any:
    if not isinstance(data, dict):
        return data
    ((kind, value),) = cast("dict[str, Any]", data).items()
    if kind == "node":
        return named[value]
    if kind == "dict":
        return {key: _made(item, named) for key, item in value.items()}
    if kind == "torch":
        return getattr(torch, value)
    if kind == "device":
        return torch.device(value)
    items = [_made(item, named) for item in value]
    return slice(*items) if kind == "slice" else tuple(items) if kind == "tuple" else items


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if getattr(operator, target.__name__, None) is target:
        return f"operator.{target.__name__}"
    if target.__name__ in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not"):
        return f"torch.{target.__name__}"
    raise TypeError(f"the function {target}")


def _target(name: str) -> Any:
    first, *rest = name.split(".")
    found: Any = {"torch": torch, "operator": operator}[first]
    for part in rest:
        found = getattr(found, part)
    return found
