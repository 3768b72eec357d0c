"""AdaLoRA beside HF PEFT's, step by step: scores, budget and masks at the same weights and gradients."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import surgery

pytestmark = pytest.mark.filterwarnings("ignore")
RANK, TARGET, START, END, TOTAL, EVERY = 4, 2, 2, 3, 14, 2


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def theirs() -> Any:
    config = peft.AdaLoraConfig(
        init_r=RANK,
        target_r=TARGET,
        tinit=START,
        tfinal=END,
        total_step=TOTAL,
        deltaT=EVERY,
        lora_alpha=RANK,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=0.1,
        target_modules=["0", "2"],
    )
    return peft.get_peft_model(base(), config)


def ours() -> nn.Module:
    until = TOTAL - END
    budget = f"cubic({RANK}, {TARGET}, {START}, {until})"
    spec = f"on Linear apply adalora({RANK}, {budget}, until = {until}, every = {EVERY})"
    return surgery.apply(base(), spec, seed=0)


def pairs(ours: nn.Module, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Our tensors beside those of PEFT, in the same shape."""
    found: list[tuple[Tensor, Tensor]] = []
    for index in (0, 2):
        mine, other = ours[index].adalora, theirs.base_model.model[index]  # type: ignore[index]
        for name, tensors in (("A", other.lora_A), ("B", other.lora_B), ("E", other.lora_E)):
            found.append((getattr(mine, name), tensors["default"]))
    return found


def test_each_step_masks_as_in_peft() -> None:
    mine, other = ours(), theirs()
    random = torch.Generator().manual_seed(1)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64)

    masked: list[int] = []
    for step in range(1, TOTAL + 3):
        for own, its in pairs(mine, other):
            value, gradient = drawn(own), drawn(own)
            own.data.copy_(value)
            its.data.copy_(value.reshape(its.shape))
            own.grad, its.grad = gradient, gradient.reshape(its.shape).clone()
        surgery.step(mine)
        other.base_model.update_and_allocate(step)
        for own, its in pairs(mine, other):
            assert torch.equal(own.data.flatten(), its.data.flatten()), step
        masked.append(sum(int((own == 0).sum()) for own, _ in pairs(mine, other)))
    assert masked[-1] == 2 * (RANK - TARGET)
    assert masked[0] == 0
    assert sorted(set(masked)) != [0, 2 * (RANK - TARGET)]


def test_the_penalty_is_that_of_peft() -> None:
    mine, other = ours(), theirs()
    for own, its in pairs(mine, other):
        its.data.copy_(own.data.reshape(its.shape))
    x = torch.randn(3, 8, dtype=torch.float64)
    its_loss = 0.0
    for name, parameter in other.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            its_loss = its_loss + torch.linalg.norm(product - torch.eye(RANK)) / 4
    torch.testing.assert_close(surgery.penalty(mine), 0.1 * its_loss, check_dtype=False)
    torch.testing.assert_close(mine(x), other(x), rtol=1e-4, atol=1e-6)
