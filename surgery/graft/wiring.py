"""Which module of a model runs what, and which values pass between modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.modules import module_at
from surgery.anatomy.site import Memory, Port, Tokens, covers
from surgery.graft.channel import Slot
from surgery.graft.design import Design, Part, StackPart, StackRole, path_free
from surgery.graft.graphs.held import Held
from surgery.graft.sites import SiteMethods
from surgery.graft.tokens.memory import MemorySlots, memory_slots
from surgery.graft.tokens.sequences import token_slots
from surgery.rules.prompts import TokenChange, token_change

PREFIX = "_surgery_"


@dataclass
class ModuleWiring:
    """What one module is to run (see `Design`), and the attributes that it is given for it."""

    parts: list[Part] = field(default_factory=list[Part])
    cores: list[Part] = field(default_factory=list[Part])
    writes: list[tuple[str, Port]] = field(default_factory=list[tuple[str, Port]])
    stacks: list[StackPart] = field(default_factory=list[StackPart])
    read: list[Part] = field(default_factory=list[Part])
    opens: list[str] = field(default_factory=list[str])
    given: dict[str, object] = field(default_factory=dict[str, object])

    def give(self, kind: str, value: object) -> str:
        """Let the module have ``value`` as an attribute; its name."""
        for name, known in self.given.items():
            if known is value:
                return name
        name = next(n for i in range(1000) if (n := f"{PREFIX}{kind}{i}") not in self.given)
        self.given[name] = value
        return name

    @property
    def is_adapted(self) -> bool:
        """Whether it does something else than before, and not only passes values on."""
        return bool(self.parts or self.cores or self.read or self.stacks)

    @property
    def reads_masks(self) -> bool:
        """Whether it takes part in what tells tokens from padding."""
        slots = (dict(part.slots) for part in (*self.parts, *self.cores))
        return bool(self.stacks) or any("real" in names for names in slots)

    def design(self, empties: bool | None) -> Design:
        """What becomes of the module's class."""
        return Design(
            tuple(self.parts),
            tuple(self.cores),
            tuple(self.writes),
            tuple(self.stacks),
            tuple(self.read),
            tuple(self.opens),
            empties,
        )


