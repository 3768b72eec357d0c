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

Source = str | Callable[[Any], Tensor]
LINEAR = ("linear", "no bias")
ALSO_CONV1D = (*LINEAR, "conv1d")
CONVOLUTIONS = ("conv2d", "conv3d", "1d convolution")


@dataclass(frozen=True)
class Peer:
    """``spec`` on a layer is what ``tuner(**settings)`` is in PEFT.

    ``names`` tell for each of our parameters which tensor of PEFT's layer has its values, in any
    shape of as many elements: a path below the layer, or a function of it, which is linear.
    """

    spec: str
    tuner: str
    settings: Mapping[str, Any]
    names: Mapping[str, Source]
    layers: tuple[str, ...] = LINEAR
    dtype: torch.dtype = torch.float64
    ungraded: tuple[str, ...] = ()
    """Parameters of ours that PEFT does not train."""


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
)

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
    "AdaLoraConfig": NOT_YET,
    "AdaptionPromptConfig": NOT_YET,
    "AdamssConfig": NOT_YET,
    "BOFTConfig": NOT_YET,
    "C3AConfig": NOT_YET,
    "DeftConfig": NOT_YET,
    "FourierFTConfig": NOT_YET,
    "FrodConfig": NOT_YET,
    "GraloraConfig": NOT_YET,
    "HRAConfig": NOT_YET,
    "LilyConfig": NOT_YET,
    "MissConfig": NOT_YET,
    "MultitaskPromptTuningConfig": NOT_YET,
    "OFTConfig": NOT_YET,
    "PeanutConfig": NOT_YET,
    "PolyConfig": NOT_YET,
    "PsoftConfig": NOT_YET,
    "PveraConfig": NOT_YET,
    "RandLoraConfig": NOT_YET,
    "RoadConfig": NOT_YET,
    "ShadowConfig": NOT_YET,
    "ShiraConfig": NOT_YET,
    "SupertuningConfig": NOT_YET,
    "TinyLoraConfig": NOT_YET,
    "UniLoraConfig": NOT_YET,
    "VBLoRAConfig": NOT_YET,
    "WaveFTConfig": NOT_YET,
    "XLoraConfig": NOT_YET,
}
"""Tuners of PEFT that no row compares, and why."""
