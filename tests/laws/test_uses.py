"""Whatever a forward does with its parts: what is adapted acts, or the plan says that it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery.planning.plan import Plan
from tests.laws.strategies import assert_state, randomise_added, state_of
from tests.models import randomise

WIDTH, LENGTH, WORDS, HEADS = 6, 4, 7, 2
IDS = torch.arange(2 * LENGTH).reshape(2, LENGTH) % WORDS
Way = Callable[[nn.Module, nn.Linear, Tensor], Tensor]


def discarded(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    part(x)
    return x


def read_in_vain(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    F.linear(x, part.weight, part.bias)
    return x


def in_a_loop(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    for _ in range(2):
        x = part(x).tanh()
    return x


def into_memory(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.view(-1, WIDTH)[:, :3] = part(x).view(-1, WIDTH)[:, :3]
    return x + y


def into_memory_in_vain(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    torch.zeros_like(x).add_(part(x))
    return x


def by_the_back_door(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.detach().copy_(part(x))
    return x + y


def without_gradients(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = part(x)
    return x + y


def read_without_gradients(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x @ part.weight
    return x + y


def kept_for_later(model: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    model.memory = {"later": [part(x)]}  # type: ignore[assignment]
    return x


def in_training(model: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    return part(x) if model.training else x


def in_evaluation(model: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    return x if model.training else F.linear(x, part.weight, part.bias)


def attended(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    own = part.weight
    return F.multi_head_attention_forward(
        *(x, x, x, WIDTH, HEADS, torch.empty(0), None, None, None, False, 0.0, own, part.bias),
        use_separate_proj_weight=True,
        q_proj_weight=torch.eye(WIDTH, dtype=x.dtype),
        k_proj_weight=own,
        v_proj_weight=torch.eye(WIDTH, dtype=x.dtype),
    )[0]


def shown(_: nn.Module, part: nn.Linear, x: Tensor) -> Tensor:
    """What Python gets to see decides what is computed."""
    return x * 2 if part(x).sum().item() > 0 else x


WAYS: dict[str, Way] = {
    "called": lambda _, part, x: part(x),
    "called by name": lambda _, part, x: part.forward(x),
    "linear": lambda _, part, x: F.linear(x, part.weight, part.bias),
    "linear alone": lambda _, part, x: F.linear(x, part.weight),
    "matmul": lambda _, part, x: x @ part.weight,
    "turned": lambda _, part, x: x @ part.weight.t() + part.bias,
    "einsum": lambda _, part, x: torch.einsum("bti,oi->bto", x, part.weight),
    "einsum turned": lambda _, part, x: torch.einsum("bti,io->bto", x, part.weight),
    "clamped": lambda _, part, x: F.linear(x, part.weight.clamp(-0.3, 0.3), part.bias),
    "in parts": lambda _, part, x: F.linear(x, part.weight[:3]).repeat(1, 1, 2),
    "called and read": lambda _, part, x: part(x) + F.linear(x.sin(), part.weight),
    "called and turned": lambda _, part, x: part(part(x).tanh() @ part.weight.t()),
    "bias alone": lambda _, part, x: x + part.bias,
    "asked for its size": lambda _, part, x: x * part.weight.shape[0] / WIDTH,
    "a shape of it": lambda _, part, x: x + torch.zeros_like(part(x)),
    **{
        f.__name__.replace("_", " "): f
        for f in (
            *(discarded, read_in_vain, in_a_loop, into_memory, into_memory_in_vain, attended),
            *(by_the_back_door, without_gradients, read_without_gradients, kept_for_later),
            *(in_training, in_evaluation, shown),
        )
    },
}
TABLES: dict[str, Callable[[nn.Embedding], Tensor]] = {
    "called": lambda table: table(IDS),
    "looked up": lambda table: F.embedding(IDS, table.weight),
    "indexed": lambda table: table.weight[IDS],
}
HEADS_OF: dict[str, Callable[[nn.Embedding, Tensor], Tensor]] = {
    "none": lambda _, x: x,
    "linear": lambda table, x: F.linear(x, table.weight),
    "turned": lambda table, x: x @ table.weight.t(),
}


class Wild(nn.Module):
    """A table, some layers used in ``ways``, and maybe a head that is the table again."""

    def __init__(self, table: str, ways: tuple[tuple[int, str], ...], head: str, tied: bool):
        super().__init__()
        self.ways, self.kinds = ways, (table, head)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        if tied:
            self.parts[1].weight = self.parts[0].weight  # type: ignore[union-attr]

    def forward(self, scale: Tensor) -> Tensor:
        x = TABLES[self.kinds[0]](self.table) * scale
        for index, way in self.ways:
            x = WAYS[way](self, self.parts[index], x).tanh() + 0.1 * x  # type: ignore[arg-type]
        return HEADS_OF[self.kinds[1]](self.table, x)


SCALE = torch.ones(1, dtype=torch.float64)
SELECTORS = ("Linear", "`parts.*`", "`parts.0`", "linear", "Embedding", "`table` | Linear")
METHODS = (
    "apply lora(2)",
    "apply dora(2)",
    "apply ia3",
    "apply shift",
    "apply lora(2, dropout = 0.5)",
    "gated lora(2)",
    "sequential adapter(2, act = gelu)",
)


@dataclass(frozen=True)
class Case:
    table: str
    ways: tuple[tuple[int, str], ...]
    head: str
    tied: bool
    spec: str

    def model(self) -> nn.Module:
        model = Wild(self.table, self.ways, self.head, self.tied)
        return randomise(model, 1).double().eval()


ways = st.tuples(st.integers(0, 2), st.sampled_from(sorted(WAYS)))
grafted = st.builds("on {} {} as new".format, st.sampled_from(SELECTORS), st.sampled_from(METHODS))
trained = st.sampled_from(["train all", "train bias", "train `parts.*`", "train `table`"])
cases = st.builds(
    Case,
    st.sampled_from(sorted(TABLES)),
    st.lists(ways, min_size=1, max_size=4).map(tuple),
    st.sampled_from(sorted(HEADS_OF)),
    st.booleans(),
    st.one_of(grafted, grafted, trained),
)


def run(model: nn.Module, training: bool = False) -> Tensor:
    torch.manual_seed(3)
    return model.train(training)(SCALE)


def moved(model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Those that have a gradient, in evaluation or in training."""
    found: set[str] = set()
    for training in (False, True):
        loss = run(model, training).square().sum()
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            found |= {
                n for n, g in zip(parameters, gradients, strict=True) if g is not None and g.any()
            }
    model.eval()
    return found