class Wiring:
    """The wiring of all ``modules`` of a model that take part, by path."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.modules: defaultdict[str, ModuleWiring] = defaultdict(ModuleWiring)
        self.masks: dict[tuple[Port, str], Slot] = {}

    def add(self, methods: SiteMethods) -> None:
        """Have modules run the program of one site."""
        site, core = methods.site, methods.core
        if isinstance(site.operator, Tokens):
            self._stack(methods, site.operator)
            return
        if site.layer and site.layer.read:
            self.modules[site.owner].read.append(self._part(methods, site.owner, inside=True))
            return
        path, apart = site.exit.path, core is not None and not methods.is_own
        if not apart or methods.program.changes_result:
            part, parts = (
                self._part(methods, path, None if apart else core),
                self.modules[path].parts,
            )
            parts.insert(0, part) if part.own else parts.append(part)
            self.modules[path].cores += [part] if core and not apart else []
        # BERT: the core of a region runs in another module than that at which the region ends.
        if core is not None and apart:
            self.modules[core.path].cores.append(self._part(methods, core.path, core))

    def _part(
        self,
        methods: SiteMethods,
        path: str,
        core: AttentionCore | None = None,
        inside: bool = False,
    ) -> Part:
        """The program of a site as it runs at ``path``, with what it needs from elsewhere.

        It changes the ``core`` there, if one is given. ``inside`` the forward of the module at
        ``path`` its input is at hand.
        """
        program, site = methods.program, methods.site
        slots: list[tuple[str, str]] = []
        if not (inside or methods.is_own) and any(e.reads("x") for e in program.changed):
            slots.append(("x", self._states(site.entry, path)))
        if methods.residual:
            slots.append(("residual", self._states(methods.residual, path)))
        if methods.mask:
            slots.append(("real", self._mask(methods.mask, path)))
        if site.states.sequences:
            slots.append(("sequences", self._states(site.states.sequences, path)))
        if methods.norm:
            norm = Held(module_at(self.model, methods.norm))
            slots.append(("norm", self.modules[path].give("norm", norm)))
        sizes = tuple(methods.first.sizes.items())
        return Part(program, path_free(site, core), sizes, tuple(slots))

    # tokens

    def _stack(self, methods: SiteMethods, tokens: Tokens) -> None:
        """Have modules take part in what becomes of a stack's tokens."""
        part = self._part(methods, tokens.reader)
        change = token_change(part.program.result, dict(part.sizes))
        seen = tokens.memory if change.joined > change.unseen else None
        memory = memory_slots(self.model, seen, change.joined) if seen else None
        shared = token_slots(self.model, tokens, memory)
        self._open(tokens.reader, *shared.open)
        ports = {"embedding": methods.site.entry, "exit": tokens.exit}
        roles: dict[str, StackPart] = {}
        for path, role in _roles(tokens, change, seen):
            own = part if role == "reader" else None
            places = tuple(token for token, _ in change.places) if role == "embedding" else ()
            name = self.modules[path].give("stack", shared)
            port = replace(ports.get(role) or Port("", "output"), path="")
            roles[path] = StackPart(role, name, port, own, places)
        if seen and memory:
            self._memory(seen, memory)
        for path, stack in roles.items():
            self.modules[path].stacks.append(stack)

    def _memory(self, memory: Memory, shared: MemorySlots) -> None:
        """Have a decoder see the tokens of its encoder."""
        self._open(memory.reader, shared.seen)
        self._open(memory.around, shared.states)
        parts: tuple[tuple[str, StackRole], ...] = (
            (memory.reader, "decoder"),
            (memory.around, "around"),
        )
        for path, role in parts:
            module = self.modules[path]
            module.stacks.append(StackPart(role, module.give("stack", shared), Port("", "output")))

    # values that pass between modules

    def _states(self, source: Port, reader: str) -> str:
        """A slot for the states at ``source``, which the module at ``reader`` takes; its name there."""
        kind = (
            f"the {source.side} of `{source.path}`" if source.path else f"the model's {source.side}"
        )
        slot = Slot(kind)
        self._write(source, slot)
        self._open(self._around(source.path, reader), slot)
        return self.modules[reader].give("slot", slot)

    def _mask(self, source: Port, reader: str) -> str:
        """The slot for the mask at ``source``, at which the module at ``reader`` looks."""
        around = self._around(source.path, reader)
        slot = self.masks.get((source, around))
        if slot is None:
            owner = f"`{source.path}`" if source.path else "the model"
            slot = self.masks[source, around] = Slot(f"`{source.argument}` of {owner}", again=True)
            self._write(source, slot)
            self._open(around, slot)
        return self.modules[reader].give("slot", slot)

    def _write(self, source: Port, slot: Slot) -> None:
        module = self.modules[source.path]
        module.writes.append((module.give("slot", slot), replace(source, path="")))

    def _open(self, path: str, *slots: Slot) -> None:
        """Have ``slots`` open while the module at ``path`` runs."""
        module = self.modules[path]
        module.opens.extend(module.give("slot", slot) for slot in slots)

    def _around(self, one: str, other: str) -> str:
        """The lowest module with a forward that is, or has in it, both."""
        path = one
        while path and not (covers(path, other) and _runs(module_at(self.model, path))):
            path = path.rpartition(".")[0]
        return path


def _runs(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _roles(
    tokens: Tokens, change: TokenChange, seen: Memory | None
) -> Iterator[tuple[str, StackRole]]:
    """The modules that take part in what becomes of ``tokens``, and how."""
    yield tokens.reader, "reader"
    if change.prompts or change.places:
        yield tokens.embedding, "embedding"
    dropped = change.prompts and (not seen or seen.apart)
    if dropped and tokens.exit and tokens.exit.path != tokens.reader:
        yield tokens.exit.path, "exit"
