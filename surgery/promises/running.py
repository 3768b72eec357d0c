"""Running a model on the same inputs again and again, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.anatomy.content import bytes_of
from surgery.anatomy.inputs import Inputs, candidates
from surgery.language.diagnostics import error

Output = tuple[Tensor, ...]


@dataclass(frozen=True)
class Runner:
    """A model with the inputs to run it on; ``seed`` sets the generator before each run."""

    model: nn.Module
    inputs: Inputs
    seed: int

    def __call__(self, *, train: bool = False, grad: bool = False) -> Output:
        """All floating-point tensors that one forward returns, copied."""
        with modes(self.model, train), torch.set_grad_enabled(grad), seeded(self.seed):
            return tuple(t.detach().clone() for t in self.forward())

    def forward(self) -> Output:
        """The same in the mode that the model is in, and not copied."""
        args, kwargs = copied(self.inputs)
        return floating(self.model(*args, **kwargs))

    @property
    def shape(self) -> str:
        """The inputs in words: `input_ids 2 × 8`."""
        shapes = [("", value) for value in self.inputs[0]]
        shapes += [(f"{name} ", value) for name, value in self.inputs[1].items()]
        return ", ".join(
            f"{name}{' × '.join(map(str, value.shape))}"
            for name, value in shapes
            if isinstance(value, Tensor)
        )


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """The default generators start from ``seed`` inside, and go on as before after it."""
    generators: Any = torch.random  # without types in torch
    with generators.fork_rng():
        generators.manual_seed(seed)
        yield


def runner(model: nn.Module, given: Any, seed: int) -> Runner:
    """The first inputs on which ``model`` runs, varied at random where they were made up.

    Raises:
        SurgeryError: S502 if it runs on none.

    """
    problem: Exception | None = None
    for inputs in candidates(model, given):
        trials = (inputs,) if given is not None else (_varied(inputs, seed), inputs)
        for trial in trials:
            found = Runner(model, trial, seed)
            try:
                result = found()
            except Exception as failure:
                problem = problem or failure
                continue
            if all(bool(torch.isfinite(t).all()) for t in result):
                return found
    inputs = "generated inputs" if given is None else "the example inputs"
    raise error(
        "S502",
        f"{type(model).__name__} does not run on {inputs}" + (f": {problem}" if problem else ""),
        help="pass example_inputs=, a tensor, a tuple of tensors, or a dict of arguments",
    ) from problem


def _varied(inputs: Inputs, seed: int) -> Inputs:
    """Floating inputs drawn at random: constant ones hide errors behind norms."""
    generator = torch.Generator().manual_seed(seed)

    def vary(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator)
        return drawn.to(tensor.device, tensor.dtype)

    return cast(Inputs, pytree.tree_map_only(torch.Tensor, vary, inputs))


def copied(inputs: Inputs) -> Inputs:
    """Inputs of one's own: a forward may write to what it is given."""
    return cast(Inputs, pytree.tree_map_only(torch.Tensor, torch.clone, inputs))


def floating(output: Any) -> tuple[Tensor, ...]:
    """All floating-point tensors in what a model returned: logits, hidden states, losses."""
    # A transformers output is a mapping, which pytree need not know.
    plain = dict(cast("Mapping[Any, Any]", output)) if isinstance(output, Mapping) else output
    leaves: list[Any] = pytree.tree_leaves(plain)
    found = tuple(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())
    if not found:
        raise error("S502", "the model returns no floating-point tensor")
    return found


@contextmanager
def modes(model: nn.Module, train: bool) -> Generator[None]:
    """All modules in training or evaluation inside; modes and buffers are as before after it."""
    before = [(m, m.training) for m in model.modules()]
    # Always put back: batch norms write theirs without counting a version, and what was exported in
    # training, or has a cache, writes them in evaluation, too.
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        for module, _ in before:
            module.__dict__["training"] = train
        yield
    finally:
        for module, mode in before:
            module.__dict__["training"] = mode
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)


def same_bits(left: Output | Tensor, right: Output | Tensor) -> bool:
    """Whether two outputs are equal in every bit, NaN and signed zeros included."""
    pairs = list(zip(_tuple(left), _tuple(right), strict=False))
    if len(_tuple(left)) != len(_tuple(right)):
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and bytes_of(a) == bytes_of(b) for a, b in pairs
    )


def relative_error(found: Output | Tensor, expected: Output | Tensor) -> float:
    """The largest difference in a tensor, as a part of the largest value expected in it."""
    if len(_tuple(found)) != len(_tuple(expected)):
        return float("inf")
    pairs = zip(_tuple(found), _tuple(expected), strict=True)
    return max((_error(a, b) for a, b in pairs), default=0.0)


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    found, expected = found.double(), expected.double()
    scale, difference = float(expected.abs().max()), float((found - expected).abs().max())
    if difference != difference:
        return float("inf")
    return difference / scale if scale else difference


def _tuple(output: Output | Tensor) -> Output:
    return (output,) if isinstance(output, Tensor) else output
