"""What a model needs to run: token ids, half of them padded, forwards, backwards, `generate`."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

BATCH = 3
LENGTH = 16
PADDED = 4
FIRST = 10
"""The first id that is no special token."""


def example(model: nn.Module, task: str, seed: int = 0) -> dict[str, Tensor]:
    """Random ids and a mask whose last row ends in padding; ids of the decoder, if it has one."""
    generator = torch.Generator().manual_seed(seed)
    config = cast(Any, model.config)
    text = config.get_text_config()
    vocabulary = min(
        v for c in (config, text) if isinstance(v := getattr(c, "vocab_size", 128), int) and v > 0
    )
    accepted = set(inspect.signature(model.forward).parameters)
    low = FIRST if vocabulary > 2 * FIRST else 0
    ids = torch.randint(low, vocabulary - 8, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -PADDED:] = 0
    ids[-1, -PADDED:] = getattr(text, "pad_token_id", None) or 0
    ids[:, 0] = getattr(text, "bos_token_id", None) or 1
    ids[:, -PADDED - 1] = 2  # some classifiers read at the end of the text
    made = {"input_ids": ids}
    if "attention_mask" in accepted:
        made["attention_mask"] = mask
    decodes = getattr(config, "is_encoder_decoder", False) and task == "seq2seq"
    if "decoder_input_ids" in accepted and decodes:
        made["decoder_input_ids"] = torch.randint(
            low, vocabulary - 8, (BATCH, LENGTH // 2), generator=generator
        )
    if "bbox" in accepted:
        made["bbox"] = torch.randint(0, 50, (*ids.shape, 4), generator=generator).sort(-1).values
    return made


def result(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits of one forward, from the same state of the random generator every time."""
    torch.manual_seed(1)
    accepted = set(inspect.signature(model.forward).parameters)
    extra = {"use_cache": False} if "use_cache" in accepted else {}
    found = model(**inputs, **extra)
    logits = found.logits
    return logits if isinstance(logits, Tensor) else logits[0]


def loss_of(output: Tensor) -> Tensor:
    """One number that depends on every element of ``output`` in a way of its own."""
    generator = torch.Generator().manual_seed(2)
    return (output.float() * torch.randn(output.shape, generator=generator)).sum()


def obstacle(model: nn.Module, inputs: dict[str, Tensor], task: str) -> str | None:
    """Why the model does not run without any change, or None if it does."""
    with torch.no_grad():
        output = result(model, inputs)
        if not bool(output.isfinite().all()):
            return "its output is not finite"
        if not torch.equal(output, result(model, inputs)):
            return "its output is not the same twice"
    model.train()
    loss_of(result(model, inputs)).backward()
    model.eval()
    reached = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    if not reached or not all(bool(g.isfinite().all()) for g in reached):
        return "its gradients are not finite"
    if task != "classification":
        torch.manual_seed(1)
        prompt = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            cast(Any, model).generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return None
