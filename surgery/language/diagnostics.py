"""What went wrong, where, and what would be right: the one shape of every error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from surgery.language.carets import caret_frame, visible
from surgery.language.source import Span

MOST = 50
"""So many errors of one text are told; who mends them sees the next."""


@dataclass(frozen=True)
class Label:
    """A span and what to write under its carets."""

    span: Span
    text: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """One finding. The first label is where it is; the others are what it disagrees with.

    Codes: S1xx the text, S2xx rules and their types, S3xx selection, S4xx what a method needs of
    a site, S5xx models and files.
    """

    code: str
    message: str
    labels: tuple[Label, ...] = ()
    help: str | None = None
    severity: Literal["error", "warning"] = "error"


class SurgeryError(Exception):
    """The error that this package raises; ``diagnostics`` has one or more entries."""

    def __init__(self, diagnostics: Diagnostic | Sequence[Diagnostic]):
        found = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = found
        super().__init__(found)

    def __str__(self) -> str:
        return "\n\n".join(render(d) for d in self.diagnostics)

    def __reduce__(self) -> tuple[type[SurgeryError], tuple[tuple[Diagnostic, ...]]]:
        return type(self), (self.diagnostics,)


class SurgeryWarning(UserWarning):
    """The warning that this package gives."""


def first_of(problems: Sequence[Diagnostic]) -> list[Diagnostic]:
    """As many of ``problems`` as anybody reads, and a last one that says how many are left."""
    if len(problems) <= MOST:
        return list(problems)
    left = problems[MOST:]
    here = tuple(Label(label.span, "the next one is here") for label in left[0].labels[:1])
    return [*problems[:MOST], Diagnostic("S124", f"there are {len(left)} more errors", here)]


def error(
    code: str, message: str, *labels: Label | Span | None, help: str | None = None
) -> SurgeryError:
    """A :class:`SurgeryError` of one diagnostic; bare spans become labels, None is dropped."""
    marks = tuple(Label(x) if isinstance(x, Span) else x for x in labels if x is not None)
    return SurgeryError(Diagnostic(code, message, marks, help))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    lower = {n.lower(): n for n in names}
    close = get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], *, quote: str = "`") -> str | None:
    """A help line naming the nearest known name, or None."""
    close = nearest(name, known)
    return f"did you mean {quote}{close}{quote}?" if close else None


def render(diagnostic: Diagnostic) -> str:
    """The caret frame, as plain text."""
    lines = [f"{diagnostic.severity}[{diagnostic.code}]: {visible(diagnostic.message)}"]
    places = [(label, *label.span.source.position(label.span.start)) for label in diagnostic.labels]
    gutter = " " * max((len(str(line)) for _, line, _ in places), default=1)
    for order, (label, line, column) in enumerate(places):
        arrow = "-->" if order == 0 else ":::"
        mark = "^" if order == 0 else "-"
        text, carets = caret_frame(label.span, mark)
        lines += [
            f"{gutter}{arrow} {visible(label.span.source.name)}:{line}:{column}",
            f"{gutter} |",
            f"{line:>{len(gutter)}} | {text}",
            f"{gutter} | {carets}{' ' + visible(label.text) if label.text else ''}",
        ]
    if diagnostic.help:
        lead = f"{gutter} = " if places else "  = "
        lines.append(f"{lead}help: {visible(diagnostic.help)}")
    return "\n".join(lines)
