"""The operator `linear` on each kind of layer: on the layer's input, and on what follows from it."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as functional

from surgery.graft.graphs import states
from surgery.graft.graphs.dims import has_several
from surgery.graft.graphs.factors import Factored, factored_linear
from surgery.graft.graphs.host import Emitting
from surgery.rules.expression import OUT, Expression, operand
from surgery.rules.patches import is_input, is_real, push_input

_WEIGHT = operand("W", ())


def linear(emitter: Emitting, e: Expression) -> Any:
    x, weight, *rest = e.arguments
    bias = rest[0] if rest else None
    own = weight.op == "operand" and weight.name == "W"
    if emitter.layer and is_input(x):
        return _on_input(emitter, e, own)
    features = emitter.layer is not None and emitter.layer.kind.features
    if emitter.layer and own and features and not emitter.layer.native:
        return _opaque(emitter, e, x, bias)
    if emitter.layer and not features and not is_real(x):
        return emitter.emit(push_input(e))
    factored = _factored(emitter, weight)
    if factored is not None:
        return emitter.emit(factored(x, bias, e))
    return _on_features(emitter, e)


def _factored(emitter: Emitting, weight: Expression) -> Factored | None:
    """A cheaper form of a product; none whose hidden features would be taken for the outputs'."""
    if emitter.groups > 1 and weight.op == "matmul" and weight.arguments[1].shape[0] == OUT:
        return None
    return factored_linear(weight)


def _on_input(emitter: Emitting, e: Expression, own: bool) -> Any:
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
    if not emitter.layer.kind.features:
        return _operator(emitter, e, own, offset)
    return emitter.host.call(
        functional.linear, emitter.emit(x), emitter.tensor(weight, _WEIGHT), offset
    )


def _opaque(emitter: Emitting, e: Expression, x: Expression, bias: Expression | None) -> Any:
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


def _operator(emitter: Emitting, e: Expression, own: bool, offset: Any) -> Any:
    """The layer's own operator with another weight; hidden features are there in each group."""
    assert emitter.layer
    layer, host = emitter.layer, emitter.host
    x, weight = e.arguments[:2]
    groups = emitter.groups if emitter.place(e) == "groups" else 1
    if own:
        kernel = host.leaf(weight)
    else:
        kernel = emitter.tensor(weight, _WEIGHT)
        if groups > 1:
            kernel = host.call("repeat", kernel, groups, 1)
            offset = None if offset is None else host.call("repeat", offset, groups)
        kernel = layer.kind.as_weight(host.call, layer, kernel)
    x, rates = _ids(x) if layer.kind.one_hot else (x, [])
    value = host.product(layer.kind, emitter.emit(x), kernel, None if rates else offset)
    for rate in rates:
        value = host.call(states.drop_rows, value, emitter.emit(rate), host.training())
    if rates and offset is not None:
        value = host.call(operator.add, value, offset)
    if groups == 1:
        return value
    return host.call("unflatten", value, -1 - emitter.spatial, (groups, -1))


def _ids(x: Expression) -> tuple[Expression, list[Expression]]:
    """The ids in what may be done to one-hot vectors, and the rates of dropout of these."""
    rates: list[Expression] = []
    while x.op != "operand":  # of what passes its first argument on, as `is_input` has told
        rates += x.arguments[1:]
        x = x.arguments[0]
    return x, rates


def _on_features(emitter: Emitting, e: Expression) -> Any:
    x, weight, *rest = e.arguments
    value = emitter.emit(x)
    matrix = emitter.tensor(weight, x)
    offset = emitter.tensor(rest[0], x) if rest else None
    if not emitter.first or not emitter.spatial or has_several(x):
        return emitter.host.call(functional.linear, value, matrix, offset)
    groups = 1
    if emitter.groups > 1 and emitter.place(x) == "groups":
        if emitter.place(e) == "groups":
            axis = -1 - emitter.spatial
            return emitter.host.call(states.linear_along, value, matrix, offset, axis)
        groups = emitter.groups
        value = emitter.host.call("flatten", value, -2 - emitter.spatial, -1 - emitter.spatial)
    rows, columns = (int(d.value(emitter.sizes)) for d in weight.shape)
    kernel = emitter.host.call("view", matrix, rows, columns, *[1] * emitter.spatial)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[emitter.spatial - 1]
    return emitter.host.call(convolve, value, kernel, offset, groups=groups)
