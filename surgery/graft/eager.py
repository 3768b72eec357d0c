"""The eager host: grafts on the modules of a model, in place, by changing their classes."""

from __future__ import annotations

from torch import fx, nn

from surgery.anatomy.modules import all_modules, module_at
from surgery.graft import fastpath
from surgery.graft.design import Design
from surgery.graft.generate import adapted_class, base_class, is_adapted
from surgery.graft.graphs.forward import write_forward
from surgery.graft.sites import sites_of
from surgery.graft.state import Surgery
from surgery.graft.structure import set_class
from surgery.graft.weights.effective import write_effective
from surgery.graft.wiring import PREFIX, Wiring
from surgery.huggingface import generation
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.layers import native_layer

_CLASSES: dict[tuple[type[nn.Module], Layer | None, Design], type[nn.Module]] = {}


def install(model: nn.Module, surgery: Surgery) -> None:
    """Make the modules of ``model`` run what ``surgery`` records; parameters are in place."""
    wiring = Wiring(model)
    for methods in sites_of(surgery).values():
        wiring.add(methods)
    modules = wiring.modules
    for path, wired in modules.items():
        module_at(model, path).__dict__.update(wired.given)
    adapted = [path for path, wired in modules.items() if wired.is_adapted]
    empties = fastpath.emptying(model, adapted)
    for path in dict.fromkeys((*modules, *empties)):
        module = module_at(model, path)
        set_class(module, _class_for(module, modules[path].design(empties.get(path))))
    fastpath.close(model, adapted)
    # A gate that averages over tokens reads the plain mask as well.
    if any(wired.reads_masks for wired in modules.values()):
        generation.keep_plain(model)


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
