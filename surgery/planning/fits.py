"""Whether what a program does can be done at a site."""

from __future__ import annotations

from torch import fx, nn

from surgery.anatomy.site import Tokens, covers
from surgery.huggingface.checkpoints import has_configuration
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.own import check_own
from surgery.planning.place import Place
from surgery.planning.reading import changed, is_effective, named, needs_bias, takes_offset
from surgery.rules.affine import NotAffine
from surgery.rules.expression import is_number
from surgery.rules.patches import check_patches
from surgery.rules.program import Program


def check_reader(place: Place, program: Program) -> None:
    """Hold a program against what another module does with the weight it reads.

    Raises:
        SurgeryError: S423 where a weight is what it takes, and ``program`` is none.

    """
    layer = place.layer
    if layer is None or layer.straight or is_effective(program, layer):
        return
    reader = place.usage.reader(f"{place.site.owner}.{layer.weight}".lstrip("."))
    raise error(
        "S423",
        f"{named(reader)} reads this weight, and not just to multiply with it as the layer would, so "
        "a method can only put another weight in its place",
        help="use a method that merges into the weight alone, without dropout: lora, dora, ia3",
    )


def check_fit(place: Place, program: Program, before: Program) -> None:
    """Hold what a program does against what can be done at ``place``, whose states are known.

    ``before`` is the program without its last method.

    Raises:
        SurgeryError: S401 for a layer that takes its weight in another way, S419 for one that
            does more than multiply with it and would not see the change, S411 for hidden
            states of other dims than the rule names, S413 for what is no change of the weights
            of experts, S415 for an attention out of reach, S412 where a rule takes patches or
            ids for features, S440 for what complex numbers have not.

    """
    layer = place.layer
    if place.is_complex:
        _check_complex(program)
    if layer is not None:
        if not layer.kind.features:
            check_patches(program.result, layer.groups > 1)
        if layer.is_closed and layer.kind.features:
            _check_geometry(place, layer)
        check_own(place.module, layer, program)
    if isinstance(place.site.operator, Tokens):
        return
    if layer and layer.experts:
        _check_experts(program)
    _check_states(place, program)
    if program.changes_core:
        _check_core(place, program, before)


def _check_complex(program: Program) -> None:
    found = program.needs_real
    if found is not None:
        raise error(
            "S440",
            f"the parameters here are complex numbers, of which there is no `{found}`",
            help="take a method, or an activation, that complex numbers have: as `tanh`",
        )


def _check_geometry(place: Place, layer: Layer) -> None:
    anatomy = place.usage.anatomy
    site = anatomy.place_of(place.site)
    given, made = (anatomy.port_shape(port) for port in (site.entry, site.exit))
    if given and (made != (*given[:-1], layer.out) or given[-1] != layer.into):
        raise error(
            "S401",
            f"this matches a linear layer of {layer.into} → {layer.out}, as the weight has it, "
            f"and the site makes {[*made]} of {[*given]}",
        )


def _check_experts(program: Program) -> None:
    found = program.merge
    if program.named_dims is not None:
        raise error(
            "S411",
            f"the rule names {program.named_dims + 1} dims of the hidden states, and experts are "
            "given tokens of all examples, sorted by expert: whose they are cannot be told",
        )
    if program.is_random:
        raise error(
            "S413",
            "the experts' weights are in one parameter, and only they can be changed, so dropout "
            "would never act",
            help="leave `dropout` out here",
        )
    if not isinstance(found, NotAffine) and not is_number(found.bias, 0):
        raise error(
            "S413",
            "the experts' weights are in one parameter, and only they can be changed: this would "
            "change what is added to their products",
        )


def _check_states(place: Place, program: Program) -> None:
    """Hold the dims of the hidden states against those that the rule names; note how to get these."""
    # The anatomy is asked for only where it matters: not every model can be run.
    usage, layer, site = place.usage, place.layer, place.site
    rank, dims = place.states.rank, program.named_dims
    flat = dims == 2 and rank != 3
    residual = site.residual if program.reads_residual else None
    if residual and len(usage.anatomy.port_shape(residual)) != rank:
        flat = True
    if dims == 2 and rank == 3:
        inside = layer is not None and layer.length_first
        place.note(length_first=inside or usage.anatomy.length_first(site.entry))
    read = layer is not None and layer.read
    sequences = usage.anatomy.sequences(site.entry) if flat and not read else None
    if sequences:
        place.note(sequences=sequences)
    elif dims is not None and rank != dims + 1:
        raise error(
            "S411",
            f"the rule names {dims + 1} dims of the hidden states, and here they have {rank}",
        )


def _check_core(place: Place, program: Program, before: Program) -> None:
    core = place.site.core
    if core is None:
        return
    if core.obstacle:
        raise error("S415", f"cannot intercept this attention: {core.obstacle}")
    if core.fixed and not program.only_reveals:
        raise error(
            "S415",
            f"of this attention nothing can be changed that it has: {core.fixed}",
            help="new keys and values can join it",
        )
    # BERT: parameters of what changes the core live where it runs, and others where the region ends.
    if place.core_apart(program, before) and program.result != before.result:
        raise error(
            "S415",
            "this attention is not a single module, so one method cannot change both its core "
            "and its result",
            help="select a module for the method that changes the result",
        )


def obstacle(place: Place, program: Program) -> str | None:
    """Why the tensors that ``program`` would merge into cannot be changed at ``place``, if so."""
    layer, paths = place.layer, place.usage.paths
    if layer is None:
        return None
    if not layer.plain:
        return "the layer does not hold a plain weight"
    if needs_bias(program, layer):
        if not takes_offset(layer):
            return "its module adds nothing to the product, so it has no bias"
        if has_configuration(place.usage.model):
            return (
                "merging would add a bias, which the model's configuration does not have here: "
                "loaded again, the model would be without it"
            )
    for name in changed(program, layer):
        name = layer.names[name]
        known = [f"{path}.{name}" if path else name for path in paths.of(place.module)]
        tensor = place.module._parameters.get(name)
        if tensor is None:
            continue
        others = [n for n in paths.of(tensor) if n not in known]
        if others:
            other = others[0].removesuffix(f".{name}")
            return f"the {name} is tied with `{other}`, which would change too"
        reader = None if layer.read else place.usage.reader(known[0])
        if reader is not None and not _is_rewritten(place.usage.model, reader):
            return f"{named(reader)} reads the {name} too, and would change with it"
    return None


def _is_rewritten(model: nn.Module, reader: str) -> bool:
    """Whether what ``reader`` does is in nodes of a graph: there whatever reads a weight is changed."""
    if not isinstance(model, fx.GraphModule):
        return False
    whole = (str(n.target) for n in model.graph.nodes if n.op == "call_module")
    return not any(covers(path, reader) for path in whole)
