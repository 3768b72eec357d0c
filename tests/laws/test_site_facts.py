"""Arguments that speak of the site: ranks by layer and by size, and shares of a stack."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery
from surgery.anatomy.scope import slice_sites
from surgery.language import syntax
from surgery.language.parse import parse
from surgery.language.source import SourceText
from tests.laws.strategies import randomise_added
from tests.models import build

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_each_layer_has_a_rank_of_its_own(name: str, tmp_path) -> None:
    """Run, merged and loaded again as if each layer's rank had been written out."""
    model = build(name)
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if name == "t5" else {})
    base = model(**inputs).logits
    spec = (
        "on q apply lora(r = 1 + index, alpha = 3 * layers) on mlp parallel adapter(min(n, m) / 8)"
    )
    surgery.apply(model, spec, seed=0)
    torch.testing.assert_close(model(**inputs).logits, base)
    shapes = {n: tuple(p.shape) for n, p in surgery.trainable(model).items()}
    assert {s[0] for n, s in shapes.items() if n.endswith("lora.A")} == {1, 2}
    assert all(s[0] == s[1] // 8 for n, s in shapes.items() if n.endswith("adapter.D"))
    output = randomise_added(model)(**inputs).logits
    with surgery.merged(model):
        torch.testing.assert_close(model(**inputs).logits, output, rtol=1e-4, atol=1e-4)
    surgery.save(model, tmp_path / "adapter")
    surgery.remove(model)
    surgery.load(model, tmp_path / "adapter")
    assert torch.equal(model(**inputs).logits, output)


def test_it_is_what_is_written_out_layer_by_layer() -> None:
    model, other = build("gpt2"), build("gpt2")
    surgery.apply(model, "on q apply lora(r = 2, alpha = 1 + 3 * index)", seed=0)
    written = "on q in layer[0] apply lora(2, alpha = 1) on q in layer[1] apply lora(2, alpha = 4)"
    surgery.apply(other, written, seed=0)
    other.load_state_dict(randomise_added(model).state_dict())
    torch.testing.assert_close(model(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("on head apply lora(r = 1 + index)", "S272"),
        ("on tokens apply prompt(m)", "S272"),
        ("on q apply lora(r = index)", "S406"),
        ("on q apply lora(r = 64 * (1 + index))", "S404"),
        ("on q apply lora(r = depth)", "S207"),
        ("on q apply lora(2, dropout = index)", "S240"),
    ],
)
def test_what_a_site_lacks_or_cannot_have_is_an_error(spec: str, code: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.plan(build("gpt2"), spec)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from((0.1, 0.25, 0.5, 0.75, 0.9)), st.booleans())
def test_shares_of_a_stack_are_parts_of_it(count: int, share: float, behind: bool) -> None:
    """Each layer is in front of a bound or behind it."""
    sites = tuple(range(count))
    bound = f"-{share}" if behind else f"{share}"
    parts = []
    for text in (f"train layer[:{bound}]", f"train layer[{bound}:]"):
        (statement,) = parse(SourceText("text", text)).items
        assert isinstance(statement, syntax.Train)
        (sliced,) = statement.selector.union.parts
        assert isinstance(sliced, syntax.Sliced)
        parts += slice_sites(sites, sliced.subscript)
    assert parts == [*sites]


@pytest.mark.parametrize("subscript", ["0.5", "::0.5", "1.5:", "-2.0:"])
def test_a_share_is_a_bound_below_one(subscript: str) -> None:
    with pytest.raises(surgery.SurgeryError, match="S112"):
        parse(SourceText("text", f"train layer[{subscript}]"))
