"""The cores of one call of a module: which comes next, and those made of products as they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.roles.follower import Follower
from surgery.anatomy.roles.trail import FunctionCall, Trail
from surgery.graft.attention.calls import called
from surgery.graft.attention.change import CoreFunctions
from surgery.graft.attention.products import ChangedCore, MatrixProduct, product
from surgery.graft.attention.steps import Step, tensors
from surgery.graft.attention.windows import WindowedCore
from surgery.language.diagnostics import SurgeryError, error


class RunningCores(Follower[Tensor]):
    """Follows functions as they run, and has those of cores that are to change give what they should.

    Cores are counted as they come. ``waiting`` are those that are still to be changed.
    """

    def __init__(self, changes: Sequence[tuple[AttentionCore, CoreFunctions]]):
        super().__init__()
        self.path = changes[0][0].path if changes else ""
        self.changes = [pair for pair in changes if not pair[0].windows]
        self.windowed = [WindowedCore(*pair) for pair in changes if pair[0].windows]
        self.strays = 0
        self.among = max([core.among for core, _ in self.changes] or [0])
        # A loop over images or documents runs as many as it is given: no other attention is there.
        self.every = (
            bool(self.changes)
            and self.changes[0][0].how != "products"
            and len(self.changes) == self.among
            and all(change is self.changes[0][1] for _, change in self.changes)
        )
        self.waiting = (1 if self.every else len(self.changes)) + len(self.windowed)
        self.came = 0
        self.softer: list[ChangedCore] = []

    def next(self) -> tuple[AttentionCore, CoreFunctions] | None:
        """The core that comes now with its change, if it has one."""
        order = self.came
        self.came += 1
        if self.every:
            return self.changes[0]
        if self.changes and order >= self.among:
            raise self.unlike()
        for core, change in self.changes:
            if core.order == order:
                return core, change
        return None

    def changed(self) -> None:
        """Note that a core has been changed."""
        self.waiting = max(self.waiting - 1, 0)

    def check(self) -> None:
        """Raise S430 if a core has not come."""
        if self.waiting:
            raise self.unlike()

    def unlike(self) -> SurgeryError:
        return error(
            "S430",
            f"the attention of `{self.path}` did not run as it did when the "
            "model was read: its core cannot be changed",
            help='load the model with attn_implementation="sdpa", or with the one it was '
            "adapted with",
        )

    def in_windows(self, call: FunctionCall[Tensor]) -> Any:
        """A function that cores with windows may take note of, too."""
        result = self.follow(call)
        for windowed in self.windowed:
            result = windowed.seen(call, result)
            if windowed.is_done:
                self.changed()
        self.windowed = [windowed for windowed in self.windowed if not windowed.is_done]
        return result

    def run(self, call: FunctionCall[Tensor]) -> Any:
        return called(call.function, call.args, call.kwargs)

    def value(self, result: Any) -> Tensor | None:
        return result if isinstance(result, Tensor) else None

    def values(self, result: Any) -> list[Tensor]:
        return tensors((result,), {})

    def softened(
        self, trail: Trail[Tensor], call: FunctionCall[Tensor], before: Tensor
    ) -> Tensor | None:
        found = self.next()
        if found is None:
            return None
        core = ChangedCore(trail, *found)
        weights = core.soften(Step.of(call, before), before)
        if weights is not None:
            self.softer.append(core)
        return _written(call, weights)

    def weighed(
        self, trail: Trail[Tensor], call: FunctionCall[Tensor], weights: Tensor
    ) -> Tensor | None:
        found = product(call)
        if found is None:
            return None
        result = self.core(trail).weigh(found, weights)
        if result is not None:
            self.changed()
            self.trails = [t for t in self.trails if self.waiting and t is not trail]
        return _written(call, result)

    def core(self, trail: Trail[Tensor]) -> ChangedCore:
        """The changed core on a trail of weights."""
        return next(core for core in self.softer if core.trail is trail)

    def strayed(self, call: FunctionCall[Tensor]) -> Tensor | None:
        if call.kind != "softmax" or not self.windowed:
            return None
        order = self.strays
        self.strays += 1
        scores = call.given[0]
        for windowed in self.windowed:
            if windowed.core.order == order:
                return windowed.soften(Step.of(call, scores), scores)
        return None

    def product(self, call: FunctionCall[Tensor]) -> MatrixProduct | None:
        return product(call)

    def step(self, call: FunctionCall[Tensor], before: Tensor, result: Tensor) -> Step:
        return Step.of(call, before, result.shape)


def _written(call: FunctionCall[Tensor], made: Tensor | None) -> Tensor | None:
    """What was ``made`` in place of what the call gives, in the tensor that it writes to, if any."""
    out: Tensor | None = call.kwargs.get("out")
    if out is None or made is None:
        return made
    return out.resize_(made.shape).copy_(made)
