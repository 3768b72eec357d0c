"""What must hold of models, whatever was done to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from surgery import SurgeryError
from tests.laws.lives import DISABLED, KINDS, MERGED, Life, Standing, same, state_of


class Holding:
    """The checks; each is of one life."""

    def put(self, model: nn.Module, standing: Standing, x: Tensor) -> None:
        surgery.apply(model, standing.text, seed=standing.seed, example_inputs=x)

    def is_back(self, life: Life, why: str) -> None:
        assert life.shadow is not None
        same(state_of(life.model), state_of(life.shadow), why)
        assert torch.equal(life.run(), life.run(life.shadow)), why

    def allowed(self, life: Life, act: Callable[[], Any], verb: str) -> bool:
        """Do it; False if it was refused, which changes nothing and in a context must be so."""
        before = state_of(life.model)
        try:
            act()
        except SurgeryError as problem:
            same(state_of(life.model), before, f"{verb} that was refused")
            if life.open and problem.diagnostics[0].code != "S520":
                raise
            return False
        assert not life.open, f"{verb} inside {life.shown}"
        return True

    def holds(self, life: Life) -> None:
        """What holds at any time."""
        if life.shown == DISABLED:
            assert torch.equal(life.run(), life.run(life.twin)), "disabled is not the base"
            same(state_of(life.model), state_of(life.twin), "disabled")
        elif life.shown == MERGED:
            self.near(life, life.run(), life.run(life.adapted))

    def agrees(self, life: Life) -> None:
        """What is left is as if it alone had been applied, with the numbers that it has."""
        if life.partial:
            return
        again = copy.deepcopy(life.twin)
        for standing in life.stack:
            self.put(again, standing, life.input)
        mine, theirs = state_of(life.model), state_of(again)
        assert list(mine[0]) == list(theirs[0]), "names of what is left"
        assert mine[2] == theirs[2], "flags of what is left"
        if all(
            a.shape == b.shape for a, b in zip(mine[0].values(), theirs[0].values(), strict=True)
        ):
            again.load_state_dict(mine[0])
            assert torch.equal(life.run(), life.run(again)), "what is left computes something else"
        if life.kind is KINDS["shared"]:
            return  # where memory is shared, more changes than what a spec names
        base = dict(life.twin.named_parameters())
        now = dict(life.model.named_parameters())
        for name in base.keys() - set(life.trained):
            assert torch.equal(now[name], base[name]), f"{name} is another than the base's"

    def near(self, life: Life, found: Tensor, expected: Tensor) -> None:
        bounds = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float64: 1e-9}
        bound = max(bounds[life.dtype], bounds[life.before])
        scale = max(1.0, float(expected.double().abs().max()))
        error = float((found.double() - expected.double()).abs().max())
        assert error <= bound * scale, f"off by {error:.1e}"

    def close(self, life: Life) -> None:
        """Leave all contexts, remove everything: the base, to the bit."""
        while life.open:
            life.open.pop()[1].__exit__(None, None, None)
        if life.stack:
            surgery.remove(life.model)
        same(state_of(life.model), state_of(life.twin), "the base in the end")
        left = [n for m in life.model.modules() for n in m.__dict__ if n.startswith("_surgery")]
        assert not left, left
        assert torch.equal(life.run(), life.run(life.twin))
