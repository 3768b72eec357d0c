"""Mistakes inside expressions and arguments."""

from __future__ import annotations

from surgery.language.diagnostics import Diagnostic
from surgery.language.failure import Failure


def explain(failure: Failure) -> Diagnostic | None:
    within = "PLUS" in failure.accepts
    match failure.kind:
        case "COMPARE" if within:
            return failure.diagnose(
                "S119", "comparisons do not chain", help="join two by `and`: `a < b and b < c`"
            )
        case "EQUAL" if "COMPARE" in failure.accepts:
            return failure.diagnose(
                "S119", "`=` gives a value to a name", help="`==` compares two values"
            )
        case "VBAR" if "OR" in failure.accepts:
            return failure.diagnose("S119", "`|` joins selectors", help="`or` joins tests")
        case "STAR" if failure.previous() == "STAR":
            place = failure.place
            return failure.diagnose(
                "S119",
                "there is no operator `**`",
                failure.span(place - 1, place),
            )
        case "SLASH" if failure.previous() == "SLASH":
            place = failure.place
            return failure.diagnose(
                "S119",
                "there is no operator `//`",
                failure.span(place - 1, place),
                help="a comment starts with `#`",
            )
        case "LSQB" if "NUMBER" in failure.accepts:
            return failure.diagnose("S119", "there are no lists", help="give each value a name")
        case "LSQB" if within:
            return failure.diagnose(
                "S119",
                "a tensor has no subscripts in an expression",
                help="dims are named where it is declared: in a `match` or a `param`",
            )
        case "COLON" if failure.opened and "EQUAL" in failure.accepts:
            return failure.diagnose(
                "S109", "an argument is given by `=`", help="`r = 8`, not `r: 8`"
            )
        case _:
            return None
