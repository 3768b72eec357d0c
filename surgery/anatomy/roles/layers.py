"""Layers: the modules of which a model is a stack, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from surgery.anatomy.graph import call_of
from surgery.anatomy.roles.flow import Flow

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
    sums = list(sums)
    feeding = _inside(feed_forwards)
    paths = _shared(flow, _inside(attentions), feeding, sums)
    # Jamba, Qwen3-Next: blocks that have no attention stand beside those that do; Mamba has no others.
    others = {path for path in _numbered(flow, sums) if not paths or path in feeding}
    around = _inside(paths)
    paths |= {p for p in others if p not in around and paths.isdisjoint(_above(p))}
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


Inside = Mapping[str, set[str]]
"""Paths by the modules around them, and by themselves."""


def _inside(paths: Iterable[str]) -> Inside:
    found: dict[str, set[str]] = {}
    for path in paths:
        for above in _above(path):
            found.setdefault(above, set()).add(path)
    return found


def _shared(flow: Flow, attending: Inside, feeding: Inside, sums: list[Node]) -> set[str]:
    """The lowest modules that hold both an attention and a feed-forward."""
    found = {path for path in attending if path in feeding and _runs(flow, path)}
    higher = {above for path in found for above in list(_above(path))[1:]}
    lowest = found - higher
    numbered = {path for path in lowest if _NUMBER.search(path)}
    # Beside a stack, what stands alone (a pooling with attention) is no layer.
    within = _inside(lowest)
    added = _inside(flow.recording.calls[call_of(op)].path for op in sums)
    layers = {_outer(path, within, added) for path in numbered or lowest}
    return {part for path in layers for part in _parts(path, attending, feeding)}


def _outer(path: str, lowest: Inside, sums: Inside) -> str:
    """The numbered module right around ``path``, if it holds residual sums beside it."""
    parent = path.rpartition(".")[0]
    if path.rpartition(".")[2].isdigit() or not parent.rpartition(".")[2].isdigit():
        return path
    # Zamba: a layer adds to the stream what the block in it makes.
    alone = len(lowest[parent]) == 1
    return parent if alone and sums.get(parent, set()) - sums.get(path, set()) else path


def _parts(path: str, attentions: Inside, feed_forwards: Inside) -> set[str]:
    """``path`` itself, or what it is a stack of.

    A stage has blocks that attend and blocks that feed forward, in turns: these are its layers. A
    stack with a list of attentions beside a list of feed-forwards has no module for a layer.
    """
    attending = {_item(path, at) for at in attentions[path] if at != path}
    feeding = {_item(path, at) for at in feed_forwards[path] if at != path}
    if "" in attending | feeding:
        return {path}
    lists = {item.rpartition(".")[0] for item in attending | feeding}
    if len(lists) == 1 and not _NUMBER.search(path):
        return attending | feeding
    if len(attending) < 2 or len(feeding) < 2:
        return {path}
    # Nemotron-H: one list, of blocks that attend and blocks that feed forward.
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
