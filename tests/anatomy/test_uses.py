"""What has no part in the result, who reads whose weight, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgery
from surgery.anatomy.site import WholeModule
from tests import models
from tests.laws.strategies import added, randomise_added
from tests.models import randomise

WIDTH = 4
X = torch.linspace(-1, 1, 24).reshape(2, 3, WIDTH)


class Parts(nn.Module):
    """Some of its parts run, some do not, and of some the result is lost."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "last", "unused", "lost", "counted", "trained"):
            self.add_module(name, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        self.lost(x)
        x = x * self.counted(x).shape[-1]
        if mask is not None:
            x = x + self.unused(mask)
        return self.last(self.trained(x) if self.training else x)


def message(model: nn.Module, spec: str, **options: Any) -> str:
    with pytest.raises(surgery.SurgeryError) as failure:
        surgery.plan(model, spec, **{"example_inputs": X, **options})
    return str(failure.value)


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("`unused.0`", "never run"),
        ("`lost.*`", "nothing of what they give"),
        ("`counted.0`", "nothing of what they give"),
        ("`lost` | `counted`", "nothing of what they give"),
    ],
)
@pytest.mark.parametrize("method", ["apply lora(2)", "gated lora(2)", "sequential adapter(2)"])
def test_what_has_no_part_in_the_result_is_an_error(
    selector: str, reason: str, method: str
) -> None:
    if "lora" in method and selector in ("`lost.*`", "`lost` | `counted`"):
        selector = "`lost.0` | `counted.0`"
    found = message(Parts(), f"on {selector} {method}")
    assert found.startswith("error[S306]: nothing selected here affects what the model")
    assert reason in found
    assert "pass example_inputs that reach it" in found
    assert f"1 | on {selector} {method}" in found


def test_a_block_where_nothing_runs_is_one() -> None:
    assert "S306" in message(Parts(), "on `unused` parallel adapter(2)")


@pytest.mark.parametrize("statement", ["train `unused.*`", "train bias in `lost`"])
def test_so_is_training_it(statement: str) -> None:
    assert message(Parts(), statement).startswith("error[S306]")


def test_inputs_that_reach_it_settle_it() -> None:
    surgery.plan(Parts(), "on `unused.0` apply lora(2)", example_inputs=(X, X))


def test_what_runs_in_training_alone_has_a_part() -> None:
    assert not surgery.plan(Parts(), "on `trained.0` apply lora(2)", example_inputs=X).warnings


def test_some_without_a_part_are_a_warning_with_their_paths() -> None:
    model = Parts()
    plan = surgery.plan(model, "on Linear apply lora(2)", example_inputs=X)
    assert [w.code for w in plan.warnings] == ["S307", "S307"]
    assert plan.warnings[0].message == "1 of the 6 places selected here never run: `unused.0`" or (
        "`lost.0`, `counted.0`" in plan.warnings[0].message
    )
    assert set(plan.idle) == {"unused.0", "lost.0", "counted.0"}
    assert len(plan.edits) == 6
    shown = str(surgery.diff(model, "on Linear apply lora(2)", example_inputs=X))
    assert "2 of the 6 places selected here run, but nothing of what they give reaches" in shown
    assert "not checked" not in shown


def test_a_block_is_left_out_where_nothing_is_known_of_its_sizes() -> None:
    plan = surgery.plan(Parts(), "on `*` sequential adapter(2)", example_inputs=X)
    assert "unused" not in {edit.site.path for edit in plan.edits}
    assert any("are left as they are" in w.message for w in plan.warnings)


def test_where_no_forward_can_be_recorded_the_difference_says_so() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(2, 2)})
    shown = str(surgery.diff(model, "on Linear apply lora(2)"))
    assert "note: not checked whether every change affects what the model returns" in shown


