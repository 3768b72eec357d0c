"""Many prompts in one batch: each answers as it does alone, and the majority is heard."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

import surgery
from surgery.graft.tokens.ensemble import ensemble, together
from tests.graft.prompted import SLOTS, random_prompt, tokens_of, with_prompt
from tests.graft.test_tokens import N, a_batch, padded
from tests.models import build


def elected(answers: list[torch.Tensor]) -> list[list[int]]:
    """The most frequent answer to each sequence; of equally frequent ones the first."""
    rows = zip(*(answer.tolist() for answer in answers), strict=True)
    return [list(Counter(map(tuple, row)).most_common(1)[0][0]) for row in rows]


def test_the_majority_of_classes() -> None:
    model = build("bert_classifier")
    prompts = 3 * torch.stack([random_prompt(model, N, seed=seed) for seed in range(5)])
    ids, mask = padded(a_batch(), "right")
    ids, mask = torch.cat((ids, a_batch(1), a_batch(2))), mask.repeat(3, 1)
    alone = [with_prompt(copy.deepcopy(model), prompt) for prompt in prompts]
    with torch.no_grad():
        logits = torch.stack([one(ids, attention_mask=mask).logits for one in alone])
        slots = with_prompt(model, prompts[0]).bert.__dict__[SLOTS]
        with together(slots, prompts):
            many = model(ids.repeat(5, 1), attention_mask=mask.repeat(5, 1)).logits
        torch.testing.assert_close(many, logits.flatten(0, 1))
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(5)[None]}
        got = ensemble(slots, prompts, inputs, lambda x: model(**x).logits.argmax(-1))
        answers = logits.argmax(-1)
        assert len({tuple(row) for row in answers.tolist()}) > 1
        assert got.unsqueeze(1).tolist() == elected([one.unsqueeze(1) for one in answers])
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, logits[0])


def test_the_majority_of_generated_texts() -> None:
    model, ids = build("llama"), a_batch()
    prompts = torch.stack([random_prompt(model, N, seed=seed) for seed in (1, 2, 3, 2)])
    more = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    alone = [with_prompt(copy.deepcopy(model), prompt) for prompt in prompts]
    answers = [one.generate(**inputs, **more) for one in alone]
    with_prompt(model, prompts[0])
    slots = model.get_submodule(tokens_of(build("llama")).reader).__dict__[SLOTS]
    got = ensemble(slots, prompts, inputs, lambda x: model.generate(**x, **more))
    assert not torch.equal(answers[0], answers[1])
    assert got.tolist() == elected(answers) == answers[1].tolist()


def test_of_equally_many_the_first_is_heard() -> None:
    model = build("llama")
    slots = with_prompt(model, random_prompt(model, N)).model.__dict__[SLOTS]
    said = torch.tensor([[7, 1], [5, 2], [5, 1], [7, 2], [3, 3], [3, 4]])
    prompts = torch.zeros(6, N, 32)
    inputs = {"input_ids": a_batch()}
    got = ensemble(slots, prompts, inputs, lambda x: said.flatten()[: len(x["input_ids"])])
    assert got.tolist() == [7, 1]


def test_a_graph_has_one_prompt_for_all() -> None:
    model = torch.fx.symbolic_trace(build("nanogpt").eval())
    ids = torch.randint(0, 32, (2, 5))
    surgery.apply(model, "on tokens apply prompt(2)", seed=0, example_inputs={"ids": ids})
    with pytest.raises(surgery.SurgeryError, match=r"S532.*graph"):
        surgery.ensemble(model, [], {"ids": ids}, lambda x: model(**x).argmax(-1))
