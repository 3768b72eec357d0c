"""What is known of a model once it has been run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from surgery.anatomy.graph import Graph
from surgery.anatomy.layers import Layers
from surgery.anatomy.layout import Layout, layout_of
from surgery.anatomy.outer import main_input, main_output, module_ports
from surgery.anatomy.paths import Paths
from surgery.anatomy.record import Call, Key, Record
from surgery.anatomy.roles import Reader
from surgery.anatomy.run import record, uncollected
from surgery.anatomy.site import Site


@dataclass(frozen=True)
class CallFacts:
    """How one module was called, for the first time if it was called often.

    ``argument`` and ``index`` say which parameter carries the hidden states in and where in the
    output they are; ``layout`` which axis of that output counts features: the "last", or the
    "first" after the batch, as in feature maps.
    """

    path: str
    times: int
    inputs: dict[str, tuple[int, ...]]
    argument: str | None
    index: Key
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    layout: Layout


class Anatomy:
    """The recorded forward of a model, and the roles its modules were seen to play."""

    def __init__(self, paths: Paths, graph: Graph, places: dict[str, tuple[Site, ...]], layers: Layers):
        self.record: Record = graph.record
        self.places = places
        self.layers = layers
        self.paths = paths
        self._graph = graph

    def layer_of(self, path: str) -> int | None:
        """The index of the layer that a module or parameter lies in."""
        layer = self.layers.holding(self.paths.canonical(path))
        return None if layer is None else self.layers.index[layer]

    def stack_of(self, site: Site) -> str | None:
        """The stack of layers (encoder, decoder) that a site lies in."""
        layer = self.layers.holding(site.spans[0])
        return None if layer is None else self.layers.stack[layer]

    def call(self, path: str) -> CallFacts | None:
        """How the module at ``path`` was called; None if it was not."""
        calls = self.record.calls_of.get(self.paths.canonical(path))
        return None if not calls else self._facts(calls)

    def roles_of(self, path: str) -> tuple[str, ...]:
        """The roles of a module, region or parameter."""
        return self._roles.get(self.paths.canonical(path), ())

    def site_for_module(self, path: str) -> Site:
        """The site of any module, with what was seen of its ports and its layer."""
        canonical = self.paths.canonical(path)
        entry, exit = module_ports(self._graph, canonical)
        paths = self.paths.of(self.paths.modules[canonical])
        return Site(
            canonical, paths, "module", None, self.layer_of(canonical), entry, exit
        )

    @cached_property
    def _roles(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for role, sites in self.places.items():
            for site in sites:
                for path in site.paths:
                    found.setdefault(path, []).append(role)
        return {path: tuple(roles) for path, roles in found.items()}

    def _facts(self, calls: list[Call]) -> CallFacts:
        shapes = self.record.shapes
        first = calls[0]
        entering, leaving = main_input(self._graph, first), main_output(self._graph, first)
        inputs = {name: shapes[values[0][1]] for name, values in first.inputs.items()}
        return CallFacts(
            path=first.path,
            times=len(calls),
            inputs=inputs,
            argument=entering[0] if entering and not first.virtual else None,
            index=leaving[0] if leaving else None,
            input_shape=shapes[entering[2]] if entering else None,
            output_shape=shapes[leaving[1]] if leaving else None,
            dtype=self.record.dtypes[leaving[1]] if leaving else None,
            layout=layout_of(self._graph, leaving[1]) if leaving else "last",
        )


def read(model: nn.Module, example_inputs: Any = None) -> Anatomy:
    """Run ``model`` once, leaving it as it was, and tell its parts by what they do."""
    paths = Paths(model)
    with uncollected():
        graph = Graph(record(model, example_inputs, paths), paths)
        roles = Reader(graph).read()
    return Anatomy(paths, graph, roles.places, roles.layers)


__all__ = ["Anatomy", "CallFacts", "read"]
