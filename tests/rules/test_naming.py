"""A name that a module cannot have is an error where it is written; every other name works."""

from __future__ import annotations

import keyword

import pytest
import torch
from torch import nn

import surgery
from surgery.language.diagnostics import SurgeryError
from surgery.language.words import RESERVED

ODD = [
    "forward",
    "type",
    "call",
    "weight",
    "bias",
    "training",
    "lambda",
    "class",
    "__class__",
    "_x",
]
ODD += ["put", "T", "data", "self", "torch", "x", "n", "linear", "parameters", "config", "match"]
ODD += ["None", "True", "print", "getattr", "lora", "A", "extra_repr", "state_dict", "surgery_self"]
ODD = [name for name in ODD if name not in RESERVED.values()]


class Layer(nn.Linear):
    """One with attributes of its own."""

    config: object = None

    @property
    def secret(self) -> int:
        raise RuntimeError("never computed")


def model() -> nn.Sequential:
    return nn.Sequential(Layer(4, 4), nn.ReLU(), Layer(4, 4))


def applied(text: str) -> nn.Module | None:
    """The model with ``text`` applied, which acts and goes without a trace; None if refused."""
    base, x = model(), torch.randn(3, 4)
    names, before = dict(base.named_parameters()), base(x)
    refused = None
    try:
        adapted = surgery.apply(base, text, seed=0)
    except SurgeryError as problem:
        adapted, refused = base, problem
    if refused is not None:
        assert {d.code for d in refused.diagnostics} <= {"S244", "S407"}, refused
        assert all(d.labels for d in refused.diagnostics)
        assert dict(base.named_parameters()).keys() == names.keys()
        return None
    for parameter in surgery.trainable(adapted).values():
        nn.init.normal_(parameter)
    assert not torch.equal(adapted(x), before)
    surgery.remove(adapted)
    assert torch.equal(adapted(x), before)
    return adapted


RULE = "method m({p}) {{ match {y}[*, {n}] = linear(x)\n param {A}[{n}] ~ normal(std = 1)\n"
RULE += " {y} += {A} * {k} }}\non Linear apply {call}"


def rule(**names: str) -> str:
    usual = {"p": "k = 1", "y": "y", "n": "n", "A": "A", "k": "k", "call": "m"}
    return RULE.format(**usual | names)


@pytest.mark.parametrize("name", ODD)
def test_params(name: str) -> None:
    if name in ("n", "x"):
        return
    works = applied(rule(A=name, y="result"))
    refused = (
        keyword.iskeyword(name) or name.startswith(("_", "surgery_")) or hasattr(nn.Module(), name)
    )
    assert (works is None) == refused


@pytest.mark.parametrize("name", ODD)
def test_children(name: str) -> None:
    works = applied(f"on Linear apply ia3 as {name}")
    refused = (
        keyword.iskeyword(name) or name.startswith(("_", "surgery_")) or hasattr(model()[0], name)
    )
    assert (works is None) == refused


@pytest.mark.parametrize("name", ODD)
def test_methods(name: str) -> None:
    text = rule().replace("method m(", f"method {name}(").replace("apply m", f"apply {name} as own")
    assert applied(text) is not None
    inside = text.partition("\non ")[0].replace("y += A", "y += A * A")
    applied(
        f"{inside}\nmethod around() {{ match y = linear(x)  apply {name}() }}\non Linear apply around"
    )


@pytest.mark.parametrize("name", ODD)
def test_arguments_operands_and_dims(name: str) -> None:
    if name not in ("x", "n", "A"):
        assert applied(rule(p=f"{name} = 1", k=name, call=f"m({name} = 2)", y="o")) is not None
    if name not in ("x", "n", "A"):
        assert applied(rule(y=name, p="k_ = 1", k="k_")) is not None
    if name not in ("x", "A"):
        assert applied(rule(n=name, y="o", p="k_ = 1", k="k_")) is not None


def test_nothing_of_the_module_is_computed() -> None:
    with pytest.raises(SurgeryError, match="S407"):
        surgery.plan(model(), "on Linear apply ia3 as secret")


def test_a_param_and_a_block_of_one_name() -> None:
    text = "method m() {{ match y = linear(x)\n {} }}\non Linear apply m"
    for order in ("param lora[1] = 0\n apply lora(1)", "apply lora(1)\n param lora[1] = 0"):
        with pytest.raises(SurgeryError, match="S215"):
            surgery.plan(model(), text.format(order))
