"""Definitions by name: the prelude in `rules/`, the files a spec uses, and its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, did_you_mean, error
from surgery.language.parse import parse
from surgery.language.resources import NoTextError, read_text, resource
from surgery.language.source import SourceText, Span
from surgery.language.words import ITEMS

_DEEPEST = 64
_DEFINES = re.compile(r"^\s*(?:method|block)\s+([A-Za-z_]\w*)", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Definition:
    """A method or block, with the scope its body looks names up in."""

    syntax: syntax.Method | syntax.Block
    scope: Scope

    @property
    def name(self) -> str:
        return self.syntax.name


@dataclass(eq=False)
class Scope:
    """The definitions one file can name: its own, then those it uses, then the prelude's."""

    own: dict[str, Definition] = field(default_factory=dict[str, Definition])
    prelude: Prelude | None = None

    def find(self, name: str) -> Definition | None:
        return self.own.get(name) or (self.prelude.find(name) if self.prelude else None)

    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.own, *(self.prelude.names() if self.prelude else ())]))

    def require(self, name: str, span: Span | None) -> Definition:
        found = self.find(name)
        if found is None:
            known = self.names()
            raise error(
                "S201",
                f"no method or block is named `{name}`",
                span,
                help=did_you_mean(name, [*known, *ITEMS.values()])
                or "`surgery methods` lists those that are known without a `use`",
            )
        return found


class Prelude:
    """Rule files known without `use`, parsed when one of their names is first asked for."""

    def __init__(self, texts: Mapping[str, str]):
        self.texts = dict(texts)
        self._file_of = {n: f for f, text in self.texts.items() for n in _DEFINES.findall(text)}
        self._scope = Scope(prelude=self)
        self._parsed: set[str] = set()

    def names(self) -> Iterable[str]:
        return self._file_of

    def find(self, name: str) -> Definition | None:
        file = self._file_of.get(name)
        if file and file not in self._parsed:
            self._parsed.add(file)
            define(self._scope, parse(SourceText(file, self.texts[file])))
        return self._scope.own.get(name)

    @property
    def used(self) -> dict[str, str]:
        """The texts of the files that were needed so far, by name."""
        return {f: self.texts[f] for f in sorted(self._parsed)}


@cache
def _prelude_texts() -> dict[str, str]:
    folder = resource("rules")
    return {f"rules/{p.name}": p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.peft"))}


def prelude() -> Prelude:
    """The rules that come with the package."""
    return Prelude(_prelude_texts())


def define(scope: Scope, file: syntax.File) -> None:
    """Add the definitions of ``file`` to ``scope``; one name twice is an error at both places."""
    for item in file.items:
        if isinstance(item, syntax.Method | syntax.Block):
            earlier = scope.own.get(item.name)
            if earlier is not None:
                raise SurgeryError(
                    Diagnostic(
                        "S202",
                        f"`{item.name}` is defined twice",
                        (
                            Label(item.name_span, "again here"),
                            Label(earlier.syntax.name_span, "first here"),
                        ),
                    )
                )
            scope.own[item.name] = Definition(item, scope)


Reader = Callable[[str, Span], SourceText]


def disk_reader(folder: Path) -> Reader:
    """Read used files relative to ``folder``."""

    def read(path: str, span: Span) -> SourceText:
        target = folder / path
        try:
            return SourceText(path, read_text(target))
        except NoTextError as problem:
            raise error(
                "S203",
                f"cannot read `{path}`: {problem}",
                span,
                help=did_you_mean(target.name, _beside(target)) or f"looked in {target.parent}",
            ) from None

    return read


def _beside(target: Path) -> list[str]:
    try:
        return [p.name for p in target.parent.glob("*.peft")]
    except (OSError, ValueError):
        return []


def memory_reader(texts: Mapping[str, str]) -> Reader:
    """Read used files from ``texts``, as a saved adapter carries them."""

    def read(path: str, span: Span) -> SourceText:
        if path not in texts:
            raise error("S203", f"`{path}` is not among the saved files", span)
        return SourceText(path, texts[path])

    return read


def scope_of(file: syntax.File, read: Reader, rules: Prelude, files: dict[str, str]) -> Scope:
    """The scope of ``file``; the texts of all files it uses, at any depth, go into ``files``."""
    return _scope_of(file, read, rules, files, (), {})


def _scope_of(
    file: syntax.File,
    read: Reader,
    rules: Prelude,
    files: dict[str, str],
    chain: tuple[str, ...],
    known: dict[str, Scope],
) -> Scope:
    scope = Scope(prelude=rules)
    for item in file.items:
        if not isinstance(item, syntax.Use):
            continue
        if item.path in chain:
            raise error(
                "S204", f"`{item.path}` uses itself: {' → '.join([*chain, item.path])}", item.span
            )
        if len(chain) > _DEEPEST:
            raise error("S241", f"files use one another more than {_DEEPEST} deep", item.span)
        if item.path in known:
            _import(scope, known[item.path], item)
            continue
        used = parse(read(item.path, item.span))
        files[item.path] = used.source.text
        defining = syntax.Let | syntax.Use | syntax.Method | syntax.Block
        statement = next((i for i in used.items if not isinstance(i, defining)), None)
        if statement is not None:
            raise error(
                "S205",
                f"`{item.path}` is a spec, not a file of rules",
                item.span,
                Label(statement.span, "a statement here"),
                help="`use` imports methods and blocks; apply a spec separately",
            )
        inner = _scope_of(used, read, rules, files, (*chain, item.path), known)
        known[item.path] = inner
        _import(scope, inner, item)
    define(scope, file)
    return scope


def _import(scope: Scope, source: Scope, item: syntax.Use) -> None:
    for name in item.names if item.names is not None else tuple(source.own):
        found = source.own.get(name)
        if found is None:
            raise error(
                "S206",
                f"`{item.path}` defines no `{name}`",
                item.span,
                help=did_you_mean(name, source.own) or f"it defines {', '.join(source.own)}",
            )
        if scope.own.setdefault(name, found) is not found:
            raise error(
                "S202",
                f"`{name}` is imported twice",
                item.span,
                Label(scope.own[name].syntax.name_span, "first this one"),
            )
