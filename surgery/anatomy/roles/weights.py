"""Weights of all experts in one parameter: how many there are, and which way round they stand."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.anatomy.record import Op
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import Linear, operands_of
from surgery.anatomy.roles.operators import PASSIVE
from surgery.anatomy.site import Experts

_TURNS = frozenset(("transpose", "T", "mT", "t", "permute"))
_PRODUCTS = frozenset(("matmul", "mm", "bmm", "grouped_mm", "addmm", "baddbmm"))


def expert_weights(flow: Flow, linears: Mapping[int, Linear]) -> dict[str, Experts]:
    """The parameters that hold a matrix for each expert, by name, as the products use them."""
    found: dict[str, set[Experts]] = {}
    for linear in linears.values():
        parameter = flow.paths.parameters.get(linear.weight)
        if linear.call is None and parameter is not None and parameter.dim() in (2, 3):
            experts = _used(flow, linear)
            if experts is not None:
                found.setdefault(linear.weight, set()).add(experts)
    return {name: uses.pop() for name, uses in found.items() if len(uses) == 1}


def _used(flow: Flow, linear: Linear) -> Experts | None:
    """How a product uses a parameter, if as one of a stack of matrices or as all of them."""
    kind = flow.kinds[linear.op.index]
    operands = operands_of(linear.op, kind)
    place = next((i for i, v in enumerate(operands) if flow.parameter(v) == linear.weight), None)
    if place is None or (kind != "linear" and kind not in _PRODUCTS):
        return None
    chain: list[Op] = []
    value = operands[place]
    while (op := flow.op(value)) is not None and flow.kinds[op.index] in PASSIVE:
        chain.insert(0, op)
        value = op.inputs[0]
    shapes = flow.record.shapes
    stack, turned = shapes[value], False
    for op in chain:
        before, after = shapes[op.inputs[0]], shapes[op.outputs[0]]
        if len(stack) == 2 and len(after) == 3:
            stack = after
        elif flow.kinds[op.index] in _TURNS and after[-2:] == before[-2:][::-1]:
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
    return Experts(count, out, into, transposed)
