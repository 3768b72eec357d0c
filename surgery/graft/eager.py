"""The eager host: grafts on the modules of a model, in place, by changing their classes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from torch import fx, nn

from surgery.anatomy.site import Port
from surgery.graft import fastpath
from surgery.graft.container import Graft
from surgery.graft.forward import Design, Part, write_effective, write_forward
from surgery.graft.generate import adapted_class, base_class, is_adapted
from surgery.graft.kernels import Held, Tap
from surgery.graft.sites import Site, sites_of
from surgery.graft.state import Surgery
from surgery.planning.layers import Layer, read_layer

PREFIX = "_surgery_"
_CLASSES: dict[tuple[type[nn.Module], Layer | None, Design], type[nn.Module]] = {}


class _Wiring:
    """Which module runs which parts, and which values pass between modules."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.parts: dict[str, list[Part]] = {}
        self.read: dict[str, list[Part]] = {}
        self.writes: dict[str, list[tuple[str, Port]]] = {}
        self.attributes: list[tuple[str, str, object]] = []

    def add(self, site: Site) -> None:
        edit, program = site.edits[0], site.program
        if edit.layer and edit.layer.read:
            self.read.setdefault(edit.owner, []).append(self.part(site, edit.owner))
            return
        core = next((e.core for e in site.edits if e.core), None)
        apart = core is not None and not site.is_own
        if not apart or program.changes_result:
            part = self.part(site, edit.exit.path)
            self.put(edit.exit.path, replace(part, core=None if apart else core))
        if core is not None and apart:
            part = self.part(site, core.path)
            self.put(core.path, replace(part, own=False, core=core, gives_result=False))

    def part(self, site: Site, path: str) -> Part:
        """The program of ``site`` as it runs at ``path``, with what it needs from elsewhere."""
        edit, program = site.edits[0], site.program
        taps: list[tuple[str, str]] = []
        if not site.is_own and any(e.reads("x") for e in program.changed):
            taps.append(("x", self.tap(edit.entry, path)))
        for name in ("residual", "real"):
            port = next((p for e in site.edits if (p := getattr(e, name))), None)
            if port:
                taps.append((name, self.tap(port, path)))
        norm = next((e.norm for e in site.edits if e.norm), None)
        held = self.hold(norm, path) if norm else None
        return Part(
            program,
            edit.layer,
            tuple(edit.sizes.items()),
            edit.features,
            edit.rank,
            site.is_own,
            replace(edit.entry, path=""),
            replace(edit.exit, path=""),
            tuple(taps),
            held,
        )

    def design(self, path: str) -> Design:
        parts, read = (tuple(table.get(path, ())) for table in (self.parts, self.read))
        return Design(parts, tuple(self.writes.get(path, ())), read)

    def put(self, path: str, part: Part) -> None:
        parts = self.parts.setdefault(path, [])
        parts.insert(0, part) if part.own else parts.append(part)

    def name(self, path: str, kind: str) -> str:
        taken = {name for p, name, _ in self.attributes if p == path}
        return next(n for i in range(1000) if (n := f"{PREFIX}{kind}{i}") not in taken)

    def tap(self, source: Port, reader: str) -> str:
        tap = Tap()
        written, read = self.name(source.path, "tap"), ""
        self.attributes.append((source.path, written, tap))
        self.writes.setdefault(source.path, []).append((written, replace(source, path="")))
        read = self.name(reader, "tap")
        self.attributes.append((reader, read, tap))
        return read

    def hold(self, norm: str, reader: str) -> str:
        name = self.name(reader, "norm")
        self.attributes.append((reader, name, Held(self.model.get_submodule(norm))))
        return name


def install(model: nn.Module, surgery: Surgery) -> None:
    """Make the modules of ``model`` run what ``surgery`` records; parameters are in place."""
    wiring = _Wiring(model)
    for site in sites_of(surgery).values():
        wiring.add(site)
    for path, name, value in wiring.attributes:
        model.get_submodule(path).__dict__[name] = value
    for path in dict.fromkeys([*wiring.parts, *wiring.writes, *wiring.read]):
        module = model.get_submodule(path)
        module.__class__ = _class_for(module, wiring.design(path))
    fastpath.close(model, [*wiring.parts, *wiring.read])


def _class_for(module: nn.Module, design: Design) -> type[nn.Module]:
    base = base_class(module)
    own = next((p for p in design.parts if p.own), None)
    layer = own.layer if own else read_layer(module)
    key = (base, layer, design)
    if key not in _CLASSES:
        built = write_forward(base, layer, design)
        properties: dict[str, fx.Graph] = {}
        for part in design.read:
            read, functions = write_effective(part)
            properties |= read
            built.functions |= functions
        _CLASSES[key] = adapted_class(
            base, built.graph, built.functions, properties, tuple(built.cores)
        )
    return _CLASSES[key]


def uninstall(model: nn.Module) -> None:
    """Give every module its own class back; parameters that were added stay where they are."""
    fastpath.reopen(model)
    for module in model.modules():
        if is_adapted(module):
            module.__class__ = base_class(module)
        for name in [n for n in module.__dict__ if n.startswith(PREFIX)]:
            del module.__dict__[name]


@contextmanager
def detached(model: nn.Module) -> Generator[None]:
    """The base model inside: without adapted classes and without the added parameters."""
    named = cast("list[tuple[str, nn.Module]]", list(model.named_modules()))  # pyright: ignore[reportUnknownArgumentType]
    adapted = [path for path, module in named if is_adapted(module)]
    classes = [(m, type(m)) for m in model.modules() if is_adapted(m)]
    children = [
        (m, dict(m._modules))
        for m in model.modules()
        if any(isinstance(c, Graft) for c in m._modules.values()) and not isinstance(m, Graft)
    ]
    try:
        for module, _ in classes:
            module.__class__ = base_class(module)
        for module, every in children:
            for name, child in every.items():
                if isinstance(child, Graft):
                    del module._modules[name]
        fastpath.reopen(model)
        yield
    finally:
        fastpath.close(model, adapted)
        for module, cls in classes:
            module.__class__ = cls
        for module, every in children:
            module._modules.clear()
            module._modules.update(every)
