"""One recorded forward, on the cheapest tensors the model will run on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from surgery.anatomy.graph import Recording
from surgery.anatomy.inputs import EXAMPLE, Inputs, candidates, example_inputs
from surgery.anatomy.listening import listening
from surgery.anatomy.paths import Paths
from surgery.anatomy.state import KEPT_PARAMETERS, uncollected, untouched
from surgery.anatomy.trace import Recorder
from surgery.huggingface.attention_functions import outlined
from surgery.language.diagnostics import Diagnostic, SurgeryError

_QUICK = 5_000_000_000
"""Products of parameters and elements of the input up to which real tensors are quicker than fake."""


def record(
    model: nn.Module,
    given: Any = None,
    paths: Paths | None = None,
    training: bool = False,
    cheap: bool = False,
) -> Recording:
    """Run ``model`` once and tell what it did; the model is left exactly as it was.

    Large models run on fake tensors, in no memory; small ones on real ones, which costs less and
    follows every branch. Each is tried where the other fails; a ``cheap`` run of a large model is
    on fake tensors or not at all.
    """
    paths = paths or Paths(model)
    failures: list[tuple[str, Exception]] = []
    for inputs in candidates(model, given):
        ways = _ways(model, inputs)
        for how in ways[:1] if cheap and ways[0] == "fake" else ways:
            try:
                return recorded(model, inputs, paths, how, training)
            except Exception as failure:
                failures.append((how, failure))
    if not failures:
        example_inputs(model, given)
    raise SurgeryError(_explained(model, failures, given is not None)) from failures[0][1]


def _ways(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return ("fake",)
    count = sum(tensor.numel() for tensor in tensors)
    small = count <= KEPT_PARAMETERS
    if EXAMPLE in model.__dict__:
        # An exported program is in memory, and writes to no parameter: it need not be copied.
        given = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        small = small or count * max((t.numel() for t in given), default=1) <= _QUICK
    return ("real", "fake") if small else ("fake", "real")


def recorded(
    model: nn.Module, inputs: Inputs, paths: Paths, how: str, training: bool = False
) -> Recording:
    """What ``model`` does with ``inputs``, run in one way: on ``real`` or ``fake`` tensors."""
    fake = FakeTensorMode(allow_non_fake_inputs=True) if how == "fake" else None
    recorder = Recorder(paths, fake)
    with ExitStack() as stack:
        stack.enter_context(uncollected())
        stack.enter_context(untouched(model, copy=fake is None, training=training))
        convert = torch.clone if fake is None else cast("Callable[[Any], Any]", fake.from_tensor)
        args, kwargs = pytree.tree_map_only(torch.Tensor, convert, inputs)
        recorder.given(pytree.tree_leaves((args, kwargs)))
        if fake is not None:
            stack.enter_context(fake)
        stack.enter_context(_uncompiled())
        stack.enter_context(outlined())
        stack.enter_context(listening(recorder))
        stack.enter_context(recorder)
        result = model(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
            made = recorder.finished(how, result)
        del result
    return made


def _uncompiled() -> AbstractContextManager[Any]:
    # Asking costs an import of the compiler; a model that was compiled has already paid it.
    if "torch._dynamo.eval_frame" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _explained(model: nn.Module, failures: list[tuple[str, Exception]], given: bool) -> Diagnostic:
    _, first = failures[0]
    text = str(first).strip().splitlines()
    reason = f"{type(first).__name__}: {text[0]}" if text else type(first).__name__
    inputs = "the example inputs" if given else "generated inputs"
    return Diagnostic(
        "S502",
        f"{type(model).__name__} does not run on {inputs}: {reason}",
        help="pass example_inputs=, a tensor, a tuple of tensors, or a dict of arguments",
    )
