"""What `adapters` computed on tiny models, as `make.py` stored it, and its parameters by equation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

HERE = Path(__file__).parent
MODELS = ("bert", "roberta", "gpt2", "t5", "bart")


@dataclass(frozen=True)
class Fixture:
    """One method on one model, in the words of `adapters`."""

    base: dict[str, Tensor]
    """The model's parameters."""
    inputs: dict[str, Tensor]
    """What the model is called with; three rows: whole, padded on the right, padded on the left."""
    before: Tensor
    """What the base gives: logits, or else the last hidden states."""
    after: Tensor
    """What the adapted model gives."""
    weights: dict[str, Tensor]
    """The parameters that the method adds."""
    gates: dict[str, Tensor]
    """The gates' values [examples, 1], by the paths of their modules; [examples, 2] in GPT-2."""
    settings: dict[str, Any]
    """The method's config."""
    build: tuple[str, str, dict[str, Any]]
    """The model's class, its config's class, and the config."""

    @property
    def real(self) -> Tensor:
        """Which positions of the output are no padding [examples, tokens]."""
        given = self.inputs
        return given.get("decoder_attention_mask", given["attention_mask"]).bool()

    @property
    def has_prefix(self) -> bool:
        return any(".prefix_tunings." in name for name in self.weights)

    def model(self, attention: str = "sdpa") -> nn.Module:
        """The base in the `transformers` that is installed, in eval mode."""
        import transformers

        name, config, settings = self.build
        configured = getattr(transformers, config)(**settings, attn_implementation=attention)
        made: nn.Module = getattr(transformers, name)(configured).eval()
        named = dict(made.named_parameters())
        assert set(named) == set(self.base)
        with torch.no_grad():
            for path, value in self.base.items():
                named[path].copy_(value)
        return made


@cache
def _file(model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(HERE / f"{model}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["about"])


def load(model: str, method: str) -> Fixture:
    """The fixture of ``method``; a prefix in T5 has the base without its position bias."""
    tensors, about = _file(model)

    def under(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    fixture = Fixture(
        base=under("base."),
        inputs=under("input."),
        before=tensors["output.base"],
        after=tensors[f"{method}.output"],
        weights=under(f"{method}.weight."),
        gates=under(f"{method}.gate."),
        settings=about["methods"][method],
        build=(about["class"], about["config_class"], about["config"]),
    )
    if fixture.has_prefix:
        for name, value in fixture.base.items():
            if name.endswith("relative_attention_bias.weight"):
                fixture.base[name] = torch.zeros_like(value)
    return fixture


@torch.no_grad()
def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or else the last hidden states."""
    outputs = model(**inputs)
    logits: Tensor | None = getattr(outputs, "logits", None)
    return outputs.last_hidden_state if logits is None else logits
