"""Where a value can be seen from outside: as an argument or a result of a module that is called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch.fx import Node

from surgery.anatomy.graph import ModuleCall, index_of, outputs_of, readers
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.residual import Sum, branch_ends, unscaled
from surgery.anatomy.site import Port


class Ports:
    """Finds ports for values, and the residual and the norm of a place."""

    def __init__(self, flow: Flow, sums: list[Sum]):
        self.flow = flow
        self.sums = sums

    def input(self, call: ModuleCall, value: Node) -> Port | None:
        """The argument through which ``call`` gets ``value``, up to its shape."""
        wanted = self.flow.same(value)
        for name, values in call.inputs.items():
            for key, given in values:
                if self.flow.same(given) == wanted:
                    return Port(call.path, "input", name, key)
        return None

    def output(self, call: ModuleCall, value: Node) -> Port | None:
        """The result in which ``call`` hands out ``value``, up to its shape."""
        wanted = self.flow.same(value)
        for key, made in call.outputs:
            if self.flow.same(made) == wanted:
                return Port(call.path, "output", None, key)
        return None

    def main_input(self, call: ModuleCall) -> Port | None:
        """The argument with the hidden states."""
        value = self.flow.main_input(call)
        return None if value is None else self.input(call, value)

    def main_output(self, call: ModuleCall) -> Port | None:
        """The result with the hidden states."""
        value = self.flow.main_output(call)
        return None if value is None else self.output(call, value)

    @cached_property
    def joins(self) -> Mapping[Node, Sum]:
        """The residual sum that each value joins: as it is but for its scale, else normed before."""
        found: dict[Node, Sum] = {}
        whole = {item.result for item in self.sums}
        ends = [
            (list(branch_ends(self.flow, value, whole)), item)
            for item in self.sums
            for value in item.partial
        ]
        for (nearest, *_), item in ends:
            found.setdefault(nearest, item)
        for (_, *rest), item in ends:
            for end in rest:
                found.setdefault(end, item)
        return found

    @cached_property
    def ends(self) -> set[Node]:
        """What the branches of residual sums end with: before norms, and apart where they join."""
        whole = {item.result for item in self.sums}
        branches = [branch for item in self.sums for branch in item.partial]
        return {end for branch in branches for end in branch_ends(self.flow, branch, whole)}

    def sum_of(self, value: Node) -> Sum | None:
        """The residual sum that ``value`` joins."""
        return self.joins.get(unscaled(self.flow, value))

    def residual(self, item: Sum, entry: Port, source: Node, exit: Node) -> Port | None:
        """Where the other summand can be seen before the operator ``exit`` has run.

        At the place's own input if it is that; else at the norm before the place; else at the
        latest call that gets or returns it.
        """
        seen = self._at.get(item.skip, [])
        if source == item.skip:
            return entry
        if seen and not seen[0][0].virtual:
            seen = [(call, port) for call, port in seen if not call.virtual]
        norm = self.flow.norms.get(self.flow.same(source))
        for call, port in seen:
            if norm is not None and call.number == norm.number and port.side == "input":
                return port
        before = [
            (call, port)
            for call, port in seen
            if (call.first if port.side == "input" else call.last + 1) <= index_of(exit)
        ]
        given = [(call, port) for call, port in before if port.side == "input"]
        latest = max(given or before, key=lambda found: found[0].number, default=None)
        return latest[1] if latest else None

    @cached_property
    def _at(self) -> dict[Node, list[tuple[ModuleCall, Port]]]:
        skips = {item.skip for item in self.sums}
        found: dict[Node, list[tuple[ModuleCall, Port]]] = {}
        # A port of a module that is called is surer than the border of one that was flattened.
        for call in sorted(self.flow.recording.calls, key=lambda call: call.virtual):
            for name, values in call.inputs.items():
                for key, value in values:
                    if value in skips:
                        port = Port(call.path, "input", name, key)
                        found.setdefault(value, []).append((call, port))
            for key, value in call.outputs:
                if value in skips:
                    port = Port(call.path, "output", None, key)
                    found.setdefault(value, []).append((call, port))
        return found

    def norm(self, item: Sum) -> ModuleCall | None:
        """The norm that is applied to the sum and is all that reads it."""
        flow, value = self.flow, item.result
        while True:
            reading = readers(value)
            calls = [c for c in self._norms.get(value, ()) if _all_in(c, reading)]
            if calls:
                return calls[0]
            if len(reading) != 1 or not outputs_of(reading[0]):
                return None
            result = outputs_of(reading[0])[0]
            if flow.same(result) != flow.same(value):
                return None
            value = result

    @cached_property
    def _norms(self) -> dict[Node, list[ModuleCall]]:
        found: dict[Node, list[ModuleCall]] = {}
        for call in self.flow.norms.values():
            value = self.flow.main_input(call)
            if value is not None:
                found.setdefault(value, []).append(call)
        return found


def _all_in(call: ModuleCall, ops: list[Node]) -> bool:
    return all(call.first <= index_of(op) <= call.last for op in ops)
