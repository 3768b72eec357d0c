"""The primitives of the rule language, one row each.

Torch functions are named, not imported: reading and checking rules needs no torch. The reference
shows these rows, and tests hold them against the functions that they name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from surgery.rules import signatures
from surgery.rules.dims import Dim
from surgery.rules.expression import COMPARISONS
from surgery.rules.primitive import Form, Primitive, Ways, elements, free
from surgery.rules.ranges import COUNT, NUMBER, RATE, SIZE


def _first(value: Dim, size: Dim) -> Dim:
    return value


def rms_norm(x: Any, dim: int) -> Any:
    """``x`` with a root mean square of 1 over ``dim``; half precision is squared in single."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    scale = (wide.square().mean(dim, keepdim=True) + 1e-6).rsqrt()
    return (wide * scale).to(x.dtype)


def unit(x: Any, dim: int) -> Any:
    """``x`` with a Euclidean norm of 1 over ``dim``, as :func:`rms_norm`."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    return (wide / wide.norm(dim=dim, keepdim=True).clamp_min(1e-12)).to(x.dtype)


def layer_norm(x: Any, dim: int) -> Any:
    """``x`` with a mean of 0 and a variance of 1 over ``dim``, as :func:`rms_norm`."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    centred = wide - wide.mean(dim, keepdim=True)
    scale = (centred.square().mean(dim, keepdim=True) + 1e-5).rsqrt()
    return (centred * scale).to(x.dtype)


def _of_known(function: Callable[[float], float]) -> Callable[[Dim], Dim | None]:
    """``function`` of a number that is known without a model."""
    return lambda value: None if value.number is None else Dim.of(function(value.number))


_FIRST: Ways = ((0,),)
_BOTH: Ways = ((0, 1),)
_KERNELS = "surgery.graft.graphs.kernels."
_OVER_SITES = "surgery.graft.over_sites."
_MASKS = "surgery.graft.graphs.masks."
_FUNCTIONAL = "torch.nn.functional."


def _function(
    name: str, arguments: str = "x", says: str = "of each element", **fields: Any
) -> Primitive:
    """A function of each element."""
    same = signatures.same
    return Primitive(name, arguments, says, same, elementwise=True, rows=(0,), **fields)


def _reduction(
    name: str, torch: str, says: str = "the dim stays, as 1", form: Form = "over", **fields: Any
) -> Primitive:
    """What makes one value of all those along a dim."""
    shape = signatures.reduced
    return Primitive(
        name, "x, over = d", says, shape, torch, form, zeros=(0,), reduces=True, **fields
    )


_DECOMPOSITIONS = "surgery.graft.graphs.decompositions."


def _decomposition(name: str, says: str, *parts: str) -> Primitive:
    """A matrix as several factors, in single precision or wider."""
    return Primitive(
        name,
        "A[n, m], r",
        says,
        signatures.same,
        _DECOMPOSITIONS + name,
        "parts",
        signatures.decomposition_cost,
        numbers=((1, SIZE),),
        parts=parts,
    )


_operator = partial(Primitive, elementwise=True, rows=(0, 1))


def _comparison(name: str, sign: str, of_equals: int) -> Primitive:
    """1 where a comparison holds, else 0."""
    return _operator(
        name,
        "a, b",
        "1 where it holds, else 0",
        signatures.broadcast(sign),
        _MASKS + name,
        of_equals=of_equals,
        detaches=True,
        mask=True,
        real=True,
    )


