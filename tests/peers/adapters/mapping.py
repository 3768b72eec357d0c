"""The parameters of `adapters` by the equations they stand in, by the module that they adapt.

Names are those of this repository's rules: a bottleneck is `U act(D x + d0) + u0`, an update `B A x`,
a gate `mean over tokens of sigmoid(w x + c)`, a prefix keys `K` and values `V`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.peers.adapters.fixtures import Fixture

LAYERS = 2

_ATTENTIONS = {
    "BertModel": {"self": "encoder.layer.{}.attention.self"},
    "RobertaForMaskedLM": {"self": "roberta.encoder.layer.{}.attention.self"},
    "GPT2LMHeadModel": {"self": "transformer.h.{}.attn"},
    "T5ForConditionalGeneration": {
        "encoder": "encoder.block.{}.layer.0.SelfAttention",
        "self": "decoder.block.{}.layer.0.SelfAttention",
        "cross": "decoder.block.{}.layer.1.EncDecAttention",
    },
    "BartForConditionalGeneration": {
        "encoder": "model.encoder.layers.{}.self_attn",
        "self": "model.decoder.layers.{}.self_attn",
        "cross": "model.decoder.layers.{}.encoder_attn",
    },
}

_ADAPTED = {
    "BertModel": {".attention.output": ".attention.output.dense", ".output": ".output.dense"},
    "RobertaForMaskedLM": {
        ".attention.output": ".attention.output.dense",
        ".output": ".output.dense",
    },
    "GPT2LMHeadModel": {".attention_adapters": ".attn", ".output_adapters": ".mlp"},
    "T5ForConditionalGeneration": {
        ".layer.0": ".layer.0.SelfAttention",
        ".layer.1": ".layer.1.DenseReluDense",
        ".layer.2": ".layer.2.DenseReluDense",
    },
    "BartForConditionalGeneration": {
        ".attention_adapters": ".self_attn",
        ".output_adapters": ".fc2",
    },
}


@dataclass(frozen=True)
class Network:
    """What makes the prefix of one attention: `K tanh(D E + d0) + k0`, and so with `V`."""

    index: int
    """Which of the attentions of its kind has it."""
    E: Tensor
    """[n, width], one for all attentions of a kind, as are D [m, width] and d0 [m]."""
    D: Tensor
    d0: Tensor
    K: Tensor
    """[heads · d, m], with k0 [heads · d]; heads outermost."""
    k0: Tensor
    V: Tensor
    v0: Tensor

    def prefix(self, heads: int) -> tuple[Tensor, Tensor]:
        """K and V [heads, n, d]."""
        hidden = torch.tanh(self.E @ self.D.T + self.d0)
        return (
            _split_heads(hidden @ self.K.T + self.k0, heads),
            _split_heads(hidden @ self.V.T + self.v0, heads),
        )


def _split_heads(flat: Tensor, heads: int) -> Tensor:
    """[n, heads · d] to [heads, n, d]."""
    return flat.unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()


def heads(fixture: Fixture) -> int:
    """How many heads each attention has."""
    _, _, config = fixture.build
    names = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
    return next(config[n] for n in names if n in config)


def networks(fixture: Fixture) -> dict[str, Network]:
    """For each attention with a prefix from a network, by its path."""
    return {
        path: Network(
            index,
            table["wte.weight"],
            table["control_trans.0.weight"],
            table["control_trans.0.bias"],
            *(
                table[f"control_trans.2.{kind}"].unflatten(0, (2 * of, -1))[2 * index + which]
                for which in (0, 1)
                for kind in ("weight", "bias")
            ),
        )
        for path, table, index, of in _prefixed(fixture)
    }


def prefixes(fixture: Fixture) -> dict[str, tuple[Tensor, Tensor]]:
    """K and V [heads, n, d] for each attention with a prefix, by its path."""
    number = heads(fixture)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path, table, index, of in _prefixed(fixture):
        if "control_trans" not in table:
            found[path] = networks(fixture)[path].prefix(number)
            continue
        length = fixture.settings["prefix_length"]
        flat = table["control_trans"].view(length, 2 * of, -1)
        key, value = (_split_heads(flat[:, 2 * index + which], number) for which in (0, 1))
        found[path] = key, value
    return found


def _prefixed(fixture: Fixture) -> Iterator[tuple[str, dict[str, Tensor], int, int]]:
    """Attentions with a prefix: path, the parameters of its kind, its place in it, how many."""
    if not fixture.has_prefix:
        return
    for kind, template in _ATTENTIONS[fixture.build[0]].items():
        start = f".{kind}_prefix."
        table = {n.partition(start)[2]: t for n, t in fixture.weights.items() if start in n}
        for index in range(LAYERS):
            yield template.format(index), table, index, LAYERS


def bottlenecks(fixture: Fixture) -> dict[str, dict[str, Tensor]]:
    """D, d0, U and u0 by the path of the module whose result the adapter is added to."""
    words = {
        "adapter_down.0.weight": "D",
        "adapter_down.0.bias": "d0",
        "adapter_up.weight": "U",
        "adapter_up.bias": "u0",
    }
    found = _grouped(fixture, ".adapters.peer.", words) or _products(fixture)
    return {_adapted(fixture, path): table for path, table in found.items()}


def _products(fixture: Fixture) -> dict[str, dict[str, Tensor]]:
    """Compacter's bottlenecks: D and U are sums over i of kron(R_i, left_i right_i), transposed.

    R [k, k, k] is one for the model; left is [k, in / k, 1] and right [k, 1, out / k].
    """
    words = {
        f"{theirs}.{kind}": f"{ours} {kind}"
        for theirs, ours in (("adapter_down.0", "D"), ("adapter_up", "U"))
        for kind in ("W_left", "W_right", "b")
    }
    found = _grouped(fixture, ".adapters.peer.", words)
    rules = next((t for n, t in fixture.weights.items() if n.endswith(".phm_rule")), ())

    def matrix(table: dict[str, Tensor], name: str) -> Tensor:
        factors = table[f"{name} W_left"] @ table[f"{name} W_right"]
        terms = (torch.kron(rule, factor) for rule, factor in zip(rules, factors, strict=True))
        return sum(terms, torch.zeros(())).T

    return {
        path: {
            "D": matrix(table, "D"),
            "d0": table["D b"],
            "U": matrix(table, "U"),
            "u0": table["U b"],
        }
        for path, table in found.items()
    }


def _adapted(fixture: Fixture, holder: str) -> str:
    """`adapters` holds an adapter in one place and adds it to the result of another."""
    for ending, replaced in _ADAPTED[fixture.build[0]].items():
        if holder.endswith(ending):
            return holder.removesuffix(ending) + replaced
    raise KeyError(holder)


def updates(fixture: Fixture) -> dict[str, dict[str, Tensor]]:
    """A and B by the path of the linear layer.

    In the fused layer of GPT-2 the two updates, of q and v, are one of twice the rank: their A
    stand above each other, and B has blocks, with zeros for k.
    """
    found = _grouped(fixture, ".loras.peer.", {"lora_A": "A", "lora_B": "B"})
    for path, table in found.items():
        if path.endswith("c_attn"):
            query, value = table["B"].chunk(2)
            none = torch.zeros_like(query)
            table["B"] = torch.cat(
                [torch.cat(row, dim=1) for row in ((query, none), (none, none), (none, value))]
            )
    return found


def scales(fixture: Fixture) -> dict[str, Tensor]:
    """IA³'s l by the path of the linear layer, on its result; 1 for the queries of a fused one."""
    found = _grouped(fixture, ".loras.peer.", {"lora_B": "l"})
    return {
        path: torch.cat([torch.ones(len(table["l"]) // 2), table["l"].flatten()])
        if path.endswith("c_attn")
        else table["l"].flatten()
        for path, table in found.items()
    }


def gates(fixture: Fixture) -> dict[str, dict[str, Tensor]]:
    """w [1, d] and c [1] of each gate by the path of what is gated: the attention, the linear layer,
    or the module whose result an adapter is added to. In GPT-2's fused layer there are two rows,
    of q and of v.
    """
    words = {"weight": "w", "bias": "c"}
    adapters = _grouped(fixture, ".adapters.peer.gate.", words)
    return {
        **_grouped(fixture, ".prefix_tuning.prefix_gates.peer.", words),
        **_grouped(fixture, ".loras.peer.gate.", words),
        **{_adapted(fixture, path): table for path, table in adapters.items()},
    }


def _grouped(fixture: Fixture, between: str, words: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in fixture.weights.items():
        path, _, rest = name.partition(between)
        if rest in words:
            found.setdefault(path, {})[words[rest]] = tensor
    return found
