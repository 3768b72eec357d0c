"""Prompts as a user has them: applied by a spec, saved, folded, voted on, started from words."""

import copy
from collections import Counter

import pytest
import torch

import surgery
from tests.laws.strategies import randomise_added
from tests.laws.test_hybrids import run
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODELS = ("llama", "bert", "gpt2", "t5", "roberta", "nanogpt")
SPECS = {
    "prompt": "on tokens apply prompt(3)",
    "words": "on tokens apply word_prompt(3)",
    "lstm": "on tokens p_tuning(3) prompt_lstm(4)",
    "network": "on tokens p_tuning(2) prompt_mlp(16)",
    "two": "on tokens apply prompt(2) on tokens apply prompt(1) as more on q|v apply lora(2)",
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_keep_their_shape(name: str, spec: str, tmp_path) -> None:
    base = build(name)
    with torch.no_grad():
        before = run(base)
    model = randomise_added(surgery.apply(copy.deepcopy(base), SPECS[spec], seed=0))
    output = run(model)
    assert output.shape == before.shape
    assert (output - before).abs().max() > 1e-4
    output.square().sum().backward()
    for parameter_name, parameter in surgery.trainable(model).items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, parameter_name
    surgery.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(run(surgery.load(copy.deepcopy(base), tmp_path)), run(model))
        with surgery.disabled(model):
            assert torch.equal(run(model), before)
        surgery.remove(model)
        assert torch.equal(run(model), before)


@pytest.mark.parametrize("spec", ["lstm", "network"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_networks_fold(name: str, spec: str, tmp_path) -> None:
    model = randomise_added(surgery.apply(build(name), SPECS[spec], seed=0))
    with torch.no_grad():
        before = run(model)
        report = surgery.fold(model)
        assert torch.equal(run(model), before)
        assert len(surgery.trainable(model)) == 1
        assert report.after == next(iter(surgery.trainable(model).values())).numel()
        surgery.save(model, tmp_path)
        assert torch.equal(run(surgery.load(build(name), tmp_path)), before)


def test_the_last_prompt_stands_first() -> None:
    """A method wraps what stands, so the second prompt comes before the first."""
    one = surgery.apply(build("llama"), "on tokens apply prompt(3)", seed=0)
    two = surgery.apply(
        build("llama"), "on tokens apply prompt(1) on tokens apply prompt(2) as more", seed=0
    )
    values = surgery.trainable(two)
    with torch.no_grad():
        whole = torch.cat([values["model.more.P"], values["model.prompt.P"]])
        next(iter(surgery.trainable(one).values())).copy_(whole)
        torch.testing.assert_close(run(one), run(two))


class Words:
    """A tokenizer of letters."""

    def __call__(self, text: str, **settings: object) -> dict[str, list[int]]:
        assert settings == {"add_special_tokens": False}
        return {"input_ids": [ord(letter) - 96 for letter in text]}


def test_starts_as_words() -> None:
    model = build("llama")
    spec = 'on tokens apply word_prompt(5, text = "abc")'
    surgery.apply(model, spec, seed=0, tokenizer=Words())
    prompt = surgery.trainable(model)["model.word_prompt.P"]
    table = model.model.embed_tokens.weight
    assert torch.equal(prompt[:3], table[[1, 2, 3]])
    rows = {tuple(row.tolist()) for row in table}
    assert all(tuple(row.tolist()) in rows for row in prompt[3:])


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [(None, "abc", "needs the model's tokenizer"), (Words(), "abcdef", "6 tokens long")],
)
def test_words_that_cannot_be_had(tokenizer: object, text: str, message: str) -> None:
    model = build("llama")
    spec = f'on tokens apply word_prompt(5, text = "{text}")'
    with pytest.raises(surgery.SurgeryError, match=message):
        surgery.apply(model, spec, tokenizer=tokenizer)
    assert not [n for n, _ in model.named_parameters() if "prompt" in n]


def test_free_places() -> None:
    model = surgery.apply(build("llama"), "on tokens p_tuning_at(2, 90) prompt_mlp(3)", seed=0)
    ids = torch.tensor([[5, 90, 7, 90, 9]])
    surgery.fold(model)
    (vectors,) = surgery.trainable(model).values()
    base = build("llama")
    embedded = base.get_input_embeddings()(ids).detach().clone()
    embedded[0, [1, 3]] = vectors.detach()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, base(inputs_embeds=embedded).logits)
    with pytest.raises(surgery.SurgeryError, match="occurs 1 times"):
        model(ids[:, :3])


def test_the_majority_decides(tmp_path) -> None:
    paths, alone = [], []
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    for seed in range(3):
        model = surgery.apply(build("llama"), "on tokens apply prompt(2)", seed=seed)
        with torch.no_grad():
            next(iter(surgery.trainable(model).values())).mul_(20)
            alone.append(model(ids).logits[:, -1].argmax(-1))
        paths.append(surgery.save(model, tmp_path / f"{seed}.safetensors"))
    with torch.no_grad():
        votes = surgery.ensemble(
            model, paths, {"input_ids": ids}, lambda x: model(**x).logits[:, -1].argmax(-1)
        )
    for row in range(3):
        answers = [int(a[row]) for a in alone]
        winner, count = Counter(answers).most_common(1)[0]
        assert int(votes[row]) == (winner if count > 1 else answers[0])


def test_an_ensemble_needs_a_prompt() -> None:
    with pytest.raises(surgery.SurgeryError, match="one prompt in the model, and here are 0"):
        surgery.ensemble(build("llama"), [], {}, lambda x: x["input_ids"])


def test_a_shift_alone_trains_nothing() -> None:
    with pytest.raises(surgery.SurgeryError, match="nothing is trainable"):
        surgery.plan(build("llama"), "on tokens apply shifted(3)")
