"""What decides how methods expand at a site, whatever its sizes."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.rules.state import Kind, State, operator


@dataclass(frozen=True)
class Signature:
    """What of a site decides how methods expand there; sizes do not."""

    kind: Kind
    bias: bool = False
    norm: bool = False
    residual: bool = False
    grouped: bool = False
    core: bool = False
    positions: bool = False
    memory: bool = False

    def operator(self) -> State:
        """The operator before any method."""
        return operator(
            self.kind,
            bias=self.bias,
            norm=self.norm,
            residual=self.residual,
            grouped=self.grouped,
            core=self.core,
            positions=self.positions,
            memory=self.memory,
        )
