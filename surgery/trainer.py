"""Training by transformers' Trainer, or by what is made of it: a callback that does what rules need."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgery.training import penalty, step


class TrainingSteps:
    """Adds the penalty of specs and rules to each step, and calls :func:`surgery.step` after it.

    An `optimize` statement needs the optimizer to be made of :func:`surgery.param_groups`, which a
    Trainer takes as `optimizers=(optimizer, None)`; it is an error (S575) if it is not.

    """

    def on_step_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Give the penalty's gradient to the parameters, which the losses of the step then join."""
        if model is None:
            return
        value = penalty(model)
        if value.requires_grad:
            # Half precision: accelerate's scaler divides all gradients before the optimizer's step.
            scaler = getattr(optimizer, "scaler", None)
            untyped: Any = value if scaler is None else scaler.scale(value)
            untyped.backward()

    def on_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Do what follows the optimizer's step, while the gradients are there."""
        skipped = getattr(optimizer, "step_was_skipped", False)
        if model is not None and not skipped:
            step(model)
