"""What a saved adaptation needs of its base, and whether a model is that base.

All of the base counts, as it is when the adaptation is saved: parameters and persistent buffers by
name, shape, dtype and a digest of every value. Parameters that the spec trains are in the file, so of
these only the form counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from surgery.graft.adapter_file import facts_of
from surgery.graft.container import Graft
from surgery.graft.first import first_values
from surgery.language.diagnostics import SurgeryError, error
from surgery.planning.fingerprint import content_digests, dtype_name

Match = Literal["exact", "shape"]


@dataclass(frozen=True)
class Base:
    """The tensors of a model without what was added to it, by name."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


def base_of(model: nn.Module) -> Base:
    """The base of ``model``: parameters that a spec trains are as they were before it."""
    named = cast("list[tuple[str, nn.Module]]", list(model.named_modules()))  # pyright: ignore[reportUnknownArgumentType]
    own = {path: module for path, module in named if not isinstance(module, Graft)}
    parameters: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] in own
    }
    paths = {id(module): path for path, module in own.items()}
    for module, held in first_values(model):
        for name, first in held.values.items():
            path = paths.get(id(module))
            full = f"{path}.{name}" if path else name
            if full in parameters:
                parameters[full] = first.value
    buffers = {
        f"{path}.{name}" if path else name: buffer
        for path, module in own.items()
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
    return Base(parameters, buffers)


def base_facts(model: nn.Module, held: Collection[str]) -> dict[str, Any]:
    """What the file of ``model`` says of its base, when it holds the parameters named ``held``."""
    base = base_of(model)
    lasting = {n: b for n, b in base.buffers.items() if _persistent(model, n)}
    return {
        "parameters": _facts(base.parameters, held),
        "buffers": _facts(lasting, ()),
    }


def _persistent(model: nn.Module, name: str) -> bool:
    path, _, own = name.rpartition(".")
    return own not in model.get_submodule(path)._non_persistent_buffers_set


def _facts(tensors: Mapping[str, Tensor], held: Collection[str]) -> dict[str, Any]:
    sums = content_digests({n: t for n, t in tensors.items() if n not in held})
    return {n: facts_of(t, sums.get(n)) for n, t in tensors.items()}


def check_base(
    model: nn.Module, facts: Mapping[str, Any], held: Collection[str], match: Match
) -> str | None:
    """Hold ``model`` against what a file says of its base.

    Returns:
        What was not compared, in words, if that is anything.

    Raises:
        SurgeryError: S515 with the first difference; for ``"shape"``, those of names and shapes.

    """
    base = base_of(model)
    for kind, own in (("parameters", base.parameters), ("buffers", base.buffers)):
        _check_form(facts[kind], own, match, every=kind == "parameters")
    saved: dict[str, Any] = {**facts["parameters"], **facts["buffers"]}
    tensors = {n: t for n, t in {**base.parameters, **base.buffers}.items() if n in saved}
    if match == "shape":
        return _uncompared(saved, tensors)
    compared = {n: t for n, t in tensors.items() if n not in held}
    _check_values(saved, compared, base.buffers)
    return None


def _check_form(
    saved: Mapping[str, Any], now: Mapping[str, Tensor], match: Match, every: bool
) -> None:
    """Names, shapes and, if all must be equal, dtypes; of buffers a model may have others, too."""
    missing = [n for n in saved if n not in now]
    extra = [n for n in now if n not in saved] if every else []
    if missing or extra:
        name, verb = (missing[0], "lacks") if missing else (extra[0], "has also")
        more = len(missing) + len(extra) - 1
        raise _another(
            f"this one {verb} `{name}`{f', and {more} more names differ' if more else ''}"
        )
    for name, tensor in now.items():
        facts = saved.get(name)
        if facts is None:
            continue
        was, found = ((facts["dtype"], facts["shape"]), (dtype_name(tensor), [*tensor.shape]))
        if was[1] != found[1] or (match == "exact" and was != found):
            texts = [f"{dtype} {'×'.join(map(str, shape))}" for dtype, shape in (was, found)]
            help = f"load it in {was[0]}, or {_SHAPE}" if was[1] == found[1] else None
            raise _another(f"`{name}` was {texts[0]} and is {texts[1]}", help)
        if tensor.device.type == "meta":
            raise _another(f"`{name}` has no values here: it is on the meta device")


def _check_values(
    saved: Mapping[str, Any], compared: Mapping[str, Tensor], buffers: Collection[str]
) -> None:
    unknown = [n for n in compared if saved[n]["digest"] is None]
    if unknown:
        how = f"`{unknown[0]}` was on the meta device when the file was written, so its values are unknown"
        raise _another(how, _SHAPE)
    sums = content_digests(compared)
    others = [n for n in compared if saved[n]["digest"] != sums[n]]
    if others:
        first = others[0]
        why = (
            "load the checkpoint that it was saved with, and change by hand what was changed there"
        )
        if first in buffers:
            why = "buffers as these change where a model runs in training mode: load them too"
        raise _another(
            f"{len(others)} of {len(compared)} tensors have other values, first `{first}`",
            f"{why}; or {_SHAPE}",
        )


_SHAPE = 'base="shape", which compares no more than names and shapes'


def _another(how: str, help: str | None = None) -> SurgeryError:
    return error(
        "S515",
        f"this is not the base that the adapter was saved with: {how}",
        help=help or "load the same checkpoint",
    )


def _uncompared(saved: Mapping[str, Any], now: Mapping[str, Tensor]) -> str:
    changed = [n for n in now if saved[n]["dtype"] != dtype_name(now[n])]
    text = (
        f"names and shapes of {len(saved)} tensors of the base were compared, their values were not"
    )
    if changed:
        first = changed[0]
        was, found = saved[first]["dtype"], dtype_name(now[first])
        text += (
            f"; {len(changed)} have another dtype, as `{first}`: {was} in the file, {found} here"
        )
    return text
