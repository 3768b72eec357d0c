"""Mixtures of experts: who routes, and what is routed to."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import Node

from surgery.anatomy.graph import (
    ModuleCall,
    argument_of,
    call_of,
    inputs_of,
    kind_of,
    outputs_of,
    readers,
    shape_of,
)
from surgery.anatomy.roles.axes import feature_axis
from surgery.anatomy.roles.feedforward import FeedForward, feed_forward
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear, RecordedLinears
from surgery.anatomy.roles.operators import PASSIVE, POINTWISE
from surgery.anatomy.roles.ports import Ports
from surgery.anatomy.roles.residual import unscaled
from surgery.anatomy.site import Port, Region, Site, covers

INNER = ("q", "k", "v", "o", "qkv", "qk", "kv", "up", "gate", "gate_up", "down", "linear")
"""Roles of layers inside an expert."""


@dataclass(frozen=True)
class Mixture:
    """The module around a router and its experts, by path.

    ``linear`` makes the router's scores; ``joins`` tells whether the result joins a residual.
    """

    call: ModuleCall
    linear: RecordedLinear
    router: str
    experts: str | None
    expert: tuple[str, ...]
    joins: bool


def mixtures(flow: Flow, linears: Mapping[Node, RecordedLinear], ports: Ports) -> Iterator[Mixture]:
    """The mixtures of experts of a record, in order."""
    routing = _routing(flow, linears)
    for op, linear in linears.items():
        if op in routing:
            found = _around(flow, linear, ports)
            if found is not None:
                yield found


def expert_feed_forwards(
    flow: Flow,
    linears: RecordedLinears,
    found: Sequence[Mixture],
    known: Container[Node],
) -> Iterator[FeedForward]:
    """The feed-forwards inside mixtures, which join no residual of their own.

    Those whose down is in ``known`` are left out.
    """
    mixed: dict[str, list[Mixture]] = {}
    for mixture in found:
        mixed.setdefault(mixture.call.path, []).append(mixture)
    for linear in linears.values():
        path = linear.path or flow.recording.calls[call_of(linear.op)].path
        around = [mixture for above in _around_path(path) for mixture in mixed.get(above, ())]
        if linear.op in known or not around:
            continue
        # What makes a router's scores is no expert.
        if not any(flow.depends(mixture.linear.result, linear.result) for mixture in around):
            inside = feed_forward(flow, linears, linear)
            if inside is not None:
                yield inside


def alike(
    found: Sequence[Mixture],
    sites: Mapping[str, Mapping[str, Site]],
    modules: Container[str],
) -> Iterator[tuple[str, Site]]:
    """The sites in experts, each as it stands in the other experts of its mixture, with its role.

    Few tokens do not reach all experts, so in a record some may never run (Switch, NLLB).
    """
    mixture_of = {expert: mixture for mixture in found for expert in mixture.expert}
    seen: set[tuple[str, str, str]] = set()
    for role in (*INNER, "expert"):
        for site in list(sites[role].values()):
            one = next((p for p in _around_path(site.spans[0]) if p in mixture_of), None)
            if one is None:
                continue
            mixture, rest = mixture_of[one], site.path[len(one) :]
            if (role, mixture.expert[0], rest) in seen:
                continue
            seen.add((role, mixture.expert[0], rest))
            for other in mixture.expert:
                moved = _elsewhere(site, one, other)
                if all(span in modules for span in moved.spans):
                    yield role, moved


def _elsewhere(site: Site, one: str, other: str) -> Site:
    """``site``, which lies in the module ``one``, as it stands in ``other``, a module just like it."""

    def within(path: str) -> bool:
        return path == one or path.startswith((f"{one}.", f"{one}["))

    def moved(path: str) -> str:
        return other + path[len(one) :] if within(path) else path

    def moved_port(port: Port) -> Port:
        return replace(port, path=moved(port.path))

    operator = site.operator
    if isinstance(operator, Region):
        operator = replace(operator, members=tuple(map(moved, operator.members)))
    return replace(
        site,
        path=moved(site.path),
        paths=tuple(moved(path) for path in site.paths if within(path)),
        operator=operator,
        entry=moved_port(site.entry),
        exit=moved_port(site.exit),
        residual=moved_port(site.residual) if site.residual else None,
        norm=moved(site.norm) if site.norm else None,
    )


def _around_path(path: str) -> Iterator[str]:
    """``path`` and the modules around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _routing(flow: Flow, linears: Mapping[Node, RecordedLinear]) -> set[Node]:
    """The linears whose scores decide, by topk, where the values go.

    They are looked for from the choices on: a walk ahead from each linear would follow the residual
    stream to the end of the model.
    """
    allowed = PASSIVE | POINTWISE | {"softmax", "zeros_like", "scatter", "masked_fill"}

    def stop(_: Node, op: Node) -> bool:
        return op in linears or kind_of(op) not in allowed

    found: set[Node] = set()
    for op in flow.ops:
        if _chooses(flow, op) and any(call.path for call in flow.recording.stack(call_of(op))):
            for value in inputs_of(op):
                found |= set(flow.backward(value, stop)) & linears.keys()
    return {op for op in found if len(shape_of(outputs_of(op)[0])) <= 3}


