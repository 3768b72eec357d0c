"""The eager host: grafts on the modules of a model, in place, by changing their classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx, nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.modules import all_modules, module_at
from surgery.anatomy.site import Memory, Port, Tokens, covers
from surgery.graft import fastpath
from surgery.graft.channel import Slot
from surgery.graft.design import Design, Part, StackPart, StackRole, path_free
from surgery.graft.generate import adapted_class, base_class, is_adapted
from surgery.graft.graphs.forward import write_forward
from surgery.graft.graphs.held import Held
from surgery.graft.sites import SiteMethods, sites_of
from surgery.graft.state import Surgery
from surgery.graft.structure import set_class
from surgery.graft.tokens.memory import MemorySlots, memory_slots
from surgery.graft.tokens.sequences import token_slots
from surgery.graft.weights.effective import write_effective
from surgery.huggingface import generation
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.layers import native_layer
from surgery.rules.prompts import TokenChange, token_change

PREFIX = "_surgery_"
_CLASSES: dict[tuple[type[nn.Module], Layer | None, Design], type[nn.Module]] = {}


class _Wiring:
    """Which module runs which parts, and which values pass between modules."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.parts: dict[str, list[Part]] = {}
        self.cores: dict[str, list[Part]] = {}
        self.read: dict[str, list[Part]] = {}
        self.writes: dict[str, list[tuple[str, Port]]] = {}
        self.opens: dict[str, list[str]] = {}
        self.empties: dict[str, bool] = {}
        self.masks: dict[tuple[Port, str], Slot] = {}
        self.stacks: dict[str, list[StackPart]] = {}
        self.attributes: dict[str, dict[str, object]] = {}

    def add(self, methods: SiteMethods) -> None:
        edit, program, core = methods.first, methods.program, methods.core
        if isinstance(edit.site.operator, Tokens):
            self.stack(methods, edit.site.operator)
            return
        if edit.layer and edit.layer.read:
            part = self.part(methods, edit.owner, inside=True)
            self.read.setdefault(edit.owner, []).append(part)
            return
        path, apart = edit.site.exit.path, core is not None and not methods.is_own
        if not apart or program.changes_result:
            part = self.part(methods, path, None if apart else core)
            parts = self.parts.setdefault(path, [])
            parts.insert(0, part) if part.own else parts.append(part)
            if core is not None and not apart:
                self.cores.setdefault(path, []).append(part)
        # BERT: the core of a region runs in another module than that at which the region ends.
        if core is not None and apart:
            part = self.part(methods, core.path, core)
            self.cores.setdefault(core.path, []).append(part)

    def stack(self, methods: SiteMethods, tokens: Tokens) -> None:
        """The modules that take part in what becomes of a stack's tokens."""
        part = self.part(methods, tokens.reader)
        change = token_change(part.program.result, dict(part.sizes))
        seen = tokens.memory if change.joined > change.unseen else None
        memory = memory_slots(self.model, seen, change.joined) if seen else None
        shared = token_slots(self.model, tokens, memory)
        self.open(tokens.reader, *shared.open)
        ports = {"embedding": methods.first.site.entry, "exit": tokens.exit}
        roles: dict[str, StackPart] = {}
        for path, role in self._roles(tokens, change, seen):
            own = part if role == "reader" else None
            places = tuple(token for token, _ in change.places) if role == "embedding" else ()
            name = self.give(path, "stack", shared)
            port = replace(ports.get(role) or Port("", "output"), path="")
            roles[path] = StackPart(role, name, port, own, places)
        if seen and memory:
            self._memory(seen, memory)
        for path, stack in roles.items():
            self.stacks.setdefault(path, []).append(stack)

    def _memory(self, memory: Memory, shared: MemorySlots) -> None:
        """The modules through which a decoder sees the tokens of its encoder."""
        self.open(memory.reader, shared.seen)
        self.open(memory.around, shared.states)
        parts: tuple[tuple[str, StackRole], ...] = (
            (memory.reader, "decoder"),
            (memory.around, "around"),
        )
        for path, role in parts:
            stack = StackPart(role, self.give(path, "stack", shared), Port("", "output"))
            self.stacks.setdefault(path, []).append(stack)

    def _roles(
        self, tokens: Tokens, change: TokenChange, seen: Memory | None
    ) -> Iterator[tuple[str, StackRole]]:
        yield tokens.reader, "reader"
        if change.prompts or change.places:
            yield tokens.embedding, "embedding"
        dropped = change.prompts and (not seen or seen.apart)
        if dropped and tokens.exit and tokens.exit.path != tokens.reader:
            yield tokens.exit.path, "exit"

    def give(self, path: str, kind: str, value: object) -> str:
        """Let the module at ``path`` have ``value`` as an attribute; its name."""
        given = self.attributes.setdefault(path, {})
        for name, known in given.items():
            if known is value:
                return name
        name = next(n for i in range(1000) if (n := f"{PREFIX}{kind}{i}") not in given)
        given[name] = value
        return name

    def part(
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
            slots.append(("x", self.states(site.entry, path)))
        if methods.residual:
            slots.append(("residual", self.states(methods.residual, path)))
        if methods.mask:
            slots.append(("real", self.mask(methods.mask, path)))
        if site.states.sequences:
            slots.append(("sequences", self.states(site.states.sequences, path)))
        if methods.norm:
            slots.append(("norm", self.hold(methods.norm, path)))
        sizes = tuple(methods.first.sizes.items())
        return Part(program, path_free(site, core), sizes, tuple(slots))

    def design(self, path: str) -> Design:
        """What becomes of the class of the module at ``path``."""
        return Design(
            tuple(self.parts.get(path, ())),
            tuple(self.cores.get(path, ())),
            tuple(self.writes.get(path, ())),
            tuple(self.stacks.get(path, ())),
            tuple(self.read.get(path, ())),
            tuple(self.opens.get(path, ())),
            self.empties.get(path),
        )

    def states(self, source: Port, reader: str) -> str:
        """A slot for the states at ``source``, which the module at ``reader`` takes; its name there."""
        kind = (
            f"the {source.side} of `{source.path}`" if source.path else f"the model's {source.side}"
        )
        slot = Slot(kind)
        self.write(source, slot)
        self.open(self.around(source.path, reader), slot)
        return self.give(reader, "slot", slot)

    def mask(self, source: Port, reader: str) -> str:
        """The slot for the mask at ``source``, at which the module at ``reader`` looks."""
        around = self.around(source.path, reader)
        slot = self.masks.get((source, around))
        if slot is None:
            owner = f"`{source.path}`" if source.path else "the model"
            slot = self.masks[source, around] = Slot(f"`{source.argument}` of {owner}", again=True)
            self.write(source, slot)
            self.open(around, slot)
        return self.give(reader, "slot", slot)

    def write(self, source: Port, slot: Slot) -> None:
        name = self.give(source.path, "slot", slot)
        self.writes.setdefault(source.path, []).append((name, replace(source, path="")))

    def open(self, path: str, *slots: Slot) -> None:
        """Have ``slots`` open while the module at ``path`` runs."""
        names = [self.give(path, "slot", slot) for slot in slots]
        self.opens.setdefault(path, []).extend(names)

    def around(self, one: str, other: str) -> str:
        """The lowest module with a forward that is, or has in it, both."""
        path = one
        while path and not (covers(path, other) and _runs(module_at(self.model, path))):
            path = path.rpartition(".")[0]
        return path

    def hold(self, norm: str, reader: str) -> str:
        return self.give(reader, "norm", Held(module_at(self.model, norm)))


def install(model: nn.Module, surgery: Surgery) -> None:
    """Make the modules of ``model`` run what ``surgery`` records; parameters are in place."""
    wiring = _Wiring(model)
    for methods in sites_of(surgery).values():
        wiring.add(methods)
    for path, given in wiring.attributes.items():
        module_at(model, path).__dict__.update(given)
    adapted = [*wiring.parts, *wiring.cores, *wiring.read, *wiring.stacks]
    wiring.empties = fastpath.emptying(model, adapted)
    changed = (
        wiring.parts,
        wiring.cores,
        wiring.writes,
        wiring.read,
        wiring.stacks,
        wiring.opens,
        wiring.empties,
    )
    for path in dict.fromkeys(path for paths in changed for path in paths):
        module = module_at(model, path)
        set_class(module, _class_for(module, wiring.design(path)))
    fastpath.close(model, adapted)
    parts = (p for found in (wiring.parts, wiring.cores) for ps in found.values() for p in ps)
    # A gate that averages over tokens reads the plain mask as well.
    if wiring.stacks or any("real" in dict(p.slots) for p in parts):
        generation.keep_plain(model)


def _runs(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _class_for(module: nn.Module, design: Design) -> type[nn.Module]:
    base = base_class(module)
    own = next((p for p in design.parts if p.own), None)
    layer = own.layer if own else native_layer(module)
    key = (base, layer, design)
    if key not in _CLASSES:
        built = write_forward(base, layer, design)
        properties: dict[str, fx.Graph] = {}
        for part in design.read:
            read, functions = write_effective(part)
            properties |= read
            built.functions |= functions
        _CLASSES[key] = adapted_class(
            base, built.graph, built.functions, properties, tuple(built.cores), design.opens
        )
    return _CLASSES[key]


def uninstall(model: nn.Module) -> None:
    """Give every module its own class back; parameters that were added stay where they are.

    Raises:
        SurgeryError: S526 if one has got a class on top of the adapted one, which stays then.

    """
    modules = all_modules(model)
    fastpath.reopen(modules)
    generation.undo(modules)
    plain: set[type[nn.Module]] = set()
    for module in modules:
        if type(module) in plain:
            continue
        if is_adapted(module):
            set_class(module, base_class(module))
            for name in [n for n in module.__dict__ if n.startswith(PREFIX)]:
                del module.__dict__[name]
        elif not hasattr(type(module), "surgery_base"):
            plain.add(type(module))
        else:
            raise error(
                "S526",
                f"the class of an adapted layer was replaced since: {type(module).__name__}",
                help="take it off first (`remove_parametrizations`), or apply the spec after it",
            )
