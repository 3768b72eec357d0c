"""A site while a method is planned for it; what the forward tells of it is asked for as needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.modules import module_at
from surgery.anatomy.site import (
    LinearMap,
    Memory,
    OutputSlice,
    Port,
    Region,
    Site,
    States,
    Tokens,
    WholeModule,
    covers,
)
from surgery.language.diagnostics import error
from surgery.language.syntax import Sharing
from surgery.layers import Layer
from surgery.planning.edit import Tensor
from surgery.planning.layers import packed_layer, read_layer
from surgery.planning.reading import changed, is_effective
from surgery.planning.usage import Usage
from surgery.rules.program import Program
from surgery.rules.signature import Signature
from surgery.rules.values import Declaration, is_clock


class Place:
    """A site with how it reads as a linear layer, and with what the model's forward tells of it.

    ``site`` becomes complete as it is asked for; ``program`` is the one that it is to have.

    Raises:
        SurgeryError: S444 for a slice of what is no layer, as in graphs.

    """

    def __init__(self, usage: Usage, site: Site):
        self.usage = usage
        self.module = usage.paths.modules[site.owner]
        self.site = self._as_linear(site)
        self.program: Program | None = None
        if self.layer and self.layer.spatial:
            self.note(features="first")

    def _as_linear(self, site: Site) -> Site:
        """``site`` as a linear map, if it reads as one."""
        match site.operator:
            case OutputSlice(rows, packed):
                layer = packed_layer(self.module, packed) if packed else read_layer(self.module)
                if layer is None:
                    raise error(
                        "S444",
                        f"in the graph `{site.owner}` is no layer: its weight is taken apart before "
                        "it is multiplied with",
                        help="apply the spec to the model itself, and export that",
                    )
                return replace(site, operator=LinearMap(layer, rows))
            case WholeModule():
                parent = self.usage.paths.modules[site.path.rpartition(".")[0]]
                layer = read_layer(self.module, parent)
                read = layer and LinearMap(self.usage.read(layer, site.path))
                return replace(site, operator=read) if read else site
            case _:
                return site

    @property
    def layer(self) -> Layer | None:
        """The site as a linear layer, if it reads as one."""
        return self.site.layer

    @property
    def states(self) -> States:
        """What is known of the hidden states here."""
        return self.site.states

    def note(self, **facts: Any) -> None:
        """Note ``facts`` of the hidden states here."""
        self.site = replace(self.site, states=replace(self.states, **facts))

    @cached_property
    def idle(self) -> str | None:
        """Why a change here would change nothing of what the model returns, if so."""
        tensors = ["W"]
        read = self.layer is not None and self.layer.read
        if self.layer and self.program and read and is_effective(self.program, self.layer):
            tensors = changed(self.program, self.layer)
        return self.usage.idle(self.site, tensors)

    @cached_property
    def signature(self) -> Signature:
        """What decides how methods expand here."""
        if isinstance(self.site.operator, Tokens | LinearMap):
            return self.site.signature
        return self.usage.anatomy.place_of(self.site).signature

    def locate(self) -> None:
        """Look up where hidden states pass, and their layout.

        Raises:
            SurgeryError: S408 if the module never runs, S411 where a weight is read with states of
                one layout here and another there.

        """
        self.site = replace(self.usage.anatomy.place_of(self.site), states=self.states)
        if self.layer and self.layer.states is not None:
            self.note(rank=self.layer.states)
            return
        if self.layer and self.layer.read and not (self.layer.is_own or self.layer.experts):
            raise error(
                "S411",
                "the rule names dims of the hidden states, and where this weight is read they have "
                "now these, now those, or cannot be told",
            )
        call = self.usage.anatomy.call(self.site.exit.path)
        if call is None:
            raise error(
                "S408",
                "this module is not called during the recorded forward pass",
                help="pass example_inputs that reach it, or leave it out",
            )
        features = call.layout if self.layer is None else self.states.features
        self.note(rank=len(call.output_shape), features=features)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The values of the dims that a rule names."""
        if self.layer is not None:
            return {"n": self.layer.out, "m": self.layer.into}
        anatomy = self.usage.anatomy
        into = anatomy.port_shape(self.site.entry)
        if isinstance(self.site.operator, Tokens):
            return {"n": into[-1]}
        out = anatomy.port_shape(self.site.exit)
        axis = 1 if self.states.features == "first" else -1
        found = {"n": out[axis], "m": into[axis]}
        core = self.site.core
        if core is not None:
            found |= {
                "query_heads": core.query_heads,
                "heads": core.heads,
                "keys": core.keys,
                "values": core.values,
            }
        return found

    def tell(self, facts: Set[str]) -> None:
        """Note, beside the sizes, the ``facts`` of this site that arguments are made of.

        Raises:
            SurgeryError: S272 for one that the site lacks.

        """
        for name in sorted(facts - self.sizes.keys()):
            # Sizes are known of models, too, that do not run on generated inputs.
            anatomy = self.usage.anatomy
            index = anatomy.layer_of(self.site.spans[0])
            of_layers = name in ("index", "layers")
            if index is None or not of_layers:
                missing = "it is in no layer" if of_layers else "its sizes are others"
                raise error(
                    "S272",
                    f"an argument is made of `{name}`, which this site lacks: {missing}",
                    help="select what is in layers: `… in layer`" if of_layers else None,
                )
            stack = anatomy.stack_of(self.site)
            layers = [s for s in anatomy.places.get("layer", ()) if anatomy.stack_of(s) == stack]
            self.sizes[name] = index if name == "index" else len(layers)

    def mask(self) -> Port | None:
        """Where the mask can be seen that tells this site's tokens from padding."""
        site = self.usage.anatomy.place_of(self.site)
        entry = self.usage.entry(site) or site.entry
        tokens = self.usage.anatomy.tokens_at(entry)
        if tokens is None or tokens.mask is None:
            return None
        memory = tokens.memory
        # A decoder is told of its encoder's tokens, also where that ran in another call.
        if memory and covers(memory.reader, site.entry.path) and self._tells(memory):
            return Port(memory.reader, "input", memory.mask)
        return Port(tokens.reader, "input", tokens.mask)

    def _tells(self, memory: Memory) -> bool:
        """Whether a decoder is given a mask that has ones for tokens, by a name of its own."""
        decoder = module_at(self.usage.model, memory.reader)
        named = memory.mask in inspect.signature(decoder.forward).parameters
        return named and "key_padding" not in str(memory.mask)

    def _group(self, sharing: Sharing | None) -> str | None:
        """The sites that share a param with this one."""
        if sharing is None or sharing == "shared":
            return sharing
        anatomy = self.usage.anatomy
        stack = anatomy.stack_of(self.site) or ""
        if sharing == "layer":
            return f"{stack}.{self.site.index}"
        cross = {s.path for s in anatomy.places.get("attention.cross", ())}
        return f"{stack} cross" if self.site.path in cross else stack

    def tensors(self, declared: Iterable[Declaration], owner: str) -> tuple[Tensor, ...]:
        """The parameters that a method adds to the module at ``owner``."""
        dtype = _dtype(module_at(self.usage.model, owner))
        prefix = f"{owner}." if owner else ""
        many = (self.layer.experts,) if self.layer and self.layer.experts else ()
        return tuple(
            Tensor(
                prefix + d.name,
                (*(() if is_clock(d) else many), *d.shape_at(self.sizes)),
                str(d.init),
                not d.frozen,
                self._group(d.shared),
                str(_dtype_of(d, dtype)).removeprefix("torch."),
                d.state,
            )
            for d in declared
        )

    def owner(self, program: Program, before: Program) -> str:
        """The module that gets the parameters of the last method of ``program``.

        Of what changes a region's attention, that is the one which runs its core.
        """
        core = self.core_apart(program, before)
        return self.site.owner if core is None else core.path

    def core_apart(self, program: Program, before: Program) -> AttentionCore | None:
        """The core of a region, if the last method of ``program`` changes it."""
        apart = isinstance(self.site.operator, Region) and program.core != before.core
        return self.site.core if apart else None

    @property
    def is_complex(self) -> bool:
        """Whether new parameters here are complex numbers, as those of the module are."""
        return _dtype(self.module).is_complex


def _dtype_of(declaration: Declaration, dtype: torch.dtype) -> torch.dtype:
    """That of a layer's new parameters, but for states: what is summed up over steps needs room."""
    if is_clock(declaration):
        return torch.int64
    return torch.promote_types(dtype, torch.float32) if declaration.state else dtype


def _dtype(module: nn.Module) -> torch.dtype:
    """The dtype that new parameters of ``module`` take: that of its own, complex if these all are."""
    own = [parameter.dtype for parameter in module.parameters()]
    floating = [dtype for dtype in own if dtype.is_floating_point]
    return next(iter(floating or [dtype for dtype in own if dtype.is_complex]), None) or (
        torch.get_default_dtype()
    )
