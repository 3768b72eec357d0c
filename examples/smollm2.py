"""Adapt a real language model with one spec, train, save, load, verify, merge: ``make demo``.

SmolLM2 learns from Shakespeare's sonnets for thirty short steps; two CPU cores need two minutes.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from examples.models import smollm2, smollm2_tokenizer

HERE = Path(__file__).parent
SPEC = HERE / "smollm2.peft"
PROMPT = "Shall I compare thee to"


def lines(tokenizer: Any, steps: int, rows: int = 2, length: int = 128) -> Tensor:
    """Random excerpts of the sonnets, as token ids: steps × rows × length."""
    text = (HERE / "data" / "sonnets.txt").read_text(encoding="utf-8")
    tokens = tokenizer(text, return_tensors="pt").input_ids[0]
    starts = torch.randint(len(tokens) - length, (steps, rows))
    return tokens[starts[..., None] + torch.arange(length)]


def train(model: Any, batches: Tensor, rate: float = 2e-3) -> None:
    parameters = surgery.trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 5 == 0:
            print(f"  step {step:>2}   loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def continued(model: Any, tokenizer: Any) -> str:
    """What the model adds to the prompt: always its likeliest words."""
    prompt = tokenizer(PROMPT, return_tensors="pt")
    words = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(words[0], skip_special_tokens=True)


def show(title: str, text: str) -> None:
    print(f"\n{title}\n" + "\n".join(f"  | {line}" for line in text.splitlines()), flush=True)


def same(first: str, second: str) -> str:
    return "the same text" if first == second else f"ANOTHER text:\n{second}"


def main(directory: Path = Path("out/smollm2"), steps: int = 30) -> None:
    torch.manual_seed(0)
    model, tokenizer = smollm2(), smollm2_tokenizer()
    base: nn.Module = copy.deepcopy(model)

    print(surgery.diff(model, SPEC))
    show("Before:", continued(model, tokenizer))

    model = surgery.apply(model, SPEC, seed=0)
    print(f"\nTraining {sum(p.numel() for p in surgery.trainable(model).values()):,} parameters:")
    train(model, lines(tokenizer, steps))
    adapted = continued(model, tokenizer)
    show("After:", adapted)

    with surgery.disabled(model):
        print("\nSwitched off:", same(continued(base, tokenizer), continued(model, tokenizer)))

    surgery.save(model, directory)
    loaded = surgery.load(copy.deepcopy(base), directory)
    print(
        f"Saved in {directory}, loaded onto a new base:",
        same(adapted, continued(loaded, tokenizer)),
    )

    print("\nThe promises, on this model:")
    print(surgery.verify(base, SPEC))

    with surgery.merged(model):
        print("\nMerged, where it merges:", same(adapted, continued(model, tokenizer)))
    surgery.remove(model)
    print("Removed:", same(continued(base, tokenizer), continued(model, tokenizer)))


if __name__ == "__main__":
    main()
