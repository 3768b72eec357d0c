"""Random rules against a plain interpreter: outputs, gradients, merges, starts, counts and undo."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn

import surgery
from surgery.language import syntax
from surgery.language.parse import parse
from surgery.language.source import SourceText
from tests.fuzz.plain_rules import (
    Layer,
    MeaninglessError,
    NoWeightError,
    Rule,
    Site,
    Store,
    drawn,
    layer_of,
    run,
)
from tests.fuzz.rule_texts import Text, verb
from tests.laws.strategies import Holder

LIMIT = 20.0
_MADE: dict[str, tuple[nn.Module, Tensor]] = {}


class Fused(nn.Module):
    """An attention whose one layer makes queries, keys and values.

    Read as a model it is an attention; what is compared is what the layer gives.
    """

    PARTS: ClassVar = {"q": slice(0, 4), "k": slice(4, 8), "v": slice(8, 12)}

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.o = nn.Linear(4, 4).to(layer.weight.dtype)
        self.layer_alone = False

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x)
        if self.layer_alone:
            return made
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in made.split(4, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(-2))


def layers(random: Random) -> tuple[nn.Module, Tensor, str]:
    """A small layer in float64, and an input for it."""
    kinds = ("linear", "linear", "linear", "transposed", "grouped", "conv", "embedding")
    kind = "fused" if random.random() < 0.05 else random.choice(kinds)
    key = f"{kind} {random.randrange(12)}"
    if key not in _MADE:
        _MADE[key] = _made(kind, Random(key))
    layer, x = _MADE[key]
    return copy.deepcopy(layer), x, kind


def _made(kind: str, random: Random) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(random.randrange(1000))
    into, out = random.choice((1, 2, 4, 4, 6)), random.choice((1, 2, 4, 4, 6))
    bias = random.random() < 0.6
    if kind == "fused":
        layer, x = nn.Linear(4, 12, bias=bias), torch.randn(2, 3, 4, generator=generator)
    elif kind == "linear":
        layer, x = nn.Linear(into, out, bias=bias), torch.randn(3, into, generator=generator)
    elif kind == "transposed":
        from transformers.pytorch_utils import Conv1D

        layer, x = Conv1D(out, into), torch.randn(2, 3, into, generator=generator)
    elif kind == "embedding":
        layer = nn.Embedding(into + 2, out)
        x = torch.randint(into + 2, (2, 3), generator=generator)
    else:
        groups = random.choice((2, 2, 3)) if kind == "grouped" else 1
        channels = (groups * random.choice((1, 2)), groups * random.choice((1, 2, 3)))
        settings = {
            "stride": random.choice((1, 2)),
            "padding": random.choice((0, 1)),
            "dilation": random.choice((1, 2)),
            "groups": groups,
            "bias": bias,
            "padding_mode": random.choice(("zeros", "zeros", "reflect", "circular")),
        }
        if random.random() < 0.6:
            layer = nn.Conv1d(*channels, random.choice((1, 2, 3)), **settings)
            x = torch.randn(2, channels[0], 6, generator=generator)
        else:
            kernel = (random.choice((1, 2)), random.choice((1, 3)))
            layer = nn.Conv2d(*channels, kernel, **settings)
            x = torch.randn(2, channels[0], 4, 5, generator=generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.double(), x.double() if x.is_floating_point() else x


def texts(random: Random, layer: Layer, kind: str) -> str:
    """A spec of one to three random methods, some behind random verbs."""
    sizes = {"n": 4 if kind == "fused" else layer.out, "m": layer.weight.shape[1]}
    written: list[str] = []
    statements: list[str] = []
    for number in range(random.choice((1, 1, 1, 2, 2, 3))):
        name = f"rule{number}"
        written.append(Text(random, name, sizes, layer.bias is not None).written())
        arguments = [
            f"{n} = {random.choice(values)}"
            for n, values in (
                ("r", "1234"),
                ("alpha", "125"),
                ("gate", "113" if random.random() < 0.9 else "0"),
            )
            if random.random() < 0.25
        ]
        application = f"{name}({', '.join(arguments)})"
        if random.random() < 0.12:
            written.append(verb(random, f"verb{number}", sizes))
            application = f"verb{number} {application}"
        else:
            application = f"apply {application}"
        where = random.choice(("q", "v", "q|v", "k")) if kind == "fused" else "`layer`"
        statements.append(f"on {where} {application} as m{number}")
    return "\n".join(written + statements)


def rules_of(spec: str) -> list[Rule]:
    """The rules that a spec applies, with their arguments, as the parser reads it."""
    file = parse(SourceText("fuzz", spec))
    methods = {i.name: i for i in file.items if isinstance(i, syntax.Method)}

    def rule(application: syntax.Application) -> Rule:
        if application.name == "apply":
            assert application.operand is not None
            return rule(application.operand)
        given = {a.name: a.value.value for a in application.arguments if a.name}
        if application.operand is not None:
            given["inner"] = rule(application.operand)
        return Rule(methods[application.name], given)

    found: list[Rule] = []
    for item in file.items:
        if isinstance(item, syntax.On):
            parts = [p.name for p in item.selector.union.parts if isinstance(p, syntax.Role)]
            places = [rows for name, rows in Fused.PARTS.items() if name in parts]
            found += [replace(rule(item.application), rows=rows) for rows in places or [None]]
    return found


def case(random: Random) -> str:
    layer, x, kind = layers(random)
    plain = layer_of(layer)
    spec = texts(random, plain, kind)
    model = Fused(layer) if kind == "fused" else Holder(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind != "fused" and random.random() < 0.04:
            return narrow(model.eval(), x, spec, random.choice((torch.bfloat16, torch.float16)))
        return attempt(model.eval(), plain, x, spec, kind)


def narrow(model: nn.Module, x: Tensor, spec: str, dtype: torch.dtype) -> str:
    """In half precision nothing is compared, but all runs, in its dtype."""
    model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    try:
        surgery.apply(model, spec, seed=0)
    except surgery.SurgeryError as refused:
        return f"refused: {refused.diagnostics[0].code}"
    try:
        for training in (True, False):
            output = model.train(training)(x)
            assert output.dtype == dtype, f"gives {output.dtype}"
            if output.requires_grad:
                output.sum().backward()
        with torch.no_grad(), surgery.merged(model.eval()):
            assert model(x).dtype == dtype, "merges to another dtype"
    except Exception as problem:
        raise type(problem)(f"{problem}\n{spec}\n{model.layer}") from problem
    return f"runs in {dtype}".replace("torch.", "")


def attempt(model: nn.Module, plain: Layer, x: Tensor, spec: str, kind: str) -> str:
    inputs = x if kind == "fused" else None
    state = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        read = surgery.read_spec(spec)
        surgery.apply(model, read, seed=0, example_inputs=inputs)
        plan = model._surgery.applied[-1].plan
    except surgery.SurgeryError as refused:
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        code = refused.diagnostics[0].code
        return f"refused: {code} {_plainly(plain, x, spec, code)}"
    model.layer_alone = True
    with torch.no_grad(), surgery.disabled(model):
        base = model(x)
    try:
        return f"applied to {kind}: {check(model, plain, x, spec, plan, base)}"
    except AssertionError as problem:
        raise AssertionError(f"{problem}\n{spec}\n{model.layer}") from problem
    except Exception as problem:
        raise type(problem)(f"{problem}\n{spec}") from problem


def _plainly(plain: Layer, x: Tensor, spec: str, code: str) -> str:
    """What the interpreter makes of a rule that was refused."""
    store, made = drawn()
    try:
        value = run(plain, rules_of(spec), store, plain.positions(x))
    except (MeaninglessError, surgery.SurgeryError, RuntimeError):
        return ""
    if code != "S225":
        return "though it has a meaning"
    output = value.tensor[..., 0, :]
    if not output.requires_grad:
        return "rightly"
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).exp()
    found = torch.autograd.grad(
        (output.flatten() * weights).sum(), [*made.values()], allow_unused=True
    )
    sizes = [0.0 if g is None else float(g.abs().max()) for g in found]
    # A sum that is always 1 has a gradient of rounding errors.
    if min(sizes) > 1e-9 * max(1.0, *sizes):
        raise AssertionError(f"every param acts, and one is said not to\n{spec}")
    return "rightly"


def check(
    model: nn.Module, plain: Layer, x: Tensor, spec: str, plan: surgery.Plan, base: Tensor
) -> str:
    added = {t.name: model.get_parameter(t.name) for t in plan.tensors}
    assert plan.added == sum(p.numel() for p in added.values()), "the plan counts others"
    with torch.no_grad():
        start = model(x)
    if all(e.derived.identity for e in plan.edits[-1:]):
        _near(start, base, "it changes the output at initialization")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in added.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    rules = rules_of(spec)
    theirs = [p.detach().clone().requires_grad_() for p in added.values()]
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    adapted = model(inputs[0])
    try:
        value = run(plain, rules, _store(plan, theirs), plain.positions(inputs[1]))
    except NoWeightError:
        raise AssertionError("a weight was read where there is none") from None
    expected = plain.shaped(value.tensor[..., 0, :], adapted)
    assert adapted.shape == base.shape, f"gives {[*adapted.shape]} for {[*base.shape]}"
    if not expected.isfinite().all():
        return "not finite"
    _near(adapted, expected, "another output")
    with torch.no_grad():
        _near(model(x), expected, "another output without gradients")
    words = gradients(adapted, expected, inputs, list(added.values()), theirs)
    words += " " + merging(model, plain, plan, rules, x, adapted.detach())
    model.train()
    model(x)
    model.eval()
    surgery.remove(model)
    with torch.no_grad():
        assert torch.equal(model(x), base), "something of it stays"
    return words


def _store(plan: surgery.Plan, tensors: list[Tensor]) -> Store:
    """The params that a plan adds, as the interpreter asks for them."""
    starts = [0]
    for edit in plan.edits:
        starts.append(starts[-1] + len(edit.tensors))
    return lambda number, order, shape: tensors[starts[number] + order]


def gradients(
    adapted: Tensor,
    expected: Tensor,
    inputs: list[Tensor],
    ours: list[nn.Parameter],
    theirs: list[Tensor],
) -> str:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(adapted.shape, generator=generator, dtype=torch.float64)
    found: list[list[Tensor | None]] = []
    for output, x, params in ((adapted, inputs[0], ours), (expected, inputs[1], theirs)):
        wanted = [p for p, own in zip(params, ours, strict=True) if own.requires_grad]
        wanted += [x] if x.requires_grad else []
        if output.requires_grad and wanted:
            found.append(
                [*torch.autograd.grad((output * weights).sum(), wanted, allow_unused=True)]
            )
        else:
            found.append([None] * len(wanted))
    dead = False
    for number, (mine, plain) in enumerate(zip(*found, strict=True)):
        one, other = (torch.zeros(()) if g is None else g for g in (mine, plain))
        if not other.isfinite().all():
            continue
        shape = (one if one.dim() else other).shape
        _near(one.expand(shape), other.expand(shape), f"another gradient of {number}")
        trained = number < sum(p.requires_grad for p in ours)
        dead |= trained and not bool(other.any())
    return "something dead" if dead else "trains"


def merging(
    model: nn.Module,
    plain: Layer,
    plan: surgery.Plan,
    rules: list[Rule],
    x: Tensor,
    adapted: Tensor,
) -> str:
    merges = plan.edits[-1].derived.merges
    with torch.no_grad(), surgery.merged(model):
        merged = model(x)
    if merges:
        left = list(model.layer.children())
        _near(merged, adapted, "a merge to something else")
        return "merges" if left else "nothing"
    _near(merged, adapted, "a part that merged to something else")
    assert plan.edits[-1].derived.reason or plan.edits[-1].derived.obstacle
    values = [model.get_parameter(t.name).detach() for t in plan.tensors]

    def whole(value):
        return run(plain, rules, _store(plan, values), value.tensor)

    try:
        Site(plain).effective(whole)
    except (MeaninglessError, RuntimeError):
        return "does not merge"
    return f"does not merge though affine: {plan.edits[-1].derived.reason.partition(' (')[0][:60]}"


def _near(actual: Tensor, expected: Tensor, problem: str) -> None:
    assert actual.shape == expected.shape, f"{problem}: {actual.shape} for {expected.shape}"
    scale = max(1.0, float(expected.detach().abs().max()))
    worst = float((actual.detach() - expected.detach()).abs().max())
    assert worst <= 1e-8 * scale, f"{problem}: off by {worst:.1e} of {scale:.1e}"
