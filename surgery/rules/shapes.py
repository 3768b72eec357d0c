"""Unification of named dims, with errors that name both shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.language.diagnostics import Label, SurgeryError, error
from surgery.language.source import Span
from surgery.rules.dims import Dim
from surgery.rules.expression import STAR, Expression, Shape, is_leading

ONE = Dim.of(1)


def show_shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


@dataclass(frozen=True)
class Equation:
    """Two dims that must be equal at a site, and the expression that needs it."""

    left: Dim
    right: Dim
    reason: str
    span: Span | None


@dataclass
class Shapes:
    """What is known of the dims while a rule is read.

    With ``strict``, two different named dims disagree. Without it, they may be equal at a site:
    the equation is kept in ``equations`` for the site to decide. Names starting with `?` stand
    for dims still unknown and take the first value they meet.
    """

    strict: bool = True
    equations: list[Equation] = field(default_factory=list[Equation])
    _values: dict[str, Dim] = field(default_factory=dict[str, Dim])
    _fresh: int = 0

    def fresh(self) -> Dim:
        self._fresh += 1
        return Dim.named(f"?{self._fresh}")

    def resolve(self, dim: Dim) -> Dim:
        while any(name in self._values for name in dim.names()):
            dim = dim.substitute(self._values).called(dim.label)
        return dim

    def equal(self, left: Dim, right: Dim, reason: str = "", span: Span | None = None) -> bool:
        """Whether the dims agree, binding unknown ones; may note an equation for the site."""
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return True
        for one, other in ((left, right), (right, left)):
            atom = one.atom
            if atom and atom.name.startswith("?") and atom.name not in other.names():
                self._values[atom.name] = other
                return True
        if self.strict or is_leading(left) or is_leading(right):
            return False
        if left.number is not None and right.number is not None:
            return False
        self.equations.append(Equation(left, right, reason, span))
        return True

    def broadcast(self, left: Expression, right: Expression, what: str, span: Span | None) -> Shape:
        """The shape of an elementwise operation, aligned from the right as in torch."""
        a, b = [self.resolve(d) for d in left.shape], [self.resolve(d) for d in right.shape]
        result: list[Dim] = []
        while a and b:
            x, y = a.pop(), b.pop()
            if STAR in (x, y):
                if any(d not in (STAR, ONE) for d in (x, y, *a, *b)):
                    raise mismatch(what, left, right, span)
                return (STAR, *result)
            if x == ONE or y == ONE:
                result.insert(0, y if x == ONE else x)
            elif self.equal(x, y, what, span):
                keeps = x.label and len(left.shape) >= len(right.shape)
                result.insert(0, self.resolve(x if keeps else x.called(y.label)))
            else:
                raise mismatch(what, left, right, span)
        return (*a, *b, *result)

    def fits(self, shape: Shape, expected: Shape, reason: str, span: Span | None) -> bool:
        """Whether a value of ``shape`` can stand where ``expected`` is wanted, by broadcasting."""
        a, b = list(shape), list(expected)
        while a and b:
            x, y = self.resolve(a.pop()), self.resolve(b.pop())
            if y == STAR:
                return all(d in (STAR, ONE) for d in (x, *a))
            if x != ONE and not self.equal(x, y, reason, span):
                return False
        return not a


def mismatch(what: str, left: Expression, right: Expression, span: Span | None) -> SurgeryError:
    declared = [
        Label(e.span, f"{e.name} is {show_shape(e.shape)}")
        for e in (left, right)
        if e.op == "param" and e.span
    ]
    return error(
        "S211",
        f"{what} of {show_shape(left.shape)} and {show_shape(right.shape)}: the dims do not fit",
        span,
        *declared,
        help=_star_help(left, right) or f"left is `{left}`, right is `{right}`",
    )


def _star_help(left: Expression, right: Expression) -> str | None:
    """What to say where only dims differ that stand in front of the features."""
    if STAR not in (*left.shape, *right.shape) or left.shape[-1:] != right.shape[-1:]:
        return None
    return "`*` stands for any leading dims, which no other dim can be aligned with"
