"""UniPELT on two trained models and real text: ``python -m examples.unipelt``.

MiniLM learns to tell verse from law, SmolLM2 to write verse: prefixes, low-rank updates and
adapters, each behind a gate. Both are saved, loaded and undone to the bit. Two cores need about
five minutes.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import surgery
from examples.models import minilm, minilm_tokenizer, smollm2, smollm2_tokenizer
from examples.smollm2 import continued, lines, same, show, train

HERE = Path(__file__).parent
TEXTS = (HERE / "data" / "sonnets.txt", HERE.parent / "LICENSE")


class Classifier(nn.Module):
    """A sentence encoder, and a linear layer on the mean of its tokens."""

    def __init__(self, encoder: nn.Module, features: int, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids, attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.head((states * real).sum(1) / real.sum(1))


def sentences() -> list[tuple[str, int]]:
    """Lines of both texts with the number of their text, in an order that stays."""
    found = [
        (line.strip(), label)
        for label, path in enumerate(TEXTS)
        for line in path.read_text(encoding="utf-8").splitlines()
        if len(line.split()) >= 5
    ]
    return sorted(found, key=lambda row: hashlib.sha256(row[0].encode()).digest())


def batch(rows: list[tuple[str, int]], tokenizer: Any) -> tuple[dict[str, Tensor], Tensor]:
    texts, labels = zip(*rows, strict=True)
    made = tokenizer(list(texts), return_tensors="pt", padding=True)
    given = {name: made[name] for name in ("input_ids", "attention_mask")}
    return given, torch.tensor(labels)


@torch.no_grad()
def accuracy(model: nn.Module, rows: list[tuple[str, int]], tokenizer: Any) -> float:
    given, labels = batch(rows, tokenizer)
    return (model(**given).argmax(1) == labels).float().mean().item()


def learn(model: nn.Module, rows: list[tuple[str, int]], tokenizer: Any, size: int = 16) -> None:
    optimizer = torch.optim.AdamW(surgery.trainable(model).values(), lr=2e-3, weight_decay=0.0)
    model.train()
    for step, start in enumerate(range(0, len(rows), size), 1):
        given, labels = batch(rows[start : start + size], tokenizer)
        loss = cross_entropy(model(**given), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 5 == 0:
            print(f"  step {step:>2}   loss {loss.item():.3f}", flush=True)
    model.eval()


def undone(model: nn.Module, base: nn.Module) -> str:
    """Whether ``model`` has every bit of ``base`` again."""
    left, right = model.state_dict(), base.state_dict()
    equal = left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    return "every bit is the base's" if equal else "NOT the base"


def verse_or_law(directory: Path = Path("out/unipelt-minilm"), steps: int = 30) -> None:
    torch.manual_seed(0)
    tokenizer = minilm_tokenizer()
    encoder = minilm()
    model = Classifier(encoder, encoder.config.hidden_size, len(TEXTS)).eval()
    base = copy.deepcopy(model)
    rows = sentences()
    seen, unseen = rows[: 16 * steps], rows[16 * steps :][:200]
    example, _ = batch(seen[:2], tokenizer)

    surgery.apply(model, "unipelt", example_inputs=example, seed=0)
    surgery.apply(model, "train `head`")
    count = sum(p.numel() for p in surgery.trainable(model).values())
    print(f"MiniLM with UniPELT: {count:,} parameters train.")
    print(f"Unseen lines told apart before: {accuracy(model, unseen, tokenizer):.1%}", flush=True)
    learn(model, seen, tokenizer)
    after = accuracy(model, unseen, tokenizer)
    print(f"Unseen lines told apart after: {after:.1%}")
    print(surgery.fold(model))
    surgery.save(model, directory)
    loaded = surgery.load(copy.deepcopy(base), directory, example_inputs=example)
    with torch.no_grad():
        equal = torch.equal(loaded(**example), model(**example))
    print("Saved and loaded:", "bitwise identical" if equal else "OTHER outputs")
    surgery.remove(model)
    print("Removed:", undone(model, base), flush=True)


def verse(directory: Path = Path("out/unipelt-smollm2"), steps: int = 30) -> None:
    torch.manual_seed(0)
    model, tokenizer = smollm2(), smollm2_tokenizer()
    base = copy.deepcopy(model)
    show("SmolLM2 before:", continued(model, tokenizer))
    surgery.apply(model, "unipelt", seed=0)
    count = sum(p.numel() for p in surgery.trainable(model).values())
    print(f"\nTraining {count:,} parameters:")
    train(model, lines(tokenizer, steps), rate=5e-4)
    adapted = continued(model, tokenizer)
    show("After:", adapted)
    with surgery.disabled(model):
        print("\nSwitched off:", same(continued(base, tokenizer), continued(model, tokenizer)))
    print(surgery.fold(model))
    surgery.save(model, directory)
    loaded = surgery.load(copy.deepcopy(base), directory)
    print("Saved and loaded:", same(adapted, continued(loaded, tokenizer)))
    surgery.remove(model)
    print("Removed:", undone(model, base))


if __name__ == "__main__":
    verse_or_law()
    verse()
