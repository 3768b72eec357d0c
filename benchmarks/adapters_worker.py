"""One side of `adapters_peer`: builds a model, adapts it, and times it when it is told to.

    python benchmarks/adapters_worker.py surgery|adapters MODEL METHOD ATTENTION [SPEC]

Run by the interpreter that has the library, so it imports nothing else of this repository. It
prints a line of JSON about what it built, and then answers each line of JSON on its standard input,
`{"case": CASE, "calls": N}`, with the seconds of process time that one of N calls took. It ends
with its input.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, BATCH, LENGTH = 256, 6, 8, 8, 128

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (
        "BertModel",
        "BertConfig",
        {
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "gpt2": (
        "GPT2Model",
        "GPT2Config",
        {
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "use_cache": False,
        },
    ),
}


@torch.no_grad()
def build(model: str, attention: str) -> nn.Module:
    """The base, frozen, with the same weights whatever the version of `transformers`."""
    name, config, settings = MODELS[model]
    configured = getattr(transformers, config)(
        **settings, vocab_size=512, attn_implementation=attention
    )
    made: nn.Module = getattr(transformers, name)(configured).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(made.named_parameters()):
        offset = 1.0 if bool((parameter == 1).all()) else 0.0
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return made


def adapted(library: str, model: str, method: str, attention: str, spec: str) -> nn.Module:
    """The base with the method on it, as it starts."""
    made = build(model, attention)
    if library == "surgery":
        import surgery

        return surgery.apply(made, spec, seed=0)
    import adapters

    configs: dict[str, Callable[[], Any]] = {
        "lora": lambda: adapters.LoRAConfig(
            selfattn_lora=False, intermediate_lora=True, output_lora=True
        ),
        "prefix": lambda: adapters.PrefixTuningConfig(flat=True, prefix_length=30),
        "unipelt": adapters.UniPELTConfig,
    }
    adapters.init(made)
    made.add_adapter("peer", config=configs[method]())
    made.train_adapter("peer")
    return made.eval()


def padded() -> Tensor:
    """The mask of a batch whose first example is shorter: without padding masks may be left out."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -LENGTH // 4 :] = 0
    return mask


@torch.no_grad()
def forward(model: nn.Module, states: Tensor) -> Tensor:
    return model(inputs_embeds=states, attention_mask=padded()).last_hidden_state


def step(model: nn.Module, states: Tensor) -> None:
    """Forward and backward, down to the inputs, as in the middle of a deeper model."""
    for parameter in model.parameters():
        parameter.grad = None
    states.grad = None
    model(
        inputs_embeds=states, attention_mask=padded()
    ).last_hidden_state.square().mean().backward()


def seconds(call: Callable[[], Any], number: int) -> float:
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(number):
            call()
        return (time.process_time() - start) / number
    finally:
        gc.enable()


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library, model, method, attention, *spec = sys.argv[1:]
    models = {
        "base": build(model, attention),
        "adapted": adapted(library, model, method, attention, *spec or [""]),
    }
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(BATCH, LENGTH, WIDTH, generator=generator).requires_grad_()
    calls: dict[str, Callable[[], Any]] = {}
    for name, built in models.items():
        calls[f"{name} forward"] = lambda built=built: forward(built, states)
        calls[f"{name} step"] = lambda built=built: step(built, states)

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    say(
        versions={m.__name__: m.__version__ for m in (torch, transformers)},
        base=forward(models["base"], states)[0, :2, :4].flatten().tolist(),
        trained=sum(p.numel() for p in models["adapted"].parameters() if p.requires_grad),
        calls={n: max(1, math.ceil(0.1 / seconds(c, 2))) for n, c in calls.items()},
    )
    for line in sys.stdin:
        asked = json.loads(line)
        say(seconds=seconds(calls[asked["case"]], asked["calls"]))


if __name__ == "__main__":
    main()
