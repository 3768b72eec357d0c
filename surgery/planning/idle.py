"""What a statement selects that has no part in the result: an error if that is all, else a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label

UNSIZED = "run in training alone, so nothing is known of their sizes"
_SHOWN = 3


@dataclass
class Idle:
    """The sites of one statement, each with why it has no part in the result, if so.

    ``left`` are those that stay as they are, since nothing is known of their sizes.
    """

    sites: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    left: set[str] = field(default_factory=set[str])

    def note(self, path: str, reason: str | None, left: bool = False) -> None:
        """Note one place, and whether it is left as it is."""
        self.sites.append((path, reason))
        self.left.update([path] if left else ())

    @property
    def paths(self) -> list[str]:
        """Those without a part in the result."""
        return [path for path, reason in self.sites if reason is not None]

    def tell(
        self,
        selector: syntax.Selector,
        found: list[Diagnostic],
        warnings: list[Diagnostic],
        things: str = "places",
        settled: bool = False,
    ) -> None:
        """An error or a warning for each reason, to ``found`` or to ``warnings``.

        What was ``settled`` before, by inputs that are not at hand, is no error now.
        """
        reasons: dict[str, list[str]] = {}
        for path, reason in self.sites:
            if reason is not None:
                reasons.setdefault(reason, []).append(path)
        label = (Label(selector.span),)
        if reasons and not settled and all(reason for _, reason in self.sites):
            what = "; ".join(f"{_listed(paths)} {reason}" for reason, paths in reasons.items())
            help = "pass example_inputs that reach it, or leave it out"
            message = f"nothing selected here affects what the model returns: {what}"
            found.append(Diagnostic("S306", message, label, help))
            return
        for reason, paths in reasons.items():
            share = f"{len(paths):,} of the {len(self.sites):,} {things} selected here {reason}"
            left = len(self.left.intersection(paths))
            which = "they" if left == len(paths) else f"{left:,} of them"
            kept = f", so {which} are left as they are" if left else ""
            help = "pass example_inputs that reach them, or exclude them with `except`"
            message = f"{share}{kept}: {_listed(paths)}"
            warnings.append(Diagnostic("S307", message, label, help, "warning"))


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(f"`{path}`" if path else "the model" for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else "")