def idle_of(plan: Plan) -> set[str]:
    """The parameters that a warning of ``plan`` is about."""
    new = {t.name for e in plan.edits if e.site.name in plan.idle for t in e.tensors}
    return new | set(plan.idle).intersection(plan.trained)


def holds(case: Case) -> str:
    model = case.model()
    before, base = state_of(model), run(model)
    try:
        plan = surgery.plan(model, case.spec, example_inputs=SCALE)
    except surgery.SurgeryError as problem:
        assert_state(model, before)
        return problem.diagnostics[0].code
    surgery.apply(model, case.spec, example_inputs=SCALE, seed=0)
    randomise_added(model)
    new = {n: p for n, p in model.named_parameters() if p.requires_grad}
    acting, idle = moved(model, new), idle_of(plan)
    unsure = {"kept for later", "by the back door", "shown"}.intersection(w for _, w in case.ways)
    if not unsure:
        assert acting == new.keys() - idle
    assert not acting & idle
    assert bool(idle) <= bool(plan.warnings)
    adapted = run(model)
    with surgery.merged(model):
        torch.testing.assert_close(run(model), adapted)
    surgery.remove(model) if plan.edits else None
    if plan.edits:
        assert_state(model, before)
        assert torch.equal(run(model), base)
    return "applied, some idle" if idle else "applied"


@settings(max_examples=40, deadline=None)
@given(cases)
def test_what_is_adapted_acts_or_is_warned_about(case: Case) -> None:
    holds(case)
