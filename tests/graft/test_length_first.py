"""Gates where hidden states are [length, batch, features]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.models import randomise


class Turned(nn.Module):
    """An encoder of one layer that has the length first, with a linear and an attention in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.ModuleDict({"up": nn.Linear(16, 24), "down": nn.Linear(24, 16)})
        self.attend = nn.ModuleDict({name: nn.Linear(16, 16) for name in "qkvo"})

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids).transpose(0, 1)
        q, k, v = (self.attend[name](x).unflatten(-1, (2, 8)).permute(1, 2, 0, 3) for name in "qkv")
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.attend["o"](made.permute(2, 0, 1, 3).flatten(2))
        x = x + self.layer["down"](self.layer["up"](x).relu())
        return x.transpose(0, 1)


SPECS = {
    "a linear layer": "on `layer.up` apply gated lora(4)",
    "a region": "on mlp sequential weighted adapter(4)",
    "an attention": "on attention apply gated prefix(3)",
}


@pytest.fixture(params=SPECS)
def adapted(request: pytest.FixtureRequest) -> nn.Module:
    model = randomise(Turned()).eval()
    ids = torch.randint(50, (2, 5))
    surgery.apply(model, SPECS[request.param], seed=0, example_inputs=ids)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.normal_()
    return model


def test_a_gate_is_of_an_examples_own_tokens(adapted: nn.Module) -> None:
    ids = torch.randint(50, (3, 6))
    together = adapted(ids)
    for one, expected in zip(ids, together, strict=True):
        torch.testing.assert_close(adapted(one[None])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["on q|v gated lora(4)", "on attention.self gated prefix(3)"])
def test_a_gate_leaves_padding_out(spec: str) -> None:
    from transformers import FSMTConfig, FSMTModel

    layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"src_vocab_size": 50, "tgt_vocab_size": 50, "max_position_embeddings": 20}
    model = randomise(FSMTModel(FSMTConfig(**layers, **heads, **sizes))).eval()
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:], ids[1, 4:] = 0, 1
    surgery.apply(model, spec, seed=0, example_inputs={"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.normal_()
    encode = model.encoder
    found = encode(ids, attention_mask=mask).last_hidden_state
    alone = encode(ids[1:2, :4], attention_mask=mask[1:2, :4]).last_hidden_state
    torch.testing.assert_close(found[1:2, :4], alone, rtol=1e-4, atol=1e-4)
    full = encode(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert not torch.allclose(full[1:2, :4], alone, atol=1e-3)


def test_a_gated_layer_is_what_its_rule_says() -> None:
    model = randomise(Turned()).eval()
    ids = torch.randint(50, (3, 6))
    states: list[Tensor] = []
    model.layer["up"].register_forward_hook(lambda _m, given, made: states.extend((*given, made)))
    model(ids)
    x, before = states
    surgery.apply(model, SPECS["a linear layer"], seed=0, example_inputs=ids)
    added = surgery.trainable(model)
    with torch.no_grad():
        for parameter in added.values():
            parameter.normal_()
    A, B, w, c = (
        next(p for name, p in added.items() if name.endswith(f".{end}"))
        for end in ("A", "B", "w", "c")
    )
    gate = torch.sigmoid(x @ w.T + c).mean(0, keepdim=True)
    states.clear()
    model(ids)
    torch.testing.assert_close(states[1], before + gate * (x @ A.T @ B.T), rtol=1e-4, atol=1e-4)


def test_a_tap_whose_module_did_not_run_is_an_error() -> None:
    model = randomise(Turned()).eval()
    ids = torch.randint(50, (2, 5))
    surgery.apply(model, "on mlp pfeiffer adapter(4)", seed=0, example_inputs=ids)
    x = torch.randn(5, 2, 24)
    with pytest.raises(surgery.SurgeryError, match="S434"):
        model.layer["down"](x)
