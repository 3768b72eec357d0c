"""Bytes kept for backward by one adapted linear layer, for each element of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.harness import Settings, Table
from benchmarks.peers import one_linear, ours, theirs

WIDTH, TOKENS = 512, 512
CASES = (
    ("LoRA", "lora", 0.0, 0.1),
    ("LoRA, dropout 0.1", "lora", 0.1, 1.1),
    ("DoRA", "dora", 0.0, 0.2),
    ("DoRA, dropout 0.1", "dora", 0.1, None),
)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """The size of all storages saved by a forward, but for the input's and the parameters'."""
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(x)
    assert result.requires_grad
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in known)


def run(settings: Settings) -> list[Table]:
    table = Table(
        f"Bytes saved for backward / input element: bfloat16, {WIDTH} → {WIDTH}, {TOKENS} tokens, r = 8",
        ("PEFT", "PEFT, adapters in bfloat16"),
        "ours",
    )
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    base = one_linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)
    for label, method, dropout, aim in CASES:
        adapted = ours(base, method, dropout).train()
        peers = [theirs(base, adapted, method, dropout, wide) for wide in (True, False)]
        mine, *other = (saved_bytes(model, x) / x.numel() for model in (adapted, *peers))
        table.add(label, *other, judged=mine, aim=aim)
    table.notes.append("The input itself and all parameters are not counted: they live anyway.")
    return [table]
