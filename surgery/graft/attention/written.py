"""An attention's core written out in a graph: a product, a softmax and a product, as nodes.

Scores of new keys go through what those of the model's own keys do, and join these in the softmax;
what new values add is added to the result. It is what `graft/attention/products.py` does while a
module runs, on nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.roles.operators import kind
from surgery.anatomy.roles.trails import ALIKE, MOVES, SCALED, SCORED, STEPS, VIEWS
from surgery.graft.attention.cores import ProgramCore
from surgery.graft.attention.headed import (
    behind,
    by_heads,
    first_of,
    in_place,
    none_of,
    repeated_as,
    rest_of,
    scaled,
    viewed_as,
    with_new,
)
from surgery.graft.graphs.emit import Emitter
from surgery.language.diagnostics import error
from surgery.rules.expression import Expression
from surgery.rules.program import Program

Emitting = Callable[[dict[Expression, Any], fx.Node], Emitter]
"""Makes an emitter that knows some values, and writes behind a node."""


@dataclass
class WrittenOut:
    """The nodes of one core: its products, its softmax, and what is done between these."""

    product: fx.Node
    softmax: fx.Node
    weighed: fx.Node
    scores: list[fx.Node] = field(default_factory=list[fx.Node])
    weights: list[fx.Node] = field(default_factory=list[fx.Node])

    @property
    def last_score(self) -> fx.Node:
        return self.scores[-1] if self.scores else self.product

    @property
    def last_weight(self) -> fx.Node:
        return self.weights[-1] if self.weights else self.softmax


def written_cores(model: nn.Module, nodes: Iterable[fx.Node]) -> Iterator[WrittenOut]:
    """The cores among ``nodes``, in the order of their softmaxes."""
    for node in nodes:
        if kind_of(model, node) != "softmax":
            continue
        scores = _back(model, node)
        weights = _ahead(model, node)
        if scores and weights:
            yield WrittenOut(scores[0], node, weights[-1], scores[1:], weights[:-1])


def kind_of(model: nn.Module, node: fx.Node) -> str:
    """What ``node`` does, as the anatomy names it; a module goes by its class."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__.lower()
    if node.op not in ("call_function", "call_method"):
        return ""
    return kind(node.target if isinstance(node.target, str) else node.target.__name__)


def _back(model: nn.Module, softmax: fx.Node) -> list[fx.Node]:
    """The product of queries and keys, and the steps from there to ``softmax``."""
    found: list[fx.Node] = []
    node = softmax.args[0] if softmax.args else None
    while isinstance(node, fx.Node):
        found.insert(0, node)
        of = kind_of(model, node)
        if of in SCORED and _is_product(node):
            return found
        if of not in STEPS:
            break
        ways = [n for n in node.all_input_nodes if _leads(model, n)]
        node = ways[0] if len(ways) == 1 else None
    return []


