"""From a refused token to a message that says what to write instead.

Each function knows one kind of mistake and returns None where it sees another; the first that
speaks is heard. Several of them try the repair they suggest before they suggest it.
"""

from __future__ import annotations

from difflib import get_close_matches

from surgery.language import explain_expression, explain_selector
from surgery.language.diagnostics import Diagnostic, Label
from surgery.language.failure import Failure
from surgery.language.lalr import END, grammar
from surgery.language.source import Span
from surgery.language.words import CLOSERS, FORMS, ITEMS, RESERVED, SIGNS, STEPS

_STATEMENTS = "a statement begins with " + ", ".join(f"`{word}`" for word in ITEMS.values())
_LONGEST = 1000
"""So many words into a statement, no repair is tried: each try reads them all."""
_AFTER_A_NAME = {"EQUAL", "COMMA", "RPAR", "RSQB", "QMARK", "ASSIGN", "TILDE", "LSQB"}
_BEFORE_A_NAME = {"LET", "METHOD", "BLOCK", "AS", "PARAM", "DOT"}


def explain(failure: Failure) -> Diagnostic:
    """What to say of ``failure``."""
    if failure.place - failure.start > _LONGEST:
        return _unexpected(failure)
    for understand in (
        explain_selector.behind,
        _reserved_name,
        _misspelt_word,
        _unclosed,
        _closes_nothing,
        explain_selector.explain,
        explain_expression.explain,
        _unknown_statement,
        _misplaced_doc,
        _broken_off,
        _missing_sign,
    ):
        if diagnostic := understand(failure):
            return diagnostic
    return _unexpected(failure)


def _reserved_name(failure: Failure) -> Diagnostic | None:
    word = RESERVED.get(failure.kind)
    if word is None or "NAME" not in failure.accepts:
        return None
    definition = failure.previous() in {"METHOD", "BLOCK"} and failure.next_kind == "LPAR"
    if not (
        definition or failure.next_kind in _AFTER_A_NAME or failure.previous() in _BEFORE_A_NAME
    ):
        return None
    return failure.diagnose(
        "S108",
        f"`{word}` is a reserved word and cannot be a name",
        help=f"choose another, such as `{word}_`",
    )


def _misspelt_word(failure: Failure) -> Diagnostic | None:
    """A name where, had it been spelt right, a reserved word would stand."""
    for place in (failure.place, failure.place - 1):
        if not failure.start <= place < len(failure.tokens) or failure.kinds[place] != "NAME":
            continue
        name = failure.tokens[place].value
        for word in get_close_matches(str(name).lower(), list(RESERVED.values()), n=3, cutoff=0.7):
            kind = word.upper()
            opens = kind in ITEMS and place > 0 and failure.opens_line(place)
            if failure.repaired(place, 1, kind) or (opens and _goes_on(failure, place, kind)):
                return failure.diagnose(
                    "S105",
                    f"`{name}` is not a keyword",
                    failure.span(place),
                    help=f"did you mean `{word}`?",
                )
    return None


def _goes_on(failure: Failure, place: int, kind: str) -> bool:
    """Whether a statement that opens with ``kind`` at ``place`` would make sense."""
    opening = [kind, *failure.kinds[place + 1 :], END][:3]
    return grammar().stepper().reach(opening) == len(opening)


def _unclosed(failure: Failure) -> Diagnostic | None:
    """A bracket whose partner is nowhere in the statement."""
    if not failure.opened:
        return None
    opener = failure.opened[-1]
    if _closed_later(failure, opener.type):
        return None
    closer = SIGNS[CLOSERS[opener.type]]
    start = opener.start_pos or 0
    end = failure.at_end and failure.after.type == END
    return failure.diagnose(
        "S103",
        f"this `{opener}` is never closed",
        Label(Span(failure.source, start, start + 1), "opened here"),
        Label(failure.here, f"expected `{closer}` before {'the end' if end else 'this'}"),
    )


def _closed_later(failure: Failure, opener: str) -> bool:
    depth = 1
    closer = CLOSERS[opener]
    for kind in failure.kinds[failure.place :]:
        if opener != "LBRACE" and (kind in STEPS or kind in {"LBRACE", "RBRACE", "SEMICOLON"}):
            return False
        depth += (kind == opener) - (kind == closer)
        if depth == 0:
            return True
    return False


def _closes_nothing(failure: Failure) -> Diagnostic | None:
    if failure.kind not in CLOSERS.values():
        return None
    if not failure.opened:
        return failure.diagnose("S103", f"this `{failure.token}` closes nothing")
    opener = failure.opened[-1]
    if CLOSERS[opener.type] == failure.kind:
        return None
    start = opener.start_pos or 0
    open_one = Label(Span(failure.source, start, start + 1), "this is open")
    return failure.diagnose(
        "S103", f"this `{failure.token}` closes nothing", Label(failure.here), open_one
    )


def _unknown_statement(failure: Failure) -> Diagnostic | None:
    if failure.at_end or not (set(ITEMS) <= failure.accepts or failure.place == 0):
        return None
    if failure.kind in STEPS:
        return failure.diagnose(
            "S122",
            f"`{failure.token}` is only allowed inside the body of a `method` or `block`",
            help="`on SELECTOR apply …` applies a method"
            if failure.kind == "APPLY"
            else "it is a step of a `method` or a `block`: between its braces",
        )
    what = f"no statement begins with {failure.found()}"
    return failure.diagnose("S105", what, help=_STATEMENTS)


def _misplaced_doc(failure: Failure) -> Diagnostic | None:
    if failure.kind != "STRING" or "MATCH" not in failure.accepts:
        return None
    return failure.diagnose(
        "S122", "unexpected string in a body", help="a doc string comes first in a body"
    )


def _broken_off(failure: Failure) -> Diagnostic | None:
    """`param A[r] ~` and then `y += 1`, whose `y` was taken for the value."""
    begun = failure.kind in {"EQUAL", "ASSIGN"} and failure.previous() == "NAME"
    if not begun or failure.opened[1:] or failure.place - 1 <= failure.start:
        return None
    step = failure.kinds[failure.start : failure.place - 1]
    if failure.origin.reach([*step, "RBRACE"]) > len(step):
        return None
    return failure.diagnose(
        "S101",
        f"expected an expression, found the next step, `{failure.tokens[failure.place - 1]}`",
        failure.span(failure.place - 1),
        help=_form(failure),
    )


def _missing_sign(failure: Failure) -> Diagnostic | None:
    for kind in ("COMMA", "EQUAL", "LBRACE", "OF", "COLON"):
        if kind in failure.accepts and failure.repaired(failure.place, 0, kind):
            sign = SIGNS.get(kind) or RESERVED[kind]
            return failure.diagnose(
                "S110",
                f"a `{sign}` is missing",
                Label(failure.here, f"expected `{sign}` before this"),
            )
    return None


def _unexpected(failure: Failure) -> Diagnostic:
    message = f"expected {failure.expected()}, found {failure.found()}"
    return failure.diagnose("S101", message, help=_form(failure))


def _form(failure: Failure) -> str | None:
    """How the statement or step that failed is written."""
    assigned = failure.accepts <= {"EQUAL", "ASSIGN"} and failure.opener not in {"LET", "MATCH"}
    opener = "NAME" if assigned else failure.opener
    what = f"`{RESERVED[opener]}`" if opener in RESERVED else "an assignment"
    return f"{what} is written `{FORMS[opener]}`" if opener in FORMS else None
