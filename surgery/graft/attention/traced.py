"""An attention's core in a traced graph: a node, whose operands other nodes change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from surgery.anatomy.site import Core
from surgery.graft.attention.cores import ATTENTION, NAMES, ProgramCore
from surgery.graft.graphs.emit import Emitter
from surgery.language.diagnostics import error
from surgery.rules.expression import Expression
from surgery.rules.program import Program

_FUSED = (ATTENTION, torch.ops.aten.scaled_dot_product_attention.default)


def core_node(nodes: Iterable[fx.Node], core: Core) -> fx.Node:
    """The node that is ``core``, among those of the module that runs it.

    Raises:
        SurgeryError: S417 if the graph has it in another form.

    """
    found = [n for n in nodes if n.target in _FUSED]
    if core.how == "products" or core.order >= len(found):
        raise error(
            "S417",
            f"the traced graph runs the attention of `{core.path}` in products, which are not "
            "rewritten",
            help="trace a model that calls scaled_dot_product_attention, or apply the spec to the "
            "model itself, and torch.export that",
        )
    return found[core.order]


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
