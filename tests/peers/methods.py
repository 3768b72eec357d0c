"""Every method of `rules/` that linear layers take, beside the same thing elsewhere: rows, no code.

A row of :data:`PEERS` is a statement of ours and a configuration of HF PEFT that are one function of
the same weights; :data:`PLAIN` has what PEFT has not, beside its equation written with torch.
`test_methods.py` holds both against each other, and a page of the docs is made of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

Reading = Callable[[Any], Tensor]
Source = str | Reading | tuple[Reading, Reading]
LINEAR = ("linear", "no bias")
ALSO_CONV1D = (*LINEAR, "conv1d")
CONVOLUTIONS = ("conv2d", "conv3d", "1d convolution")


@dataclass(frozen=True)
class Peer:
    """``spec`` on a layer is what ``tuner(**settings)`` is in PEFT.

    ``names`` tell for each of our parameters which tensor of PEFT's layer has its values, in any
    shape of as many elements: a path below the layer, or a function of it; a second function reads
    its gradient where that is not the same.
    """

    spec: str
    tuner: str
    settings: Mapping[str, Any]
    names: Mapping[str, Source]
    layers: tuple[str, ...] = LINEAR
    dtype: torch.dtype = torch.float64
    ungraded: tuple[str, ...] = ()
    """Parameters of ours that PEFT does not train."""
    kept: tuple[str, ...] = ()
    """Parameters of ours that keep their start, which in PEFT is taken off the base's weight."""


@dataclass(frozen=True)
class Plain:
    """``spec`` on a layer gives ``equation(x, W, b, **parameters)``."""

    spec: str
    equation: Callable[..., Tensor]
    layers: tuple[str, ...] = LINEAR
    merges: bool = True


def _lora(part: str) -> Source:
    def read(layer: Any) -> Tensor:
        embedded = getattr(layer, f"lora_embedding_{part}")
        return embedded["default"] if embedded else getattr(layer, f"lora_{part}")["default"].weight

    return read


def _upper(factor: float) -> Reading:
    """The skew matrices of an OFT layer, whose upper halves PEFT holds, times a factor."""

    def read(layer: Any) -> Tensor:
        blocks = layer.oft_R["default"]
        values = blocks.weight
        upper = values.new_zeros(len(values), blocks.block_size, blocks.block_size)
        upper[:, blocks.rows, blocks.cols] = values
        return factor * (upper - upper.mT)

    return read


_LORA = {"A": _lora("A"), "B": _lora("B")}

