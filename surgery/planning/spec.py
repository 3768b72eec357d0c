"""A spec, read: its statements, the rules it can name, and the texts that say all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surgery.language import syntax
from surgery.language.diagnostics import (
    MOST,
    Diagnostic,
    Label,
    SurgeryError,
    did_you_mean,
    error,
    first_of,
)
from surgery.language.parse import parse
from surgery.language.resources import NoTextError, read_text, resource
from surgery.language.source import SourceText, Span
from surgery.planning.schema import Each
from surgery.rules.binding import chain
from surgery.rules.constants import Constants
from surgery.rules.evaluate import evaluate
from surgery.rules.expand import Wrapped
from surgery.rules.library import (
    Definition,
    Prelude,
    Reader,
    Scope,
    disk_reader,
    memory_reader,
    prelude,
    scope_of,
)
from surgery.rules.limits import followed
from surgery.rules.naming import check_name
from surgery.rules.placing import child_name
from surgery.rules.program import build
from surgery.rules.shapes import Shapes
from surgery.rules.standalone import check_block, check_method, fitting

Statement = syntax.On | syntax.Freeze | syntax.Train | syntax.Optimize | syntax.Penalty

TEXTS = {"name": str, "text": str, "files": Each(str), "rules": Each(str)}
"""The form of what :meth:`Spec.texts` gives, as files keep it."""


@dataclass(frozen=True, eq=False)
class Spec:
    """A parsed spec with its names resolved. Made by :func:`read_spec`."""

    file: syntax.File
    scope: Scope
    constants: Constants
    files: Mapping[str, str]
    rules: Prelude = field(repr=False)
    _wrapped: dict[int, Wrapped] = field(default_factory=dict[int, Wrapped], repr=False)

    @property
    def name(self) -> str:
        return self.file.source.name

    @property
    def text(self) -> str:
        return self.file.source.text

    @property
    def statements(self) -> tuple[Statement, ...]:
        return tuple(i for i in self.file.items if isinstance(i, Statement))

    def wrapped(self, number: int) -> Wrapped:
        """The method of statement ``number``, an `on`; the same object every time."""
        if number not in self._wrapped:
            statement = self.statements[number]
            assert isinstance(statement, syntax.On)
            closure = chain(statement.application, replace(self.constants, at_sites=True))
            self._wrapped[number] = Wrapped(statement.name or child_name(closure), closure)
        return self._wrapped[number]

    def texts(self) -> dict[str, Any]:
        """All that is needed to read this spec again, without any file: text, files, rules."""
        return {
            # Names of files can hold bytes that are no text.
            "name": self.name.encode(errors="replace").decode(),
            "text": self.text,
            "files": dict(self.files),
            "rules": self.rules.used,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return spec_from_texts, (self.texts(),)

    def __deepcopy__(self, memo: object) -> Spec:
        return self


def read_spec(spec: str | os.PathLike[str] | syntax.File | Spec) -> Spec:
    """Read a spec from text, a path, a parsed file, or by the name of a recipe: `unipelt`.

    A string is taken for a path if it ends in `.peft` and holds no space or newline, and for a
    recipe's name if it is one word.

    Raises:
        SurgeryError: S1xx and S2xx, all that are found; S510 if the file cannot be read, or if
            ``spec`` is none of these.

    """
    if isinstance(spec, Spec):
        return spec
    folder = Path()
    if isinstance(spec, syntax.File):
        file = spec
    elif not isinstance(spec, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise error(
            "S510",
            f"a spec is a text, a path, or what was read from one, and this is {_kind(spec)}",
            help='a text such as `"on q apply lora(r = 8)"`, or `pathlib.Path("spec.peft")`',
        )
    elif isinstance(spec, os.PathLike) or _is_path(spec):
        path = Path(os.fsdecode(spec))
        folder = path.parent
        try:
            text = read_text(path)
        except NoTextError as problem:
            raise error("S510", f"cannot read the spec `{path}`: {problem}") from None
        file = parse(SourceText(str(path), text))
    elif spec.isidentifier():
        file = recipe(spec)
    else:
        file = parse(SourceText("<spec>", spec))
    return resolve(file, disk_reader(folder), prelude())


def _kind(thing: object) -> str:
    return "None" if thing is None else f"of the type `{type(thing).__name__}`"


def recipes() -> dict[str, syntax.File]:
    """The specs that come with the package, by name."""
    files = {p.stem: p for p in sorted(resource("rules").glob("*.peft"))}
    parsed = {
        name: parse(SourceText(f"rules/{path.name}", path.read_text(encoding="utf-8")))
        for name, path in files.items()
    }
    return {n: f for n, f in parsed.items() if any(isinstance(i, Statement) for i in f.items)}


def recipe(name: str) -> syntax.File:
    """The recipe so named.

    Raises:
        SurgeryError: S510 if there is none.

    """
    known = recipes()
    if name not in known:
        raise error(
            "S510",
            f"no recipe is named `{name}`",
            help=did_you_mean(name, known)
            or f"there are {', '.join(known)}; a spec is more than a word",
        )
    return known[name]


def _is_path(text: str) -> bool:
    return text.endswith(".peft") and not any(c.isspace() for c in text)


def spec_from_texts(texts: Mapping[str, Any]) -> Spec:
    """The spec that :meth:`Spec.texts` came from."""
    file = parse(SourceText(texts["name"], texts["text"]))
    return resolve(file, memory_reader(texts["files"]), Prelude(texts["rules"]))


def resolve(file: syntax.File, read: Reader, rules: Prelude) -> Spec:
    """Look up the names of a parsed file; ``read`` finds the files that it uses.

    Raises:
        SurgeryError: S2xx, all that are found.

    """
    files: dict[str, str] = {}
    scope = scope_of(file, read, rules, files)
    constants = Constants(scope, {}, Shapes())
    found: list[Diagnostic] = []
    sound: set[Definition] = set()
    for item in file.items:
        try:
            with followed(item.span):
                _check(item, constants, sound)
        except SurgeryError as problem:
            found += [d for d in problem.diagnostics if d not in found]
        if len(found) > MOST:
            break
    if found:
        raise SurgeryError(first_of(found))
    return Spec(file, scope, constants, files, rules)


def _with(here: Label, problem: Diagnostic) -> tuple[Label, ...]:
    """Put the spec's own place first, unless the labels have one.

    What can never act is so by what it is given, and that is written here.
    """
    known = any(label.span.source is here.span.source for label in problem.labels)
    return problem.labels if known and problem.code != "S225" else (here, *problem.labels)


def _check(item: syntax.Item, constants: Constants, sound: set[Definition]) -> None:
    """Object to ``item``; the methods in ``sound`` were read before."""
    match item:
        case syntax.Let():
            if item.name in constants.values:
                raise error("S215", f"`{item.name}` is already defined here", item.name_span)
            constants.values[item.name] = evaluate(item.value, constants)
            constants.written[item.name] = item.value.span
        case syntax.On():
            closure = chain(item.application, replace(constants, at_sites=True))
            if closure.is_block:
                name = closure.definition.name
                raise error(
                    "S209",
                    f"`{name}` is a block, and needs a verb that says where it goes",
                    item.application.name_span,
                    help=f"`sequential {name}(…)`, `parallel {name}(…)` or `pfeiffer {name}(…)`",
                )
            if closure.definition not in sound:
                check_method(closure.definition)
                sound.add(closure.definition)
            name = item.name or child_name(closure)
            if item.name:
                end = item.span.end
                check_name(name, Span(item.span.source, end - len(name), end))
            try:
                program = build(fitting(closure), (Wrapped(name, closure),))
                program.check_schedules()
                program.check_acting()
            except SurgeryError as problem:
                here = Label(item.application.span, "applied here")
                raise SurgeryError(
                    [replace(d, labels=_with(here, d)) for d in problem.diagnostics]
                ) from None
        case syntax.Method():
            check_method(constants.scope.require(item.name, item.name_span))
        case syntax.Block():
            check_block(constants.scope.require(item.name, item.name_span))
        case _:
            pass
