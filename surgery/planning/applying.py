"""One method planned at one place, or why it does not fit there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from surgery.anatomy.modules import module_at
from surgery.language.diagnostics import error
from surgery.planning.derived import derive
from surgery.planning.edit import Edit, PlannedMethod, graft_name
from surgery.planning.fits import check_fit, check_reader, obstacle
from surgery.planning.place import Place
from surgery.rules.expand import Wrapped
from surgery.rules.program import Program, build
from surgery.rules.site_facts import facts_in
from surgery.rules.values import Declaration


def plan_edit(place: Place, method: PlannedMethod, standing: list[Wrapped]) -> Edit:
    """Plan ``method`` at ``place``, where the methods ``standing`` are; it joins them.

    Raises:
        SurgeryError: S4xx where it does not fit there, S244 for names that no parameter can have.

    """
    wrapped, program = _wrapped(place, method, standing)
    layer = place.layer
    if program.named_dims is not None or layer is None or layer.among is not None:
        place.locate()
    place.tell(facts_in(wrapped.closure))
    before = build(place.signature, tuple(standing))
    check_fit(place, program, before)
    if program.reads_padding:
        place.note(mask=place.mask())
    one_hot = layer is not None and layer.kind.one_hot
    declared = dict(program.declarations)[wrapped.child]
    owner = place.owner(program, before)
    _check_names(declared, wrapped.child, module_at(place.usage.model, owner))
    derived = derive(program, before, wrapped.child, tuple(place.sizes.items()), one_hot)
    if layer and layer.experts and derived.reason:
        raise error(
            "S413",
            "the experts' weights are in one parameter, and only they can be changed, so a method "
            f"must merge, and this does not: {derived.reason}",
        )
    drawn = next((d for d in declared if d.drawn), None)
    if layer and layer.experts and drawn:
        raise error(
            "S413",
            "the experts' weights are in one parameter, which is the same for a whole step, and "
            f"`{drawn.name.rpartition('.')[2]}` is drawn for each of them",
            drawn.span,
        )
    derived = replace(derived, obstacle=obstacle(place, program))
    standing.append(wrapped)
    return Edit(place.site, place.sizes, method, place.tensors(declared, owner), derived)


def _wrapped(
    place: Place, method: PlannedMethod, standing: Sequence[Wrapped]
) -> tuple[Wrapped, Program]:
    """The method under the name that it has at ``place``, and the program that it is then part of."""
    site = place.site
    given = method.spec.wrapped(method.statement)
    child = graft_name(given.child, site)
    wrapped = replace(given, child=child, rows=site.rows)
    _check_free(wrapped.child, standing)
    program = place.program = build(place.signature, (*standing, wrapped))
    check_reader(place, program)
    core = place.core_apart(program, build(place.signature, tuple(standing)))
    if core is not None:
        child = graft_name(given.child, site, core)
        _check_free(child, standing)
        wrapped = replace(wrapped, child=child)
        program = build(place.signature, (*standing, wrapped))
    return wrapped, program


def _check_free(child: str, standing: Sequence[Wrapped]) -> None:
    """No two methods of a site may have one name, nor one have another's below it."""
    first = child.partition(".")[0]
    if any(w.child == child for w in standing):
        name = child.rpartition(".")[2]
        raise error(
            "S407",
            f"this module already has an adapter named `{name}`",
            help=f"name one of them: `… as {name}_2`",
        )
    if any(w.child.startswith(f"{child}.") or child.startswith(f"{w.child}.") for w in standing):
        raise error(
            "S407",
            f"`{first}` names a method here, and a slice whose methods are below that name",
            help="give the method another name with `as`",
        )


def _check_names(declared: Sequence[Declaration], child: str, module: nn.Module) -> None:
    """No new child or parameter may stand where a module has something already."""
    first = child.partition(".")[0]
    if _has(module, first):
        raise error(
            "S407",
            f"the module has an attribute `{first}` of its own",
            help="give the method another name with `as`",
        )
    for declaration in declared:
        for name in declaration.name.split(".")[1:]:
            if _has(_PLAIN, name):
                raise error(
                    "S244",
                    f"no parameter and no child can be named `{name}`: every module has an "
                    "attribute of that name",
                    declaration.span,
                    help=f"choose another, such as `{name}_`",
                )


_PLAIN = nn.Module()


def _has(module: nn.Module, name: str) -> bool:
    """Whether ``module`` or its class has an attribute; none is computed."""
    held = (vars(module), module._parameters, module._buffers, module._modules)
    return any(name in names for names in (*held, *map(vars, type(module).__mro__)))
