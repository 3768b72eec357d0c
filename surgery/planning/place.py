"""A site with what planning must know of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from surgery.anatomy.site import Site
from surgery.language.diagnostics import error
from surgery.planning.derived import Derived
from surgery.planning.layers import Layer, read_layer
from surgery.planning.plan import Tensor
from surgery.rules.affine import NotAffine
from surgery.rules.expression import number, operand
from surgery.rules.program import Program, Signature

if TYPE_CHECKING:
    from surgery.planning.build import Planner


class Place:
    """A site with what the planner must know of it; shapes are looked up only when asked for."""

    def __init__(self, planner: Planner, site: Site):
        self.planner = planner
        self.site = site
        model = planner.model
        path = site.exit.path if site.kind == "region" else site.path
        self.module = model.get_submodule(path)
        self.layer: Layer | None = None
        if site.kind == "module":
            self.layer = read_layer(self.module, model.get_submodule(path.rpartition(".")[0]))
        self.features = "first" if self.layer and self.layer.spatial else "last"
        self.rank: int | None = None

    @cached_property
    def signature(self) -> Signature:
        if self.layer is not None:
            return Signature("linear", bias=self.layer.bias, grouped=self.layer.groups > 1)
        site = self.planner.anatomy.place_of(self.site)
        return Signature("module", norm=site.norm is not None, residual=site.residual is not None)

    def locate(self) -> None:
        """Look up where hidden states pass, and their layout."""
        self.site = self.planner.anatomy.place_of(self.site)
        call = self.planner.anatomy.call(self.site.exit.path)
        if call is None:
            raise error(
                "S408",
                "this module never runs in the model's forward",
                help="pass example_inputs that reach it, or leave it out",
            )
        self.rank = len(call.output_shape)
        if self.layer is None:
            self.features = call.layout

    @cached_property
    def sizes(self) -> dict[str, int]:
        if self.layer is not None:
            return {"n": self.layer.out, "m": self.layer.into}
        anatomy = self.planner.anatomy
        into = anatomy.port_shape(self.site.entry)
        out = anatomy.port_shape(self.site.exit)
        axis = 1 if self.features == "first" else -1
        return {"n": out[axis], "m": into[axis]}

    def obstacle(self, program: Program) -> str | None:
        """Why the tensors that ``program`` would merge into cannot be changed here, if so."""
        if self.layer is None:
            return None
        if not self.layer.plain:
            return "the layer does not hold a plain weight"
        for name in _changed(program, self.layer):
            known = {f"{path}.{name}" if path else name for path in self.site.paths}
            tensor = self.module._parameters.get(name)
            others = [n for n in self.planner.names.get(id(tensor), ()) if n not in known]
            if others:
                other = others[0].removesuffix(f".{name}")
                return f"the {name} is tied with `{other}`, which would change too"
        return None

    def tensors(self, derived: Derived) -> tuple[Tensor, ...]:
        """The parameters that a method adds here."""
        dtype = _dtype(self.module)
        owner = self.site.exit.path if self.site.kind == "region" else self.site.path
        prefix = f"{owner}." if owner else ""
        return tuple(
            Tensor(prefix + t.name, t.shape, t.init, t.trained, t.shared, dtype)
            for t in derived.tensors
        )


def _changed(program: Program, layer: Layer) -> list[str]:
    """Which of a layer's tensors a merge of ``program`` writes to; both if it has none."""
    found = program.merge
    if isinstance(found, NotAffine):
        return ["weight", "bias"]
    own = {"weight": operand("W", ()), "bias": operand("b", ()) if layer.bias else number(0)}
    changed = [n for n in own if getattr(found, n) != own[n]]
    return ["weight"] if changed and layer.kind == "embedding" else changed


def _dtype(module: nn.Module) -> str:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
    return str(torch.get_default_dtype()).removeprefix("torch.")
