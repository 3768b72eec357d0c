"""The functions by which a program changes an attention's core: one for each operand, as a graph.

What they need of the module's own input or of parameters alone is computed once, where the module
is entered, and captured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from surgery.anatomy.site import Core
from surgery.graft.attention.rerouting import CoreChange
from surgery.graft.graphs.emit import Emitter
from surgery.graft.graphs.nodes import GraphHost
from surgery.rules.dims import Scalar
from surgery.rules.expression import Expression, operand, walk
from surgery.rules.program import Program
from surgery.rules.state import OPERANDS

_SLOTS = {"q": "query", "k": "key", "v": "value"}


@dataclass
class WrittenCore:
    """The graphs of one changed core, and the expressions they capture, in order."""

    change: CoreChange
    graphs: dict[str, fx.Graph]
    captured: list[Expression]


def write_core(
    program: Program, core: Core, sizes: Mapping[str, Scalar], prefix: str
) -> WrittenCore:
    """The functions of ``program``'s core; their names start with ``prefix``."""
    assert program.core is not None
    attend = next(e for e in walk(program.core) if e.op == "attend")
    *operands, mask = attend.arguments
    changed = {
        slot: (operand(name, ()), value)
        for (name, slot), value in zip(_SLOTS.items(), operands, strict=True)
        if value != operand(name, ())
    }
    if program.core != attend:
        changed["output"] = (attend, program.core)
    captured = list(dict.fromkeys(e for _, value in changed.values() for e in _outer(value)))
    graphs: dict[str, fx.Graph] = {}
    for slot, (given, value) in changed.items():
        graphs[f"{prefix}_{slot}"] = _graph(given, value, captured, sizes)
    functions = tuple((slot, f"{prefix}_{slot}") for slot in changed)
    change = CoreChange(core, functions, revealed(mask, sizes), not program.only_reveals)
    return WrittenCore(change, graphs, captured)


def _graph(
    given: Expression, value: Expression, captured: list[Expression], sizes: Mapping[str, Scalar]
) -> fx.Graph:
    """A function of what the core gives it, and of what is captured."""
    graph = fx.Graph()
    known = {given: graph.placeholder("value")}
    known |= {e: graph.placeholder(f"captured{i}") for i, e in enumerate(captured)}
    emitter = Emitter(GraphHost(graph), None, sizes, known=known)
    graph.output(emitter.emit(value))
    return graph


def _outer(e: Expression) -> list[Expression]:
    """The largest parts of ``e`` that read nothing of the core."""
    if e.op == "number":
        return []
    inside = any(x.op == "attend" for x in walk(e)) or any(map(e.reads, OPERANDS["attention"]))
    return [part for a in e.arguments for part in _outer(a)] if inside else [e]


def revealed(mask: Expression, sizes: Mapping[str, Scalar]) -> int:
    """How many keys ``mask`` shows that are not the model's own."""
    total = 0
    while mask.op == "reveal":
        mask, count = mask.arguments
        assert count.number is not None
        total += int(count.number.value(sizes))
    return total