def _leads(model: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` is a product of values, or steps from one."""
    while True:
        of = kind_of(model, node)
        if of in SCORED:
            return _is_product(node)
        if of not in STEPS:
            return False
        ways = [n for n in node.all_input_nodes if _leads(model, n)]
        if len(ways) != 1:
            return False
        node = ways[0]


def _ahead(model: nn.Module, softmax: fx.Node) -> list[fx.Node]:
    """The steps from ``softmax`` to the product of weights and values, and that product."""
    found: list[fx.Node] = []
    node = softmax
    while True:
        products = [u for u in node.users if kind_of(model, u) in SCORED and _is_product(u)]
        if len(products) == 1:
            return [*found, products[0]]
        steps = [u for u in node.users if kind_of(model, u) in STEPS]
        if products or len(steps) != 1:
            return []
        node = steps[0]
        found.append(node)


def _is_product(node: fx.Node) -> bool:
    pair = _pair(node)
    return pair is not None and all(n.op != "get_attr" for n in pair)


def _pair(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that are multiplied."""
    given = list(node.args)
    if node.target is torch.einsum:
        given = given[1:]
        given = [*given[0]] if given and isinstance(given[0], list | tuple) else given
    elif kind_name(node) == "baddbmm":
        given = given[1:]
    values = [n for n in given if isinstance(n, fx.Node)]
    return (values[0], values[1]) if len(given) == len(values) == 2 else None


def operands_of(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two values of a product that is one of a core."""
    pair = _pair(product)
    assert pair is not None
    return pair


def kind_name(node: fx.Node) -> str:
    return kind(node.target if isinstance(node.target, str) else node.target.__name__)  # type: ignore[union-attr]


def change_written(
    model: nn.Module, core: AttentionCore, found: WrittenOut, program: Program, emitting: Emitting
) -> None:
    """Give the core ``found`` the operands, keys and result that ``program`` has.

    Raises:
        SurgeryError: S417 if the core is in a form that is not rewritten.

    """
    if "einsum" in (kind_name(found.product), kind_name(found.weighed)):
        raise refused(core, "writes its attention with an einsum")
    if "cat" in {kind_of(model, node) for node in (*found.scores, *found.weights)}:
        raise refused(core, "joins others to the scores of its attention")
    _Writing(model, core, found, ProgramCore(program), emitting).write()


def refused(core: AttentionCore, how: str) -> Exception:
    """The error for a core that cannot be changed in a graph."""
    return error(
        "S417",
        f"the graph {how}, at `{core.path}`, which is not rewritten",
        help="apply the spec to the model itself, and torch.export that",
    )


class _Writing:
    """One core being changed. ``at`` is behind which node is written."""

    def __init__(
        self,
        model: nn.Module,
        core: AttentionCore,
        found: WrittenOut,
        program: ProgramCore,
        emitting: Emitting,
    ):
        self.model = model
        self.heads = core.query_heads, core.heads_at
        self.found = found
        self.program = program
        self.emitting = emitting
        self.own = not program.program.only_reveals

    def write(self) -> None:
        found = self.found
        query, key = operands_of(found.product)
        _, value = operands_of(found.weighed)
        operands, changed = self.program.operands, self.program.changed
        before = self.emitting({}, found.product.prev)
        count = self.program.revealed(before.sizes)
        own_query = query
        if "query" in changed:
            known = self.call(before, by_heads, query, key, "query", self.heads)
            made = self.emitted(before, operands["query"], known)
            own_query = self.call(before, in_place, made, query, key, "query", self.heads, 0)
            found.product.replace_input_with(query, own_query)
        new_key = self.joined(before, "key", key, query, count, found.product)
        behind = self.emitting({}, found.last_score)
        scored = found.softmax.args[0]
        assert isinstance(scored, fx.Node)
        if count:
            new = self.again(behind, found.product, own_query, new_key)
            new = self.followed(behind, found.product, found.scores, new)
            both = self.call(behind, with_new, new, scored)
            found.softmax.replace_input_with(scored, both)
        after = self.emitting({}, found.softmax)
        fresh, rest = None, found.softmax
        if count:
            users = list(found.softmax.users)
            fresh = self.call(after, first_of, found.softmax, count)
            rest = self.call(after, rest_of, found.softmax, count)
            for user in users:
                user.replace_input_with(found.softmax, rest)
        ahead = self.emitting({}, found.weighed.prev)
        weights, value = operands_of(found.weighed)
        new_value = self.joined(ahead, "value", value, weights, count, found.weighed)
        users = list(found.weighed.users)
        end = self.emitting({}, found.weighed)
        result: Any = found.weighed
        if fresh is not None:
            fresh = self.followed(end, rest, found.weights, fresh)
            more = self.again(end, found.weighed, fresh, new_value)
            result = self.call(end, torch.add, result, more)
        if "output" in changed:
            known = self.call(end, by_heads, result, value, "output", self.heads)
            made = self.emitted(end, (self.program.attend, self.program.result), known)
            result = self.call(end, in_place, made, result, value, "output", self.heads, 0)
        for user in users:
            user.replace_input_with(found.weighed, result)

    def call(self, emitter: Emitter, function: Any, *args: Any) -> fx.Node:
        return emitter.host.call(function, *args)

    def emitted(self, emitter: Emitter, pair: tuple[Expression, Expression], known: Any) -> Any:
        return Emitter(emitter.host, None, emitter.sizes, known={pair[0]: known}).emit(pair[1])

    def joined(
        self, at: Emitter, name: str, operand: Any, other: Any, count: int, product: fx.Node
    ) -> Any:
        """New keys or values by themselves; ``product`` takes the own ones as they are now."""
        if name not in self.program.changed:
            return None
        known = self.call(at, by_heads, operand, other, name, self.heads)
        given = known if self.own or not count else self.call(at, none_of, known)
        made = self.emitted(at, self.program.operands[name], given)
        if self.own or not count:
            own = self.call(at, behind, made, count)
            own = self.call(at, in_place, own, operand, other, name, self.heads, 0)
            product.replace_input_with(operand, own)
        if not count:
            return None
        return self.call(at, in_place, made, operand, other, name, self.heads, count)

    def again(self, at: Emitter, product: fx.Node, one: Any, other: Any) -> fx.Node:
        """The product of other values, without what is added to it."""
        result = self.call(at, torch.matmul, one, other)
        scale = product.kwargs.get("alpha", 1)
        return result if scale == 1 else self.call(at, torch.mul, result, scale)

    def followed(self, at: Emitter, first: fx.Node, steps: list[fx.Node], new: Any) -> Any:
        """``new`` scores or weights behind the steps that the own ones take from ``first`` on."""
        before, host = first, cast("Any", at.host)
        for node in steps:
            of = kind_of(self.model, node)
            others = [n for n in node.all_input_nodes if n is not before]
            if node.op == "call_module":
                new = host.submodule(str(node.target), new)
            elif of in VIEWS:
                new = self.call(at, viewed_as, new, node)
            elif of in ALIKE or of in MOVES or not (others or of == "getitem"):
                new = host.again(node, before, new)
            elif of in SCALED and len(others) == 1:
                new = self.call(at, scaled, new, others[0], node, of == "div")
            else:
                new = self.call(at, repeated_as, new, node)
            before = node
        return new
