"""Programs of every form that `torch.export` gives: what specs do to them is what they do to the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import surgery
from tests.laws.test_hosts import nodes_of, saved
from tests.laws.test_program_layers import Turned, outcome
from tests.models import randomise

# PyTorch's own copies of programs warn of what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*:FutureWarning", "ignore:.*isinstance.treespec.*:FutureWarning"
)

SIZE = 8


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)


class Stack(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(self.b(self.a(x).relu()).relu())


class Blind(Layers):
    """Runs a layer where gradients are taken and where they are not."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.a(x) - self.b(x)
        return self.c(self.a(x) + seen)


class Branching(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cond(x.sum() > 0, lambda v: self.b(v), lambda v: self.c(v) * 2, (y,))


class Mixed(Layers):
    """Runs a layer in another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.a(x)
        return self.c(y.float() + self.b(x))


class Parts(Layers):
    """Takes the results of a layer apart, and returns a weight beside them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.a(x).chunk(2, -1)
        return self.c(torch.cat([second, first.relu()], -1)), self.c.weight


class Against(Layers):
    """Multiplies with transposed weights, as Falcon does."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Turned(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(1, 4, 3, stride=2, padding=1)
        self.b = nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.unsqueeze(1)).relu())


class Shared(Layers):
    """Runs one layer under two names, and another with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.b = self.a
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def decomposed(program: ExportedProgram) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        return program.run_decompositions()


@dataclass(frozen=True)
class Case:
    model: type[nn.Module]
    spec: str
    then: Callable[[ExportedProgram], ExportedProgram] = saved
    strict: bool = False
    tolerance: float = 1e-4


CASES = {
    "decomposed": Case(
        Stack, "on `a` apply lora(2) on `b` apply dora(2) on `c` apply ia3", decomposed
    ),
    "convolutions": Case(Convolutions, "on `a` apply dora(1) on `b` apply lora(1)", decomposed),
    "no_grad": Case(Blind, "on Linear apply lora(2)"),
    "branches": Case(Branching, "on Linear apply dora(2)", strict=True),
    "autocast": Case(Mixed, "on Linear apply lora(2)", tolerance=3e-2),
    "parts": Case(Parts, "on `a`|`c` apply lora(2)"),
    "transposed": Case(Against, "on Linear apply ia3 on `b` apply lora(2) as more"),
    "shared": Case(Shared, "on `a` apply lora(2) on `c` apply ia3"),
    "shared_strict": Case(Shared, "on `a` apply lora(2) train `c`", strict=True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_program_of_any_form_is_adapted_as_its_model(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.model()).eval()
    inputs = {"x": torch.randn(3, SIZE).abs()}
    exported = torch.export.export(copy.deepcopy(model), (), inputs, strict=case.strict)
    program = case.then(exported)
    found = outcome(program, case.spec, inputs)
    assert not isinstance(found, surgery.SurgeryError), found
    first, result = found
    expected, other = outcome(model, case.spec, inputs, example_inputs=inputs)
    assert list(first) == list(expected)
    assert all(torch.equal(first[n], expected[n]) for n in first)
    torch.testing.assert_close(result, other, rtol=case.tolerance, atol=case.tolerance)
    adapted: Any = saved(surgery.apply(program, case.spec, seed=0))
    removed = surgery.remove(adapted)
    assert nodes_of(removed) == nodes_of(program)
    assert all(map(torch.equal, leaves(removed, inputs), leaves(program, inputs)))


def leaves(program: ExportedProgram, inputs: dict[str, Tensor]) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(program.module()(**inputs))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # unflatten's own
def test_an_adapted_program_is_unflattened_with_the_signatures_that_hold() -> None:
    model, x = randomise(Stack()).eval(), torch.randn(3, SIZE)
    program = torch.export.export(model, (x,), preserve_module_call_signature=("a", "b"))
    adapted = surgery.apply(program, "on `a` apply lora(2) train `c`", seed=0)
    with torch.no_grad():
        for value in surgery.trainable(adapted).values():
            value.add_(0.1)
    flat = adapted.module()
    for one in (adapted, saved(adapted), surgery.merge(adapted)):
        torch.testing.assert_close(torch.export.unflatten(one)(x), flat(x))
    signatures = {entry.fqn: entry.signature for entry in adapted.module_call_graph}
    assert signatures["a"] is None
    assert signatures["b"] is not None


class Counting(nn.Module):
    """Writes to a buffer, and names its input as a function of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.get_buffer("count").add_(1)
        return self.layer(input) * self.get_buffer("count")


@pytest.mark.parametrize("then", [lambda program: program, decomposed], ids=["whole", "decomposed"])
def test_a_program_that_writes_to_buffers_is_a_value_all_the_same(then: Any) -> None:
    x = torch.randn(3, SIZE)
    program = then(torch.export.export(randomise(Counting()), (x,)))
    adapted = surgery.apply(program, "on Linear apply lora(2)", seed=0)
    assert surgery.verify(program, "on Linear apply lora(2)")
    module = adapted.module()
    first, second = module(x), module(x)
    torch.testing.assert_close(second, 2 * first)
    assert adapted.state_dict["count"] == 2
    assert program.state_dict["count"] == 0
    assert surgery.remove(adapted).state_dict["count"] == 2


def test_a_copy_of_a_program_is_adapted_whatever_its_inputs_are_called() -> None:
    """PyTorch's copies give `input` another name in the graph, and not in the signature."""
    x = torch.randn(3, SIZE)
    program = torch.export.export(randomise(Counting()), (x,))
    again = surgery.apply(copy.deepcopy(program), "on Linear apply lora(2)", seed=0)
    removed = surgery.remove(copy.deepcopy(again))
    assert nodes_of(saved(removed)) == nodes_of(program)
    assert torch.equal(removed.module()(x), program.module()(x))


@pytest.mark.parametrize("method", ["dylora(2)", "adalora(2, cubic(2, 1, 1, 4), until = 5)"])
def test_what_follows_a_step_is_refused_of_programs(method: str) -> None:
    """The module that a program gives is trained without its surgery, so nothing would follow."""
    x = torch.randn(3, SIZE)
    program = torch.export.export(randomise(Counting()), (x,))
    before = program.graph_signature
    with pytest.raises(surgery.SurgeryError, match="S446"):
        surgery.apply(program, f"on Linear apply {method}", seed=0)
    assert program.graph_signature == before