PEERS = (
    Peer(
        "lora(3, alpha = 6)",
        "LoraConfig",
        {"r": 3, "lora_alpha": 6},
        _LORA,
        (*ALSO_CONV1D, *CONVOLUTIONS, "embedding"),
    ),
    Peer(
        "rslora(4, alpha = 6)",
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        _LORA,
        ("linear", "embedding"),
    ),
    Peer(
        "dora(3, alpha = 6)",
        "LoraConfig",
        {"r": 3, "lora_alpha": 6, "use_dora": True},
        {**_LORA, "M": "lora_magnitude_vector.default.weight"},
        (*ALSO_CONV1D, *CONVOLUTIONS, "embedding"),
    ),
    Peer(
        "ia3",
        "IA3Config",
        {"feedforward_modules": []},
        {"l": "ia3_l.default"},
        (*ALSO_CONV1D, "conv2d", "conv3d"),
    ),
    Peer(
        "ia3_input",
        "IA3Config",
        {"feedforward_modules": ["layer"]},
        {"l": "ia3_l.default"},
        ALSO_CONV1D,
    ),
    Peer(
        "vera(4)",
        "VeraConfig",
        {"r": 4, "d_initial": 0.1},
        {
            "A": "vera_A.default",
            "B": "vera_B.default",
            "D": "vera_lambda_d.default",
            "L": "vera_lambda_b.default",
        },
        ALSO_CONV1D,
    ),
    Peer(
        "loha(3, alpha = 6)",
        "LoHaConfig",
        {"r": 3, "alpha": 6},
        {
            "B1": "hada_w1_a.default",
            "A1": "hada_w1_b.default",
            "B2": "hada_w2_a.default",
            "A2": "hada_w2_b.default",
        },
        (*LINEAR, "conv2d", "1d convolution"),
    ),
    Peer(
        "lokr(1, alpha = 2, rows = 2, columns = 2)",
        "LoKrConfig",
        {"r": 1, "alpha": 2, "decompose_factor": 2},
        {"C": "lokr_w1.default", "B": "lokr_w2_a.default", "A": "lokr_w2_b.default"},
    ),
    Peer(
        "hira(3)",
        "HiraConfig",
        {"r": 3},
        {"A": "hira_A.default", "B": "hira_B.default"},
        (*ALSO_CONV1D, "conv2d"),
    ),
    Peer(
        "delora(3)",
        "DeloraConfig",
        {"r": 3, "delora_lambda": 15},
        {
            "A": "delora_A.default",
            "B": "delora_B.default",
            "g": "delora_lambda.default",
            "N": "delora_w_norm.default",
        },
    ),
    Peer(
        "glora(3)",
        "GloraConfig",
        {"r": 3, "config_A_B": "lora", "config_C": "vector", "config_D_E": "vector"},
        {
            "A1": "glora_A.default.Xu",
            "B1": "glora_A.default.Xd",
            "A2": "glora_B.default.Xu",
            "B2": "glora_B.default.Xd",
            "C": "glora_C.default.X",
            "D": "glora_D.default.X",
            "E": "glora_E.default.X",
        },
        ("linear",),
    ),
    Peer("shift", "BeftConfig", {}, {"c": "beft_bias.default"}, ("linear",)),
    Peer(
        "pissa(3, alpha = 6)",
        "LoraConfig",
        {"r": 3, "lora_alpha": 6, "init_lora_weights": "pissa"},
        _LORA,
        ALSO_CONV1D,
        torch.float32,
        kept=("A0", "B0"),
    ),
    Peer(
        "olora(3, alpha = 6)",
        "LoraConfig",
        {"r": 3, "lora_alpha": 6, "init_lora_weights": "olora"},
        _LORA,
        LINEAR,
        torch.float32,
        kept=("A0", "B0"),
    ),
    Peer(
        "oft(4)",
        "OFTConfig",
        {"oft_block_size": 4, "use_cayley_neumann": False},
        # K = S - Sᵀ: with skew values S is half of K, and its gradient twice that.
        {"S": (_upper(0.5), _upper(1))},
    ),
    Peer(
        "gralora(4, alpha = 8)",
        "GraloraConfig",
        {"r": 4, "alpha": 8, "gralora_k": 2},
        {
            "A": lambda layer: layer.gralora_A["default"].view(2, 6, 2, 2).permute(0, 2, 3, 1),
            "B": lambda layer: layer.gralora_B["default"].view(2, 2, 2, 4).permute(0, 1, 3, 2),
        },
    ),
    Peer("miss(4)", "MissConfig", {"r": 4}, {"D": "miss_block.default"}),
    Peer(
        "randlora(4, alpha = 8)",
        "RandLoraConfig",
        {"r": 4, "randlora_alpha": 8},
        {
            "A": "randlora_A.default",
            # PEFT takes the columns of its B, base by base, in the order of A's rows, rank by rank.
            "B": lambda layer: layer.randlora_B["default"].reshape(12, 4, 2).permute(2, 0, 1),
            "L": lambda layer: layer.randlora_lambda["default"].T,
            "G": "randlora_gamma.default",
        },
        ("tall",),
    ),
    Peer(
        "road(4)",
        "RoadConfig",
        {"variant": "road_1", "group_size": 4},
        {"T": "road_theta.default", "S": "road_alpha.default"},
    ),
    Peer(
        "tinylora(2, u = 3)",
        "TinyLoraConfig",
        {"r": 2, "u": 3},
        {
            "A": "tinylora_A.default",
            "B": "tinylora_B.default",
            "P": "tinylora_P.default",
            "v": lambda layer: layer.tinylora_v["default"]["0"],
        },
    ),
    Peer(
        "vblora(2, bank = 6, length = 4)",
        "VBLoRAConfig",
        {
            "r": 2,
            "num_vectors": 6,
            "vector_length": 4,
            "topk": 2,
            "save_only_topk_weights": False,
        },
        {
            "V": "vblora_vector_bank.default",
            "L": "vblora_logits_A.default",
            "M": "vblora_logits_B.default",
        },
    ),
)


