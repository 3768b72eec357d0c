"""Who uses which parameter in a recorded forward, and what of it reaches what the model returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from surgery.anatomy.graph import (
    Access,
    ModuleCall,
    Recording,
    argument_of,
    before_of,
    call_of,
    index_of,
    inputs_of,
    kind_of,
    maker_of,
    shape_of,
    storage_of,
)
from surgery.anatomy.paths import Paths
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
class ParameterUse:
    """An operator that takes a parameter, and the path of the module that ran it.

    Where it is the weight of a product, [out, into] or ``transposed``, ``states`` are the dims of
    what it is multiplied with; these are [length, batch, features] if ``length_first``.
    """

    op: Node
    reader: str
    states: int | None = None
    transposed: bool = False
    length_first: bool = False


class ParameterUses:
    """All that one recording tells of who takes part in the result."""

    def __init__(self, recording: Recording, paths: Paths):
        self.recording = recording
        self.paths = paths

    @cached_property
    def certain(self) -> bool:
        """Whether all that leads to the result was seen."""
        return self.recording.followed and not any(map(self._unknown, self._reaching[0]))

    @cached_property
    def _reaching(self) -> tuple[set[Node], set[Node]]:
        """The values and the operators that something the model returns, or keeps, depends on."""
        return self._back(set()) if self._closed else self._training

    @cached_property
    def _training(self) -> tuple[set[Node], set[Node]]:
        """The same by degrees: those to which gradients lead, as far as can be told."""
        return self._back(self._closed)

    @cached_property
    def _closed(self) -> set[Node]:
        """The operators through which no gradient comes back."""
        blind = self.recording.blind
        if blind is None:
            return set()
        cuts = (op for op in self.recording.ops if kind_of(op) in _CUTS)
        return {op for op in blind if not self._casts(op)}.union(cuts)

    def _casts(self, op: Node) -> bool:
        """Whether an operator gives a parameter another type, as `module.to(dtype)` does."""
        return kind_of(op) in _CASTS and any(v in self.recording.parameters for v in inputs_of(op))

    def _back(self, closed: set[Node]) -> tuple[set[Node], set[Node]]:
        """The values and operators behind what leaves the forward, but for those ``closed``.

        What is written to memory is taken to reach all that show this memory, at any time: rather
        too much than too little.
        """
        recording, writers = self.recording, self._writes
        calls = recording.calls
        returned = {value for _, value in calls[0].outputs} if calls else set[Node]()
        # The model holds what is its own, whoever uses it.
        values = returned | {value for value in recording.kept if maker_of(value) is not None}
        ops: set[Node] = set()
        waiting = list(values)
        for value in waiting:
            before = before_of(value)
            fresh = [before] if before is not None and before not in values else list[Node]()
            for op in (maker_of(value), *writers.get(storage_of(value), ())):
                if op is None or op in ops or op in closed:
                    continue
                ops.add(op)
                if kind_of(op) not in BLANKS:
                    fresh += [v for v in inputs_of(op) if v not in values]
            values.update(fresh)
            waiting += fresh
        return values, ops

    def _unknown(self, value: Node) -> bool:
        """Whether ``value`` was made, or filled, where nothing was seen of it."""
        maker = maker_of(value)
        if maker is None:
            return value in self.recording.strangers
        if kind_of(maker) in _EMPTY:
            return storage_of(value) not in self._writes and 0 not in shape_of(value)
        return False

    @cached_property
    def _writes(self) -> dict[int, dict[Node, None]]:
        """The operators that made what lies in a memory, where these were several."""
        found: dict[int, dict[Node, None]] = {}
        first: dict[int, Node] = {}
        for value in self.recording.values:
            place, maker = storage_of(value), maker_of(value)
            if maker is not None and place >= 0:
                one = first.setdefault(place, maker)
                if one is not maker:
                    found.setdefault(place, {one: None})[maker] = None
        return found

    @cached_property
    def live(self) -> frozenset[str]:
        """The modules that were called, and gave what gradients come back from."""
        values, ops = self._training
        return frozenset(call.path for call in self.recording.calls if _gives(call, values, ops))

    @cached_property
    def read_outside(self) -> frozenset[str]:
        """The parameters, by their first name, that others use than the modules that have them."""
        return frozenset(name for name in self._uses if self.outside(name))

    def calls(self, path: str) -> list[ModuleCall]:
        """The runs of the module at ``path``."""
        return self.recording.calls_of.get(self.paths.canonical(path), [])

    def runs(self, path: str) -> bool:
        """Whether the module at ``path`` ran."""
        return bool(self.calls(path)) or self.paths.canonical(path) in self.recording.direct

    def reaches(self, path: str, training: bool = False) -> bool:
        """Whether anything that a run of the module at ``path`` gave, or did, reaches the result.

        A module whose result is no tensor may do its work in what it holds. For ``training`` it is
        to reach it in a way that gradients come back.
        """
        values, ops = self._training if training else self._reaching
        if self.paths.canonical(path) in self.recording.direct:
            return True
        for call in self.calls(path):
            if _gives(call, values, ops):
                return True
            inside = self.recording.ops[call.first : call.last + 1]
            if not call.outputs and any(op in ops for op in inside):
                return True
        return False

    def acts(self, name: str, training: bool = False, alone: bool = False) -> bool:
        """The same of the parameter ``name``; ``alone`` of it as it is taken by that name."""
        values, ops = self._training if training else self._reaching
        if not alone and any(v in values and self._is(v, name) for v in self.recording.parameters):
            return True
        live = [use for use in self.of(name) if use.op in ops]
        return any(self._takes(use, name) for use in live) if alone else bool(live)

    def of(self, name: str) -> tuple[ParameterUse, ...]:
        """The uses of the parameter ``name``, by whatever name it was taken."""
        return tuple(self._uses.get(self.paths.canonical(name), ()))

    def outside(self, name: str) -> tuple[ParameterUse, ...]:
        """Those by others than the modules that have it, and what these call."""
        owners = self._owners(name)
        if not owners.isdisjoint(self.recording.direct) and not self.taken(name):
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
        for one in self.recording.accesses:
            found.setdefault(f"{one.path}.{one.name}".lstrip("."), []).append(one)
        return found

    def _takes(self, use: ParameterUse, name: str) -> bool:
        """Whether a use of a parameter with several names was by this one: the last one taken."""
        last = {
            other: max(
                (a.before for a in self._accesses.get(other, ()) if a.before <= index_of(use.op)),
                default=-1,
            )
            for other in self.paths.of(self.paths.parameters[name])
        }
        return last[name] == max(last.values())

    def _owner(self, name: str) -> str:
        return self.paths.canonical(name.rpartition(".")[0])

    def _owners(self, name: str) -> set[str]:
        names = self.paths.of(self.paths.parameters[name]) if name in self.paths.parameters else ()
        return {self._owner(n) for n in names}

    def _within(self, op: Node, owners: Iterable[str]) -> bool:
        return self._below(call_of(op), set(owners))

    def _below(self, call: int, owners: set[str]) -> bool:
        return any(around.path in owners for around in self.recording.stack(call))

    def _is(self, value: Node, name: str) -> bool:
        return self.recording.parameters[value] == self.paths.canonical(name)

    @cached_property
    def _uses(self) -> dict[str, list[ParameterUse]]:
        found: dict[str, list[ParameterUse]] = {}
        for op in self.recording.ops:
            if kind_of(op) in BLANKS:
                continue
            for value in dict.fromkeys(inputs_of(op)):
                name = self.recording.parameters.get(value)
                if name is not None:
                    found.setdefault(name, []).extend(self._used(op, value))
        return found

    def _used(self, op: Node, value: Node) -> list[ParameterUse]:
        """How an operator uses a parameter that it is given, in each place where it is."""
        kind, reader = kind_of(op), self.recording.calls[call_of(op)].path
        if kind == "multi_head_attention_forward":
            return [
                ParameterUse(op, reader, states, length_first=states == 3)
                for places, states in ((_PROJECTIONS, 3), (_OUTPUT, 2))
                if any(_given(op, at, keyword) == value for at, keyword in places.items())
            ] or [ParameterUse(op, reader)]
        operands = operands_of(op, kind) if kind in _PRODUCTS else []
        if len(operands) == 2 and operands.count(value) == 1:
            at, shapes = operands.index(value), [shape_of(v) for v in operands]
            if kind == "einsum" and len(inputs_of(op)) == 2:
                ranks = (len(shapes[0]), len(shapes[1]))
                matrix = contracted(str(op.args[0]), ranks, at, shapes[at])
                if matrix is not None:
                    return [ParameterUse(op, reader, matrix.states, matrix.kind.transposed)]
            elif kind != "einsum" and at == 1 and len(shapes[1]) == 2:
                return [ParameterUse(op, reader, len(shapes[0]), kind != "linear")]
        return [ParameterUse(op, reader)]


def _given(op: Node, at: int, keyword: str) -> Node | None:
    found = argument_of(op, at, keyword)
    return found if isinstance(found, Node) else None


def _gives(call: ModuleCall, values: set[Node], ops: set[Node]) -> bool:
    """Whether any of ``values`` is what ``call`` gave, made by one of ``ops`` or there before."""
    made = ((value, maker_of(value)) for _, value in call.outputs)
    return any(value in values and (maker is None or maker in ops) for value, maker in made)
