"""Weights that are no layer's: of all experts in one parameter, or of a map that is no module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from torch.fx import Node

from surgery.anatomy.graph import inputs_of, kind_of, maker_of, outputs_of, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import RecordedLinear, operands_of
from surgery.anatomy.roles.operators import PASSIVE
from surgery.layers import LINEAR, TRANSPOSED, Layer
from surgery.layers.einsum import letters

_TURNS = frozenset(("transpose", "T", "mT", "t", "permute"))
_PRODUCTS = frozenset(("matmul", "mm", "bmm", "grouped_mm", "addmm", "baddbmm"))


def expert_weights(flow: Flow, linears: Mapping[Node, RecordedLinear]) -> dict[str, Layer]:
    """The parameters that hold a matrix for each expert, by name, as the products use them."""
    found: dict[str, set[Layer]] = {}
    for linear in linears.values():
        parameter = flow.paths.parameters.get(linear.weight)
        if linear.call is None and parameter is not None and parameter.dim() in (2, 3):
            experts = _used(flow, linear)
            if experts is not None:
                found.setdefault(linear.weight, set()).add(experts)
    return {name: uses.pop() for name, uses in found.items() if len(uses) == 1}


def _used(flow: Flow, linear: RecordedLinear) -> Layer | None:
    """How a product uses a parameter, if as one of a stack of matrices or as all of them."""
    kind = kind_of(linear.op)
    operands = operands_of(linear.op, kind)
    place = next((i for i, v in enumerate(operands) if flow.parameter(v) == linear.weight), None)
    if place is None or (kind != "linear" and kind not in _PRODUCTS):
        return None
    chain: list[Node] = []
    value = operands[place]
    while (op := maker_of(value)) is not None and kind_of(op) in PASSIVE:
        chain.insert(0, op)
        value = inputs_of(op)[0]
    stack, turned = shape_of(value), False
    for op in chain:
        before, after = shape_of(inputs_of(op)[0]), shape_of(outputs_of(op)[0])
        if len(stack) == 2 and len(after) == 3:
            stack = after
        elif kind_of(op) in _TURNS and after[-2:] == before[-2:][::-1]:
            turned = not turned
        elif after[-2:] != before[-2:]:
            return None
    if len(stack) != 3:
        return None
    # linear(x, W) and W @ x sum over the last axis of W, and x @ W over the one before.
    summed_last = kind == "linear" or place == 0
    transposed = summed_last == turned
    count, rows, columns = stack
    out, into = (columns, rows) if transposed else (rows, columns)
    # Their biases, where they have some, are added apart from the product.
    kind, name = TRANSPOSED if transposed else LINEAR, linear.weight.rpartition(".")[2]
    return Layer(kind, out, into, read=True, weight=name, experts=count)


def matrices(
    flow: Flow, linears: Mapping[Node, RecordedLinear]
) -> dict[str, tuple[Layer, RecordedLinear]]:
    """The parameters that are the weight of one linear map each, by name, with their first use."""
    found: dict[str, list[tuple[Layer | None, RecordedLinear]]] = {}
    for linear in linears.values():
        if linear.weight in flow.paths.parameters:
            found.setdefault(linear.weight, []).append((_matrix(flow, linear), linear))
    return {
        name: (matrix, uses[0][1])
        for name, uses in found.items()
        if (matrix := uses[0][0]) is not None and all(other == matrix for other, _ in uses)
    }


def _matrix(flow: Flow, linear: RecordedLinear) -> Layer | None:
    """How a product takes a parameter itself, in the order that it has."""
    op = linear.op
    kind, (owner, _, name) = kind_of(op), linear.weight.rpartition(".")
    operands = operands_of(op, kind)
    at = next((i for i, v in enumerate(operands) if _is(flow, v, linear.weight)), None)
    if at is None:
        return None
    shape, states = shape_of(operands[at]), len(shape_of(operands[1 - at]))
    if kind == "einsum":
        ranks = (len(shape_of(operands[0])), len(shape_of(operands[1])))
        found = contracted(str(op.args[0]), ranks, at, shape)
        return found and replace(found, weight=name)
    if at == 1 and len(shape) == 2 and kind in ("linear", "matmul", "mm"):
        turned = kind != "linear"
        out, into = shape[::-1] if turned else shape
        found = _held(shape, out, into, turned, states)
        if len(inputs_of(op)) == 2:
            return replace(found, weight=name)
        other, _, bias = flow.recording.parameters.get(inputs_of(op)[2], "").rpartition(".")
        if bias and other == owner:
            return replace(found, weight=name, bias=True, offset=bias)
    return None


def _held(shape: tuple[int, ...], out: int, into: int, turned: bool, states: int) -> Layer:
    """The weight of a map that is no module: [out, into], or [into, out] where ``turned``."""
    kind = TRANSPOSED if turned else LINEAR
    return Layer(kind, out, into, read=True, held=tuple(shape), states=states)


def _is(flow: Flow, value: Node, weight: str) -> bool:
    return flow.recording.parameters.get(value) == weight


def contracted(
    equation: str, ranks: tuple[int, int], at: int, shape: tuple[int, ...]
) -> Layer | None:
    """What an einsum sums over stands together in the weight, before or after the rest."""
    terms = letters(equation, ranks)
    if terms is None:
        return None
    weight, states, result = terms[at], terms[1 - at], terms[2]
    summed = [c for c in weight if c in states]
    free = [c for c in weight if c not in states]
    if not summed or not free or any(c in result for c in summed):
        return None
    sizes = dict(zip(weight, shape, strict=True))
    out, into = (prod(map(sizes.__getitem__, axes)) for axes in (free, summed))
    for order in ([*free, *summed], [*summed, *free]):
        if [*weight] == order:
            return _held(shape, out, into, order[0] in summed, len(states) - len(summed) + 1)
    return None
