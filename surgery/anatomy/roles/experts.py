"""Mixtures of experts: who routes, and what is routed to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgery.anatomy.record import Call, Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear
from surgery.anatomy.roles.operators import PASSIVE, POINTWISE
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.roles.residual import Sum
from surgery.anatomy.site import covers


@dataclass(frozen=True)
class Mixture:
    """The module around a router and its experts, by path."""

    call: Call
    router: str
    experts: str | None
    expert: tuple[str, ...]
    sum: Sum | None


def mixtures(flow: Flow, linears: Mapping[int, Linear], ports: Ports) -> Iterator[Mixture]:
    """The mixtures of experts of a record, in order."""
    for linear in linears.values():
        if _routes(flow, linears, linear):
            found = _around(flow, linear, ports)
            if found is not None:
                yield found


def _routes(flow: Flow, linears: Mapping[int, Linear], linear: Linear) -> bool:
    """Whether the scores of ``linear`` decide, by topk, where the values go."""
    if len(flow.record.shapes[linear.op.outputs[0]]) > 3:
        return False
    allowed = PASSIVE | POINTWISE | {"softmax", "sum", "zeros_like", "scatter", "masked_fill"}

    def stop(op: Op) -> bool:
        return op.index in linears or flow.kinds[op.index] not in allowed

    for op in flow.forward(linear.op.outputs[0], stop):
        kind = flow.kinds[op.index]
        if kind in ("topk", "argmax") or (kind == "max" and len(op.outputs) == 2):
            return any(call.path for call in flow.record.stack(op.call))
    return False


def _around(flow: Flow, linear: Linear, ports: Ports) -> Mixture | None:
    """The module that gives values to experts and collects them, if it does no more than that."""
    router = linear.path
    inside = linear.call.parent if linear.call is not None else linear.op.call
    for call in flow.record.stack(inside):
        if not call.path:
            return None
        # The router may be a module around the linear, with the choice inside.
        router = router or call.path
        experts, expert = _experts(flow, call.path, router)
        if experts is None:
            continue
        source, output = flow.main_input(call), flow.main_output(call)
        joined: Sum | None = None
        if source is not None and output is not None:
            joined = ports.sum_of(output) if flow.same(source) == flow.same(linear.source) else None
        return Mixture(call, router, experts, expert, joined)
    return None


def _experts(flow: Flow, path: str, router: str) -> tuple[str | None, tuple[str, ...]]:
    """The module with all experts, and each of them where they are modules."""
    modules, parameters = flow.paths.modules, flow.paths.parameters
    for name in modules:
        if (
            not name
            or name == path
            or not covers(path, name)
            or (covers(router, name) or covers(name, router))
        ):
            continue
        children = [n for n in modules[name]._modules if n[-1:].isdigit()]  # pyright: ignore[reportPrivateUsage]
        if len(children) > 1:
            return name, tuple(f"{name}.{child}" for child in children)
        own = modules[name]._parameters  # pyright: ignore[reportPrivateUsage]
        if any(
            f"{name}.{n}" in parameters and p is not None and p.dim() == 3 for n, p in own.items()
        ):
            return name, ()
    return None, ()
