"""From linears to a site: the one module that starts and ends with them, or a region of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch.fx import Node

from surgery.anatomy.graph import Key, ModuleCall, index_of, outputs_of, readers, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.layers import RepeatedLayer
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.site import Port, Region, Site, WholeModule


@dataclass(frozen=True)
class Border:
    """Where hidden states enter something and where they leave it.

    ``ops`` are its first operators, ``last`` the final one; ``first_call`` and ``last_call`` the
    modules that run these alone, if there are such.
    """

    source: Node
    result: Node
    ops: tuple[Node, ...]
    last: Node
    first_call: ModuleCall | None
    last_call: ModuleCall | None
    others: tuple[Node, ...] = ()


class Regions:
    """Makes sites; knows the layers and residuals that they get."""

    def __init__(self, flow: Flow, ports: Ports, layers: dict[str, RepeatedLayer]):
        self.flow = flow
        self.ports = ports
        self.layers = layers

    def site(self, border: Border, role: str) -> Site | None:
        """The site within ``border``: a module if one has just that inside, else a region."""
        call = self.flow.lowest((*border.ops, border.last))
        # Of queries and values that differ (positions are added to one) either will do.
        given = (self.ports.input(call, source) for source in (border.source, *border.others))
        entry = next((port for port in given if port is not None), None)
        exit = self.ports.output(call, border.result)
        if entry is not None and exit is not None:
            return self.module(call, role, entry, exit, border)
        return self.region(border, role)

    def module(
        self,
        call: ModuleCall,
        role: str | None,
        entry: Port,
        exit: Port,
        border: Border | None = None,
    ) -> Site:
        """The site of one module, with its residual, its norm and its layer."""
        module = self.flow.paths.modules.get(call.path)
        paths = self.flow.paths.of(module) if module is not None else (call.path,)
        site = Site(call.path, paths, WholeModule(), role, self.layer(call.path), entry, exit)
        source, result = self._value(call, entry), self._value(call, exit)
        ends = self.flow.ops[call.last] if border is None and call.last >= call.first else None
        return self._joined(site, source, result, border.last if border else ends)

    def region(self, border: Border, role: str) -> Site | None:
        """The modules between the border's first and its last, as one site."""
        first, last = border.first_call, border.last_call
        if first is None or last is None:
            return None
        entry = self.ports.input(first, border.source)
        exit = self.ports.output(last, border.result)
        if entry is None or exit is None:
            return None
        members = self.members(border)
        path = _region_path(members, first.path, last.path)
        site = Site(path, (path,), Region(members), role, self.layer(first.path), entry, exit)
        return self._joined(site, border.source, border.result, border.last)

    def members(self, border: Border) -> tuple[str, ...]:
        """The largest modules that run nothing but what lies between the borders."""
        flow = self.flow
        starts = 0
        for op in border.ops:
            starts |= 1 << index_of(op)
        ends = flow.histories[index_of(border.last)]
        last = border.last_call.last if border.last_call else index_of(border.last)
        inside = {
            index
            for index in range(index_of(border.ops[0]), last + 1)
            if (ends >> index & 1 and flow.histories[index] & starts)
            or (border.last_call and border.last_call.first <= index)
            or (border.first_call and border.first_call.first <= index <= border.first_call.last)
        }
        found: list[ModuleCall] = []
        held: set[int] = set()
        common = flow.lowest((*border.ops, border.last))
        for call in flow.recording.calls[common.number + 1 :]:
            if call.first > last or call.first > common.last:
                break
            if call.parent in held:
                held.add(call.number)
            elif call.first <= call.last and self._within(call, inside):
                held.add(call.number)
                found.append(call)
        return tuple(dict.fromkeys(call.path for call in found))

    def _within(self, call: ModuleCall, inside: set[int]) -> bool:
        """Masks and positions may be computed inside too; nothing but what is read inside may."""
        ops = self.flow.ops
        span = range(call.first, call.last + 1)
        if not any(index in inside for index in span):
            return False
        return all(
            index in inside
            or all(
                index_of(reader) in inside or index_of(reader) in span
                for v in outputs_of(ops[index])
                for reader in readers(v)
            )
            for index in span
        )

    def layer(self, path: str) -> int | None:
        found = self.layer_at(path)
        return found.index if found is not None else None

    def layer_at(self, path: str) -> RepeatedLayer | None:
        """The innermost layer that ``path`` lies in."""
        while path:
            if path in self.layers:
                return self.layers[path]
            path = path.rpartition(".")[0]
        return self.layers.get(path)

    def _value(self, call: ModuleCall, port: Port) -> Node:
        if port.side == "input":
            values: Sequence[tuple[Key, Node]] = call.inputs[port.argument or ""]
        else:
            values = call.outputs
        return next(value for key, value in values if key == port.index)

    def _joined(self, site: Site, source: Node, result: Node, last: Node | None) -> Site:
        item = self.ports.sum_of(result)
        # What is transposed before it is added has no residual of its own shape; rows are states.
        if item is None or last is None or not _alike(shape_of(item.skip), shape_of(result)):
            return site
        residual = self.ports.residual(item, site.entry, source, last)
        norm = self.ports.norm(item)
        if norm is not None and self.layer_at(norm.path) != self.layer_at(site.entry.path):
            norm = None
        return replace(site, residual=residual, norm=norm.path if norm is not None else None)


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, but for leading dims that one of them has as a single one."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) == 2 and short == (prod(long[:-1]), long[-1]))


def _region_path(members: tuple[str, ...], first: str, last: str) -> str:
    """`encoder.layer.0[intermediate.dense..output.dense]`: the common parent, then both ends."""
    parts = [member.split(".") for member in members] or [[first], [last]]
    shared = 0
    shortest = min(len(part) - 1 for part in parts)
    while shared < shortest and len({part[shared] for part in parts}) == 1:
        shared += 1
    parent = ".".join(parts[0][:shared])
    start = len(parent) + 1 if parent else 0
    return f"{parent}[{first[start:]}..{last[start:]}]"
