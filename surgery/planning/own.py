"""What can be done to layers whose class has a forward of its own, which does more than multiply."""

from __future__ import annotations

from torch import nn

from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.probe import uses_of_weight
from surgery.planning.reading import is_effective
from surgery.rules.expression import Expression
from surgery.rules.program import Program

_ONLY_VALUES = frozenset(("data", "detach"))


def check_own(module: nn.Module, layer: Layer, program: Program) -> None:
    """Hold what a program does against what a layer's own forward lets be done.

    Raises:
        SurgeryError: S419 where the forward would not see it.

    """
    if layer.is_own or layer.held:
        _check_read(module, layer, program)
    elif layer.is_closed:
        _check_around(module, layer, program)


def _check_read(module: nn.Module, layer: Layer, program: Program) -> None:
    weight = module._parameters[layer.weight]
    assert weight is not None
    examples = layer.kind.examples(module, layer, weight)
    uses = uses_of_weight(module, layer.weight, examples)
    if uses is None:
        return
    limited = getattr(module, "max_norm", None) is not None
    if not uses.names or uses.past:
        raise _refused(
            module,
            f"it does not read `self.{layer.weight}` whenever it runs, so it would not see another",
            help=f"read the weight as `self.{layer.weight}` in it, or leave this layer out",
        )
    if uses.names <= _ONLY_VALUES:
        raise _refused(
            module,
            "it reads the weight without a gradient, so nothing would train",
            help="read it with its gradient, or leave this layer out",
        )
    if uses.written and not limited:
        raise _refused(
            module,
            "it writes to the weight, which would be lost on a changed one",
            help="write to it between forwards, or leave this layer out",
        )
    other = {*uses.names - layer.kind.straight, *(["max_norm"] if limited else [])}
    if other and layer.is_own and not is_effective(program, layer):
        raise _refused(
            module,
            f"it does not multiply with the weight as it is (`{min(other)}`), so only a changed "
            "weight can stand in for it, and this method has none",
            help="apply a method that changes the weight alone, such as `lora` without dropout",
        )


def _check_around(module: nn.Module, layer: Layer, program: Program) -> None:
    result = program.result
    if _reads_weight(result):
        raise _refused(
            module,
            "it holds no plain weight that this method could read",
            help="apply a method that does not read `W`, such as `lora`",
        )
    if not layer.kind.features and _reads_input(result):
        raise _refused(
            module,
            "it holds no plain weight, so how it takes its input can't be followed",
            help="apply a method that changes its result alone, such as `ia3`",
        )


def _refused(module: nn.Module, reason: str, help: str) -> Exception:
    text = f"`{type(module).__name__}` has a forward of its own, and {reason}"
    return error("S419", text, help=help)


def _is_base(e: Expression) -> bool:
    return e.op == "linear" and e.arguments[1].op == "operand" and e.arguments[1].name == "W"


def _reads_weight(e: Expression) -> bool:
    """Whether the weight or the bias is used otherwise than in the layer's own result."""
    if e.op == "operand":
        return e.name in ("W", "b")
    if _is_base(e):
        whole = all(a.op == "operand" for a in e.arguments[2:])
        return not whole or _reads_weight(e.arguments[0])
    return any(map(_reads_weight, e.arguments))


def _reads_input(e: Expression) -> bool:
    """Whether the input is used otherwise than as it is, in the layer's own result."""
    if e.op == "operand":
        return e.name == "x"
    if _is_base(e):
        return e.arguments[0].op != "operand" and _reads_input(e.arguments[0])
    return any(map(_reads_input, e.arguments))
