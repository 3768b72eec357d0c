"""An attention's core written out in a graph: a product, a softmax and a product, as nodes.

Scores of new keys go through what those of the model's own keys do, and join these in the softmax;
what new values add is added to the result. It is what `graft/attention/products.py` does while a
module runs, on nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.roles.operators import BLANKS, kind
from surgery.anatomy.roles.scores import Noted, NotedCall, Scores
from surgery.anatomy.roles.softmaxes import FORMS
from surgery.anatomy.roles.trail import FunctionCall, among
from surgery.anatomy.roles.trails import ALIKE, MOVES, SCALED, VIEWS
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
    """The nodes of one core: its products, its softmax, and what is done between these.

    The softmax is one of the values ``scored``. Where it is ``whole`` it gives the weights, else a total;
    ``aside`` are numbers for all keys that were made of scores.
    """

    product: fx.Node
    scores: list[fx.Node]
    softmax: fx.Node
    whole: bool
    weights: list[fx.Node]
    weighed: fx.Node
    aside: list[fx.Node]

    @property
    def scored(self) -> fx.Node:
        return self.scores[-1] if self.scores else self.product


def written_cores(model: nn.Module, nodes: Sequence[fx.Node]) -> dict[fx.Node, WrittenOut | None]:
    """The cores among ``nodes`` by their softmaxes, in order; None where one cannot be followed."""
    scores = _scores(model, nodes)
    found: dict[fx.Node, WrittenOut | None] = {}
    for softmax, trail in scores.softmaxes.items():
        found[softmax] = None
        pairs = [_pair(node) for node in (trail.product, *trail.products)]
        if len(pairs) == 2 and all(pairs):
            (weighed,) = trail.products
            whole = not FORMS[kind_of(model, softmax)].shares
            aside = [value.node for value in (*trail.shifts, *trail.aside)]
            steps = trail.scored or [], scores.weights[weighed]
            found[softmax] = WrittenOut(
                trail.product, steps[0], softmax, whole, steps[1], weighed, aside
            )
    return found


def _scores(model: nn.Module, nodes: Sequence[fx.Node]) -> Scores:
    """The trails of a graph. Nobody has run it: shapes are not known."""
    numbers = {node: number for number, node in enumerate(nodes)}
    values: dict[fx.Node, Noted] = {}

    def value(node: fx.Node) -> Noted:
        if node not in values:
            last = max((numbers.get(user, -1) for user in node.users), default=-1)
            values[node] = Noted(node, None, last)
        return values[node]

    def noted(node: fx.Node) -> NotedCall:
        kind = kind_of(model, node)
        # A constant is no product of states, nor what one is followed to.
        given = [value(n) for n in node.all_input_nodes if n.op != "get_attr"]
        kwargs = dict(node.kwargs)
        if node.op == "call_module":
            kwargs["dim"] = getattr(model.get_submodule(str(node.target)), "dim", None)
        outputs = [value(node)]
        if kind == "setitem":
            outputs = given[:1]  # what is written to is, to those who read it, the same
        elif kind in _SIZES or (kind == "getattr" and node.args[1] in _ATTRIBUTES):
            outputs = []
        return FunctionCall(kind, node, node.args, kwargs, given), outputs

    return Scores(nodes, partial(kind_of, model), noted)


_SIZES = BLANKS | frozenset(("size", "sym_size", "dim", "numel"))
_ATTRIBUTES = ("shape", "dtype", "device", "ndim")
"""Of a tensor these tell no more than its sizes and its dtype."""


def kind_of(model: nn.Module, node: fx.Node) -> str:
    """What ``node`` does, as the anatomy names it; a module goes by its class."""
    if node.op == "call_module":
        name = type(model.get_submodule(str(node.target))).__name__
        return _MODULES.get(name, name.lower())
    return kind_name(node)


_MODULES = {"LogSoftmax": "log_softmax"}


def kind_name(node: fx.Node) -> str:
    """The kind of the function that ``node`` calls, if it does."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return kind(node.target if isinstance(node.target, str) else node.target.__name__)


def _pair(product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that are multiplied."""
    given = list(product.args)
    if kind_name(product) in ("einsum", "baddbmm"):
        given = given[1:]
        given = [*given[0]] if given and isinstance(given[0], list | tuple) else given
    values = [n for n in given if isinstance(n, fx.Node)]
    return (values[0], values[1]) if len(given) == len(values) == 2 else None


def operands_of(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two values of a product that is one of a core."""
    pair = _pair(product)
    assert pair is not None
    return pair


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
        behind = self.emitting({}, found.scored)
        fresh, rest = None, found.scored
        if count:
            new = self.again(behind, found.product, own_query, new_key)
            fresh = self.followed(behind, found.product, found.scores, new)
            both = self.call(behind, with_new, fresh, found.scored)
            found.softmax.replace_input_with(found.scored, both)
        if count and found.whole:
            after = self.emitting({}, found.softmax)
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
            aside = (before, *self.found.aside)
            others = [n for n in node.all_input_nodes if not among(n, aside)]
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
