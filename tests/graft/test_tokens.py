"""Vectors in front of a token sequence: the model sees them, and nobody else does."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DynamicCache,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutput

from surgery.anatomy.read import read
from surgery.graft.passing import within
from surgery.graft.tokens.sequences import (
    can_shift,
    extended,
    filled,
    noticed,
    placed,
    shifted,
    token_slots,
)
from surgery.huggingface import generation
from surgery.language.diagnostics import SurgeryError
from tests.graft.prompted import SLOTS, adapt, random_prompt, tokens_of, with_prompt
from tests.models import build, randomise

N = 3
ENCODERS = ["bert", "roberta", "albert", "deberta", "distilbert", "electra"]
DECODERS = ["llama", "gemma2", "mixtral", "gpt2", "gptj", "falcon", "bloom", "mpt", "opt"]
BOTH = [("t5", 0), ("t5", 1), ("bart", 0), ("bart", 1), ("whisper", 0)]


def a_batch(seed: int = 0, length: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 96, (2, length), generator=generator)


def padded(ids: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The second sequence is two tokens shorter."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    where = slice(0, 2) if side == "left" else slice(-2, None)
    ids[1, where], mask[1, where] = 0, 0
    return ids, mask


def in_front(model: nn.Module, prompt: torch.Tensor, ids: torch.Tensor, stack: int = 0) -> Any:
    """The embeddings of ``ids`` behind ``prompt``."""
    table = model.get_submodule(tokens_of(model, stack).embedding)
    return torch.cat((prompt.expand(len(ids), -1, -1), table(ids)), 1)


def longer(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat((mask.new_ones(len(mask), N), mask), 1)


def tensors(output: Any) -> dict[str, torch.Tensor]:
    return {k: v for k, v in output.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_decoder_runs_as_on_embeddings_behind_the_prompt(name: str, side: str) -> None:
    model = build(name)
    prompt = random_prompt(model, N)
    ids, mask = padded(a_batch(), side)
    behind = in_front(model, prompt, ids)
    wanted = model(inputs_embeds=behind, attention_mask=longer(mask)).logits[:, N:]
    plain = model(ids, attention_mask=mask).logits
    got = with_prompt(model, prompt)(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask == 1], wanted[mask == 1])
    assert not torch.allclose(got, plain)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder_runs_as_on_embeddings_behind_the_prompt(name: str) -> None:
    model = build(name)
    prompt = random_prompt(model, N)
    ids, mask = padded(a_batch(), "right")
    wanted = model(inputs_embeds=in_front(model, prompt, ids), attention_mask=longer(mask))[0]
    got = with_prompt(model, prompt)(ids, attention_mask=mask)[0]
    torch.testing.assert_close(got[mask == 1], wanted[:, N:][mask == 1])


@pytest.mark.parametrize(("name", "stack"), BOTH)
@torch.no_grad()
def test_one_stack_of_two(name: str, stack: int) -> None:
    model = build(name)
    prompt = random_prompt(model, N, stack)
    ids, decoded = a_batch(), a_batch(1, 4)
    inputs = {"decoder_input_ids": decoded}
    if name == "whisper":
        inputs["input_features"] = torch.randn(2, 8, 32)
        wanted_inputs = {"input_features": inputs["input_features"]}
    else:
        inputs["input_ids"], inputs["attention_mask"] = padded(ids, "right")
        wanted_inputs = {"attention_mask": inputs["attention_mask"]}
        if stack == 1:
            wanted_inputs["input_ids"] = inputs["input_ids"]
    if name == "whisper" or stack == 1:
        behind = in_front(model, prompt, decoded, stack)
        wanted = model(**wanted_inputs, decoder_inputs_embeds=behind).logits[:, N:]
    else:
        behind = in_front(model, prompt, inputs["input_ids"])
        mask = longer(inputs["attention_mask"])
        states = model.get_encoder()(inputs_embeds=behind, attention_mask=mask)[0][:, N:]
        seen = BaseModelOutput(last_hidden_state=states)
        wanted = model(**wanted_inputs, encoder_outputs=seen, decoder_input_ids=decoded).logits
    got = with_prompt(model, prompt, stack)(**inputs).logits
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_given_embeddings_come_behind_the_prompt(name: str) -> None:
    model = build(name)
    table = model.get_submodule(tokens_of(model).embedding)
    ids = a_batch()
    given = table(ids)
    with_prompt(model, random_prompt(model, N))
    got, wanted = model(inputs_embeds=given)[0], model(ids)[0]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "roberta", "bert"])
@torch.no_grad()
def test_given_positions_and_types(name: str, counted: bool) -> None:
    model = build(name)
    prompt = random_prompt(model, N)
    tokens = tokens_of(model)
    ids = a_batch()
    first = 1 if name == "roberta" else 0
    extra = {"position_ids": first + torch.arange(5).expand(2 if counted else 1, -1)}
    wanted = {"position_ids": first + torch.arange(5 + N).expand(2 if counted else 1, -1)}
    if tokens.types and name != "roberta":
        types = torch.tensor([1, 1, 0, 1, 0]).expand(2, -1)
        extra["token_type_ids"] = types
        wanted["token_type_ids"] = torch.cat((types[:, :1].expand(-1, N), types), 1)
    behind = in_front(model, prompt, ids)
    wanted_states = model(inputs_embeds=behind, **wanted)[0][:, N:]
    got = with_prompt(model, prompt)(ids, **extra)[0]
    torch.testing.assert_close(got, wanted_states)


@torch.no_grad()
def test_a_model_written_by_hand() -> None:
    model, ids = build("nanogpt"), a_batch()
    prompt = random_prompt(model, N)
    places = model.transformer["wpe"](torch.arange(5 + N))
    x = in_front(model, prompt, ids) + places
    for block in model.transformer["h"]:
        x = block(x)
    wanted = model.lm_head(model.transformer["ln_f"](x))[:, N:]
    torch.testing.assert_close(with_prompt(model, prompt)(ids), wanted)


@torch.no_grad()
def test_the_end_of_a_text_is_found_behind_the_prompt() -> None:
    clip = build("clip").text_model
    prompt = random_prompt(clip, N)
    ids = a_batch()
    ids = a_batch().clamp(max=94)
    ids[:, 3] = 95  # the greatest id ends a text
    states = clip.embeddings.position_embedding(torch.arange(5 + N))
    states = states + in_front(clip, prompt, ids)
    causal = torch.full((5 + N, 5 + N), float("-inf")).triu(1)
    states = clip.encoder(inputs_embeds=states, attention_mask=causal[None, None])[0]
    wanted = clip.final_layer_norm(states)[:, N:]
    got = with_prompt(clip, prompt)(ids)
    torch.testing.assert_close(got.last_hidden_state, wanted)
    torch.testing.assert_close(got.pooler_output, wanted[:, 3])


@torch.no_grad()
def test_the_pooler_sees_the_first_token_given() -> None:
    model, ids = build("bert"), a_batch()
    got = with_prompt(model, random_prompt(model, N))(ids)
    torch.testing.assert_close(got.pooler_output, model.pooler(got.last_hidden_state))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, LlamaForSequenceClassification])
@torch.no_grad()
def test_the_last_token_is_classified(kind: Any, side: str) -> None:
    small = {"vocab_size": 96, "pad_token_id": 0, "num_labels": 3}
    config: Any = GPT2Config(n_embd=32, n_layer=2, n_head=4, **small)
    if kind is LlamaForSequenceClassification:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        config = LlamaConfig(num_hidden_layers=2, **shape, **small)
    model = randomise(kind(config)).eval()
    ids, mask = padded(a_batch(), side)
    with_prompt(model, random_prompt(model, N))
    states = model.base_model(ids, attention_mask=mask).last_hidden_state
    last = torch.tensor([4, 4 if side == "left" else 2])
    wanted = model.score(states[torch.arange(2), last])
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, wanted)


def test_each_token_is_classified_and_losses_count_tokens_given() -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = BertConfig(vocab_size=96, num_hidden_layers=2, num_labels=3, **small)
    tagger = randomise(BertForTokenClassification(config)).eval()
    with_prompt(tagger, random_prompt(tagger, N))
    labels = torch.randint(3, (2, 5))
    output = tagger(a_batch(), labels=labels)
    wanted = nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, wanted)
    model, ids = build("llama"), a_batch()
    with_prompt(model, random_prompt(model, N))
    output = model(ids, labels=ids)
    wanted = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)


def shapes(thing: Any) -> Any:
    if isinstance(thing, torch.Tensor):
        return tuple(thing.shape)
    if isinstance(thing, dict):
        return {key: shapes(item) for key, item in thing.items()}
    return [shapes(item) for item in thing] if isinstance(thing, tuple | list) else None


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("name", "stack"), [("llama", 0), ("mixtral", 0), ("gpt2", 0), ("bloom", 0), ("bert", 0), *BOTH]
)
@torch.no_grad()
def test_states_and_attentions_have_the_shapes_of_the_base(
    name: str, stack: int, named: bool
) -> None:
    model = build(name)
    model.set_attn_implementation("eager")
    inputs: dict[str, Any] = {"input_ids": a_batch()}
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = a_batch(1, 8)  # as long as the encoder's with a prompt
    if name == "whisper":
        inputs["input_features"] = torch.randn(2, 8, 32)
        del inputs["input_ids"]
    inputs |= {"output_hidden_states": True, "output_attentions": True, "return_dict": named}
    if name == "mixtral":
        inputs["output_router_logits"] = True
    wanted = shapes(model(**inputs))
    got = with_prompt(model, random_prompt(model, N, stack), stack)(**inputs)
    assert shapes(got) == wanted


GENERATING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "in chunks": {"prefill_chunk_size": 2},
    "guessing ahead": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("how", GENERATING)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_generation_returns_what_it_returns_without(name: str, how: str) -> None:
    model = build(name)
    prompt = random_prompt(model, N)
    ids, mask = padded(a_batch(), "left")
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, **GENERATING[how]}
    faster = ("prefill_chunk_size", "prompt_lookup_num_tokens")
    plain = {k: v for k, v in settings.items() if k not in faster}
    adapted = with_prompt(copy.deepcopy(model), prompt)
    if how == "guessing ahead":
        ids, mask = ids[1:].repeat(1, 2), mask[1:].repeat(1, 2)  # one at a time
    for seen in (mask, torch.ones_like(mask)):
        torch.manual_seed(0)
        behind = in_front(model, prompt, ids)
        wanted = model.generate(inputs_embeds=behind, attention_mask=longer(seen), **plain)
        torch.manual_seed(0)
        got = adapted.generate(ids, attention_mask=seen, **settings)
        length = ids.shape[1]
        assert torch.equal(got[:, length:], wanted)
        assert torch.equal(got[:, :length], ids.repeat_interleave(len(got) // len(ids), 0))


def sliding(kind: str) -> nn.Module:
    """Windows shorter than the prompt and the text; Gemma 3n stacks the states of its layers."""
    small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "pad_token_id": 0}
    if kind == "mistral":
        config: Any = MistralConfig(**small, num_hidden_layers=2)
        return randomise(MistralForCausalLM(config)).eval()
    config = Gemma3nTextConfig(
        **small,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
    )
    return randomise(Gemma3nForCausalLM(config)).eval()


@pytest.mark.parametrize("kind", ["mistral", "gemma3n"])
def test_layers_that_look_back_a_few_tokens(kind: str) -> None:
    model = sliding(kind)
    prompt = random_prompt(model, N)
    ids = a_batch(length=7)
    more = {"max_new_tokens": 6, "min_new_tokens": 6}
    wanted = with_prompt(copy.deepcopy(model), prompt).generate(ids, **more, use_cache=False)
    if kind == "mistral":  # Gemma 3n looks the ids up in each layer, too
        behind = in_front(model, prompt, ids)
        seen = torch.ones(2, 7 + N)
        base = model.generate(inputs_embeds=behind, attention_mask=seen, **more)
        assert torch.equal(wanted[:, 7:], base)
    shown = {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    formed = [shapes(model(ids, **shown, return_dict=named)) for named in (True, False)]
    with_prompt(model, prompt)
    got = [shapes(model(ids, **shown, return_dict=named)) for named in (True, False)]
    assert got == formed
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(ids, **more, cache_implementation=cache), wanted)


@pytest.mark.parametrize(("name", "stack"), BOTH)
def test_decoding_with_a_cache_equals_decoding_without(name: str, stack: int) -> None:
    model = build(name)
    with_prompt(model, random_prompt(model, N, stack), stack)
    inputs = {"input_features": torch.randn(2, 8, 32)}
    if name != "whisper":
        inputs = {"input_ids": a_batch()}
    for more in ({}, {"num_beams": 2}):
        more = {**more, "max_new_tokens": 5, "min_new_tokens": 5}
        cached = model.generate(**inputs, **more)
        assert torch.equal(model.generate(**inputs, **more, use_cache=False), cached)
    if name != "whisper":
        static = model.generate(**inputs, **more, cache_implementation="static")
        assert torch.equal(static, cached)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt"])
@torch.no_grad()
def test_step_by_step_equals_at_once(name: str, static: bool) -> None:
    model = build(name)
    with_prompt(model, random_prompt(model, N))
    ids = a_batch(length=7)
    wanted = model(ids).logits
    cache: Any = DynamicCache(config=model.config)
    if static:
        cache = StaticCache(config=model.config, max_cache_len=7)
        if name == "llama":  # its tensors are there from the start
            cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    for _ in range(2):  # the second time the cache has been used and is empty again
        parts = [model(piece, past_key_values=cache).logits for piece in ids.split((4, 2, 1), 1)]
        torch.testing.assert_close(torch.cat(parts, 1), wanted)
        cache.reset()
        cache = cache if static else DynamicCache(config=model.config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 2])
def test_the_same_as_prompt_tuning_of_peft(beams: int) -> None:
    from peft import PromptTuningConfig, get_peft_model

    for name in ("llama", "gpt2"):
        model = build(name)
        prompt = random_prompt(model, N)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
        peer = get_peft_model(copy.deepcopy(model), config).eval()
        peer.prompt_encoder.default.embedding.weight.data.copy_(prompt)
        with_prompt(model, prompt)
        ids, mask = padded(a_batch(), "left")
        with torch.no_grad():
            wanted = peer(input_ids=ids, attention_mask=mask).logits[:, N:]
            got = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(got[mask == 1], wanted[mask == 1])
        more = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams}
        # In padded sequences the peer ignores the positions that `generate` hands it.
        full = {"input_ids": a_batch(), "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(**full, **more), peer.generate(**full, **more))


@torch.no_grad()
def test_a_prompt_for_each_sequence() -> None:
    model, ids = build("llama"), a_batch()
    prompts = torch.stack([random_prompt(model, N, seed=s) for s in (1, 2)])
    one = [with_prompt(copy.deepcopy(model), p) for p in prompts]
    wanted = [m.generate(ids[i : i + 1], num_beams=2, max_length=9) for i, m in enumerate(one)]
    with_prompt(model, prompts)
    torch.testing.assert_close(model(ids).logits[1:], one[1](ids[1:]).logits)
    got = model.generate(ids, num_beams=2, max_length=9)
    assert torch.equal(got, torch.cat(wanted))
    with pytest.raises(SurgeryError, match=r"2 prompts cannot be shared out to 3"):
        model(torch.cat((ids, ids[:1])))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_only_the_prompt_gets_gradients_and_checkpointing_keeps_them(name: str) -> None:
    model = build(name)
    model.requires_grad_(False)
    tokens = tokens_of(model)
    with_prompt(model, random_prompt(model, N)).train()
    prompt = model.get_submodule(tokens.reader).prompt
    inputs = {"decoder_input_ids": a_batch(1)} if name == "t5" else {}

    def gradient() -> torch.Tensor:
        prompt.grad = None
        torch.manual_seed(0)  # for dropout
        model(input_ids=a_batch(), **inputs, use_cache=False)[0].square().mean().backward()
        return prompt.grad

    plain = gradient()
    assert plain.abs().sum(1).gt(0).all()
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.parametrize("name", ["gpt2", "nanogpt"])
def test_compiled_for_any_length(name: str) -> None:
    torch._dynamo.reset()
    model = with_prompt(build(name), random_prompt(build(name), N))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    prompt = model.get_submodule(tokens_of(build(name)).reader).prompt
    for length in (5, 9):
        ids = a_batch(length=length)
        results = []
        for run in (model, compiled):
            prompt.grad = None
            output = run(ids)
            output = output if name == "nanogpt" else output[0]
            output.square().mean().backward()
            results.append((output, prompt.grad))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_half_precision(name: str) -> None:
    model = build(name).to(torch.bfloat16)
    prompt = random_prompt(model, N)
    ids = a_batch()
    behind = in_front(model, prompt.bfloat16(), ids)
    wanted = model(inputs_embeds=behind)[0][:, N:]
    got = with_prompt(model, prompt)(ids)[0]  # the prompt stays in single precision
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_copies_share_slots_of_their_own() -> None:
    model, ids = with_prompt(build("bert"), random_prompt(build("bert"), N)), a_batch()
    wanted = model(ids)[0]
    copied = copy.deepcopy(model)
    slots = copied.__dict__[SLOTS]
    assert slots is not model.__dict__[SLOTS]
    assert slots is copied.embeddings.word_embeddings.__dict__[SLOTS]
    assert torch.equal(copied(ids)[0], wanted)
    one, other = pickle.loads(pickle.dumps((slots, slots)))
    assert one is other
    assert (one.tokens, one.parameters, one.placeholder) == (
        slots.tokens,
        slots.parameters,
        slots.placeholder,
    )


def test_placeholders_mean_nothing() -> None:
    for name in ("llama", "roberta", "clip", "t5"):
        model = build(name)
        config = getattr(model.config, "text_config", model.config)
        placeholder = token_slots(model, tokens_of(model)).placeholder
        special = ("pad_token_id", "eos_token_id", "bos_token_id")
        assert placeholder not in [getattr(config, key, None) for key in special]


def refused(model: nn.Module, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SurgeryError) as caught, torch.no_grad():
        model(*args, **kwargs)
    assert caught.value.diagnostics[0].code == "S530"
    return str(caught.value)


def test_what_cannot_be_extended_is_an_error() -> None:
    model, ids = build("llama"), a_batch()
    with_prompt(model, random_prompt(model, N))
    assert "[2, 1, 5, 5]" in refused(model, ids, attention_mask=torch.ones(2, 1, 5, 5))
    assert "a mask in the form dict" in refused(model, ids, attention_mask={"full": None})
    assert "do not fit 5 tokens" in refused(model, ids, attention_mask=torch.ones(2, 8))
    assert "do not fit 5 tokens" in refused(model, ids, position_ids=torch.arange(4)[None])
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    assert "several sequences in one" in refused(model, ids, position_ids=packed)
    assert "does not tell its length" in refused(model, ids, past_key_values=[ids])


def test_a_cache_and_what_is_said_of_it_must_agree() -> None:
    model, ids = build("llama"), a_batch(length=8)
    with_prompt(model, random_prompt(model, N))

    def filled_cache() -> DynamicCache:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :4], past_key_values=cache)
        return cache

    # These leave out as many tokens as the prompt has vectors: what a caller does who takes the
    # length of the cache for that of the text.
    cache = filled_cache()
    assert "8 tokens does not fit a cache of 7 places" in refused(
        model, ids[:, 7:], past_key_values=cache, attention_mask=torch.ones(2, 8)
    )
    places = torch.arange(7, 9)[None]
    assert "count the 3 vectors" in refused(
        model, ids[:, :2], past_key_values=cache, position_ids=places
    )
    cropped = filled_cache()
    cropped.crop(-N)
    assert "does not fit" in refused(
        model, ids[:, 4:], past_key_values=cropped, attention_mask=torch.ones(2, 8)
    )


def test_masks_stay_plain_only_while_a_prompt_is_there() -> None:
    model = build("llama")
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    generation.keep_plain(model)
    given = torch.ones(2, 5)
    assert model.create_masks_for_generate(config=None, attention_mask=given) is given
    pickle.loads(pickle.dumps(model))
    generation.undo(model.modules())
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == before


def with_shift(model: nn.Module, by: int) -> nn.Module:
    tokens = tokens_of(model)

    def reader(self: Any, args: Any, kwargs: Any, base: Any) -> Any:
        args, kwargs = shifted(self.__dict__[SLOTS], by, args, kwargs)
        return base(self, *args, **kwargs)

    adapt(model.get_submodule(tokens.reader), reader, token_slots(model, tokens), True)
    return model


@pytest.mark.parametrize("how", ["plain", "left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "opt", "roberta", "bert"])
@torch.no_grad()
def test_shifted_positions_are_those_behind_a_prompt(name: str, how: str) -> None:
    """Attention to the prompt apart: layers that attend to nothing see just the positions."""
    model = build(name)
    for module in model.modules():
        if type(module).__name__.endswith("SelfOutput") or name in ("gpt2", "opt"):
            for part in ("dense", "c_proj", "out_proj"):
                linear = getattr(module, part, None)
                if linear is not None and "attn" in str(type(module)).lower() + part + "attn":
                    linear.weight.zero_()
    ids, mask = padded(a_batch(), how) if how != "plain" else (a_batch(), None)
    given = {} if mask is None else {"attention_mask": mask}
    real = torch.ones_like(ids) if mask is None else mask
    plain = model(ids, **given)[0]
    wanted = with_prompt(copy.deepcopy(model), random_prompt(model, N))(ids, **given)[0]
    got = with_shift(model, N)(ids, **given)[0]
    torch.testing.assert_close(got, wanted)  # padding stays at its position
    assert not torch.allclose(got[real == 1], plain[real == 1])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
@torch.no_grad()
def test_shifted_positions_go_on_from_a_cache_and_from_those_given(name: str) -> None:
    model, ids = build(name), a_batch(length=7)
    positions = torch.arange(N, N + 7)[None]
    wanted = model(ids, position_ids=positions).logits
    with_shift(model, N)
    torch.testing.assert_close(model(ids).logits, wanted)
    torch.testing.assert_close(model(ids, position_ids=positions - N).logits, wanted)
    cache = DynamicCache(config=model.config)
    parts = [
        model(
            ids[:, start:end], past_key_values=cache, attention_mask=torch.ones(2, end).long()
        ).logits
        for start, end in ((0, 4), (4, 6), (6, 7))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted)


def test_where_nothing_can_be_shifted() -> None:
    assert can_shift(tokens_of(build("llama")))
    model = build("bloom")
    assert not can_shift(tokens_of(model))
    assert "takes no positions" in refused(with_shift(model, N), a_batch())


def with_places(model: nn.Module, token: int, prompt: torch.Tensor) -> nn.Module:
    """The prompt at the places that ``token`` marks."""
    tokens = tokens_of(model)

    def reader(self: Any, args: Any, kwargs: Any, base: Any) -> Any:
        args, kwargs = noticed(self.__dict__[SLOTS], (prompt,), args, kwargs)
        return base(self, *args, **kwargs)

    def embedding(self: Any, args: Any, kwargs: Any, base: Any) -> Any:
        found = base(self, *args, **kwargs)
        return placed(self.__dict__[SLOTS], args[0], (token,), found)

    slots = token_slots(model, tokens)
    adapt(model.get_submodule(tokens.reader), reader, slots, True)
    adapt(model.get_submodule(tokens.embedding), embedding, slots)
    return model


def test_vectors_at_the_places_of_a_token() -> None:
    model = build("llama")
    prompt = random_prompt(model, N)
    ids = torch.tensor([[3, 9, 9, 7, 9, 5], [9, 8, 7, 9, 6, 9]])
    embedded = model.model.embed_tokens(ids).detach()
    embedded[0, [1, 2, 4]] = prompt
    embedded[1, [0, 3, 5]] = prompt
    more = {"max_new_tokens": 4, "min_new_tokens": 4}
    with torch.no_grad():
        wanted = model(inputs_embeds=embedded).logits
    generated = model.generate(inputs_embeds=embedded, attention_mask=torch.ones(2, 6), **more)
    with_places(model, 9, prompt)
    torch.testing.assert_close(model(ids).logits, wanted)
    mask = torch.ones_like(ids)
    assert torch.equal(model.generate(ids, attention_mask=mask, **more)[:, 6:], generated)
    with pytest.raises(SurgeryError, match=r"S531.*3 vectors.*occurs 2 or 3 times"):
        model(
            torch.cat(
                (ids[:1], ids[1:].where(ids[1:] != 9, 4).index_fill(1, torch.tensor([0, 3]), 9))
            )
        )
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, wanted)
    with pytest.raises(RuntimeError, match="needs token 9"):
        compiled(ids.where(ids != 9, 4))


def test_arguments_by_position_and_what_one_call_leaves_to_the_next() -> None:
    model, ids = build("bert"), a_batch()
    tokens = tokens_of(model)
    slots = token_slots(model, tokens)
    prompt, empty = random_prompt(model, N), torch.zeros(2, 8, 32)
    assert slots.parameters == tuple(inspect.signature(model.forward).parameters)

    def call(_: nn.Module) -> None:
        mask = torch.ones_like(ids)
        args, kwargs = extended(slots, prompt, (ids, mask), {"use_cache": False})
        assert [tuple(a.shape) for a in args] == [(2, 8), (2, 8)]
        assert kwargs == {"use_cache": False}
        assert args[0][:, N:].equal(ids)
        assert torch.equal(filled(slots, empty)[:, :N], prompt.expand(2, -1, -1))
        assert filled(slots, empty) is empty

    def failing(_: nn.Module) -> None:
        extended(slots, prompt, (ids,), {})
        raise ArithmeticError

    def places(_: nn.Module) -> None:
        noticed(slots, (), (ids,), {})
        assert filled(slots, empty) is empty

    within(slots.open, call, model, (), {})
    with pytest.raises(ArithmeticError):
        within(slots.open, failing, model, (), {})
    within(slots.open, places, model, (), {})
    assert filled(slots, empty) is empty
    assert read(model).places["tokens"][0].operator == tokens


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_as_long_as_the_decoder_stays_as_it_is(name: str) -> None:
    model = build(name)
    prompt = random_prompt(model, N, 1)
    source, target = a_batch(), a_batch()
    mask = torch.ones_like(source)
    mask[0, -2:] = 0
    reader = model.get_submodule(tokens_of(model, 1).reader)
    given: dict[str, Any] = {"input_ids": source, "attention_mask": mask}
    embedded = reader.get_input_embeddings()(target)
    behind = torch.cat((prompt.expand(len(target), -1, -1).to(embedded), embedded), 1)
    wanted = model(**given, decoder_inputs_embeds=behind).logits[:, N:]
    with_prompt(model, prompt, 1)
    torch.testing.assert_close(model(**given, decoder_input_ids=target).logits, wanted)