def _chooses(flow: Flow, op: Node) -> bool:
    """Whether ``op`` is a choice by scores that may be of experts."""
    kind = kind_of(op)
    # Phi-3.5-MoE: a maximum chooses by its index; alone it steadies an exponential (xLSTM, in chunks).
    chosen = kind == "max" and len(outputs_of(op)) == 2 and _is_used(flow, outputs_of(op)[1])
    return (kind in ("topk", "argmax") or chosen) and not _picks_keys(flow, op)


def _picks_keys(flow: Flow, op: Node) -> bool:
    """Whether ``op`` chooses keys for each query, and no experts (Doge, for long texts).

    It goes along no axis of features, in scores of heads, queries and keys.
    """
    rank = len(shape_of(inputs_of(op)[0]))
    at = 2 if kind_of(op) == "topk" else 1
    axis = argument_of(op, at, "dim", -1)
    if rank < 4 or not isinstance(axis, int):
        return False
    return feature_axis(flow, inputs_of(op)[0]) != axis % rank


def _is_used(flow: Flow, value: Node) -> bool:
    return bool(readers(value)) or value in flow.recording.kept


def _around(flow: Flow, linear: RecordedLinear, ports: Ports) -> Mixture | None:
    """The module that gives values to experts and collects them, if it does no more than that."""
    router = linear.path
    inside = linear.call.parent if linear.call is not None else call_of(linear.op)
    for call in flow.recording.stack(inside):
        if not call.path:
            return None
        # Llama 4: the router is a module that multiplies and chooses.
        router = router or call.path
        experts, expert = _experts(flow, call, router, linear)
        if experts is None:
            continue
        source, output = flow.main_input(call), flow.main_output(call)
        given = source is not None and flow.depends(linear.source, flow.same(source))
        joins = output is not None and bool({output, unscaled(flow, output)} & ports.ends)
        return Mixture(call, linear, router, experts, expert, given and joins)
    return None


def _experts(
    flow: Flow, call: ModuleCall, router: str, linear: RecordedLinear
) -> tuple[str | None, tuple[str, ...]]:
    """The module with all experts, and each of them where they are modules."""
    for name in flow.paths.inside(call.path):
        if covers(router, name) or covers(name, router):
            continue
        module = flow.paths.modules[name]
        children = _numbered(module)
        if children:
            return name, tuple(f"{name}.{child}" for child in children)
        if any(p is not None and p.dim() == 3 for p in module._parameters.values()):
            return name, ()
    return _chosen(flow, call, router, linear), ()


def _numbered(module: nn.Module) -> list[str]:
    """The children that are told apart by a number alone and have weights: `0`, `expert_0` (Switch)."""
    children = [
        (name, child)
        for name, child in module._modules.items()
        if child is not None and name[-1:].isdigit()
    ]
    kinds = {(type(child), name.rstrip("0123456789")) for name, child in children}
    if len(children) < 2 or len(kinds) > 1:
        return []
    weighed = all(any(p.dim() > 1 for p in child.parameters()) for _, child in children)
    return [name for name, _ in children] if weighed else []


def _chosen(flow: Flow, call: ModuleCall, router: str, linear: RecordedLinear) -> str | None:
    """The first module beside the router that is given its scores, and has weights.

    DBRX: the weights of its experts are rows of three matrices, in a module within this one.
    """
    for inner in flow.recording.calls[call.number + 1 :]:
        if inner.first > call.last:
            break
        path = inner.path
        module = flow.paths.modules.get(path)
        if module is None or path == call.path or not covers(call.path, path):
            continue
        if covers(router, path) or covers(path, router):
            continue
        given = [value for values in inner.inputs.values() for _, value in values]
        weighed = any(parameter.dim() > 1 for parameter in module.parameters())
        if weighed and any(flow.depends(value, linear.result) for value in given):
            return path
    return None
