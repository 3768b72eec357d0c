"""An attention's core in a traced graph: a node, whose operands other nodes change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import fx

from surgery.anatomy.site import Core
from surgery.graft.attention.cores import revealed
from surgery.graft.attention.masks import reveal
from surgery.graft.graphs.emit import Emitter
from surgery.language.diagnostics import error
from surgery.rules.expression import Expression, operand, walk
from surgery.rules.program import Program

_FUSED = (
    functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


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
    assert program.core is not None
    attend = next(e for e in walk(program.core) if e.op == "attend")
    given: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
    known = {operand(n, ()): given[name] for n, name in zip("qkv", _NAMES, strict=False)}
    before = emitter(known)
    for value, name in zip(attend.arguments[:3], _NAMES, strict=False):
        given[name] = before.emit(value)
    count = revealed(attend.arguments[3], before.sizes)
    if count:
        causal = given.pop("is_causal", False)
        given["attn_mask"] = before.host.call(
            reveal, given.get("attn_mask"), causal, count, given["query"], given["key"]
        )
    node.args, node.kwargs = (), given
    return node if program.core == attend else emitter({attend: node}).emit(program.core)
