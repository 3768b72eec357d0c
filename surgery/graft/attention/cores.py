"""What a program makes of an attention's core, as nodes: its operands, its mask and its result.

In a traced graph the nodes stand around that of the core. Of a module that runs its core itself they
are the graphs of functions: one of the whole core, where it is one function, and one for each operand
and for the mask, where it is written in several or another function computes it. What these need
of the module's own input or of parameters alone is computed once, where the module is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as functional
from torch import fx

from surgery.anatomy.attention_core import AttentionCore
from surgery.graft.attention.axes import as_given, spread
from surgery.graft.attention.masks import reveal
from surgery.graft.attention.rerouting import CoreChange
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import GraphHost
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression, operand, walk
from surgery.rules.program import Program
from surgery.rules.state import OPERANDS

Known = dict[Expression, Any]
Sizes = Mapping[str, Scalar]

ATTENTION = functional.scaled_dot_product_attention
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
"""What :data:`ATTENTION` calls its arguments."""

_REST = {
    "attn_mask": None,
    "dropout_p": 0.0,
    "is_causal": False,
    "scale": None,
    "enable_gqa": False,
}


class ProgramCore:
    """The core of ``program``: which operands it changes, and to what."""

    def __init__(self, program: Program):
        assert program.core is not None
        self.program = program
        self.result = program.core
        self.attend = next(e for e in walk(self.result) if e.op == "attend")
        *operands, self.mask = self.attend.arguments
        self.operands = {
            name: (operand(letter, ()), value)
            for name, letter, value in zip(NAMES, "qkv", operands, strict=False)
        }

    @property
    def changed(self) -> dict[str, tuple[Expression, Expression]]:
        """What is given and what is made of it, of the operands and the output that change."""
        found = {name: pair for name, pair in self.operands.items() if pair[0] != pair[1]}
        if self.result != self.attend:
            found["output"] = (self.attend, self.result)
        return found

    def revealed(self, sizes: Sizes) -> int:
        """How many keys the mask shows that are not the model's own."""
        total, mask = 0, self.mask
        while mask.op == "reveal":
            mask, count = mask.arguments
            assert count.number is not None
            total += int(count.number.value(sizes))
        return total

    def given(self, arguments: Mapping[str, Any], emitter: Callable[[Known], Emitter]) -> Any:
        """The ``arguments`` of :data:`ATTENTION` as the program has them, written as nodes."""
        made = dict(arguments)
        known = {given: made[name] for name, (given, _) in self.operands.items()}
        before = emitter(known)
        for name, (_, value) in self.operands.items():
            made[name] = before.emit(value)
        count = self.revealed(before.sizes)
        if count:
            causal = made.pop("is_causal", False)
            mask, query, key = made.get("attn_mask"), made["query"], made["key"]
            made["attn_mask"] = before.host.call(reveal, mask, causal, count, query, key)
        return made


@dataclass
class WrittenCore:
    """The graphs of one changed core, and the expressions they capture, in order."""

    change: CoreChange
    graphs: dict[str, fx.Graph]
    captured: list[Expression]


def write_core(program: Program, core: AttentionCore, sizes: Sizes, prefix: str) -> WrittenCore:
    """The functions of ``program``'s core; their names start with ``prefix``."""
    changes = ProgramCore(program)
    changed = changes.changed
    captured = list(dict.fromkeys(e for _, value in changed.values() for e in _outer(value)))
    graphs = {slot: _function(slot, *pair, captured, sizes) for slot, pair in changed.items()}
    graphs["attend"] = _attention(changes, core, captured, sizes)
    names = tuple((slot, f"{prefix}_{slot}") for slot in graphs)
    named = {f"{prefix}_{slot}": graph for slot, graph in graphs.items()}
    change = CoreChange(core, names, changes.revealed(sizes), not program.only_reveals)
    return WrittenCore(change, named, captured)


def _function(
    slot: str, given: Expression, value: Expression, captured: list[Expression], sizes: Sizes
) -> fx.Graph:
    """A function of what is captured, and of what the core gives it with four axes."""
    graph = fx.Graph()
    known = _placeholders(graph, captured)
    known[given] = graph.placeholder(slot)
    graph.output(Emitter(GraphHost(graph), None, sizes, known=known).emit(value))
    return graph


def _attention(
    changes: ProgramCore, core: AttentionCore, captured: list[Expression], sizes: Sizes
) -> fx.Graph:
    """A function of what is captured, and of the arguments of :data:`ATTENTION`, that is the core."""
    graph = fx.Graph()
    host = GraphHost(graph)
    known = _placeholders(graph, captured)
    arguments: dict[str, fx.Node] = {name: graph.placeholder(name) for name in NAMES[:3]}
    for name, default in _REST.items():
        arguments[name] = graph.placeholder(name, default_value=default)
    changed = changes.changed

    def emitter(operands: Known) -> Emitter:
        return Emitter(host, None, sizes, known={**known, **operands})

    def by_heads(value: fx.Node) -> fx.Node:
        return host.call(spread, value, core.query_heads)

    inside = {n: by_heads(a) if n in changed else a for n, a in arguments.items()}
    made = changes.given(inside, emitter)
    given = {
        name: host.call(as_given, value, arguments[name]) if name in changed else value
        for name, value in made.items()
    }
    result = graph.call_function(ATTENTION, (), given)
    if "output" in changed:
        made = emitter({changes.attend: by_heads(result)}).emit(changes.result)
        result = host.call(as_given, made, result)
    graph.output(result)
    return graph


def _placeholders(graph: fx.Graph, captured: list[Expression]) -> Known:
    """Parameters of a function for what it captures, called as params are, or as what makes them."""
    found: Known = {}
    names: set[str] = set()
    for e in captured:
        name = first = e.name.replace(".", "_").lower() if e.op == "param" else f"its_{e.op}"
        count = 1
        while name in names:
            count += 1
            name = f"{first}_{count}"
        names.add(name)
        found[e] = graph.placeholder(name)
    return found


def _outer(e: Expression) -> list[Expression]:
    """The largest parts of ``e`` that read nothing of the core."""
    if e.op == "number":
        return []
    inside = any(x.op == "attend" for x in walk(e)) or any(map(e.reads, OPERANDS["attention"]))
    return [part for a in e.arguments for part in _outer(a)] if inside else [e]