def test_what_was_applied_with_other_inputs_still_loads(tmp_path: Any) -> None:
    model = randomise(Parts())
    surgery.apply(model, "on `unused.0` apply lora(2)", example_inputs=(X, X), seed=0)
    surgery.save(model, tmp_path)
    again = surgery.load(randomise(Parts()), tmp_path, example_inputs=X)
    assert added(again).keys() == added(model).keys()


class Unseen(torch.autograd.Function):
    """A function with a gradient of its own, of which nothing is to be told."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach().round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return {"nested": [Unseen.apply(self.layer(x))]}


class Foreign(nn.Module):
    """Hands its numbers to code that no recorder sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.layer(x).detach().numpy() * 2)


@pytest.mark.parametrize("model", [Straight(), Foreign()])
def test_what_cannot_be_told_is_not_claimed(model: nn.Module) -> None:
    surgery.plan(model, "on `layer` apply lora(2)", example_inputs=X)


class Pool(nn.Module):
    """CLIP's pooled attention, with layers that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = (
            nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.mean(0, keepdim=True), x])
        pooled, _ = F.multi_head_attention_forward(
            *(x[:1], x, x, 2 * WIDTH, 2, torch.empty(0)),
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            *(None, None, False, 0, self.c_proj.weight, self.c_proj.bias),
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            need_weights=False,
        )
        return pooled.squeeze(0)


@pytest.mark.parametrize("selector", ["Linear", "`*_proj`", "q|k|v|o"])
@pytest.mark.parametrize(
    "method",
    ["apply lora(2)", "apply dora(2)", "apply ia3", "apply shift", "apply lora(2, dropout = 0.1)"],
)
def test_layers_that_another_reads_act_and_merge(selector: str, method: str) -> None:
    model, x = randomise(Pool()).double().eval(), torch.randn(5, 2, 2 * WIDTH).double()
    before = model(x)
    surgery.apply(model, f"on {selector} {method}", example_inputs=x, seed=0)
    randomise_added(model)
    adapted = model(x)
    adapted.square().sum().backward()
    # Softmax does not feel a bias that all keys have.
    silent = {"k_proj.shift.c"}
    for name, parameter in added(model).items():
        assert name in silent or (parameter.grad is not None and parameter.grad.any())
    with surgery.merged(model):
        torch.testing.assert_close(model(x), adapted)
    surgery.remove(model)
    assert torch.equal(model(x), before)


class Tied(nn.Module):
    """A table that is its own head, by use alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.layer(self.table(ids)), self.table.weight)


def test_a_table_tied_by_use_does_not_merge() -> None:
    ids = torch.arange(6).reshape(2, 3)
    plan = surgery.plan(Tied(), "on Embedding | Linear apply lora(2)", example_inputs=ids)
    assert [edit.derived.obstacle for edit in plan.edits] == [
        "the model reads the weight too, and would change with it",
        None,
    ]


def test_roles_find_layers_that_another_reads() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                F.linear(x, part.weight, part.bias).unflatten(-1, (2, 4)).transpose(1, 2)
                for part in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return x + F.linear(y, self.o.weight, self.o.bias)

    model = nn.Sequential(randomise(Functional()))
    x = torch.randn(2, 3, 8)
    for role in "qkvo":
        (site,) = surgery.select(model, role, example_inputs=x)
        assert (site.path, site.operator) == (f"0.{role}", WholeModule())
    plan = surgery.plan(model, "on q|o gated lora(2)", example_inputs=x)
    assert all(edit.layer and edit.layer.read for edit in plan.edits)


@pytest.mark.parametrize(
    ("name", "idle"),
    [("t5", {"shared"}), ("bert", set()), ("albert", set()), ("mixtral", set()), ("vit", set())],
)
def test_real_models(name: str, idle: set[str]) -> None:
    model = models.build(name)
    if name == "t5":
        plan = surgery.plan(model, "on Embedding apply lora(2)")
        assert set(plan.idle) == idle
        return
    assert set(surgery.plan(model, "on Linear apply lora(2)").idle) == idle
