"""What became of each promise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["held", "broken", "not promised"]
SIGNS: dict[Outcome, str] = {"held": "ok", "broken": "failed", "not promised": "-"}


@dataclass(frozen=True)
class Verdict:
    """One promise: ``error`` is the largest found, ``details`` name places and reasons."""

    promise: str
    outcome: Outcome
    text: str
    error: float | None = None
    details: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Finding:
    """Collects what speaks against a promise while it is tried."""

    promise: str
    faults: list[str] = field(default_factory=list[str])
    remarks: list[str] = field(default_factory=list[str])
    error: float | None = None

    def require(self, holds: bool, fault: str) -> bool:
        """Note ``fault`` unless it holds."""
        if not holds:
            self.faults.append(fault)
        return holds

    def worst(self, error: float) -> bool:
        """Keep the largest error; whether this is it."""
        larger = self.error is None or error > self.error
        if larger:
            self.error = error
        return larger

    def verdict(self, text: str) -> Verdict:
        """Held, with ``text`` for what was tried, or broken, with the first fault."""
        if not self.faults:
            return Verdict(self.promise, "held", text, self.error, tuple(self.remarks))
        first, *rest = self.faults
        more = rest[:8] + ([f"… {len(rest) - 8} more"] * (len(rest) > 8))
        return Verdict(self.promise, "broken", first, self.error, (*more, *self.remarks))


def not_promised(promise: str, text: str, *details: str) -> Verdict:
    """A promise that this spec does not make here."""
    return Verdict(promise, "not promised", text, None, details)
