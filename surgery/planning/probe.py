"""What a module's own forward does with its weight, tried on inputs that are made up.

The module is left as it was: flags, attributes, contents and random numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgery.anatomy.state import KEPT_PARAMETERS, untouched
from surgery.anatomy.tensors import tensors_in

SMALL = 1_000_000
"""Elements of a weight above which a smaller one is tried in its place."""
SIZES = (1e-4, 1.0, 1e4)
"""Inputs of these sizes: a clamp or a cast shows in one of them."""

_FORM = "shape size dim ndim numel stride dtype device requires_grad element_size"
_KIND = "is_cuda is_meta is_nested is_floating_point is_contiguous"
DESCRIBED = frozenset((*_FORM.split(), *_KIND.split()))
"""What can be asked of a weight without a use of its values."""


@dataclass(frozen=True)
class ProductPosition:
    """Where the product stands in what a forward returns: at ``index``, or as all of it.

    ``alone`` tells that the forward is given nothing but the input, so that no call changes more.
    """

    index: int | None
    alone: bool


def arguments(cls: type[nn.Module]) -> list[inspect.Parameter]:
    """What a call gives to the forward of ``cls``, whatever it calls the module itself."""
    forward = inspect.getattr_static(cls, "forward")
    bound = forward.__get__(object(), cls) if hasattr(forward, "__get__") else forward
    return list(inspect.signature(bound).parameters.values())


def product_of(module: nn.Module, transposed: bool = False) -> ProductPosition | None:
    """Where the forward of ``module`` gives W x + b; None if it gives anything else anywhere.

    It is run on weights and inputs that are drawn for it, of several sizes and dims, in evaluation
    and in training. What stands beside the product may be no tensor: it would be computed without
    what is done to the product.
    """
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    found = {
        _product(module, weight, bias, transposed, training, _SHAPES[training])
        for training in (False, True)
    }
    index = found.pop()
    if found or index is _NONE:
        return None
    first, *rest = arguments(type(module))
    alone = not rest and first.kind is not first.VAR_POSITIONAL
    return ProductPosition(index, alone)


_NONE: Any = object()
_SHAPES = {False: ((2,), (2, 3)), True: ((2, 3),)}


def _product(
    module: nn.Module,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    training: bool,
    shapes: tuple[tuple[int, ...], ...],
) -> int | None:
    random = torch.Generator().manual_seed(0)
    device = "cpu" if weight.is_meta else weight.device
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=dtype).to(device)

    sizes = tuple(weight.shape) if weight.numel() <= SMALL else (7, 5)
    matrix = drawn(*sizes)
    out, into = sizes[::-1] if transposed else sizes
    offset = None if bias is None else drawn(out)
    index: Any = _NONE
    with _trying(module, training):
        _put(module, matrix, offset)
        if sizes != tuple(weight.shape):
            _resize(module, out, into)
        for size in SIZES:
            for shape in shapes:
                x = size * drawn(*shape, into)
                expected = x @ (matrix if transposed else matrix.t())
                expected = expected if offset is None else expected + offset
                at = _index(_run(module, x), expected)
                if at is _NONE or index not in (_NONE, at):
                    return _NONE
                index = at
        # One that takes other dtypes casts them, which a product beside it would not.
        if _run(module, drawn(2, into).to(torch.float16)) is not None:
            return _NONE
    return index


def _index(found: Any, expected: Tensor) -> Any:
    """Where ``expected`` stands in what a forward gave, if it is the only tensor in it."""
    given = cast("tuple[object, ...]", found) if isinstance(found, tuple) else (found,)
    tensors = [i for i, value in enumerate(given) if isinstance(value, Tensor)]
    result = given[tensors[0]] if len(tensors) == 1 else None
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        return _NONE
    if result.dtype != expected.dtype:
        return _NONE
    # A cast to fewer bits shows: what is merged would be rounded otherwise than what is added.
    error = 1e-5 if expected.dtype == torch.float32 else 1e-10
    near = torch.allclose(result, expected, rtol=error, atol=error * _size(expected))
    return (tensors[0] if isinstance(found, tuple) else None) if near else _NONE


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 1.0


def _run(module: nn.Module, *inputs: Any, other: Any = None) -> Any:
    """What the forward of ``module`` gives for its first ``inputs``; None if it does not run.

    ``other`` is what else the forward cannot do without.
    """
    args: list[Any] = []
    named: dict[str, Any] = {}
    parameters = arguments(type(module))
    for place, parameter in enumerate(parameters):
        if place >= len(inputs) and not _is_needed(parameter):
            continue
        given = inputs[place] if place < len(inputs) else other
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = given
        else:
            args.append(given)
    # A forward that takes all as `*args` gets the rest as well.
    args += inputs[len(parameters) :]
    try:
        return type(module).forward(module, *args, **named)
    except Exception:  # anything may go wrong in a forward that is given what it does not expect
        return None


def _is_needed(parameter: inspect.Parameter) -> bool:
    several = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in several


def _put(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module._parameters["weight"] = nn.Parameter(weight)
    if bias is not None:
        module._parameters["bias"] = nn.Parameter(bias)


def _resize(module: nn.Module, out: int, into: int) -> None:
    """Let ``module`` be of the size of a smaller weight, by the names that layers have for it."""
    for name, size in {"out_features": out, "in_features": into, "nf": out, "nx": into}.items():
        if name in module.__dict__:
            module.__dict__[name] = size


@contextmanager
def _trying(module: nn.Module, training: bool) -> Generator[None]:
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext(),
        untouched(module, copy=True, training=training),
    ):
        yield


@dataclass(frozen=True)
class WeightUses:
    """What a forward does with a weight: the functions it is given to, by name.

    ``past`` tells that it is read from where the module keeps it, not asked for as an attribute;
    ``written`` that the forward writes to it.
    """

    names: frozenset[str]
    past: bool
    written: bool


def uses_of_weight(
    module: nn.Module, name: str, examples: Iterator[tuple[Any, ...]]
) -> WeightUses | None:
    """What the forward of ``module`` does with its weight ``name``; None if it runs on no example.

    It is that of a second run: what the first has kept of the weight would be kept of another.
    """
    held = module._parameters[name]
    if held is None or held.is_meta or held.numel() > KEPT_PARAMETERS:
        return None
    needs = any(_is_needed(p) for p in arguments(type(module))[1:])
    for inputs, other in product(examples, (None, 1.0, True) if needs else (None,)):
        with _trying(module, training=False):
            # Other values than its own, which a projection would leave as they are.
            asked, stored = (nn.Parameter(4 * torch.randn_like(held)) for _ in range(2))
            module.__dict__[name] = asked
            module._parameters[name] = stored
            before, memory = asked.detach().clone(), asked.data_ptr()
            _run(module, *inputs, other=other)
            with _Listening(asked, stored) as heard:
                result = _run(module, *inputs, other=other)
            same = module.__dict__.get(name) is asked and asked.data_ptr() == memory
            written = not (same and torch.equal(before, asked))
        if result is not None:
            return WeightUses(frozenset(heard.asked), heard.past, written)
    return None


class _Listening(TorchFunctionMode):
    """Hears of functions that are given the weight which a module has as an attribute, by name,
    and whether any is given the one that it ``stored``.
    """

    def __init__(self, asked: Tensor, stored: Tensor):
        super().__init__()
        self.weights = asked, stored
        self.asked: set[str] = set()
        self.past = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(getattr(func, "__name__", func))
        if name == "__get__":
            name = str(getattr(getattr(func, "__self__", None), "__name__", name))
        asked, stored = self.weights
        for tensor in tensors_in((args, kwargs or {})) if name not in DESCRIBED else ():
            if tensor is asked:
                self.asked.add(name)
            self.past = self.past or tensor is stored
        return func(*args, **kwargs or {})
