"""What each rule says, written out in plain torch: the effective weight and bias of a site."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.planning.layers import read_layer

Matrix = tuple[Tensor, Tensor | int]
TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def settings_of(method: str) -> tuple[str, dict[str, float]]:
    """The rule that `apply lora(r = 2, alpha = 3)` names, and its numbers."""
    words, _, rest = method.partition("(")
    numbers: dict[str, float] = {}
    for position, given in enumerate(rest.rstrip(")").split(",")):
        name, _, value = given.rpartition("=")
        if value.strip() and value.strip() != "identity":
            numbers[name.strip() or ("r" if position == 0 else "?")] = float(value)
    return words.split()[-1], numbers


def compose(method: str, now: Matrix, p: Mapping[str, Tensor]) -> Matrix:
    """Weight [n, m] and bias [n] after one method on a layer that has ``now``."""
    W, b = now
    rule, numbers = settings_of(method)
    rank = numbers.get("r", 1)
    alpha = numbers.get("alpha", rank)
    match rule:
        case "lora":
            return W + alpha / rank * p["B"] @ p["A"], b
        case "rslora":
            return W + alpha / sqrt(rank) * p["B"] @ p["A"], b
        case "dora":
            V = W + alpha / rank * p["B"] @ p["A"]
            return V * (p["M"] / V.norm(dim=1).detach()).unsqueeze(1), b
        case "vera":
            return W + torch.diag(p["L"]) @ p["B"] @ torch.diag(p["D"]) @ p["A"], b
        case "ia3":
            return torch.diag(p["l"]) @ W, p["l"] * b
        case "ia3_input":
            return W @ torch.diag(p["l"]), b
        case "loha":
            return W + alpha / rank * (p["B1"] @ p["A1"]) * (p["B2"] @ p["A2"]), b
        case "lokr":
            return W + alpha / rank * torch.kron(p["C"], p["B"] @ p["A"]), b
        case "shift":
            return W, b + p["c"]
        case "adapter":
            whole = torch.eye(len(W), dtype=W.dtype) + p["U"] @ p["D"]
            return whole @ W, b @ whole.t() + p["U"] @ p["d0"] + p["u0"]
        case _:
            raise AssertionError(rule)


def own(layer: nn.Module) -> Matrix:
    """The weight of ``layer`` as [n, m], and its bias."""
    kind = read_layer(layer)
    assert kind is not None
    weight, bias = layer._parameters["weight"].detach(), layer._parameters.get("bias")
    return matrix_of(layer, weight), _bias(kind.out, weight, bias)


def _bias(out: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.zeros(out, dtype=weight.dtype) if bias is None else bias.detach()


def matrix_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of ``layer`` as [n, m]."""
    if isinstance(layer, TRANSPOSED):
        groups = weight.chunk(layer.groups)
        return torch.cat([group.transpose(0, 1).flatten(1) for group in groups])
    if isinstance(layer, nn.Embedding) or type(layer).__name__ == "Conv1D":
        return weight.t()
    return weight.flatten(1)


def effective(
    layer: nn.Module, methods: tuple[str, ...], parameters: Mapping[str, Tensor]
) -> Matrix:
    """Weight and bias of ``layer`` under ``methods``, whose parameters are `method0.A` and so on."""
    W, b = own(layer)
    for number, method in enumerate(methods):
        prefix = f"method{number}."
        named = {n.removeprefix(prefix): t for n, t in parameters.items() if n.startswith(prefix)}
        W, b = compose(method, (W, b), named)
    return W, b


def run(layer: nn.Module, matrix: Matrix, x: Tensor) -> Tensor:
    """The layer's own kind of operation, with another weight and bias."""
    W, b = matrix
    if isinstance(layer, nn.Embedding):
        return functional.embedding(x, W.t()) + b
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer._conv_forward(x, W.reshape(layer.weight.shape), b)
    if isinstance(layer, TRANSPOSED):
        channels, kernel = layer.in_channels // layer.groups, layer.kernel_size
        groups = [rows.unflatten(1, (channels, *kernel)) for rows in W.chunk(layer.groups)]
        weight = torch.cat([group.transpose(0, 1) for group in groups])
        convolve = getattr(functional, f"conv_transpose{len(kernel)}d")
        settings = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return convolve(x, weight, b, *settings)
    return functional.linear(x, W, b)
