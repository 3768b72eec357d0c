"""Layers: the repeated modules that hold an attention or a feed-forward, and their indices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from surgery.anatomy.paths import Paths
from surgery.anatomy.site import covers


@dataclass(frozen=True)
class Layers:
    """Paths of the layers with their index and the stack they belong to."""

    index: dict[str, int] = field(default_factory=dict[str, int])
    stack: dict[str, str] = field(default_factory=dict[str, str])

    def holding(self, path: str) -> str | None:
        """The layer that ``path`` is, or lies in."""
        while path:
            if path in self.index:
                return path
            path = path.rpartition(".")[0]
        return None


def find_layers(attention: list[str], mlp: list[str], called: list[str], paths: Paths) -> Layers:
    """Layers from the paths of the two kinds of block, in the order modules were called."""
    both = _ancestors(attention) & _ancestors(mlp)
    sure: set[str] = set()
    likely: set[str] = set()
    for path in (*attention, *mlp):
        layer = _lowest(path, both)
        if layer is not None:
            sure.add(layer)
        elif (numbered := _numbered(path)) is not None:
            likely.add(numbered)
    chosen = sure | {p for p in likely if not any(covers(p, s) or covers(s, p) for s in sure)}
    chosen |= _siblings(chosen, called, paths)
    ordered = [path for path in dict.fromkeys(called) if path in chosen]
    ordered += [path for path in sorted(chosen, key=paths.order) if path not in ordered]
    return _counted(ordered)


def _counted(ordered: list[str]) -> Layers:
    layers = Layers()
    counts: dict[str, int] = {}
    for path in ordered:
        stack = template(path.rpartition(".")[0])
        layers.stack[path] = stack
        layers.index[path] = counts.get(stack, 0)
        counts[stack] = layers.index[path] + 1
    return layers


def template(path: str) -> str:
    """A path with its numbers left open: stages of one encoder are one stack."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def _lowest(path: str, both: set[str]) -> str | None:
    while path:
        path = path.rpartition(".")[0]
        if path in both:
            return path if _is_numbered(path) else None
    return None


def _ancestors(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        while path := path.rpartition(".")[0]:
            found.add(path)
    return found


def _numbered(path: str) -> str | None:
    while path:
        if _is_numbered(path):
            return path
        path = path.rpartition(".")[0]
    return None


def _is_numbered(path: str) -> bool:
    return bool(path) and path[-1].isdigit()


def _siblings(chosen: set[str], called: list[str], paths: Paths) -> set[str]:
    """Layers that hold neither block (a state-space layer among others) are layers all the same."""
    kinds: dict[str, set[type]] = {}
    for path in chosen:
        parent, _, name = path.rpartition(".")
        if name.isdigit():
            kinds.setdefault(parent, set()).add(type(paths.modules[path]))
    found: set[str] = set()
    for path in called:
        parent, _, name = path.rpartition(".")
        if parent in kinds and name.isdigit():
            # In a Sequential, stems and heads stand beside the layers.
            listed = isinstance(paths.modules[parent], nn.ModuleList)
            if listed or type(paths.modules[path]) in kinds[parent]:
                found.add(path)
    return found
