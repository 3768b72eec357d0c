"""The operator `linear` on each kind of layer: on the layer's input, and on what follows from it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from surgery.graft.graphs import kernels
from surgery.graft.graphs.factors import factored_linear
from surgery.graft.graphs.patches import push_input
from surgery.rules.expression import Expression

if TYPE_CHECKING:
    from surgery.graft.graphs.emit import Emitter


def linear(emitter: Emitter, e: Expression) -> Any:
    x, weight, *rest = e.arguments
    bias = rest[0] if rest else None
    own = weight.op == "operand" and weight.name == "W"
    if emitter.layer and _is_input(x):
        return _on_input(emitter, e, x, weight, bias, own)
    rows = emitter.layer is not None and emitter.layer.kind in ("linear", "transposed")
    if emitter.layer and own and rows and not emitter.layer.native:
        return _opaque(emitter, e, x, bias)
    if emitter.layer and emitter.layer.kind in ("convolution", "embedding") and not _is_real(x):
        return emitter.emit(push_input(e))
    factored = factored_linear(weight)
    if factored is not None:
        return emitter.emit(factored(x, bias, e))
    return _on_features(emitter, x, weight, bias)


def _is_real(x: Expression) -> bool:
    """Whether ``x`` is a tensor of features, not still made of patches or ids."""
    if not x.varies:
        return True
    if _is_input(x):
        return False
    return x.op in ("linear", "base", "host") or all(_is_real(a) for a in x.arguments)


def _on_input(
    emitter: Emitter,
    e: Expression,
    x: Expression,
    weight: Expression,
    bias: Expression | None,
    own: bool,
) -> Any:
    assert emitter.layer
    own_bias = bias is not None and bias.op == "operand" and bias.name == "b"
    if own and x.op == "operand" and (own_bias or (bias is None and not emitter.layer.bias)):
        return emitter.host.base(emitter.emit(x))
    if own and not emitter.layer.native:
        return _opaque(emitter, e, x, bias)
    factored = None if own else factored_linear(weight)
    if factored is not None:
        return emitter.emit(factored(x, bias, None))
    offset = emitter.emit(bias) if bias is not None else None
    match emitter.layer.kind:
        case "convolution":
            return _convolve(emitter, x, weight, own, offset, bias)
        case "embedding":
            return _embed(emitter, x, weight, own, offset)
        case _:
            return emitter.host.call(
                functional.linear, emitter.emit(x), emitter.emit(weight), offset
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


def _convolve(
    emitter: Emitter,
    x: Expression,
    weight: Expression,
    own: bool,
    offset: Any,
    bias: Expression | None,
) -> Any:
    assert emitter.layer
    if own:
        kernel = emitter.host.leaf(weight)
    else:
        kernel, offset = emitter.repeated(emitter.emit(weight), 1), emitter.repeated(offset)
        kernel = emitter.host.call(kernels.as_kernel, kernel, emitter.host.module())
    return emitter.host.convolve(emitter.emit(x), kernel, offset)


def _embed(emitter: Emitter, x: Expression, weight: Expression, own: bool, offset: Any) -> Any:
    ids = x
    while ids.op == "dropout":
        ids = ids.arguments[0]
    table = emitter.host.leaf(weight) if own else emitter.host.call(torch.t, emitter.emit(weight))
    rows = emitter.host.call(kernels.look_up, emitter.emit(ids), table)
    if x.op == "dropout":
        rate = emitter.emit(x.arguments[1])
        rows = emitter.host.call(kernels.drop_rows, rows, rate, emitter.host.training())
    return rows if offset is None else emitter.host.call(operator.add, rows, offset)


def _on_features(
    emitter: Emitter, x: Expression, weight: Expression, bias: Expression | None
) -> Any:
    groups = 1 if x.is_output else emitter.groups
    value = emitter.with_copies(groups, x)
    matrix = emitter.emit(weight)
    offset = None if bias is None else emitter.emit(bias)
    if not emitter.first or not emitter.spatial:
        return emitter.host.call(functional.linear, value, matrix, offset)
    if groups > 1:
        matrix, offset = emitter.repeated(matrix, 1), emitter.repeated(offset)
    rows, columns = (int(d.value(emitter.sizes)) for d in weight.shape)
    rows *= emitter.copies if groups > 1 else 1
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


def _is_input(x: Expression) -> bool:
    while x.op == "dropout":
        x = x.arguments[0]
    return x.op == "operand" and x.name == "x"
