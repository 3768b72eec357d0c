"""Running a recording, or part of it, again."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from surgery.anatomy.graph import Recording


class Rerun(fx.Interpreter):
    """Runs all of a recording on other inputs of the same sizes, with the parameters of ``model``."""

    def __init__(self, recording: Recording, model: nn.Module):
        super().__init__(model, graph=recording.graph)
        self.constants = recording.constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A copy of a constant: operators may write to it."""
        constant = self.constants.get(target)
        return super().get_attr(target, args, kwargs) if constant is None else constant.clone()
