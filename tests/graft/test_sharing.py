"""A parameter that several sites share has one name, and lives as long as one of them."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from torch import fx, nn

import surgery
from tests.laws.strategies import randomise_added
from tests.models import build

VERA = "on Linear apply vera(4)"
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def square() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))


def adapted() -> nn.Module:
    return randomise_added(surgery.apply(square(), VERA, seed=0))


def shared_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name[-1] in "AB"]


def test_a_state_dict_has_it_once(tmp_path) -> None:
    model = adapted()
    assert shared_names(model) == ["0.vera.A", "0.vera.B"]
    safetensors.torch.save_file(model.state_dict(), tmp_path / "all.safetensors")
    other = surgery.apply(square(), VERA, seed=1)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "all.safetensors"), assign=True)
    assert torch.equal(other(X), model(X))


def test_transformers_saves_what_shares(tmp_path) -> None:
    model = surgery.apply(build("bert"), "unipelt", seed=0)
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_among_themselves(copied) -> None:
    model = adapted()
    twin = copied(model)
    assert torch.equal(twin(X), model(X))
    assert twin[2].vera.A is twin[0].vera.A
    assert twin[0].vera.A is not model[0].vera.A


def test_moves_with_its_model() -> None:
    model = adapted()
    expected = copy.deepcopy(model).double()(X.double())
    assert model[3].vera.A.dtype == torch.float32
    torch.testing.assert_close(expected.float(), model(X))
    assert model.to("meta")[3].vera.A.is_meta


def test_compiles_whole() -> None:
    model = adapted()
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True, backend="aot_eager")(X), model(X)
    )


def test_a_traced_graph_shares() -> None:
    traced = surgery.apply(fx.symbolic_trace(square()), VERA, seed=0)
    eager = surgery.apply(square(), VERA, seed=0)
    traced.load_state_dict(randomise_added(eager).state_dict())
    assert shared_names(traced) == ["0.vera.A", "0.vera.B"]
    torch.testing.assert_close(traced(X), eager(X))
    torch.testing.assert_close(copy.deepcopy(traced)(X), eager(X))


def test_merging_some_leaves_it_to_the_rest(tmp_path) -> None:
    """What cannot merge keeps what it shared with what did."""
    spec = """
    method either(r = 4) {
      "A low-rank update with a down projection that all share."
      match y[*, n] = linear(x[*, m], W[n, m], b?)
      param shared A[r, m] ~ normal(std = 1)
      param B[n, r] ~ normal(std = 1)
      y += linear(linear(x, A), B)
    }
    method rectified() {
      "A layer whose input passes a rectifier: no one weight computes the same."
      match y[*, n] = linear(x[*, m], W, b?)
      param s[m] = 1
      x = s * relu(x)
    }
    on `2` apply rectified
    on Linear apply either
    """
    model = randomise_added(surgery.apply(square(), spec, seed=0))
    expected = model(X)
    with surgery.merged(model):
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(X), expected)
    surgery.merge(model)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert shared_names(model) == ["2.either.B", "2.either.A"]
    surgery.save(model, tmp_path)
    again = square()
    again.load_state_dict({n: p for n, p in model.state_dict().items() if "." not in n[2:]})
    assert torch.equal(surgery.load(again, tmp_path)(X), model(X))