def _mora(x: Tensor, W: Tensor, b: Tensor | None, M: Tensor) -> Tensor:
    return functional.linear(x, W + M.repeat(W.shape[0] // 4, W.shape[1] // 4), b)


def _ether(x: Tensor, W: Tensor, b: Tensor | None, u: Tensor) -> Tensor:
    v = u / u.norm(dim=1, keepdim=True)
    reflect = torch.block_diag(*(torch.eye(len(r), dtype=r.dtype) - 2 * r.outer(r) for r in v))
    return functional.linear(x, reflect @ W, b)


PLAIN = (
    Plain(
        "lora_fa(3, alpha = 6)",
        lambda x, W, b, A, B: functional.linear(x, W, b) + 2 * x @ A.T @ B.T,
    ),
    Plain(
        "lora_plus(3, alpha = 6)",
        lambda x, W, b, A, B: functional.linear(x, W, b) + 2 * x @ A.T @ B.T,
    ),
    Plain(
        "adalora(3, alpha = 6)",
        lambda x, W, b, A, B, E: functional.linear(x, W, b) + 2 * (x @ A.T * E) @ B.T,
    ),
    Plain(
        "dylora(3, alpha = 6)",
        lambda x, W, b, A, B: functional.linear(x, W, b) + 2 * x @ A.T @ B.T,
    ),
    Plain(
        "lora_xs(3)",
        lambda x, W, b, A, B, R: functional.linear(x, W + B @ R @ A, b),
    ),
    Plain(
        "ssf",
        lambda x, W, b, g, c: g * functional.linear(x, W, b) + c,
    ),
    Plain(
        "shift",
        lambda x, W, b, c: functional.linear(x, W, b) + c,
    ),
    Plain(
        "milora(2, alpha = 4)",
        lambda x, W, b, A, B, A0, B0: functional.linear(x, W + 2 * (B @ A - B0 @ A0), b),
    ),
    Plain("mora(4)", _mora),
    Plain("ether(2)", _ether),
)

ATTENTION = "of attentions and tokens; beside PEFT in test_peft_prompts.py"
NOT_YET = "not expressible yet"
WITHOUT = {
    "PromptTuningConfig": ATTENTION,
    "PromptEncoderConfig": ATTENTION,
    "PrefixTuningConfig": ATTENTION,
    "LNTuningConfig": "`train norm` is all of it",
    "OSFConfig": "a change of how a weight's gradient is projected: no parameters are added",
    "CPTConfig": "a loss of labelled prompts around `prompt`: no method of a layer",
    "CartridgeConfig": "a prefix filled with the cache of a text: `prefix` holds it",
    "TrainableTokensConfig": NOT_YET,
    "AdaLoraConfig": "beside PEFT, with its schedule, in test_adalora.py",
    "AdaptionPromptConfig": NOT_YET,
    "AdamssConfig": NOT_YET,
    "BOFTConfig": NOT_YET,
    "C3AConfig": NOT_YET,
    "DeftConfig": NOT_YET,
    "FourierFTConfig": NOT_YET,
    "FrodConfig": NOT_YET,
    "HRAConfig": NOT_YET,
    "LilyConfig": NOT_YET,
    "MultitaskPromptTuningConfig": NOT_YET,
    "PeanutConfig": NOT_YET,
    "PolyConfig": NOT_YET,
    "PsoftConfig": NOT_YET,
    "PveraConfig": NOT_YET,
    "ShadowConfig": NOT_YET,
    "ShiraConfig": NOT_YET,
    "SupertuningConfig": NOT_YET,
    "UniLoraConfig": NOT_YET,
    "WaveFTConfig": NOT_YET,
    "XLoraConfig": NOT_YET,
}
"""Tuners of PEFT that no row compares, and why."""
