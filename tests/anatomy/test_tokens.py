"""The role `tokens`: who reads the ids of a stack, and where its hidden states leave it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy.read import read
from surgery.anatomy.site import Memory, Port, Site, Tokens
from tests.anatomy.test_places import Seen
from tests.models import HIDDEN, VOCABULARY, Block, build, randomise

WHERE = {
    "llama": [("model", "embed_tokens", "layers.1", None)],
    "falcon": [("transformer", "word_embeddings", "h.1", 0)],
    "opt": [("model.decoder", "embed_tokens", "layers.1", None)],
    "bert": [("", "embeddings.word_embeddings", "encoder.layer.1", None)],
    "roberta": [("roberta", "embeddings.word_embeddings", "encoder.layer.1", None)],
    "deberta": [("", "embeddings.word_embeddings", "encoder.layer.1", 0)],
    "nanogpt": [("", "transformer.wte", "transformer.h.1", None)],
    "t5": [
        ("encoder", "embed_tokens", "block.1", 0),
        ("decoder", "embed_tokens", "block.1", 0),
    ],
    "bart": [
        ("model.encoder", "embed_tokens", "layers.1", None),
        ("model.decoder", "embed_tokens", "layers.1", None),
    ],
    "whisper": [("model.decoder", "embed_tokens", "layers.1", None)],
    # One layer's module runs as every layer: the states leave the stack around it.
    "albert": [("", "embeddings.word_embeddings", "encoder", 0)],
    # GPT-2 reshapes the states by the length of the ids, CLIP picks the place of the end of text.
    "gpt2": [("transformer", "wte", "", 0)],
    "clip": [("text_model", "embeddings.token_embedding", "", 0)],
}


def tokens_of(site: Site) -> Tokens:
    assert isinstance(site.operator, Tokens)
    return site.operator


def under(reader: str, path: str) -> str:
    return ".".join(part for part in (reader, path) if part)


@pytest.mark.parametrize("name", WHERE)
def test_one_site_for_each_stack(name: str) -> None:
    model = build(name)
    anatomy = read(model)
    sites = anatomy.places["tokens"]
    wanted = [
        (reader, under(reader, embedding), Port(under(reader, exit), "output", None, index))
        for reader, embedding, exit, index in WHERE[name]
    ]
    stacks = [tokens_of(site) for site in sites]
    assert [(t.reader, t.embedding, t.exit) for t in stacks] == wanted
    for site, tokens in zip(sites, stacks, strict=True):
        assert (site.path, site.exit) == (tokens.reader, tokens.exit)
        assert site.entry == Port(tokens.embedding, "output")
        assert anatomy.place_of(site) == site
        accepted = inspect.signature(model.get_submodule(site.path).forward).parameters
        names = (getattr(tokens, use) for use in ("ids", "embeds", "mask", "cache"))
        assert all(found in accepted for found in names if found is not None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "clip", "t5", "albert"])
def test_states_of_all_tokens_pass_the_exit(name: str) -> None:
    model = build(name)
    seen = Seen(model)
    for site in read(model).places["tokens"]:
        _, ids = seen.first(Port(site.path, "input", tokens_of(site).ids))
        _, embedded = seen.first(site.entry)
        key = Port(site.exit.path, "output", None, site.exit.index)
        _, states = seen.first(key)
        assert embedded.shape[:2] == states.shape[:2] == ids.shape


@pytest.mark.parametrize("name", ["vit", "resnet", "mixer", "encoder_layer"])
def test_images_and_hidden_states_are_no_tokens(name: str) -> None:
    assert "tokens" not in read(build(name)).places


def test_the_other_arguments_by_their_names() -> None:
    def names(name: str) -> tuple[str | None, ...]:
        tokens = tokens_of(read(build(name)).places["tokens"][-1])
        return (tokens.embeds, tokens.mask, tokens.positions, tokens.types, tokens.cache)

    embeds, mask, positions = "inputs_embeds", "attention_mask", "position_ids"
    types, cache = "token_type_ids", "past_key_values"
    assert names("llama") == (embeds, mask, positions, None, cache)
    assert names("bert") == (embeds, mask, positions, types, cache)
    assert names("bart") == (embeds, mask, None, None, cache)
    assert names("clip") == (None, mask, positions, None, None)
    assert names("nanogpt") == (None, None, None, None, None)


@pytest.mark.parametrize(
    ("name", "counts", "padding"),
    [
        ("llama", "places", None),
        ("opt", "mask", None),
        ("roberta", "ids", 0),
        ("bert", "places", None),
    ],
)
def test_how_positions_are_counted(name: str, counts: str, padding: int | None) -> None:
    tokens = tokens_of(read(build(name)).places["tokens"][0])
    assert (tokens.counts, tokens.padding) == (counts, padding)


def test_who_attends_to_an_encoders_states() -> None:
    def memory(name: str) -> list[Memory | None]:
        return [tokens_of(site).memory for site in read(build(name)).places["tokens"]]

    given = ("encoder_hidden_states", "encoder_attention_mask", 0)
    assert memory("t5") == [Memory("", "decoder", *given), None]
    assert memory("bart") == [Memory("model", "model.decoder", *given), None]
    assert memory("whisper") == memory("llama") == memory("bert") == [None]


class Handmade(nn.Module):
    """Names of its own, types in a table, and a mask; the states are picked by a place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.kinds = nn.Embedding(VOCABULARY - 1, HIDDEN)
        self.blocks = nn.ModuleList([Handled(), Handled()])
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, tokens: Any, which: Any = None, seen: Any = None) -> torch.Tensor:
        x = self.table(tokens)
        if which is not None:
            x = x + self.kinds(which)
        for block in self.blocks:
            x = block(x, seen)
        return self.head(x[:, 0])


class Handled(Block):
    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.ln_1(x)
        mask = None if seen is None else seen[:, None, :].bool()
        a = nn.functional.scaled_dot_product_attention(normed, normed, normed, mask)
        x = x + self.attn.c_proj(a)
        return x + self.mlp(self.ln_2(x))


def site_of(model: nn.Module, *inputs: Any) -> Site:
    (site,) = read(model, inputs).places["tokens"]
    return site


def test_arguments_by_what_becomes_of_them() -> None:
    model = randomise(Handmade())
    ids = torch.randint(VOCABULARY, (2, 6))
    which, seen = torch.randint(4, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    tokens = tokens_of(site_of(model, ids, which, seen))
    assert (tokens.ids, tokens.types, tokens.mask) == ("tokens", "which", "seen")
    assert (tokens.embedding, tokens.exit) == ("table", Port("blocks.1", "output"))
    assert tokens_of(site_of(model, ids)).mask is None


def test_what_picks_by_ids_and_returns_no_states_has_no_exit() -> None:
    class Last(Handmade):
        def forward(self, tokens: Any) -> torch.Tensor:
            x = self.table(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(x[torch.arange(len(x)), tokens.argmax(1)])

    assert "tokens" not in read(randomise(Last()), torch.randint(VOCABULARY, (2, 6))).places
