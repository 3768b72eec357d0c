"""The sites of each role, as they are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch.fx import Node

from surgery.anatomy.graph import (
    ModuleCall,
    call_of,
)
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layers import RepeatedLayer
from surgery.anatomy.roles.linears import RecordedLinear
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.roles.regions import Regions
from surgery.anatomy.roles.weights import expert_weights, matrices
from surgery.anatomy.site import ROLES, Port, Region, Site, slice_site
from surgery.layers import Layer
from surgery.rules.rows import Rows


class SitesByRole:
    """The sites found so far; the first of a path is the one that a role has there."""

    def __init__(
        self,
        flow: Flow,
        linears: dict[Node, RecordedLinear],
        ports: Ports,
        layers: dict[str, RepeatedLayer],
    ):
        self.flow = flow
        self.recording = flow.recording
        self.paths = flow.paths
        self.linears = linears
        self.ports = ports
        self.regions = Regions(flow, ports, layers)
        self.found: dict[str, dict[str, Site]] = {role: {} for role in ROLES}

    def in_order(self) -> dict[str, tuple[Site, ...]]:
        """The sites of each role that has any, in model order."""
        return {
            role: tuple(sorted(sites.values(), key=self._order))
            for role, sites in self.found.items()
            if sites
        }

    @cached_property
    def expert_weights(self) -> dict[str, Layer]:
        """The parameters that hold a matrix for each expert, by name."""
        return expert_weights(self.flow, self.linears)

    @cached_property
    def matrices(self) -> dict[str, tuple[Layer, RecordedLinear]]:
        """The parameters that are the weight of a linear map each, by name, with its first use."""
        return matrices(self.flow, self.linears)

    def add_slices(
        self, call: ModuleCall, found: Mapping[str, Rows], packed: str | None = None
    ) -> None:
        """The slices of a layer, which are described as the layer is."""
        for role, rows in found.items():
            site = slice_site(self.described(call, role), rows, role, packed)
            self.add(site, role)

    def add_linear(self, linear: RecordedLinear, role: str) -> None:
        if linear.call is not None:
            self.add_call(linear.call, role)
        elif (owner := self._lent(linear)) is not None:
            self.add_called(owner, role)
        elif linear.weight in self.expert_weights or linear.weight in self.matrices:
            self._weight(linear.weight, role)

    def _lent(self, linear: RecordedLinear) -> str | None:
        """The module without a call whose only weight another multiplies with."""
        owner = linear.weight.rpartition(".")[0]
        around = [call.path for call in self.recording.stack(call_of(linear.op))]
        if owner in around or owner in self.recording.calls_of or owner not in self.paths.modules:
            return None
        held = self.paths.modules[owner]._parameters.values()
        return owner if sum(p is not None and p.dim() > 1 for p in held) == 1 else None

    def _weight(self, name: str, role: str) -> None:
        """A parameter that its module multiplies with."""
        index = self.regions.layer(name)
        self.add(replace(self.paths.parameter(name), role=role, index=index), role)

    def add_called(self, path: str, role: str) -> None:
        calls = self.recording.calls_of.get(path)
        if calls:
            self.add_call(calls[0], role)
        elif path in self.paths.modules:
            site = self.paths.module(path)
            self.add(replace(site, role=role, index=self.regions.layer(path)), role)

    def add_call(self, call: ModuleCall, role: str) -> None:
        if call.path in self.found[role]:
            return
        known = (sites[call.path] for sites in self.found.values() if call.path in sites)
        site = next(known, None) if role == "linear" else None
        self.add(replace(site, role=role) if site else self.described(call, role), role)

    def described(self, call: ModuleCall, role: str | None) -> Site:
        """The site of a module that was called, as far as it can be told."""
        entry, exit = self.ports.main_input(call), self.ports.main_output(call)
        if entry is not None and exit is not None:
            return self.regions.module(call, role, entry, exit)
        plain = self.paths.module(call.path)
        return replace(
            plain,
            role=role,
            index=self.regions.layer(call.path),
            entry=entry or _first(call) or plain.entry,
            exit=exit or plain.exit,
        )

    def add(self, site: Site, role: str) -> None:
        self.found[role].setdefault(site.path, site)

    def _order(self, site: Site) -> tuple[int, str]:
        first = site.operator.members[0] if isinstance(site.operator, Region) else site.path
        return self.paths.order(first)


def _first(call: ModuleCall) -> Port | None:
    """The first argument of any kind: the ids an embedding is given."""
    for name, values in call.inputs.items():
        for key, _ in values:
            return Port(call.path, "input", name, key)
    return None
