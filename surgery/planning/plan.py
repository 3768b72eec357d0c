"""A plan: all that a spec changes in one model, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from surgery.language.diagnostics import Diagnostic, SurgeryError, error
from surgery.language.writing import checked_path, replacing
from surgery.planning.edit import Edit, Tensor
from surgery.planning.facts import canonical, plan_facts
from surgery.planning.options import Option, SitePenalty
from surgery.planning.schema import ANY, Each, MalformedError, check, read_json
from surgery.planning.spec import TEXTS, Spec, spec_from_texts

VERSION = 2
"""Of what :meth:`Plan.save` writes."""

SAVED = {"fingerprint": str, "base": str, "spec": TEXTS}
"""What of it is read again."""


@dataclass(frozen=True)
class Plan:
    """What :func:`surgery.apply` will do to a model, and what :func:`surgery.diff` shows.

    ``base`` fingerprints the model the plan was made for, from the ``digests`` of its
    parameters. ``trained`` and ``frozen`` name the base parameters whose training the spec decides.
    """

    spec: Spec = field(repr=False)
    base: str
    digests: Mapping[str, str] = field(repr=False)
    edits: tuple[Edit, ...]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    parameters: int
    """Elements of the base model's parameters."""
    trained_elements: int
    """Elements that train in the base model after the spec is applied."""
    warnings: tuple[Diagnostic, ...] = ()
    idle: tuple[str, ...] = ()
    """The sites, and the parameters to train, of which a warning says that they change nothing."""
    unchecked: str | None = None
    """Why it is not known whether all that changes has a part in what the model returns."""
    flags: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Which params of methods that were there before it has train, and which not, by name."""
    options: tuple[Option, ...] = ()
    penalties: tuple[SitePenalty, ...] = ()

    @property
    def decisions(self) -> dict[str, bool]:
        """Whether each base parameter that the spec decides about trains."""
        return {**dict.fromkeys(self.trained, True), **dict.fromkeys(self.frozen, False)}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for e in self.edits for t in e.tensors)

    @property
    def distinct(self) -> tuple[Tensor, ...]:
        """The parameters to add; one that several sites share is there once."""
        found: dict[Any, Tensor] = {}
        for edit in self.edits:
            for t in edit.tensors:
                found.setdefault(edit.shared_key(t) or t.name, t)
        return tuple(found.values())

    @property
    def added(self) -> int:
        """Elements of all parameters added, states apart; a shared one counts once."""
        return sum(t.size for t in self.distinct if not t.state)

    @property
    def trainable(self) -> int:
        """Elements that train after the spec is applied: added ones and the base's."""
        return self.trained_elements + sum(t.size for t in self.distinct if t.trained)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON data, with the spec's texts and the fingerprint."""
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "spec": self.spec.texts(),
            "parameters": self.parameters,
            "added": self.added,
            "trainable": self.trainable,
            "trained_elements": self.trained_elements,
            **self._facts,
            "warnings": [d.message for d in self.warnings],
            "idle": list(self.idle),
            "unchecked": self.unchecked,
        }

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything the plan does; two plans with one fingerprint do the same.

        Attention may be computed in another way: what was trained by flash attention serves without.
        """
        return hashlib.sha256(canonical(self._facts).encode()).hexdigest()[:16]

    @property
    def _facts(self) -> dict[str, Any]:
        facts = plan_facts(self.base, self.edits, self.trained, self.frozen)
        steered = {
            "flags": dict(self.flags),
            "options": [[str(o), *o.names] for o in self.options],
            "penalties": [[p.statement, *p.key] for p in self.penalties],
        }
        return {**facts, **{key: value for key, value in steered.items() if value}}

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            SurgeryError: S509 if the file cannot be written; one that was there stays whole.

        """
        with replacing(path) as file:
            file.write(json.dumps(self.as_dict(), indent=1).encode())


@dataclass(frozen=True)
class SavedPlan:
    """A plan read from a file: the spec to plan again, and the fingerprint that must come out."""

    spec: Spec
    fingerprint: str
    base: str

    @staticmethod
    def read(source: str | Path | Mapping[str, Any]) -> SavedPlan:
        """Read what :meth:`Plan.save` wrote.

        Raises:
            SurgeryError: S533 if it is no saved plan, or of another version.

        """
        try:
            data = source if isinstance(source, Mapping) else _read(source)
            if data.get("version") != VERSION:
                raise MalformedError(
                    f"it is of version {data.get('version')!r}, and this reads {VERSION}: plan again"
                )
            kept = {key: data[key] for key in SAVED if key in data}
            check(kept, SAVED)
            spec = spec_from_texts(kept["spec"])
        except (MalformedError, SurgeryError) as problem:
            raise error("S533", f"not a saved plan: {problem}") from None
        return SavedPlan(spec, kept["fingerprint"], kept["base"])


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        text = Path(checked_path(path, "S533")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise MalformedError(f"cannot read `{path}`: {problem}") from None
    return read_json(text, Each(ANY))
