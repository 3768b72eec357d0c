"""Who uses which parameter in a recorded forward, and what of it reaches what the model returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from surgery.anatomy.paths import Paths
from surgery.anatomy.record import Access, Call, Op, Record, Value
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.roles.linears import operands_of
from surgery.anatomy.roles.operators import BLANKS
from surgery.anatomy.roles.weights import contracted

_EMPTY = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"))
_CASTS = frozenset(("to", "type", "float", "half", "bfloat16", "double"))
_CUTS = frozenset(("detach", "data"))
_PRODUCTS = frozenset(("linear", "matmul", "mm", "einsum"))
_PROJECTIONS = {18: "q_proj_weight", 19: "k_proj_weight", 20: "v_proj_weight"}
_OUTPUT = {11: "out_proj_weight"}


@dataclass(frozen=True, slots=True)
class Use:
    """An operator that takes a parameter, and the path of the module that ran it.

    Where it is the weight of a product, [out, into] or ``transposed``, ``states`` are the dims of
    what it is multiplied with; these are ``turned`` where the operator has the length first.
    """

    op: int
    reader: str
    states: int | None = None
    transposed: bool = False
    turned: bool = False


class Uses:
    """All that one record tells of who takes part in the result."""

    def __init__(self, record: Record, paths: Paths):
        self.record = record
        self.paths = paths
        self.flow = Flow(record, paths)

    @cached_property
    def certain(self) -> bool:
        """Whether all that leads to the result was seen."""
        return self.record.followed and not any(map(self._unknown, self._reaching[0]))

    @cached_property
    def _reaching(self) -> tuple[set[int], set[int]]:
        """The values and the operators that something the model returns, or keeps, depends on."""
        return self._back(set()) if self._closed else self._training

    @cached_property
    def _training(self) -> tuple[set[int], set[int]]:
        """The same by degrees: those to which gradients lead, as far as can be told."""
        return self._back(self._closed)

    @cached_property
    def _closed(self) -> set[int]:
        """The operators through which no gradient comes back."""
        blind = self.record.blind
        if blind is None:
            return set()
        cuts = (i for i, kind in enumerate(self.flow.kinds) if kind in _CUTS)
        return {i for i in blind if not self._casts(i)}.union(cuts)

    def _casts(self, index: int) -> bool:
        """Whether an operator gives a parameter another type, as `module.to(dtype)` does."""
        inputs = self.record.ops[index].inputs
        cast = self.flow.kinds[index] in _CASTS
        return cast and any(value in self.record.parameters for value in inputs)

    def _back(self, closed: set[int]) -> tuple[set[int], set[int]]:
        """The values and operators behind what leaves the forward, but for those ``closed``.

        What is written to memory is taken to reach all that show this memory, at any time: rather
        too much than too little.
        """
        record, kinds = self.record, self.flow.kinds
        returned = {value for _, value in record.calls[0].outputs} if record.calls else set[int]()
        # The model holds what is its own, whoever uses it.
        values = returned | {value for value in record.kept if record.producer[value] >= 0}
        ops: set[int] = set()
        waiting = list(values)
        writers, storages, producer = self._writes, record.storages, record.producer
        for value in waiting:
            if producer[value] < 0 and storages[value] not in writers:
                continue
            for index in (producer[value], *writers.get(storages[value], ())):
                if index < 0 or index in ops or index in closed:
                    continue
                ops.add(index)
                if kinds[index] not in BLANKS:
                    fresh = [v for v in record.ops[index].inputs if v not in values]
                    values.update(fresh)
                    waiting += fresh
        return values, ops

    def _unknown(self, value: int) -> bool:
        """Whether ``value`` was made, or filled, where nothing was seen of it."""
        record = self.record
        producer = record.producer[value]
        if producer < 0:
            return value in record.strangers
        if self.flow.kinds[producer] in _EMPTY:
            return record.storages[value] not in self._writes and 0 not in record.shapes[value]
        return False

    @cached_property
    def _writes(self) -> dict[int, set[int]]:
        """The operators that made what lies in a memory, where these were several."""
        found: dict[int, set[int]] = {}
        first: dict[int, int] = {}
        storages = self.record.storages
        for value, producer in enumerate(self.record.producer):
            place = storages[value]
            if producer >= 0 and place >= 0:
                one = first.setdefault(place, producer)
                if one != producer:
                    found.setdefault(place, {one}).add(producer)
        return found

    @cached_property
    def live(self) -> frozenset[str]:
        """The modules that were called, and gave what gradients come back from."""
        values, ops = self._training
        producer = self.record.producer
        return frozenset(
            call.path
            for call in self.record.calls
            if any(v in values and (producer[v] in ops or producer[v] < 0) for _, v in call.outputs)
        )

    @cached_property
    def read_outside(self) -> frozenset[str]:
        """The parameters, by their first name, that others use than the modules that have them."""
        return frozenset(name for name in self._uses if self.outside(name))

    def calls(self, path: str) -> list[Call]:
        """The runs of the module at ``path``."""
        return self.record.calls_of.get(self.paths.canonical(path), [])

    def runs(self, path: str) -> bool:
        """Whether the module at ``path`` ran."""
        return bool(self.calls(path)) or self.paths.canonical(path) in self.record.direct

    def reaches(self, path: str, training: bool = False) -> bool:
        """Whether anything that a run of the module at ``path`` gave, or did, reaches the result.

        A module whose result is no tensor may do its work in what it holds. For ``training`` it is
        to reach it in a way that gradients come back.
        """
        values, ops = self._training if training else self._reaching
        if self.paths.canonical(path) in self.record.direct:
            return True
        for call in self.calls(path):
            made = {value: self.record.producer[value] for _, value in call.outputs}
            if any(
                v in values and (producer in ops or producer < 0) for v, producer in made.items()
            ):
                return True
            inside = range(call.first, call.last + 1)
            if not call.outputs and any(index in ops for index in inside):
                return True
        return False

    def acts(self, name: str, training: bool = False, alone: bool = False) -> bool:
        """The same of the parameter ``name``; ``alone`` of it as it is taken by that name."""
        values, ops = self._training if training else self._reaching
        if not alone and any(v in values and self._is(v, name) for v in self.record.parameters):
            return True
        live = [use for use in self.of(name) if use.op in ops]
        return any(self._takes(use, name) for use in live) if alone else bool(live)

    def of(self, name: str) -> tuple[Use, ...]:
        """The uses of the parameter ``name``, by whatever name it was taken."""
        return tuple(self._uses.get(self.paths.canonical(name), ()))

    def outside(self, name: str) -> tuple[Use, ...]:
        """Those by others than the modules that have it, and what these call."""
        owners = self._owners(name)
        if not owners.isdisjoint(self.record.direct) and not self.taken(name):
            return ()
        return tuple(u for u in self.of(name) if not self._within(u.op, owners))

    def taken(self, name: str) -> bool:
        """Whether others take the parameter ``name`` from its module by that very name."""
        owner = {self._owner(name)}
        taken = self._accesses.get(name, ())
        return any(not one.own and not self._below(one.call, owner) for one in taken)

    @cached_property
    def _accesses(self) -> dict[str, list[Access]]:
        found: dict[str, list[Access]] = {}
        for one in self.record.accesses:
            found.setdefault(f"{one.path}.{one.name}".lstrip("."), []).append(one)
        return found

    def _takes(self, use: Use, name: str) -> bool:
        """Whether a use of a parameter with several names was by this one: the last one taken."""
        last = {
            other: max(
                (a.before for a in self._accesses.get(other, ()) if a.before <= use.op), default=-1
            )
            for other in self.paths.of(self.paths.parameters[name])
        }
        return last[name] == max(last.values())

    def _owner(self, name: str) -> str:
        return self.paths.canonical(name.rpartition(".")[0])

    def _owners(self, name: str) -> set[str]:
        names = self.paths.of(self.paths.parameters[name]) if name in self.paths.parameters else ()
        return {self._owner(n) for n in names}

    def _within(self, index: int, owners: Iterable[str]) -> bool:
        return self._below(self.record.ops[index].call, set(owners))

    def _below(self, call: int, owners: set[str]) -> bool:
        return any(around.path in owners for around in self.record.stack(call))

    def _is(self, value: int, name: str) -> bool:
        return self.record.parameters[value] == self.paths.canonical(name)

    @cached_property
    def _uses(self) -> dict[str, list[Use]]:
        found: dict[str, list[Use]] = {}
        for op in self.record.ops:
            if self.flow.kinds[op.index] in BLANKS:
                continue
            for value in dict.fromkeys(op.inputs):
                name = self.record.parameters.get(value)
                if name is not None:
                    found.setdefault(name, []).extend(self._used(op, value))
        return found

    def _used(self, op: Op, value: int) -> list[Use]:
        """How an operator uses a parameter that it is given, in each place where it is."""
        kind, reader = self.flow.kinds[op.index], self.record.calls[op.call].path
        if kind == "multi_head_attention_forward":
            return [
                Use(op.index, reader, states, turned=states == 3)
                for places, states in ((_PROJECTIONS, 3), (_OUTPUT, 2))
                if any(_given(op, at, keyword) == value for at, keyword in places.items())
            ] or [Use(op.index, reader)]
        operands = operands_of(op, kind) if kind in _PRODUCTS else []
        if len(operands) == 2 and operands.count(value) == 1:
            at, shapes = operands.index(value), [self.record.shapes[v] for v in operands]
            if kind == "einsum" and len(op.inputs) == 2:
                ranks = (len(shapes[0]), len(shapes[1]))
                matrix = contracted(str(op.args[0]), ranks, at, shapes[at])
                if matrix is not None:
                    return [Use(op.index, reader, matrix.states, matrix.transposed)]
            elif kind != "einsum" and at == 1 and len(shapes[1]) == 2:
                return [Use(op.index, reader, len(shapes[0]), kind != "linear")]
        return [Use(op.index, reader)]


def _given(op: Op, at: int, keyword: str) -> int | None:
    found = op.args[at] if at < len(op.args) else op.kwargs.get(keyword)
    return found.number if isinstance(found, Value) else None
