"""One spec on one model: does everything it adds train, does it matter, and does it go again?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import surgery
from benchmarks.architectures.running import loss_of, result
from surgery.language.diagnostics import SurgeryError

DRAWS = 3


@dataclass(frozen=True)
class Cell:
    """``good``, ``failed`` or ``no place``, and what went wrong."""

    verdict: str
    code: str = ""
    reason: str = ""


class UnkeptError(Exception):
    """Says which promise was not kept."""


def tried(model: nn.Module, inputs: dict[str, Tensor], spec: str) -> Cell:
    """What comes of ``spec``."""
    try:
        attempt(model, inputs, spec)
    except SurgeryError as error:
        found = error.diagnostics[0]
        return Cell("failed", found.code, found.message)
    except UnkeptError as error:
        return Cell("failed", "", str(error))
    return Cell("good")


def attempt(model: nn.Module, inputs: dict[str, Tensor], spec: str) -> None:
    """Apply ``spec`` to ``model``, hold it to what it promises, and remove it.

    Raises:
        SurgeryError: if the spec cannot be applied.
        UnkeptError: if it was applied and does not do what it should.

    """
    before = {mode: _output(model, inputs, mode) for mode in (True, False)}
    surgery.apply(model, spec, example_inputs={**inputs}, seed=0)
    try:
        added = surgery.trainable(model)
        _trains(model, inputs, added)
        for mode, output in before.items():
            if torch.equal(_output(model, inputs, mode), output):
                raise UnkeptError(f"changes nothing in {'training' if mode else 'evaluation'}")
    finally:
        surgery.remove(model)
    if not torch.equal(_output(model, inputs, False), before[False]):
        raise UnkeptError("removal does not give the base back to the bit")


def _output(model: nn.Module, inputs: dict[str, Tensor], training: bool) -> Tensor:
    model.train(training)
    try:
        with torch.no_grad():
            return result(model, inputs)
    finally:
        model.eval()


def _randomise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _trains(model: nn.Module, inputs: dict[str, Tensor], added: dict[str, nn.Parameter]) -> None:
    """Randomise the parameters that were added, and see that each gets a gradient.

    Rectifiers may be shut for one draw and all of a few tokens, so it may take more than one. What
    recomputes its layers by itself wants a gradient at their input, as checkpoints do.
    """
    idle = list(added)
    embedded = hasattr(model, "enable_input_require_grads")
    for seed in range(DRAWS):
        _randomise(added, seed)
        for name, gradient in _gradients(model, inputs, added, embedded and seed > 0).items():
            if gradient is None or not bool(gradient.any()):
                continue
            if not bool(gradient.isfinite().all()):
                raise UnkeptError(f"the gradient of {name} is not finite")
            if name in idle:
                idle.remove(name)
        if not idle:
            return
    # An expert that no token was sent to has none; neither has what it is given.
    reached = _reached(model, inputs)
    idle = [name for name in idle if reached.get(_holder(name, reached), True)]
    if idle:
        raise UnkeptError(f"{len(idle)} of {len(added)} new parameters get no gradient: {idle[0]}")


def _gradients(
    model: nn.Module,
    inputs: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    from_embeddings: bool = False,
) -> dict[str, Tensor | None]:
    model.train()
    if from_embeddings:
        cast(Any, model).enable_input_require_grads()
    loss = loss_of(result(model, inputs))
    if from_embeddings:
        cast(Any, model).disable_input_require_grads()
    if loss.requires_grad:
        loss.backward()
    model.eval()
    found = {name: parameter.grad for name, parameter in parameters.items()}
    model.zero_grad(set_to_none=True)
    return found


def _reached(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, bool]:
    """Of every module, whether a gradient reaches any of the base's parameters in it."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    base = {name: p for name, p in model.named_parameters() if any(p is other for other in frozen)}
    for parameter in frozen:
        parameter.requires_grad_(True)
    gradients = _gradients(model, inputs, base)
    for parameter in frozen:
        parameter.requires_grad_(False)
    matrices = {name.rpartition(".")[0] for name, p in base.items() if p.dim() > 1}
    found: dict[str, bool] = {}
    for name, gradient in gradients.items():
        owner = name.rpartition(".")[0]
        if owner in matrices and base[name].dim() < 2:
            continue  # a bias is reached through whatever its layer is given
        while owner:
            found[owner] = found.get(owner, False) or (
                gradient is not None and bool(gradient.any())
            )
            owner = owner.rpartition(".")[0]
    return found


def _holder(name: str, modules: dict[str, bool]) -> str:
    """The innermost module with parameters of the base that ``name`` lies in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name
