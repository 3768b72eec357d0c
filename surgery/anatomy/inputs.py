"""Small inputs on which a model runs, so that nobody has to give any."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from surgery.huggingface.example_inputs import from_config
from surgery.language.diagnostics import error

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
BATCH = 2
LENGTH = 8
EXAMPLE = "_surgery_inputs"
"""The attribute of a module that came with arguments for one forward, as exported programs do."""


def example_inputs(model: nn.Module, given: Any = None) -> Inputs:
    """Arguments for one forward of ``model``: those given, or the first of :func:`candidates`.

    ``given`` is a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
    """
    found = next(candidates(model, given), None)
    if found is None:
        raise error(
            "S501",
            f"cannot generate example inputs for a {type(model).__name__}",
            help="pass example_inputs=, a tensor, a tuple of tensors, or a dict of arguments",
        )
    return found


def candidates(model: nn.Module, given: Any = None) -> Iterator[Inputs]:
    """Inputs worth a try, the likeliest first; only ``given`` if that is given."""
    if given is not None:
        yield as_given(given)
        return
    if EXAMPLE in model.__dict__:
        yield model.__dict__[EXAMPLE], {}
        return
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(model, fx.GraphModule):
        yield from _as_traced(model)
    for kwargs in from_config(model, device, BATCH, LENGTH):
        yield (), kwargs
    yield from _plain(model, device)


def as_given(given: Any) -> Inputs:
    if isinstance(given, dict):
        return (), dict(cast("dict[str, Any]", given))
    if hasattr(given, "keys"):
        return (), {key: given[key] for key in given.keys()}  # noqa: SIM118
    if isinstance(given, tuple | list):
        return tuple(cast("tuple[Any, ...]", given)), {}
    return (given,), {}


def _as_traced(model: fx.GraphModule) -> Iterator[Inputs]:
    """What the placeholders of an exported graph say that they stand for, in other numbers."""
    tree: Any = getattr(model.graph._codegen, "pytree_info", None)  # pyright: ignore[reportPrivateUsage]
    nodes = model.graph.find_nodes(op="placeholder")
    if tree is None or not all("val" in node.meta for node in nodes):
        return
    # Ones are real tokens and no padding, but may be beyond a table of one row.
    for number in (1, 0):
        leaves = [_alike(node.meta["val"], number) for node in nodes]
        yield pytree.tree_unflatten(leaves, tree.in_spec)


def _alike(value: Any, number: int) -> Any:
    """A tensor of the shape and type of ``value``; what is no tensor as it is."""
    if not isinstance(value, torch.Tensor):
        return _hint(value)
    shape = [_hint(size) for size in value.shape]
    return torch.full(shape, number, dtype=value.dtype, device=value.device)


def _hint(size: Any) -> Any:
    """What a size was when a program was exported for all of them."""
    return cast("Any", size).node.hint if isinstance(size, torch.SymInt) else size


def _plain(model: nn.Module, device: torch.device) -> Iterator[Inputs]:
    """From the first module with parameters, where ``forward`` needs just one argument."""
    required = [
        parameter
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    shapes = list(_first_shapes(model))
    if isinstance(model, nn.MultiheadAttention):
        for shape, dtype in shapes:
            yield tuple(_tensor(shape, dtype, device, model) for _ in range(3)), {}
    # Encoder and decoder take two of the same kind (nn.Transformer); more is anyone's guess.
    if 1 <= len(required) <= 2:
        for shape, dtype in shapes:
            yield tuple(_tensor(shape, dtype, device, model) for _ in required), {}


def _first_shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], str]]:
    for module in model.modules():
        kind = type(module).__name__
        channels = getattr(module, "in_channels", None)
        if isinstance(module, nn.Embedding):
            yield (BATCH, min(LENGTH, module.num_embeddings)), "ids"
        elif isinstance(module, nn.MultiheadAttention):
            yield (BATCH, LENGTH, module.out_proj.in_features), "features"
        elif isinstance(module, nn.RNNBase):
            yield (BATCH, LENGTH, module.input_size), "features"
        elif isinstance(module, nn.LayerNorm):
            yield (BATCH, LENGTH, *module.normalized_shape), "features"
        elif isinstance(channels, int):
            yield from _images(model, kind, channels)
        elif isinstance(getattr(module, "in_features", None), int):
            width = cast(int, module.in_features)
            yield (BATCH, LENGTH, width), "features"
            yield (BATCH, width), "features"
        else:
            continue
        return


def _images(model: nn.Module, kind: str, channels: int) -> Iterator[tuple[tuple[int, ...], str]]:
    dims = 1 if "1d" in kind else 3 if "3d" in kind else 2
    sizes = [size for size in (_image_size(model),) if size]
    for size in [*sizes, *((64, 32, 28, 224) if dims == 2 else (32,))]:
        yield (BATCH, channels, *(size,) * dims), "features"


def _image_size(model: nn.Module) -> int | None:
    """The size a vision model says it was made for (timm keeps it in its patch embedding)."""
    for holder in (getattr(model, "patch_embed", None), model):
        size = getattr(holder, "img_size", None) or getattr(holder, "image_size", None)
        if isinstance(size, tuple | list) and size:
            size = cast("tuple[Any, ...]", size)[0]
        if isinstance(size, int):
            return size
    return None


def _tensor(shape: tuple[int, ...], kind: str, device: torch.device, model: nn.Module) -> Any:
    if kind == "ids":
        return torch.zeros(shape, dtype=torch.long, device=device)
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.ones(shape, dtype=next(floats, torch.float32), device=device)
