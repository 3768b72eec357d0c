"""An attention's core in a traced graph: a node, whose operands other nodes change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.graft.attention.cores import ATTENTION, NAMES, ProgramCore
from surgery.graft.attention.written import WrittenOut, refused, written_cores
from surgery.graft.graphs.emit import Emitter
from surgery.rules.expression import Expression
from surgery.rules.program import Program

_FUSED = (ATTENTION, torch.ops.aten.scaled_dot_product_attention.default)


def core_node(
    model: nn.Module, nodes: Iterable[fx.Node], core: AttentionCore
) -> fx.Node | WrittenOut:
    """What is ``core`` among the nodes of the module that runs it: one function, or several.

    Raises:
        SurgeryError: S417 if the graph has it in another form.

    """
    inside = list(nodes)
    written = written_cores(model, inside)
    found = [written.get(n, n) for n in inside if n.target in _FUSED or n in written]
    if core.windows or core.among != len(found) or core.order >= len(found):
        raise refused(core, "runs its attention in a form of its own")
    one = found[core.order]
    if one is None:
        raise refused(core, "takes scores, or weights, a step that those of new keys cannot take")
    if (core.how == "fused") is isinstance(one, WrittenOut):
        raise refused(core, "runs its attention in another order than when it was read")
    return one


def change_core(
    node: fx.Node, program: Program, emitter: Callable[[dict[Expression, Any]], Emitter]
) -> fx.Node:
    """Give ``node`` the operands that ``program`` makes of its own; returns its new result.

    ``emitter`` makes one that knows some values and writes before ``node``, then behind it.
    """
    core = ProgramCore(program)
    given: dict[str, Any] = {**dict(zip(NAMES, node.args, strict=False)), **node.kwargs}
    node.args, node.kwargs = (), core.given(given, emitter)
    return node if core.result == core.attend else emitter({core.attend: node}).emit(core.result)