# What a row's fields mean is said in `rules/primitive.py`. Rows stand as the reference shows them.
_TABLE = (
    _operator(
        "add",
        "a, b",
        "the sum",
        signatures.broadcast("+"),
        "operator.add",
        linear=_BOTH,
        neutral=((0, 0), (1, 0)),
        of_numbers=Dim.__add__,
    ),
    _operator(
        "subtract",
        "a, b",
        "the difference",
        signatures.broadcast("-"),
        "operator.sub",
        linear=_BOTH,
        neutral=((1, 0),),
        of_equals=0,
        of_numbers=Dim.__sub__,
    ),
    _operator(
        "multiply",
        "a, b",
        "the product of each two elements",
        signatures.broadcast("*"),
        "operator.mul",
        linear=((0,), (1,)),
        zeros=(0, 1),
        neutral=((0, 1), (1, 1)),
        of_numbers=Dim.__mul__,
    ),
    _operator(
        "divide",
        "a, b",
        "the quotient; what is divided by a `row_norm` is 1 where the row is zero",
        signatures.broadcast("/"),
        "operator.truediv",
        linear=_FIRST,
        zeros=(0,),
        neutral=((1, 1),),
        nonzero=(1,),
        of_equals=1,
        of_numbers=Dim.__truediv__,
    ),
    Primitive(
        "matmul",
        "A[*, k], B[k, n]",
        "the product of matrices",
        signatures.of_matmul,
        "torch.matmul",
        "matrices",
        signatures.matmul_cost,
        linear=_FIRST,
        zeros=(0, 1),
        shorter=signatures.beside_eye,
        rows=(0,),
    ),
    _operator(
        "negate",
        "x",
        "the other sign",
        signatures.same,
        "operator.neg",
        linear=_FIRST,
        zeros=(0,),
        rows=(0,),
        of_numbers=Dim.__neg__,
    ),
    *(
        _comparison(name, sign, int("=" in sign and sign != "!="))
        for sign, name in COMPARISONS.items()
    ),
    Primitive(
        "linear",
        "x[*, m], W[n, m], b?[n]",
        "x Wᵀ + b over the last dim",
        signatures.of_linear,
        _FUNCTIONAL + "linear",
        "matrices",
        signatures.linear_cost,
        linear=((0, 2),),
        zeros=(0, 1),
        rows=(1, 2),
    ),
    _function("relu", torch=_FUNCTIONAL + "relu", zeros=(0,), idempotent=True, real=True),
    _function("gelu", torch=_FUNCTIONAL + "gelu", zeros=(0,), real=True),
    _function("silu", torch=_FUNCTIONAL + "silu", zeros=(0,)),
    _function("tanh", torch="torch.tanh", zeros=(0,)),
    _function("sigmoid", torch="torch.sigmoid"),
    _function("softplus", torch=_FUNCTIONAL + "softplus", real=True),
    _function("exp", torch="torch.exp"),
    _function("log", torch="torch.log"),
    _function("sin", torch="torch.sin", zeros=(0,), of_numbers=_of_known(math.sin)),
    _function("cos", torch="torch.cos", of_numbers=_of_known(math.cos)),
    _function("sqrt", torch="torch.sqrt", zeros=(0,)),
    _function("abs", torch="torch.abs", zeros=(0,), idempotent=True, real=True),
    _function(
        "identity", torch="operator.pos", cost=free, linear=_FIRST, zeros=(0,), inference=True
    ),
    _function(
        "leaky_relu",
        "x, slope?",
        "of each element; below 0 it has this slope, or 0.01",
        torch=_FUNCTIONAL + "leaky_relu",
        zeros=(0,),
        numbers=((1, NUMBER),),
        real=True,
    ),
    _function(
        "clamp",
        "x, low, high?",
        "of each element; what is below `low` is `low`, and what is above `high` is `high`",
        torch="torch.clamp",
        numbers=((1, NUMBER), (2, NUMBER)),
        real=True,
    ),
    Primitive(
        "dropout",
        "x, rate",
        "as in torch",
        signatures.of_dropout,
        _FUNCTIONAL + "dropout",
        "training",
        linear=_FIRST,
        zeros=(0,),
        neutral=((1, 0),),
        numbers=((1, RATE),),
        elementwise=True,
        inference=True,
        random=True,
        real=True,
    ),
    _function(
        "detach",
        says="as in torch",
        torch="torch.detach",
        cost=free,
        linear=_FIRST,
        zeros=(0,),
        of_numbers=Dim.of,
        inference=True,
        detaches=True,
        idempotent=True,
    ),
    Primitive(
        "transpose",
        "A[n, m]",
        "Aᵀ; `transpose(z, c, d)` exchanges two dims of any tensor",
        signatures.of_transpose,
        "torch.t",
        "matrices",
        free,
        zeros=(0,),
    ),
    Primitive(
        "dot",
        "a, b, over = c",
        "the sum over c of the products; dims that both have are matched, the others stay",
        signatures.same,
        "torch.einsum",
        "dims",
        signatures.dot_cost,
        linear=((0,), (1,)),
        zeros=(0, 1),
        shorter=signatures.of_ones_or_eye,
    ),
    Primitive(
        "split",
        "x, m = g * c",
        "one dim as several, of which the last runs fastest",
        signatures.same,
        "torch.unflatten",
        "dims",
        free,
        linear=_FIRST,
        zeros=(0,),
        undoes="join",
    ),
    Primitive(
        "join",
        "z, m = g * c",
        "several dims as one",
        signatures.same,
        "torch.flatten",
        "dims",
        free,
        linear=_FIRST,
        zeros=(0,),
        undoes="split",
    ),
    Primitive(
        "exchange",
        "z",
        "two dims change places: what `transpose` of named dims is",
        signatures.same,
        "torch.transpose",
        "dims",
        free,
        linear=_FIRST,
        zeros=(0,),
    ),
    Primitive(
        "eye",
        "c",
        "the identity matrix, [c, c]",
        signatures.same,
        form="none",
        cost=free,
        only_shape=(0,),
    ),
    Primitive("ones", "c", "a vector of ones", signatures.same, form="none", cost=free),
    Primitive(
        "range",
        "c",
        "0, 1, … up to c - 1",
        signatures.same,
        form="none",
        cost=free,
        only_shape=(0,),
    ),
    # PiSSA, MiLoRA, OLoRA: adapters that start from parts of the weight.
    _decomposition(
        "svd", "U [n, r], s [r], V [r, m]: the r largest singular values", "nr", "r", "rm"
    ),
    _decomposition("minor_svd", "as `svd`, of the r smallest", "nr", "r", "rm"),
    _decomposition("qr", "Q [n, r], R [r, m]: the first r columns and rows", "nr", "rm"),
    # OFT: the Cayley transform of a skew matrix.
    Primitive(
        "inverse",
        "A[*, c, c]",
        "the inverse of each matrix",
        signatures.of_inverse,
        _KERNELS + "inverse",
        "matrices",
        signatures.inverse_cost,
        shorter=signatures.of_eye,
        nonzero=(0,),
        real=True,
    ),
    # LoKr: the update is a product of a small matrix and one of low rank.
    Primitive(
        "kron",
        "A[a, b], B[c, d]",
        "the Kronecker product, [a·c, b·d]",
        signatures.of_kron,
        "torch.kron",
        "matrices",
        zeros=(0, 1),
    ),
    # DoRA: the norm of an output's weights, that is of a row; `over_norm` divides by it.
    Primitive(
        "row_norm",
        "A[n, m]",
        "the Euclidean norm of each row, [n]",
        signatures.of_row_norm,
        _KERNELS + "row_norm",
        "matrices",
        signatures.row_norm_cost,
        zeros=(0,),
        rows=(0,),
    ),
    # AdaLoRA: how far a factor is from having orthonormal rows.
    Primitive(
        "frobenius",
        "A",
        "the root of the sum of the squares of all elements, one number",
        signatures.of_frobenius,
        "torch.linalg.vector_norm",
        "matrices",
        lambda e: elements(e.arguments[0]) * 2,
        zeros=(0,),
        real=True,
    ),
    Primitive(
        "grad",
        "A",
        "the gradient of a param, after a step of the optimizer",
        signatures.same,
        form="none",
        cost=free,
        stepping=True,
    ),
    # IA³ and VeRA scale outputs, so rows of the weight; it is what their merges are made of.
    Primitive(
        "scale_rows",
        "A[n, m], v[n]",
        "each row times its number",
        signatures.of_scale_rows,
        _KERNELS + "scale_rows",
        "matrices",
        zeros=(0, 1),
        neutral=((1, 1),),
        rows=(0, 1),
    ),
    _reduction(
        "mean", "torch.mean", over_sites=_OVER_SITES + "mean", linear=_FIRST, of_constant=_first
    ),
    _reduction(
        "sum", "torch.sum", over_sites=_OVER_SITES + "total", linear=_FIRST, of_constant=Dim.__mul__
    ),
    _reduction(
        "max", "torch.amax", over_sites=_OVER_SITES + "largest", of_constant=_first, real=True
    ),
    # UniPELT: gates see the mean of the real tokens of an example.
    _reduction(
        "pool",
        "torch.mean",
        "the mean over tokens that are not padding; the dim stays, as 1",
        "tokens",
        of_constant=_first,
    ),
    Primitive(
        "softmax",
        "x, over = d",
        "positive, with the sum 1",
        signatures.same,
        "torch.softmax",
        "over",
        of_constant=lambda value, size: Dim.of(1) / size,
        sums_to=1,
        real=True,
    ),
    Primitive(
        "rms_norm",
        "x, over = d",
        "x with a root mean square of 1",
        signatures.same,
        "surgery.rules.primitives.rms_norm",
        "over",
        cost=lambda e: elements(e) * 4,
        zeros=(0,),
        real=True,
    ),
    Primitive(
        "unit",
        "x, over = d",
        "x with a norm of 1; what is zero stays",
        signatures.same,
        "surgery.rules.primitives.unit",
        "over",
        cost=lambda e: elements(e) * 3,
        zeros=(0,),
        real=True,
    ),
    Primitive(
        "flip",
        "x, over = d",
        "the last first",
        signatures.same,
        _KERNELS + "flip",
        "over",
        free,
        linear=_FIRST,
        zeros=(0,),
    ),
    Primitive(
        "layer_norm",
        "x, over = d",
        "x with a mean of 0 and a variance of 1",
        signatures.same,
        "surgery.rules.primitives.layer_norm",
        "over",
        cost=lambda e: elements(e) * 6,
        zeros=(0,),
        real=True,
    ),
    # Routed adapters: the parts that a router chooses.
    Primitive(
        "topk",
        "x, k, over = d",
        "1 at the k largest, or at all if there are fewer, else 0",
        signatures.same,
        _MASKS + "topk",
        "over",
        over_sites=_OVER_SITES + "topk",
        numbers=((1, SIZE),),
        detaches=True,
        mask=True,
        real=True,
    ),
    Primitive(
        "one_hot",
        "x, over = d",
        "1 at the largest, else 0",
        signatures.same,
        _MASKS + "one_hot",
        "over",
        detaches=True,
        mask=True,
        real=True,
    ),
    Primitive(
        "cat",
        "a, b, along = t",
        "one after the other; other dims broadcast",
        signatures.of_cat,
        _KERNELS + "cat",
        "along",
        free,
        linear=_BOTH,
    ),
    # Prefixes: every query attends to the new keys, whatever the mask says of the model's own.
    Primitive(
        "reveal",
        "mask, n, along = t",
        "prepends n keys that every query attends to",
        signatures.of_reveal,
        form="none",
        cost=free,
        numbers=((1, COUNT),),
    ),
    # UniPELT: a gate is one number per example, and scales keys, which have heads and lengths too.
    Primitive(
        "align",
        "g, k",
        "one number per example, g, with as many dims as k",
        signatures.of_align,
        _KERNELS + "align",
        cost=free,
        zeros=(0,),
        shorter=signatures.aligned,
        only_shape=(1,),
    ),
    # Li & Liang: the network of a prefix makes keys of all heads side by side.
    Primitive(
        "split_heads",
        "x[n, h * d], h",
        "heads in front, [h, n, d]",
        signatures.of_split_heads,
        _KERNELS + "split_heads",
        "matrices",
        free,
        zeros=(0,),
        numbers=((1, SIZE),),
    ),
    # Liu et al. (P-tuning): the prompt encoder; torch's gates, in torch's order.
    Primitive(
        "bilstm",
        "x[n, d], I[2, 4 * w, d], H[2, 4 * w, w], i[2, 4 * w], h[2, 4 * w]",
        "a layer of an LSTM that reads both ways, [n, 2·w]",
        signatures.of_bilstm,
        _KERNELS + "bilstm",
        "matrices",
        signatures.bilstm_cost,
        real=True,
    ),
    # P-tuning at free places: the tokens to be replaced stand in the text.
    Primitive(
        "place",
        "P, e, token",
        "rows of P at the places of a token",
        signatures.of_place,
        form="none",
        cost=free,
        numbers=((2, COUNT),),
    ),
)

PRIMITIVES: dict[str, Primitive] = {p.name: p for p in _TABLE}
