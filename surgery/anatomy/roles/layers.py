"""Layers: the modules of which a model is a stack, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from surgery.anatomy.graph import call_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.site import covers

_NUMBER = re.compile(r"\d+(?=\.|$)|(?<=[A-Za-z_])\d+(?=\.)")


@dataclass(frozen=True)
class RepeatedLayer:
    """One layer, the path that it shares with the others of its stack, and its number there."""

    path: str
    stack: str
    index: int


def find_layers(
    flow: Flow, attentions: Iterable[str], feed_forwards: Iterable[str], sums: Iterable[Node]
) -> dict[str, RepeatedLayer]:
    """The layers of a record by path, given the paths of what ends attentions and feed-forwards."""
    sums, feed_forwards = list(sums), list(feed_forwards)
    paths = _shared(flow, set(attentions), feed_forwards, sums)
    # Blocks that have no attention stand beside those that do, or make up the model.
    others = {
        path
        for path in _numbered(flow, sums)
        if not paths or any(covers(path, at) for at in feed_forwards)
    }
    paths |= {p for p in others if not any(covers(p, q) or covers(q, p) for q in paths)}
    paths |= _siblings(flow, paths, sums)
    modules = flow.paths.rank
    counts: dict[str, int] = {}
    found: dict[str, RepeatedLayer] = {}
    for path in sorted(paths, key=lambda path: modules.get(path, 0)):
        # The blocks of all stages are one stack, counted through.
        stack = _NUMBER.sub("*", path)
        number = counts.get(stack, 0)
        counts[stack] = number + 1
        written = _NUMBER.findall(path)
        found[path] = RepeatedLayer(path, stack, int(written[0]) if len(written) == 1 else number)
    return found


def _shared(
    flow: Flow, attentions: set[str], feed_forwards: list[str], sums: list[Node]
) -> set[str]:
    """The lowest modules that hold both an attention and a feed-forward."""
    attended: set[str] = set()
    for path in attentions:
        attended.update(p for p in _above(path) if _runs(flow, p))
    found = {next((p for p in _above(path) if p in attended), "") for path in feed_forwards}
    higher = {above for path in found for above in list(_above(path))[1:]}
    lowest = {path for path in found if path and path not in higher}
    numbered = {path for path in lowest if _NUMBER.search(path)}
    # Beside a stack, what stands alone (a pooling with attention) is no layer.
    layers = {_outer(flow, path, lowest, sums) for path in numbered or lowest}
    return {part for path in layers for part in _parts(path, attentions, feed_forwards)}


def _outer(flow: Flow, path: str, lowest: set[str], sums: list[Node]) -> str:
    """The numbered module right around ``path``, if it holds residual sums beside it."""
    parent = path.rpartition(".")[0]
    if path.rpartition(".")[2].isdigit() or not parent.rpartition(".")[2].isdigit():
        return path
    if any(covers(parent, other) and other != path for other in lowest):
        return path
    at = [flow.recording.calls[call_of(op)].path for op in sums]
    return parent if any(covers(parent, a) and not covers(path, a) for a in at) else path


def _parts(path: str, attentions: set[str], feed_forwards: Iterable[str]) -> set[str]:
    """``path`` itself, or what it is a stack of.

    A stage has blocks that attend and blocks that feed forward, in turns: these are its layers. A
    stack with a list of attentions beside a list of feed-forwards has no module for a layer.
    """
    attending = {_item(path, at) for at in attentions if at.startswith(path + ".")}
    feeding = {_item(path, at) for at in feed_forwards if at.startswith(path + ".")}
    if "" in attending | feeding:
        return {path}
    lists = {item.rpartition(".")[0] for item in attending | feeding}
    if len(lists) == 1 and not _NUMBER.search(path):
        return attending | feeding
    if len(attending) < 2 or len(feeding) < 2:
        return {path}
    if len(lists) == 1:
        return attending | feeding
    return {path} if path.rpartition(".")[2].isdigit() else set()


def _item(path: str, at: str) -> str:
    """The numbered module directly within ``path`` that ``at`` lies in, one list down at most."""
    rest = at[len(path) + 1 :].split(".")
    for depth in (1, 2):
        if len(rest) >= depth and rest[depth - 1].isdigit():
            return ".".join([path, *rest[:depth]])
    return ""


def _runs(flow: Flow, path: str) -> bool:
    """Whether the module has a forward of its own: a list of modules has none."""
    module = flow.paths.modules.get(path)
    own = module is not None and type(module).forward is not nn.Module.forward
    return own or path in flow.recording.calls_of


def _above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _numbered(flow: Flow, sums: list[Node]) -> set[str]:
    """Without attention: the numbered modules that have a residual of their own."""
    found: set[str] = set()
    for op in sums:
        for call in flow.recording.stack(call_of(op)):
            if call.path.rpartition(".")[2].isdigit():
                found.add(call.path)
                break
    return found


def _siblings(flow: Flow, paths: set[str], sums: list[Node]) -> set[str]:
    """The other modules of the same lists that are of the same class or have a residual."""
    lists = {path.rpartition(".")[0] for path in paths if path.rpartition(".")[2].isdigit()}
    modules, calls = flow.paths.modules, flow.recording.calls_of
    # Of a flattened module only its call tells the class.
    kinds = {(path.rpartition(".")[0], calls[path][0].kind) for path in paths if path in calls}
    residual = {call.path for op in sums for call in flow.recording.stack(call_of(op))}
    found: set[str] = set()
    for path in calls:
        parent, _, name = path.rpartition(".")
        if parent not in lists or not name.isdigit() or path not in modules:
            continue
        kind = calls[path][0].kind
        if (kind and (parent, kind) in kinds) or path in residual:
            found.add(path)
    return found
