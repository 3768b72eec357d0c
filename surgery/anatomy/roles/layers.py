"""Layers: the modules of which a model is a stack, and their numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.record import Call, Op


@dataclass(frozen=True)
class Layer:
    """One layer, the path that it shares with the others of its stack, and its number there."""

    path: str
    stack: str
    index: int


def find_layers(
    flow: Flow, attentions: Iterable[Op], feed_forwards: Iterable[Op], sums: Iterable[Op]
) -> dict[str, Layer]:
    """The layers of a record by path."""
    sums = list(sums)
    calls = _shared(flow, sorted(op.index for op in attentions), feed_forwards)
    if not calls:
        calls = _numbered(flow, sums)
    paths = {call.path for call in calls if call.path}
    paths |= _siblings(flow, paths, sums)
    modules = flow.paths.rank
    counts: dict[str, int] = {}
    found: dict[str, Layer] = {}
    for path in sorted(paths, key=lambda path: modules.get(path, 0)):
        stack, _, name = path.rpartition(".")
        number = counts.get(stack, 0)
        counts[stack] = number + 1
        found[path] = Layer(path, stack, int(name) if name.isdigit() else number)
    return found


def _shared(flow: Flow, attentions: list[int], feed_forwards: Iterable[Op]) -> list[Call]:
    """The lowest calls that hold both an attention and a feed-forward."""
    found: dict[int, Call] = {}
    for op in feed_forwards:
        for call in flow.record.stack(op.call):
            at = bisect_left(attentions, call.first)
            if at < len(attentions) and attentions[at] <= call.last:
                found[call.number] = call
                break
    above = {outer.number for call in found.values() for outer in flow.record.stack(call.parent)}
    return [call for number, call in found.items() if number not in above]


def _numbered(flow: Flow, sums: list[Op]) -> list[Call]:
    """Without attention: the numbered modules that have a residual of their own."""
    found: dict[int, Call] = {}
    for op in sums:
        for call in flow.record.stack(op.call):
            if call.path.rpartition(".")[2].isdigit():
                found[call.number] = call
                break
    return list(found.values())


def _siblings(flow: Flow, paths: set[str], sums: list[Op]) -> set[str]:
    """The other modules of the same lists that are of the same class or have a residual."""
    lists = {path.rpartition(".")[0] for path in paths if path.rpartition(".")[2].isdigit()}
    modules = flow.paths.modules
    kinds = {(path.rpartition(".")[0], type(modules[path])) for path in paths if path in modules}
    residual = {call.path for op in sums for call in flow.record.stack(op.call)}
    found: set[str] = set()
    for path in flow.record.calls_of:
        parent, _, name = path.rpartition(".")
        if parent in lists and name.isdigit() and path in modules:
            if (parent, type(modules[path])) in kinds or path in residual:
                found.add(path)
    return found
