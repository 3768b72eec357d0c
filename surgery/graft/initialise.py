"""First values of new tensors, from a seed that is theirs alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from surgery.graft.computing import by_expert, compute
from surgery.layers import Layer
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression
from surgery.rules.values import Declaration, Init


def initial(
    declaration: Declaration,
    key: str,
    layer: Layer | None,
    sizes: Mapping[str, Scalar],
    like: Tensor,
    values: Callable[[Expression], Tensor],
) -> Tensor:
    """A tensor as declared, on the device of ``like`` and in its dtype.

    Random values are drawn on the CPU in float32 by a generator seeded from ``key``, so they do not
    depend on the device, torch's defaults, the order of sites, or what else is drawn.
    """
    shape = declaration.shape_at(sizes)
    if like.device.type == "meta":
        return torch.empty(shape, dtype=like.dtype, device="meta")
    if declaration.init.value is None:
        one_hot = bool(layer and layer.kind.one_hot and str(declaration.shape[-1]) == "m")
        return draw(declaration.init, shape, sizes, key, one_hot).to(like.device, like.dtype)
    value = compute(declaration.init.value, layer, sizes, _widely(values))
    tensor = torch.empty(shape, dtype=like.dtype, device=like.device)
    return tensor.copy_(value.expand(shape)) if isinstance(value, Tensor) else tensor.fill_(value)


def _widely(values: Callable[[Expression], Tensor]) -> Callable[[Expression], Tensor]:
    """``values`` in single precision or wider: what is computed of them is rounded once."""

    def value(e: Expression) -> Tensor:
        tensor = values(e)
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    return value


def generator(key: str) -> torch.Generator:
    """Random numbers that depend on ``key`` alone."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator("cpu").manual_seed(seed)


def draw(
    init: Init, shape: tuple[int, ...], sizes: Mapping[str, Scalar], key: str, one_hot: bool
) -> Tensor:
    source = generator(key)
    arguments = {n: float(d.value(sizes)) for n, d in init.arguments if not isinstance(d, str)}
    tensor = torch.empty(shape, dtype=torch.float32, device="cpu")
    # A one-hot input has a single element to sum over.
    fan_in = 1 if one_hot else math.prod(shape[1:])
    match init.distribution:
        case "kaiming_uniform":
            gain = math.sqrt(2.0 / (1 + arguments["a"] ** 2))
            bound = gain * math.sqrt(3.0 / max(1, fan_in))
            return tensor.uniform_(-bound, bound, generator=source)
        case "xavier_uniform":
            bound = arguments["gain"] * math.sqrt(6.0 / (fan_in + shape[0]))
            return tensor.uniform_(-bound, bound, generator=source)
        case "normal":
            return tensor.normal_(0, arguments["std"], generator=source)
        case "uniform":
            return tensor.uniform_(-arguments["bound"], arguments["bound"], generator=source)
        case "integers":
            low, high = int(arguments["low"]), int(arguments["high"])
            return torch.randint(low, high + 1, shape, generator=source).to(tensor.dtype)
        case "nested":
            count = torch.randint(int(arguments["low"]), shape[-1] + 1, (1,), generator=source)
            return (torch.arange(shape[-1]) < count).to(tensor.dtype).expand(shape).contiguous()
        case "bernoulli":
            return tensor.bernoulli_(arguments["rate"], generator=source)
        case _:
            return nn.init.orthogonal_(tensor, generator=source)


def initial_of_each(
    declaration: Declaration,
    key: str,
    layer: Layer,
    sizes: Mapping[str, Scalar],
    like: Tensor,
    values: Callable[[Expression], Tensor],
) -> Tensor:
    """A tensor as declared for each expert, one behind the other along the first axis."""

    def one(i: int) -> Tensor:
        def value(e: Expression) -> Tensor:
            return (by_expert(values(e), layer) if e.op == "operand" else values(e))[i]

        return initial(declaration, f"{key}[{i}]", layer, sizes, like, value)

    return torch.stack([one(i) for i in range(layer.experts)])
