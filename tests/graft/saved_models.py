"""Models whose weights are the same on every machine, adapted: what files of each version hold.

`python -m tests.graft.saved_models` writes the files of the present version of the format. Those of
earlier ones stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import surgery
from surgery.graft.adapter_file import VERSION

FOLDER = Path(__file__).with_name("saved")


def fill(model: nn.Module, step: int = 7, only: dict[str, nn.Parameter] | None = None) -> nn.Module:
    """Give all parameters (or those in ``only``) multiples of 1/16 that come from no generator."""
    with torch.no_grad():
        for k, p in enumerate((only or dict(model.named_parameters())).values()):
            p.copy_((torch.arange(p.numel()).mul(step + k).remainder(17) - 8).div(16).view_as(p))
    return model


def stack() -> nn.Module:
    return fill(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))


class Classifier(nn.Module):
    """Two equal layers with a norm between, running statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.norm(self.first(x)))))


def classifier() -> nn.Module:
    return fill(Classifier()).eval()


class Attending(nn.Module):
    """Self-attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


def adapt(model: nn.Module, *specs: str) -> nn.Module:
    """``model`` with ``specs`` applied, and all that trains filled."""
    for spec in specs:
        surgery.apply(model, spec, example_inputs=torch.ones(2, 3, 4), seed=0)
    return fill(model, 5, surgery.trainable(model))


def stack_adapted() -> nn.Module:
    model = stack()
    surgery.apply(model, "on Linear apply lora(r = 2)\ntrain `2.bias`", seed=0)
    return fill(model, 5, surgery.trainable(model))


RULE = """
method own(r) {
  match y[*, n] = linear(x[*, m], W[n, m], b?)
  param shared A[r, m] ~ normal(std = 0.02)
  param B[n, r] = 0
  y += linear(relu(linear(x, A)), B)
}
"""


def classifier_adapted() -> nn.Module:
    """Two specs, one with a rule of its own; a head in the file; one that shares has merged."""
    model = classifier()
    surgery.apply(
        model,
        f"{RULE}on `first`|`second` apply own(2)\non `first`|`second` apply vera(r = 2)",
        seed=1,
    )
    surgery.apply(
        model, "on `head` apply lora(r = 1)\non `first` sequential adapter(2)\ntrain `norm`", seed=2
    )
    fill(model, 5, surgery.trainable(model))
    surgery.merge(model)
    return model


def classifier_merged() -> nn.Module:
    """The base of that: with what has merged in it."""
    return surgery.remove(classifier_adapted())


def attending_folded() -> nn.Module:
    model = fill(Attending())
    x = torch.ones(2, 3, 4)
    surgery.apply(
        model,
        "on attention apply prefix_mlp(2, m = 3)\non q apply lora(1)",
        example_inputs=x,
        seed=0,
    )
    fill(model, 5, surgery.trainable(model))
    surgery.fold(model)
    return model


@dataclass(frozen=True)
class Saved:
    """A base, the same adapted, and an input."""

    base: Callable[[], nn.Module]
    adapted: Callable[[], nn.Module]
    shape: tuple[int, ...]

    @property
    def input(self) -> Tensor:
        return torch.linspace(-1, 1, torch.Size(self.shape).numel()).view(self.shape)


SAVED = {
    "stack": Saved(stack, stack_adapted, (2, 6)),
    "classifier": Saved(classifier_merged, classifier_adapted, (2, 4)),
    "attending": Saved(lambda: fill(Attending()), attending_folded, (2, 3, 4)),
}

if __name__ == "__main__":
    for name, saved in SAVED.items():
        print(surgery.save(saved.adapted(), FOLDER / f"version-{VERSION}-{name}.safetensors"))
