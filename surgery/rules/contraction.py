"""`dot(a, b, over = c)`: products of tensors, summed over dims that are matched by name.

What a call comes to is an equation of letters, by position: what is derived of it knows no names.
"""

from __future__ import annotations

from collections.abc import Collection
from string import ascii_letters

from surgery.language import syntax
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import Attribute, Expression, Shape, is_leading
from surgery.rules.named_dims import Caller, factors, position, tensors_of
from surgery.rules.shapes import ONE, Shapes
from surgery.rules.simplify import make


def dot(call: syntax.Call, names: Caller) -> Expression:
    """`dot(a, b, over = c)`: the sum over c of products; without `over`, the products.

    Dims that both have are matched by name. The others stay, first those of the argument that flows,
    or that has more of them.
    """
    (a, b), over = tensors_of(call, names, 2, "over")
    if (b.varies, len(b.shape)) > (a.varies, len(a.shape)):
        a, b = b, a
    summed = {
        position(a, f, names): position(b, f, names) for f in (factors(over.value) if over else ())
    }
    made = _Letters(a.shape, b.shape, summed, names.shapes)
    attributes: list[tuple[str, Attribute]] = [("_equation", made.equation)]
    shape = made.shape
    if over:
        attributes.append(("dims", f"over = {' '.join(over.value.span.text.split())}"))
    if not made.kept:
        # As after `sum`, what is left is one number.
        attributes.append(("_kept", True))
        shape = (*shape, ONE)
    if made.mixes_places:
        attributes.append(("_apart", True))
    return _product(a, b, summed, shape, call.span) or make(
        "dot", (a, b), shape, tuple(attributes), call.span
    )


class _Letters:
    """The dims of two tensors as letters; leading ones are behind `...`, as many as there are."""

    def __init__(self, a: Shape, b: Shape, summed: dict[int, int], shapes: Shapes):
        fronts = _front(a, summed.keys()), _front(b, {*summed.values()})
        letters = iter(ascii_letters)
        left = {i: next(letters) for i in range(fronts[0], len(a))}
        right: dict[int, str] = {}
        free = [k for k in range(fronts[1], len(b)) if k not in summed.values()]
        for i, letter in left.items():
            size = shapes.resolve(a[i])
            same = (k for k in free if k not in right and _alike(size, shapes.resolve(b[k])))
            j = summed[i] if i in summed else next(same, None)
            if j is not None:
                right[j] = letter
        for k in free:
            right.setdefault(k, next(letters))
        self.kept = [(left[i], a[i]) for i in left if i not in summed]
        known = set(left.values())
        self.kept += [(right[k], b[k]) for k in free if right[k] not in known]
        leading = max(a[: fronts[0]], b[: fronts[1]], key=len)
        self.shape: Shape = (*leading, *(dim for _, dim in self.kept))
        self.mixes_places = any(map(is_leading, (*a[fronts[0] :], *b[fronts[1] :])))
        given = ["".join(side[i] for i in sorted(side)) for side in (left, right)]
        self.equation = f"...{given[0]},...{given[1]}->...{''.join(x for x, _ in self.kept)}"


def _product(
    a: Expression, b: Expression, summed: dict[int, int], shape: Shape, span: Span
) -> Expression | None:
    """The sum as a `linear`, where it is one: of the last dim, with a matrix."""
    if len(summed) != 1 or b.varies or len(b.shape) != 2 or not a.varies:
        return None
    ((i, j),) = summed.items()
    if i != len(a.shape) - 1 or len(shape) != len(a.shape):
        return None
    matrix = b if j == 1 else make("transpose", (b,), b.shape[::-1])
    return make("linear", (a, matrix), shape, span=span)


def _front(shape: Shape, summed: Collection[int]) -> int:
    """How many leading dims stand in front, none of them summed over."""
    count = 0
    while count < len(shape) and is_leading(shape[count]) and count not in summed:
        count += 1
    return count


def _alike(one: Dim, other: Dim) -> bool:
    """Whether two dims have one name, as far as both have one, and one size."""
    if one == ONE or other == ONE:
        return bool(one.label) and one.label == other.label
    return one == other and (not one.label or not other.label or one.label == other.label)
