"""The three kinds of model that a spec applies to, behind one interface for the laws.

A host has a model to try laws on, and does to it what the API does: in place for modules; exported
programs are values, so a verb gives another.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import surgery
from tests.models import build

Inputs = Mapping[str, Tensor]

BATCH, LENGTH = 2, 6
"""Sizes for which programs are exported; where dims are dynamic, others are run."""


@dataclass(frozen=True)
class Subject:
    """A model by name, with its arguments: ids, pixels or features."""

    name: str
    arguments: tuple[str, ...]
    traces: bool = False
    dynamic: bool = True

    def inputs(self, batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made: dict[str, Tensor] = {}
        for name in self.arguments:
            if name == "x":
                made[name] = torch.randn(batch, 3, 16, 16, generator=generator)
            elif "mask" in name:
                made[name] = torch.ones(batch, length, dtype=torch.long)
                made[name][0, -2:] = 0
            else:
                made[name] = torch.randint(3, 32, (batch, length), generator=generator)
        return made


_TEXT = ("input_ids", "attention_mask")
SUBJECTS = {
    s.name: s
    for s in (
        Subject("nanogpt", ("ids",), traces=True),
        Subject("resnet", ("x",), traces=True, dynamic=False),
        Subject("mixer", ("x",), traces=True, dynamic=False),
        Subject("llama", _TEXT),
        Subject("bert", _TEXT),
        Subject("gpt_neox", _TEXT),
        Subject("t5", (*_TEXT, "decoder_input_ids")),
    )
}


class Host:
    """A model as it is, changed in place."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.model: Any = self.made()

    def made(self) -> Any:
        return copy.deepcopy(_eager(self.subject.name))

    def run(self, inputs: Inputs | None = None) -> Tensor:
        """The first floating tensor of what the model returns."""
        given = self.subject.inputs() if inputs is None else inputs
        leaves = pytree.tree_leaves(self.callable()(**given))
        return next(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())

    def callable(self) -> Callable[..., Any]:
        return self.model

    def do(self, verb: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Let ``verb`` of the API change the model."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", surgery.SurgeryWarning)
            verb(self.model, *args, **options)

    def apply(self, spec: str, seed: int = 0) -> None:
        self.do(surgery.apply, spec, seed=seed, **self.example())

    def example(self) -> dict[str, Any]:
        """Arguments for what plans: the inputs to read the model on."""
        return {"example_inputs": self.subject.inputs()}

    def disturb(self, seed: int = 1) -> None:
        """Random values for all that trains."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in surgery.trainable(self.model).values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.2)

    def state(self) -> dict[str, Tensor]:
        found = self.model.state_dict
        return {n: t.detach().clone() for n, t in (found() if callable(found) else found).items()}


class Traced(Host):
    """Its graph, traced by `torch.fx`."""

    def made(self) -> Any:
        model = super().made()
        return fx.GraphModule(model, fx.symbolic_trace(model).graph)


class Exported(Host):
    """The program that `torch.export` makes of it."""

    def made(self) -> Any:
        return _exported(self.subject)

    def callable(self) -> Callable[..., Any]:
        return self.model.module()

    def example(self) -> dict[str, Any]:
        return {}

    def do(self, verb: Callable[..., Any], *args: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", surgery.SurgeryWarning)
            self.model = verb(self.model, *args, **options)


HOSTS = {"eager": Host, "graph": Traced, "program": Exported}


@cache
def _eager(name: str) -> nn.Module:
    model = build(name).eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
    return model


@cache
def _exported(subject: Subject) -> torch.export.ExportedProgram:
    inputs = subject.inputs()
    batch = torch.export.Dim("batch", min=1, max=16)
    lengths = {d: torch.export.Dim(f"{d}length", min=2, max=32) for d in ("", "decoder_")}
    dims = None
    if subject.dynamic:
        dims = {n: {0: batch, 1: lengths["decoder_" * n.startswith("decoder_")]} for n in inputs}
    model = copy.deepcopy(_eager(subject.name))
    return torch.export.export(model, (), inputs, dynamic_shapes=dims, strict=False)
