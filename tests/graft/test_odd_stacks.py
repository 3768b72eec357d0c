"""Prompts where a stack is not a list of layers that states go through and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.anatomy.site import Tokens
from surgery.graft.tokens.outputs import Trim
from tests.graft.test_tokens import a_batch, longer, padded, shapes
from tests.laws.strategies import randomise_added
from tests.models import randomise

N = 3
SPEC = f"on tokens apply prompt({N})"
pytestmark = pytest.mark.filterwarnings("ignore")
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HEADS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_BERT = {"vocab_size": 96, **_HEADS, "num_hidden_layers": 2, "pad_token_id": 0}
_XLM = {"vocab_size": 96, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 0, **_IDS}
_PROPHET = {
    "vocab_size": 96,
    "hidden_size": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 1,
    **_IDS,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "XLMModel": {**_XLM},
    "FlaubertModel": {**_XLM},
    "SqueezeBertModel": {**_BERT, "embedding_size": 32},
    "IBertModel": {**_BERT},
    "ProphetNetDecoder": {**_PROPHET, "is_decoder": True, "add_cross_attention": False},
    "MambaModel": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "XLNetModel": {
        "vocab_size": 96,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
        **_IDS,
    },
    "ProphetNetForConditionalGeneration": {**_PROPHET},
    "XLNetLMHeadModel": {
        "vocab_size": 96,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
        **_IDS,
    },
    "FSMTForConditionalGeneration": {
        "langs": ["de", "en"],
        "src_vocab_size": 96,
        "tgt_vocab_size": 96,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 32,
        "decoder_start_token_id": 2,
        **_IDS,
    },
    "PerceiverForSequenceClassification": {
        "vocab_size": 96,
        "d_model": 32,
        "d_latents": 24,
        "num_latents": 5,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "max_position_embeddings": 32,
        "num_labels": 3,
    },
    "LongformerModel": {**_BERT, "attention_window": 4, "max_position_embeddings": 64},
    "ReformerModelWithLMHead": {
        "vocab_size": 96,
        "hidden_size": 32,
        "feed_forward_size": 48,
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 4,
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 16,
        "is_decoder": True,
        **_IDS,
    },
}
SETTINGS["MambaForCausalLM"] = SETTINGS["MambaModel"]


def built(name: str) -> Any:
    """The model of transformers that is so named, tiny and random."""
    import transformers

    kind: Any = getattr(transformers, name)
    return randomise(kind(kind.config_class(**SETTINGS[name]))).eval()


def prompted(name: str) -> tuple[Any, Any]:
    base = built(name)
    return base, randomise_added(surgery.apply(copy.deepcopy(base), SPEC, seed=0))


@pytest.mark.parametrize(
    "name",
    [
        "XLMModel",
        "FlaubertModel",
        "SqueezeBertModel",
        "IBertModel",
        "ProphetNetDecoder",
        "MambaModel",
        "XLNetModel",
    ],
)
@torch.no_grad()
def test_states_are_those_on_embeddings_behind_the_prompt(name: str) -> None:
    base, model = prompted(name)
    (prompt,) = surgery.trainable(model).values()
    (site,) = surgery.select(base, "tokens")
    assert isinstance(site.operator, Tokens)
    ids, mask = padded(a_batch(), "right")
    if name == "MambaModel":
        mask = torch.ones_like(ids)
    embedded = base.get_submodule(site.operator.embedding)(ids)
    embedded = embedded[0] if isinstance(embedded, tuple) else embedded
    behind = torch.cat((prompt.expand(2, -1, -1), embedded.view(2, 5, -1)), 1)
    wanted = base(inputs_embeds=behind, attention_mask=longer(mask)).last_hidden_state[:, N:]
    got = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(got[mask == 1], wanted[mask == 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "XLMModel",
        "SqueezeBertModel",
        "ProphetNetDecoder",
        "ProphetNetForConditionalGeneration",
        "FSMTForConditionalGeneration",
        "PerceiverForSequenceClassification",
    ],
)
@torch.no_grad()
def test_what_is_returned_has_the_shapes_of_the_base(name: str, named: bool) -> None:
    base, model = prompted(name)
    given: dict[str, Any] = {"input_ids": a_batch(), "attention_mask": torch.ones(2, 5).long()}
    if base.config.is_encoder_decoder and "Decoder" not in name:
        given |= {"decoder_input_ids": a_batch(1, 4), "use_cache": False}
    more = {"output_hidden_states": True, "output_attentions": True, "return_dict": named}
    for each in (base, model):
        each.set_attn_implementation("eager")
    assert shapes(model(**given, **more)) == shapes(base(**given, **more))


@pytest.mark.parametrize(
    "name", ["MambaForCausalLM", "XLNetLMHeadModel", "FSMTForConditionalGeneration"]
)
def test_decoding_with_what_is_kept_equals_decoding_without(name: str) -> None:
    base, model = prompted(name)
    ids = a_batch()
    for beams in (1, 2):
        more = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams}
        kept, plain = (
            {"use_mems": kept} if name.startswith("XLNet") else {"use_cache": kept}
            for kept in (True, False)
        )
        wanted = model.generate(ids, **more, **plain)
        assert not torch.equal(wanted, base.generate(ids, **more, **plain))
        got = model.generate(ids, **more, **kept)
        # What XLNet keeps has not seen the tokens after it.
        assert torch.equal(got, wanted) or name.startswith("XLNet")


@torch.no_grad()
def test_latents_attend_to_the_prompt() -> None:
    base, model = prompted("PerceiverForSequenceClassification")
    (prompt,) = surgery.trainable(model).values()
    ids, mask = padded(a_batch(), "right")
    table = base.perceiver.input_preprocessor.embeddings
    places = torch.cat((torch.full((2, N), 95), ids), 1)

    def fill(_module: nn.Module, _args: Any, found: Tensor) -> Tensor:
        return torch.cat((prompt.expand(2, -1, -1), found[:, N:]), 1)

    handle = table.register_forward_hook(fill)
    wanted = base(inputs=places, attention_mask=longer(mask)).logits
    handle.remove()
    torch.testing.assert_close(model(inputs=ids, attention_mask=mask).logits, wanted)
    assert not torch.allclose(base(inputs=ids, attention_mask=mask).logits, wanted)


@torch.no_grad()
def test_a_model_that_pads_by_itself() -> None:
    base, model = prompted("LongformerModel")
    (prompt,) = surgery.trainable(model).values()
    for length in (4, 5, 6, 8):
        ids = a_batch(length=length)
        behind = torch.cat((prompt.expand(2, -1, -1), base.get_input_embeddings()(ids)), 1)
        positions = base.config.pad_token_id + 1 + torch.arange(N + length).expand(2, -1)
        wanted = base(inputs_embeds=behind, position_ids=positions).last_hidden_state[:, N:]
        torch.testing.assert_close(model(ids).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("hidden_states", (2, 8, 6), (2, 5, 6)),
        ("hidden_states", (2, 8, 4, 6), (2, 5, 4, 6)),  # several rows for each token
        ("hidden_states", (4, 2, 8, 6), (4, 2, 5, 6)),  # several predictions of them
        ("attentions", (2, 4, 8, 8), (2, 4, 5, 5)),
        ("attentions", (2, 4, 8, 5), (2, 4, 5, 5)),  # in windows
        ("attentions", (2, 3, 4, 6, 9), (2, 3, 4, 6, 9)),  # in blocks
        ("attentions", (2, 8, 6), (2, 5, 6)),  # of a mixer that has no keys
        ("router_logits", (16, 4), (10, 4)),
    ],
)
def test_each_form_of_what_is_returned_beside(
    key: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    trim = Trim(joined=N, held=N, batch=2, total=8)
    values = trim.output({key: (torch.randn(before),)})[key]
    assert values[0].shape == after


def test_a_length_that_the_model_refuses() -> None:
    _, model = prompted("ReformerModelWithLMHead")
    model.train()
    with pytest.raises(surgery.SurgeryError, match=r"S530.*refuses 15 places, 3 of them.*multiple"):
        model(a_batch(length=12))
    model(a_batch(length=13))  # 16 with the prompt


class Lookup(nn.Module):
    """Two blocks over what is looked up; `how` says what is odd."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Embedding(96, 32)
        self.blocks = nn.ModuleList([Mixed(), Mixed()])
        self.head = nn.Linear(32, 96)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids * 31 % 96 if self.how == "hashed" else ids)
        first = x
        x = self.blocks[0](x)
        if self.how == "pooled":
            x = nn.functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        x = self.blocks[1](x)
        return self.head(x + first if self.how == "mixed" else x)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.down(nn.functional.gelu(self.up(x)))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("pooled", "`Lookup` pools or picks the states of its tokens on their way"),
        ("hashed", "`Lookup` makes other ids of those it is given and looks these up"),
    ],
)
def test_why_there_is_no_place(how: str, reason: str) -> None:
    model = randomise(Lookup(how))
    with pytest.raises(surgery.SurgeryError, match=f"S301.*{reason}"):
        surgery.plan(model, SPEC, example_inputs=(a_batch(length=6),))


@torch.no_grad()
def test_states_that_meet_others_of_the_same_tokens() -> None:
    model = randomise(Lookup("mixed")).eval()
    ids = a_batch(length=6)
    base = copy.deepcopy(model)
    randomise_added(surgery.apply(model, SPEC, example_inputs=(ids,), seed=0))
    (prompt,) = surgery.trainable(model).values()
    behind = torch.cat((prompt.expand(2, -1, -1), base.table(ids)), 1)
    states = base.blocks[1](base.blocks[0](behind)) + behind
    torch.testing.assert_close(model(ids), base.head(states)[:, N:])
