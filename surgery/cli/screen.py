"""What goes to the terminal: results to stdout, all else to stderr; colour only where it is seen."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from surgery.language.diagnostics import Diagnostic, render

_SIGNS = {"…": "...", "→": "->", "·": "*", "–": "-", "—": "-", "≤": "<=", "×": "x", "²": "^2"}
_HANDLER = "surgery.plain"
"""How what a terminal has no sign for is printed."""


class OutputError(Exception):
    """The output cannot be written."""

    def __init__(self, reason: OSError):
        super().__init__(reason)
        text = f"cannot write the output: {reason.strerror or reason}"
        self.diagnostic = Diagnostic("S509", text)


def prepare() -> None:
    """Let both streams print any text, whatever their encoding."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def _plain(problem: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    text = problem.object[problem.start : problem.end]
    shown = "".join(_SIGNS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return shown, problem.end


def finish() -> None:
    """See to it that all was written.

    Raises:
        OutputError: if it cannot be.

    """
    with _written():
        # A process without a console has none, whatever its type says.
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout.flush()


def silence() -> None:
    """Print no more to stdout, so that Python does not fail at its end with what is left."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _written() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise OutputError(problem) from None


def show(text: str, end: str = "\n") -> None:
    """Print a result, in colour on a terminal."""
    with _written():
        _print(text, sys.stdout, end)


def show_file(text: str) -> None:
    """Print what a file shall hold: UTF-8, whatever the encoding of a terminal is."""
    with _written():
        raw: Any = getattr(sys.stdout, "buffer", None)
        if raw is None:
            print(text, end="")
        else:
            sys.stdout.flush()
            raw.write(text.encode())


def show_json(data: Any) -> None:
    """Print data as JSON."""
    encoding = str(getattr(sys.stdout, "encoding", "")).lower()
    text = json.dumps(data, indent=1, ensure_ascii=not encoding.startswith("utf"))
    with _written():
        print(text)


def say(text: str) -> None:
    """Print a remark to stderr; where that cannot be written, nobody listens."""
    with suppress(OSError):
        _print(text, sys.stderr)


def complain(diagnostics: Iterable[Diagnostic]) -> None:
    """Print errors and warnings with their carets to stderr."""
    if found := [render(d) for d in diagnostics]:
        say("\n\n".join(found))


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    if stream is None or not stream.isatty():
        print(text, file=stream, end=end)
        return
    from rich.console import Console

    from surgery.reports.terminal import painted

    Console(file=stream, highlight=False).print(painted(text), soft_wrap=True, end=end)


@contextmanager
def working(what: str) -> Generator[Callable[[str], None]]:
    """Show that something takes a while; the function that it gives changes the text."""
    # As in `finish`: there may be none.
    if sys.stderr is None or not sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(f"{what} …", spinner=spinner) as status:
        yield lambda text: status.update(f"{text} …")
