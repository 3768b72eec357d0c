"""What is tried on every architecture: a spec a column, and where it has no place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A spec, and PEFT's own counts.

    ``peer`` counts the models on which HF PEFT 0.21 does the like, for each of the three tasks.
    """

    name: str
    title: str
    spec: str
    peer: tuple[int, int, int] | None


COLUMNS = {
    column.name: column
    for column in (
        Column(
            "lora",
            "LoRA on q and v",
            "on q | v apply lora(r = 4)",
            (27, 24, 2),
        ),
        Column(
            "linear",
            "LoRA on every linear but the head",
            "on linear where outputs >= 2 except head apply lora(r = 2)",
            (122, 83, 17),
        ),
        Column(
            "ia3",
            "IA³ on k, v and down",
            "on k | v apply ia3  on down apply ia3_input",
            (20, 20, 2),
        ),
        Column("adapter", "adapter after mlp", "on mlp sequential adapter(4, act = gelu)", None),
        Column("prefix", "prefix", "on attention apply prefix(3)", (117, 57, 16)),
        Column("prompt", "soft prompt", "on tokens apply prompt(3)", (128, 84, 16)),
        Column("unipelt", "UniPELT", "unipelt", None),
    )
}
PEER_MODELS = (144, 91, 18)
"""How many models HF PEFT's figures are of, by task."""

_ATTENTION = ("lora", "ia3", "prefix", "unipelt")
_NO_CORE = "it has no attention: nothing is weighed by a softmax of queries and keys"
_NO_KERNEL = "its attention is in kernels that are not there, and without them is zero"
_NO_SOFTMAX = "its attention samples by hashes, without a softmax that new keys could join"
_NO_MLP = "it has no feed-forward: its layers are one recurrent mixer each"

_NO_PLACE: dict[str, dict[str, str]] = {
    **{name: dict.fromkeys(_ATTENTION, _NO_CORE) for name in ("fnet", "rwkv", "xlstm")},
    "mra": dict.fromkeys((*_ATTENTION, "prompt"), _NO_KERNEL),
    "yoso": dict.fromkeys(("prefix", "unipelt"), _NO_SOFTMAX),
    **{
        name: {**dict.fromkeys(_ATTENTION, _NO_CORE), "adapter": _NO_MLP}
        for name in ("mamba", "mamba2", "falcon_mamba")
    },
}


def no_place(name: str, column: str) -> str | None:
    """Why the method of ``column`` has no place in the architecture ``name``, if so."""
    return _NO_PLACE.get(name, {}).get(column)
