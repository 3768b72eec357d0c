"""The merge, derived: the rule run on the basis.

A value that is affine in the operator's input, x ↦ Mx + c, is carried as (T, c): T = Mᵀ, the images
of the basis vectors, is a batch of m inputs, and c is one more. So what is linear in its arguments
acts on T as on any batch, and on c as on one input with all that is known; of a primitive no more
is asked than in which arguments it is linear. If the result is such a pair, it is the merge. If
not, the first expression that is not affine is the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from surgery.language.source import Span
from surgery.rules.expression import (
    IN,
    OUT,
    Expression,
    Shape,
    expanded,
    eye,
    features_of,
    is_leading,
    number,
    operand,
    with_shape,
)
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.shapes import ONE
from surgery.rules.simplify import make
from surgery.rules.transposing import transposed


@dataclass(frozen=True)
class Map:
    """x ↦ Mx + c. ``images`` are [m, k], the transpose of M, and ``offset`` is c [k].

    A value whose features have several dims has these in the place of k.

    In a grouped convolution, where each group has an x of its own, feature i of ``outputs`` is made
    of the x of output i's group; any other value is there once in each group.
    """

    images: Expression
    offset: Expression
    outputs: bool = False


@dataclass(frozen=True)
class NotAffine:
    """Why there is no merge: ``expression`` is the first that is not affine in the input."""

    expression: Expression
    reason: str

    @property
    def span(self) -> Span | None:
        return self.expression.span


@dataclass(frozen=True)
class Merge:
    """The merged weight [n, m] and bias [n] as expressions of what the site holds.

    Where there is nothing to add, the bias is the number 0.
    """

    weight: Expression
    bias: Expression


Value = Expression | Map


class _NotAffineError(Exception):
    def __init__(self, expression: Expression, reason: str):
        self.found = NotAffine(expression, reason)


def merge(result: Expression, grouped: bool = False) -> Merge | NotAffine:
    """Derive weight and bias of ``result`` as an affine function of the operand ``x``.

    With ``grouped`` outputs that read different inputs, no matrix over one `x` mixes them.
    """
    x = next((leaf for leaf in result.leaves if leaf == operand("x", ())), None)
    into = x.shape[-1] if x else IN
    out = result.shape[-1] if result.shape else OUT
    try:
        value = _AffineWalk(grouped).value(result)
        if not isinstance(value, Map):
            value = Map(number(0, shape=(into, out)), _vector(result, value))
    except _NotAffineError as stop:
        return stop.found
    weight = transposed(_wide(value, (out,)).images)
    if weight.number is not None:
        weight = expanded(weight, (out, into))
    bias = value.offset
    if (bias.number is not None and bias.number.terms) or bias.shape == (ONE,) != (out,):
        bias = expanded(bias, (out,))
    return Merge(weight, bias)


class _AffineWalk:
    """Values of expressions, each computed once."""

    def __init__(self, grouped: bool):
        self.grouped = grouped
        self.memo: dict[Expression, Value] = {}

    def value(self, e: Expression) -> Value:
        if e not in self.memo:
            self.memo[e] = self._value(e) if e.varies else e
        return self.memo[e]

    def _value(self, e: Expression) -> Value:
        if e.op == "operand" and e.name == "x":
            size = e.shape[-1].called("")
            return Map(eye(size), number(0, shape=(size,)))
        if e.op == "base":
            raise _NotAffineError(
                e, "the module is not a linear layer, so there is no single weight to merge into"
            )
        if e.op == "operand":
            raise _NotAffineError(e, f"`{e.name}` comes from elsewhere in the model")
        if e.op == "spread":
            inner = self.value(e.arguments[0])
            known = isinstance(inner, Expression)
            return _vector(e, inner) if known else _wide(inner, features_of(e.shape))
        arguments = [self.value(a) for a in e.arguments]
        if e.op in ("rows", "put"):
            return _slice(e, arguments)
        return self._apply(e, arguments)

    def _apply(self, e: Expression, arguments: list[Value]) -> Value:
        """``e``, once of the images and once of the offsets."""
        primitive = PRIMITIVES.get(e.op)
        flowing = {i for i, a in enumerate(arguments) if isinstance(a, Map)}
        ways = primitive.linear if primitive else ()
        together = next((way for way in ways if flowing <= {*way}), None)
        features = features_of(e.shape)
        if _apart(e) or (flowing and together is None):
            raise _NotAffineError(e, _why(e, flowing))
        known = tuple(a for a in arguments if isinstance(a, Expression))
        if together is None or not flowing:
            return make(e.op, known, features, e.attributes, e.span)
        first = arguments[0]
        # Merging is for inference, so dropout is gone; `detach` stays, for `W` read by a later rule.
        if primitive and primitive.inference and not primitive.detaches:
            return first
        if e.op == "matmul":
            right = arguments[1]
            assert isinstance(right, Expression)
            arguments = [first, transposed(right)]
            e = replace(e, op="linear", arguments=(e.arguments[0], arguments[1]))
        outputs = [isinstance(a, Map) and a.outputs for a in arguments]
        if self.grouped and any(outputs) and _mixes(e):
            raise _NotAffineError(e, "mixes outputs of groups that read different inputs")
        if not _mixes(e):
            arguments = [
                _wide(a, features) if isinstance(a, Map) else _vector(e, a) for a in arguments
            ]
        made = OUT in e.shape[-1:] or (any(outputs) and not _mixes(e))
        images, offsets = [
            [
                (a.images if part == 0 else a.offset)
                if isinstance(a, Map)
                else (number(0, shape=a.shape) if part == 0 and i in together else a)
                for i, a in enumerate(arguments)
            ]
            for part in (0, 1)
        ]
        into = next(a.images.shape[0] for a in arguments if isinstance(a, Map))
        if e.op == "multiply" and 0 not in flowing:
            images, offsets = images[::-1], offsets[::-1]
        return Map(
            _images(e, images, (into, *features)),
            make(e.op, tuple(offsets), features, e.attributes),
            made,
        )


def _images(e: Expression, arguments: list[Expression], shape: Shape) -> Expression:
    if e.op == "linear" and arguments[0].op == "eye":
        return transposed(arguments[1])
    # The basis has no gradient to be cut off.
    if PRIMITIVES[e.op].detaches and arguments[0].op == "eye":
        return arguments[0]
    return make(e.op, tuple(arguments), shape, e.attributes)


def _apart(e: Expression) -> bool:
    """Whether places are mixed, and not features alone."""
    attributes = dict(e.attributes)
    axis = attributes.get("axis", -1)
    most = max(len(features_of(a.shape)) for a in e.arguments)
    return "_apart" in attributes or (isinstance(axis, int) and -axis > most)


def _mixes(e: Expression) -> bool:
    """Whether features of the result are made of others of what flows in."""
    return not PRIMITIVES[e.op].elementwise


def _why(e: Expression, flowing: set[int]) -> str:
    match e.op:
        case "multiply":
            return "a product of two values that depend on the input"
        case "linear" if 1 in flowing:
            return "a weight that depends on the input"
        case _:
            return f"`{e.op}` of a value that depends on the input"


def _vector(within: Expression, known: Expression) -> Expression:
    """What is known, as one value or one for each feature."""
    features = features_of(within.shape)
    if known.number is not None:
        return with_shape(known, features)
    if len(known.shape) <= len(features):
        return known
    if len(features) == 1 and all(d == ONE or is_leading(d) for d in known.shape[:-1]):
        return Expression("vector", (known,), (), known.shape[-1:])
    word = "scales" if within.op in ("multiply", "divide") else "adds to"
    raise _NotAffineError(within, f"`{known}` {word} more than the features")


def _wide(value: Map, features: Shape) -> Map:
    """``value`` with a column for each feature, where it has one for all of them."""
    into, *own = value.images.shape
    if len(own) != len(features) or all(
        a != ONE or b == ONE for a, b in zip(own, features, strict=True)
    ):
        return value
    wide = with_shape if value.offset.number is not None else expanded
    offset = wide(value.offset, features)
    return replace(value, images=expanded(value.images, (into, *features)), offset=offset)


def _slice(e: Expression, arguments: list[Value]) -> Value:
    """Some features of a map, or a map with some replaced: features are rows of its matrix."""
    into = next((a.images.shape[0] for a in arguments if isinstance(a, Map)), IN)
    maps = [
        a if isinstance(a, Map) else Map(number(0, shape=(into, of.shape[-1])), _vector(of, a))
        for a, of in zip(arguments, e.arguments, strict=True)
    ]
    matrix = make(e.op, tuple(transposed(m.images) for m in maps), attributes=e.attributes)
    offset = make(e.op, tuple(m.offset for m in maps), attributes=e.attributes)
    return Map(transposed(matrix), offset, any(m.outputs for m in maps))
