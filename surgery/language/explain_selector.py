"""Mistakes in `on`, `freeze` and `train`."""

from __future__ import annotations

from surgery.language.diagnostics import Diagnostic, Label
from surgery.language.failure import Failure
from surgery.language.lalr import END, grammar
from surgery.language.words import CLAUSES

_PART_ENDS = {"NAME", "PATH", "ALL", "RPAR", "RSQB"}
_PART_STARTS = {"NAME", "PATH", "ALL"}
_MOST_PARTS = 8
BEHIND = {"FREEZE", "TRAIN"}
_PATH_SIGNS = {"STAR", "NUMBER", "STRING", "QMARK", "LBRACE", "DOT", "SLASH"}


def explain(failure: Failure) -> Diagnostic | None:
    if failure.opener not in {"ON", "FREEZE", "TRAIN"}:
        return None
    for understand in (
        _bare_path,
        _nowhere,
        _no_method,
        _no_method_wanted,
        _late_clause,
        _missing_bar,
        _bare_arguments,
    ):
        if diagnostic := understand(failure):
            return diagnostic
    return None


def selects(kinds: list[str]) -> bool:
    """Whether tokens of these ``kinds`` are a selector, with `on` before it or without."""
    statement = ["TRAIN", *kinds[kinds[:1] == ["ON"] :], END]
    return grammar().stepper().reach(statement) == len(statement)


def behind(failure: Failure) -> Diagnostic | None:
    """`on q train`, which is `train q`."""
    *kinds, last = failure.kinds
    if last not in BEHIND or not kinds or not selects(kinds):
        return None
    word = failure.tokens[-1]
    selector = failure.span(int(kinds[:1] == ["ON"]), len(kinds) - 1).text
    return failure.diagnose(
        "S120",
        f"`{word}` comes before its selector",
        failure.span(0, len(kinds)),
        help=f"write `` {word} {selector} ``" if "`" in selector else f"write `{word} {selector}`",
    )


def _bare_path(failure: Failure) -> Diagnostic | None:
    """A glob without its backticks."""
    wanted = "PATH" in failure.accepts or (
        failure.touches_previous() and "LPAR" not in failure.kinds[: failure.place]
    )
    if failure.kind not in _PATH_SIGNS or not wanted or _in_test(failure):
        return None
    first = last = failure.place
    while first > 1 and failure.tokens[first - 1].end_pos == failure.tokens[first].start_pos:
        first -= 1
    while (
        last + 1 < len(failure.tokens)
        and failure.tokens[last].end_pos == failure.tokens[last + 1].start_pos
    ):
        last += 1
    span = failure.span(first, last)
    path = span.text.strip('"')
    message = "a path is written between backticks"
    return failure.diagnose("S117", message, span, help=f"write `` `{path}` ``")


def _in_test(failure: Failure) -> bool:
    clauses = [kind for kind in failure.kinds[: failure.place] if kind in CLAUSES]
    return clauses[-1:] == ["WHERE"]


def _nowhere(failure: Failure) -> Diagnostic | None:
    if failure.place != failure.start + 1 or not (failure.at_end or failure.kind == "APPLY"):
        return None
    word = failure.tokens[failure.start]
    example = "on q apply lora(r = 8)" if word == "on" else f"{word} all"
    return failure.diagnose(
        "S120",
        "this statement has no selector",
        failure.span(failure.start),
        help=f"`{word}` needs a selector: `{example}`",
    )


def _no_method(failure: Failure) -> Diagnostic | None:
    chosen = "APPLY" in failure.accepts or failure.previous() == "APPLY"
    if failure.opener != "ON" or not chosen or not (failure.at_end or failure.kind == "AS"):
        return None
    if failure.opened:
        return None
    return failure.diagnose(
        "S104",
        "this `on` statement has no method",
        failure.span(failure.start, failure.place - 1),
        help="an `on` needs a method: `on q apply lora(r = 8)`",
    )


def _no_method_wanted(failure: Failure) -> Diagnostic | None:
    word = failure.tokens[failure.start]
    named = failure.kind == "NAME" and failure.next_kind == "LPAR"
    if (
        word == "on"
        or word.start_pos == word.end_pos
        or not (named or failure.kind == "APPLY")
        or failure.opened
    ):
        return None
    return failure.diagnose(
        "S122",
        f"`{word}` takes no method",
        Label(failure.here),
        help="a method is applied by `on`: `on q apply lora(r = 8)`",
    )


def _late_clause(failure: Failure) -> Diagnostic | None:
    if failure.kind not in CLAUSES or failure.opener != "ON" or failure.opened:
        return None
    if "AS" not in failure.accepts and failure.previous(2) != "AS":
        return None
    return failure.diagnose(
        "S106",
        f"`{failure.token}` must come before the method",
        help="the clauses of a selector come before the method",
    )


def _missing_bar(failure: Failure) -> Diagnostic | None:
    """Parts side by side; those before the refused token may have been read as methods."""
    gaps = [
        place
        for place in range(failure.start + 2, min(failure.place + 1, len(failure.tokens)))
        if failure.kinds[place] in _PART_STARTS and failure.kinds[place - 1] in _PART_ENDS
    ]
    gaps = gaps[:_MOST_PARTS]
    for first in range(len(gaps)):
        for last in range(len(gaps), first, -1):
            if _joined(failure, gaps[first:last]):
                left, right = failure.tokens[gaps[first] - 1], failure.tokens[gaps[first]]
                return failure.diagnose(
                    "S107",
                    "missing `|` between two selectors",
                    failure.span(gaps[first]),
                    help=f"`|` joins them: `{left.strip('`')}|{right.strip('`')}`"
                    if left.type == right.type == "NAME"
                    else "`|` joins them",
                )
    return None


def _joined(failure: Failure, gaps: list[int]) -> bool:
    kinds: list[str] = []
    for place in range(failure.start, len(failure.kinds)):
        kinds += ["VBAR"] if place in gaps else []
        kinds.append(failure.kinds[place])
    enough = kinds[: failure.place - failure.start + len(gaps) + 2]
    return failure.origin.reach(enough) == len(enough)


def _bare_arguments(failure: Failure) -> Diagnostic | None:
    """`lora r = 4` and `lora 4`."""
    if failure.opener != "ON" or failure.opened or _in_test(failure):
        return None
    if failure.kind == "EQUAL" and failure.previous() == failure.previous(2) == "NAME":
        first, name = failure.place - 1, failure.tokens[failure.place - 2]
    elif failure.kind in {"NUMBER", "STRING"} and failure.previous() == "NAME":
        first, name = failure.place, failure.tokens[failure.place - 1]
    else:
        return None
    last = min(failure.place + 1, len(failure.tokens) - 1) if failure.kind == "EQUAL" else first
    span = failure.span(first, last)
    return failure.diagnose(
        "S109",
        "arguments must be in parentheses",
        span,
        help=f"write `{name}({span.text})`",
    )
