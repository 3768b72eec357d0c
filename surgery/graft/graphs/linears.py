"""The operator `linear` on each kind of layer: on the layer's input, and on what follows from it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from surgery.graft.graphs import kernels
from surgery.graft.graphs.factors import Factored, factored_linear
from surgery.rules.expression import OUT, Expression, operand
from surgery.rules.patches import is_input, is_real, push_input

if TYPE_CHECKING:
    from surgery.graft.graphs.emit import Emitter


_WEIGHT = operand("W", ())


def linear(emitter: Emitter, e: Expression) -> Any:
    x, weight, *rest = e.arguments
    bias = rest[0] if rest else None
    own = weight.op == "operand" and weight.name == "W"
    if emitter.layer and is_input(x):
        return _on_input(emitter, e, own)
    rows = emitter.layer is not None and emitter.layer.kind in ("linear", "transposed")
    if emitter.layer and own and rows and not emitter.layer.native:
        return _opaque(emitter, e, x, bias)
    if emitter.layer and emitter.layer.kind in ("convolution", "embedding") and not is_real(x):
        return emitter.emit(push_input(e))
    factored = _factored(emitter, weight)
    if factored is not None:
        return emitter.emit(factored(x, bias, e))
    return _on_features(emitter, e)


def _factored(emitter: Emitter, weight: Expression) -> Factored | None:
    """A cheaper form of a product; none whose hidden features would be taken for the outputs'."""
    if emitter.groups > 1 and weight.op == "matmul" and weight.arguments[1].shape[0] == OUT:
        return None
    return factored_linear(weight)


def _on_input(emitter: Emitter, e: Expression, own: bool) -> Any:
    assert emitter.layer
    x, weight, *rest = e.arguments
    bias = rest[0] if rest else None
    own_bias = bias is not None and bias.op == "operand" and bias.name == "b"
    if own and x.op == "operand" and (own_bias or (bias is None and not emitter.layer.bias)):
        return emitter.host.base(emitter.emit(x))
    if own and not emitter.layer.native:
        return _opaque(emitter, e, x, bias)
    factored = None if own else _factored(emitter, weight)
    if factored is not None:
        return emitter.emit(factored(x, bias, e))
    offset = None if bias is None else emitter.tensor(bias, weight)
    match emitter.layer.kind:
        case "convolution":
            return _convolve(emitter, e, own, offset)
        case "embedding":
            return _embed(emitter, x, weight, own, offset)
        case _:
            return emitter.host.call(
                functional.linear, emitter.emit(x), emitter.tensor(weight, _WEIGHT), offset
            )


def _opaque(emitter: Emitter, e: Expression, x: Expression, bias: Expression | None) -> Any:
    """``e``, the layer's own product of ``x``, by its own forward."""
    assert emitter.layer
    value = emitter.host.base(emitter.emit(x))
    if bias is not None and bias.op == "operand" and bias.name == "b":
        return value
    if emitter.layer.bias:
        own = emitter.aligned(Expression("operand", (), (("name", "b"),), e.shape[-1:]), e)
        value = emitter.host.call(operator.sub, value, own)
    if bias is None:
        return value
    return emitter.host.call(operator.add, value, emitter.aligned(bias, e))


def _convolve(emitter: Emitter, e: Expression, own: bool, offset: Any) -> Any:
    """The layer's own convolution with another kernel; hidden features are there in each group."""
    x, weight = e.arguments[:2]
    groups = emitter.groups if emitter.place(e) == "groups" else 1
    if own:
        kernel = emitter.host.leaf(weight)
    else:
        kernel = emitter.tensor(weight, _WEIGHT)
        if groups > 1:
            kernel = emitter.host.call("repeat", kernel, groups, 1)
            offset = None if offset is None else emitter.host.call("repeat", offset, groups)
        kernel = emitter.host.call(kernels.as_kernel, kernel, emitter.host.module())
    value = emitter.host.convolve(emitter.emit(x), kernel, offset)
    if groups == 1:
        return value
    return emitter.host.call("unflatten", value, -1 - emitter.spatial, (groups, -1))


def _embed(emitter: Emitter, x: Expression, weight: Expression, own: bool, offset: Any) -> Any:
    ids = x
    rates: list[Expression] = []
    while ids.op != "operand":  # of what passes its first argument on, as `is_input` has told
        rates += ids.arguments[1:]
        ids = ids.arguments[0]
    matrix = emitter.host.leaf(weight) if own else emitter.tensor(weight, _WEIGHT)
    table = matrix if own else emitter.host.call(torch.t, matrix)
    rows = emitter.host.call(kernels.look_up, emitter.emit(ids), table)
    for rate in rates:
        rows = emitter.host.call(
            kernels.drop_rows, rows, emitter.emit(rate), emitter.host.training()
        )
    return rows if offset is None else emitter.host.call(operator.add, rows, offset)


def _on_features(emitter: Emitter, e: Expression) -> Any:
    x, weight, *rest = e.arguments
    value = emitter.emit(x)
    matrix = emitter.tensor(weight, x)
    offset = emitter.tensor(rest[0], x) if rest else None
    if not emitter.first or not emitter.spatial:
        return emitter.host.call(functional.linear, value, matrix, offset)
    groups = 1
    if emitter.groups > 1 and emitter.place(x) == "groups":
        if emitter.place(e) == "groups":
            axis = -1 - emitter.spatial
            return emitter.host.call(kernels.linear_along, value, matrix, offset, axis)
        groups = emitter.groups
        value = emitter.host.call("flatten", value, -2 - emitter.spatial, -1 - emitter.spatial)
    rows, columns = (int(d.value(emitter.sizes)) for d in weight.shape)
    kernel = emitter.host.call("view", matrix, rows, columns, *[1] * emitter.spatial)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[emitter.spatial - 1]
    return emitter.host.call(convolve, value, kernel, offset, groups=groups)


def as_matrix(emitter: Emitter, weight: Any) -> Any:
    """The layer's weight as a matrix [n, m]."""
    kind = emitter.layer.kind if emitter.layer else "linear"
    if emitter.layer and len(emitter.layer.held) > 2:
        sizes = (emitter.layer.out, emitter.layer.into)
        weight = emitter.host.call(
            "reshape", weight, *(sizes[::-1] if kind == "transposed" else sizes)
        )
    if kind == "convolution":
        return emitter.host.call(torch.flatten, weight, 1)
    return emitter.host.call(torch.t, weight) if kind in ("transposed", "embedding") else weight
