"""From linears to a place: the one module that does it all, or the region between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.anatomy.graph import Graph, Linear
from surgery.anatomy.record import Call, Key
from surgery.anatomy.site import Port, Site, region_path
from surgery.anatomy.walk import LIGHT, ahead, back, residual_sum


@dataclass
class Place:
    """What an attention or feed-forward block spans, before it is known by a name.

    ``sum`` is the operator that adds it to the stream, ``stream`` the value it is added to.
    """

    role: str
    first: tuple[Linear, ...]
    last: tuple[Linear, ...]
    entry: int
    exit: int
    sum: int = -1
    stream: int = -1
    within: list[int] = field(default_factory=list[int])

    def join(self, graph: Graph) -> Place:
        """Find the residual sum."""
        joined = residual_sum(graph, self.exit, self.entry)
        if joined is not None:
            self.sum, self.stream = joined
        return self


def serving(graph: Graph, place: Place) -> Call | None:
    """The innermost call whose input is the place's and whose output is its contribution."""
    for number in reversed(place.within):
        call = graph.record.calls[number]
        alone = not place.last and not place.first
        if (alone or not _is_linear(place, call)) and serves(graph, place, call):
            return call
    return None


def _is_linear(place: Place, call: Call) -> bool:
    return any(linear.module == call.path for linear in (*place.first, *place.last))


def serves(graph: Graph, place: Place, call: Call) -> bool:
    """Whether one call takes what the place takes and gives what it gives."""
    return (
        _entering(graph, place, call) is not None
        and _leaving(graph, place, call) is not None
        and not call.first <= _raw(graph, place.sum) <= call.last
    )


def _raw(graph: Graph, index: int) -> int:
    """The record's number of an operator of the graph."""
    return graph.record.producer[graph.ops[index].outputs[0]] if index >= 0 else -1


def _entering(graph: Graph, place: Place, call: Call) -> tuple[str, Key] | None:
    matches = {
        graph.same(value): (name, key)
        for name, values in reversed(call.inputs.items())
        for key, value in values
    }
    origin = graph.same(place.entry)
    if origin in matches:
        return matches[origin]
    for op in back(graph, [place.entry], LIGHT):
        if _raw(graph, op.index) < call.first:
            continue
        for value in op.inputs if graph.kinds[op.index] in LIGHT else ():
            if graph.same(value) in matches and graph.dynamic[value]:
                return matches[graph.same(value)]
    return None


def _leaving(graph: Graph, place: Place, call: Call) -> tuple[Key, int] | None:
    reached = {place.exit}
    for op in ahead(graph, [place.exit], LIGHT):
        if op.index == place.sum or _raw(graph, op.index) > call.last:
            continue
        if graph.kinds[op.index] in LIGHT and any(value in reached for value in op.inputs):
            reached.update(op.outputs)
    for key, value in call.outputs:
        if value in reached:
            return key, value
    return None


def place_site(graph: Graph, place: Place, call: Call | None) -> Site:
    """The site of a place: the module of ``call``, or the region of its linears."""
    residual = stream_port(graph, place)
    if call is not None and not call.virtual:
        entering, leaving = _entering(graph, place, call), _leaving(graph, place, call)
        name, key = entering or (None, None)
        entry = Port(call.path, "input", name, key)
        exit = Port(call.path, "output", None, leaving[0] if leaving else None)
        paths = graph.paths.of(graph.paths.modules[call.path])
        return Site(call.path, paths, "module", place.role, None, entry, exit, residual)
    entry, exit = _region_entry(graph, place), _region_exit(graph, place)
    members = _members(graph, place)
    if call is not None:
        paths = graph.paths.of(graph.paths.modules[call.path])
        return Site(
            call.path, paths, "module", place.role, None, entry, exit, residual, None, members
        )
    first = place.first[0].path if place.first else entry.path
    last = place.last[-1].path if place.last else exit.path
    path = region_path((first, last), first, last)
    return Site(path, (path,), "region", place.role, None, entry, exit, residual, None, members)


def _region_entry(graph: Graph, place: Place) -> Port:
    wanted = graph.same(place.entry)
    for linear in place.first:
        if linear.module is not None and graph.same(linear.input) == wanted:
            return linear_ports(graph, linear)[0]
    return port_of(graph, wanted) or Port("", "input")


def _region_exit(graph: Graph, place: Place) -> Port:
    for linear in place.last:
        if linear.module is not None:
            return linear_ports(graph, linear)[1]
    return port_of(graph, place.exit, outputs_first=True) or Port("", "output")


def linear_ports(graph: Graph, linear: Linear) -> tuple[Port, Port]:
    """Where the input and the output of a linear that is a module pass."""
    call = next(c for c in graph.record.stack(linear.call) if c.path == linear.module)
    wanted = graph.same(linear.input)
    for name, values in call.inputs.items():
        for key, value in values:
            if graph.same(value) == wanted:
                entry = Port(call.path, "input", name, key)
                return entry, Port(call.path, "output", None, linear.key)
    return Port(call.path, "input"), Port(call.path, "output", None, linear.key)


def port_of(graph: Graph, value: int, *, outputs_first: bool = False) -> Port | None:
    """A border of a called module where ``value`` can be seen."""
    wanted = graph.same(value)
    inputs, outputs = graph.borders
    order = (outputs, inputs) if outputs_first else (inputs, outputs)
    for side in order:
        if side.get(wanted):
            return side[wanted][0]
    return None


def stream_port(graph: Graph, place: Place) -> Port | None:
    """Where the stream that a place is added to can be seen: nearest to the place's own input."""
    if place.stream < 0:
        return None
    wanted = graph.same(place.stream)
    if wanted == graph.same(place.entry) and place.first and place.first[0].module:
        return linear_ports(graph, place.first[0])[0]
    inputs, outputs = graph.borders
    feeding = [op for op in back(graph, [place.entry], LIGHT) if graph.kinds[op.index] == "norm"]
    norms = {graph.record.calls[op.call].path for op in feeding}
    seen = inputs.get(wanted, [])
    near = [port for port in seen if port.path in norms]
    return next(iter((*near, *seen, *outputs.get(wanted, []))), None)


def _members(graph: Graph, place: Place) -> tuple[str, ...]:
    """The modules that ran from the first linear to the last, and parameters that are linears."""
    linears = [*place.first, *place.last]
    around = set(place.within)
    numbers = [linear.call for linear in linears] or [0]
    leaves = {call.number for call in graph.leaves}
    found: dict[str, None] = {}
    for number in range(min(numbers), max(numbers) + 1):
        call = graph.record.calls[number]
        if number in leaves and number not in around and not call.virtual:
            found[call.path] = None
    found.update(dict.fromkeys(linear.path for linear in linears if linear.module is None))
    return tuple(found)
