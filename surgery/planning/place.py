"""A site with what planning must know of it."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from surgery.anatomy.modules import module_at
from surgery.anatomy.site import Memory, Port, Site, covers
from surgery.language.diagnostics import error
from surgery.language.syntax import Sharing
from surgery.planning.derived import Derived
from surgery.planning.layers import Layer, experts_layer, matrix_layer, packed_layer, read_layer
from surgery.planning.own import check_own
from surgery.planning.plan import Tensor
from surgery.planning.reading import changed, is_effective, named, needs_bias, takes_offset
from surgery.rules.affine import NotAffine
from surgery.rules.expression import is_number
from surgery.rules.patches import check_patches
from surgery.rules.primitives import OF_REAL_NUMBERS
from surgery.rules.program import Program, Signature

if TYPE_CHECKING:
    from surgery.planning.build import Planner


class Place:
    """A site with what the planner must know of it; shapes are looked up only when asked for."""

    def __init__(self, planner: Planner, site: Site):
        self.planner = planner
        self.site = site
        self.owner = site.exit.path if site.kind not in ("module", "parameter") else site.path
        self.module = planner.usage.paths.modules[self.owner]
        self.layer = self._layer()
        self.features = "first" if self.layer and self.layer.spatial else "last"
        self.rank: int | None = None
        self.sequences: Port | None = None
        self.program: Program | None = None
        self.turned = False

    def _layer(self) -> Layer | None:
        """The site as a linear layer, if it reads as one."""
        site = self.site
        if site.packed is not None:
            if site.experts is not None:
                return experts_layer(self.module, site.packed, site.experts)
            if site.matrix is not None:
                return matrix_layer(self.module, site.packed, site.matrix)
            return packed_layer(self.module, site.packed)
        if site.kind == "slice":
            return read_layer(self.module)
        if site.kind != "module" or site.tokens:
            return None
        parent = self.planner.usage.paths.modules[site.path.rpartition(".")[0]]
        layer = read_layer(self.module, parent)
        return layer and self.planner.usage.read(layer, site.path)

    @cached_property
    def idle(self) -> str | None:
        """Why a change here would change nothing of what the model returns, if so."""
        tensors = ["W"]
        read = self.layer is not None and self.layer.read
        if self.layer and self.program and read and is_effective(self.program, self.layer):
            tensors = changed(self.program, self.layer)
        return self.planner.usage.idle(self.site, self.layer, tensors)

    @property
    def key(self) -> str:
        """What tells this site from others; the module that reads tokens may be one itself."""
        return f"{self.site.path}[tokens]" if self.site.tokens else self.site.path

    @property
    def whole(self) -> str:
        """The site whose program this is part of: of a slice, the layer or its packed weight."""
        return self.key if self.site.rows is None else self.key.removesuffix(f"[{self.site.rows}]")

    @cached_property
    def signature(self) -> Signature:
        tokens = self.site.tokens
        if tokens is not None:
            positions, memory = tokens.positions is not None, tokens.memory is not None
            return Signature("tokens", positions=positions, memory=memory)
        if self.layer is not None:
            return Signature("linear", bias=self.layer.bias, grouped=self.layer.groups > 1)
        site = self.planner.anatomy.place_of(self.site)
        return Signature(
            "module",
            norm=site.norm is not None,
            residual=site.residual is not None,
            core=site.core is not None,
        )

    def check_reader(self, program: Program) -> None:
        """Hold a program against what another module does with the weight it reads.

        Raises:
            SurgeryError: S423 where a weight is what it takes, and ``program`` is none.

        """
        layer, self.program = self.layer, program
        if layer is None or layer.straight or is_effective(program, layer):
            return
        reader = self.planner.usage.reader(f"{self.owner}.{layer.weight}".lstrip("."))
        raise error(
            "S423",
            f"{named(reader)} reads this weight, and not just to multiply with it as the layer would, so "
            "a method can only put another weight in its place",
            help="use a method that merges into the weight alone, without dropout: lora, dora, ia3",
        )

    def locate(self) -> None:
        """Look up where hidden states pass, and their layout."""
        self.site = self.planner.anatomy.place_of(self.site)
        if self.layer and self.layer.states is not None:
            self.rank = self.layer.states
            return
        if self.layer and self.layer.read and not (self.layer.is_own or self.layer.experts):
            raise error(
                "S411",
                "the rule names dims of the hidden states, and where this weight is read they have "
                "now these, now those, or cannot be told",
            )
        call = self.planner.anatomy.call(self.site.exit.path)
        if call is None:
            raise error(
                "S408",
                "this module is not called during the recorded forward pass",
                help="pass example_inputs that reach it, or leave it out",
            )
        self.rank = len(call.output_shape)
        if self.layer is None:
            self.features = call.layout

    def check(self, program: Program) -> None:
        """Hold what a program does against what can be done here.

        Raises:
            SurgeryError: S401 for a layer that takes its weight in another way, S419 for one that
                does more than multiply with it and would not see the change, S411 for hidden
                states of other dims than the rule names, S413 for what is no change of the weights
                of experts, S415 for an attention out of reach, S412 where a rule takes patches or
                ids for features, S440 for what complex numbers have not.

        """
        if _dtype(self.module).is_complex:
            self._check_complex(program)
        if self.layer is not None:
            if self.layer.kind in ("convolution", "embedding"):
                check_patches(program.result)
            if self.layer.is_closed and self.layer.kind in ("linear", "transposed"):
                self._check_geometry(self.layer)
            check_own(self.module, self.layer, program)
        flat = program.named_dims == 2 and self.rank != 3
        residual = self.site.residual if program.reads_residual else None
        if residual and len(self.planner.anatomy.port_shape(residual)) != self.rank:
            flat = True
        if self.site.tokens is not None:
            return
        if self.layer and self.layer.experts:
            self._check_experts(program)
        read = self.layer is not None and self.layer.read
        if program.named_dims == 2 and self.rank == 3:
            inside = self.layer is not None and self.layer.turned
            self.turned = inside or self.planner.anatomy.turned(self.site.entry)
        if flat and not read and self.planner.anatomy.sequences(self.site.entry):
            self.sequences = self.planner.anatomy.sequences(self.site.entry)
        elif program.named_dims is not None and self.rank != program.named_dims + 1:
            raise error(
                "S411",
                f"the rule names {program.named_dims + 1} dims of the hidden states, and here they "
                f"have {self.rank}",
            )
        if program.changes_core and self.site.core is not None:
            if self.site.core.obstacle:
                raise error("S415", f"cannot intercept this attention: {self.site.core.obstacle}")
            if self.site.core.fixed and not program.only_reveals:
                raise error(
                    "S415",
                    f"of this attention nothing can be changed that it has: {self.site.core.fixed}",
                    help="new keys and values can join it",
                )
            if self.site.kind == "region":
                self._move(program, self.site.core.path)

    @staticmethod
    def _check_complex(program: Program) -> None:
        found = next((op for op in OF_REAL_NUMBERS if program.uses(op)), None)
        if found is not None:
            raise error(
                "S440",
                f"the parameters here are complex numbers, of which there is no `{found}`",
                help="take a method, or an activation, that complex numbers have: as `tanh`",
            )

    def _check_geometry(self, layer: Layer) -> None:
        site = self.planner.anatomy.place_of(self.site)
        given, made = (self.planner.anatomy.port_shape(port) for port in (site.entry, site.exit))
        if given and (made != (*given[:-1], layer.out) or given[-1] != layer.into):
            raise error(
                "S401",
                f"this matches a linear layer of {layer.into} → {layer.out}, as the weight has it, "
                f"and the site makes {[*made]} of {[*given]}",
            )

    @staticmethod
    def _check_experts(program: Program) -> None:
        found = program.merge
        if program.named_dims is not None:
            raise error(
                "S411",
                f"the rule names {program.named_dims + 1} dims of the hidden states, and experts are "
                "given tokens of all examples, sorted by expert: whose they are cannot be told",
            )
        if program.uses("dropout"):
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

    def _move(self, program: Program, path: str) -> None:
        """Let the parameters of a region's attention live where its core runs."""
        if program.changes_result:
            raise error(
                "S415",
                "this attention is not a single module, so one method cannot change both its core "
                "and its result",
                help="select a module for the method that changes the result",
            )
        self.owner = path
        self.module = module_at(self.planner.model, path)

    @cached_property
    def sizes(self) -> dict[str, int]:
        if self.layer is not None:
            return {"n": self.layer.out, "m": self.layer.into}
        anatomy = self.planner.anatomy
        into = anatomy.port_shape(self.site.entry)
        if self.site.tokens is not None:
            return {"n": into[-1]}
        out = anatomy.port_shape(self.site.exit)
        axis = 1 if self.features == "first" else -1
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

    @cached_property
    def real(self) -> Port | None:
        """Where the mask can be seen that tells this site's tokens from padding."""
        self.site = self.planner.anatomy.place_of(self.site)
        entry = self.planner.usage.entry(self.site, self.layer) or self.site.entry
        tokens = self.planner.anatomy.tokens_at(entry)
        if tokens is None or tokens.mask is None:
            return None
        memory = tokens.memory
        # A decoder is told of its encoder's tokens, also where that ran in another call.
        if memory and covers(memory.reader, self.site.entry.path) and self._tells(memory):
            return Port(memory.reader, "input", memory.mask)
        return Port(tokens.reader, "input", tokens.mask)

    def _tells(self, memory: Memory) -> bool:
        """Whether a decoder is given a mask that has ones for tokens, by a name of its own."""
        decoder = module_at(self.planner.model, memory.reader)
        named = memory.mask in inspect.signature(decoder.forward).parameters
        return named and "key_padding" not in str(memory.mask)

    def group(self, sharing: Sharing | None) -> str | None:
        """The sites that share a param with this one."""
        if sharing is None or sharing == "shared":
            return sharing
        anatomy = self.planner.anatomy
        stack = anatomy.stack_of(self.site) or ""
        if sharing == "layer":
            return f"{stack}.{self.site.layer}"
        cross = {s.path for s in anatomy.places.get("attention.cross", ())}
        return f"{stack} cross" if self.site.path in cross else stack

    def obstacle(self, program: Program) -> str | None:
        """Why the tensors that ``program`` would merge into cannot be changed here, if so."""
        if self.layer is None:
            return None
        if not self.layer.plain:
            return "the layer does not hold a plain weight"
        if needs_bias(program, self.layer):
            if not takes_offset(self.layer):
                return "its module adds nothing to the product, so it has no bias"
            if hasattr(type(self.planner.model), "from_pretrained"):
                return (
                    "merging would add a bias, which the model's configuration does not have here: "
                    "loaded again, the model would be without it"
                )
        for name in changed(program, self.layer):
            name = self.layer.names[name]
            known = {f"{path}.{name}" if path else name for path in self.owners}
            tensor = self.module._parameters.get(name)
            others = [n for n in self.planner.names.get(id(tensor), ()) if n not in known]
            if others:
                other = others[0].removesuffix(f".{name}")
                return f"the {name} is tied with `{other}`, which would change too"
            reader = self.planner.usage.reader(next(iter(known))) if not self.layer.read else None
            if tensor is not None and reader is not None:
                return f"{named(reader)} reads the {name} too, and would change with it"
        return None

    @property
    def owners(self) -> tuple[str, ...]:
        """Every path of the module that holds the weight."""
        rows = f"[{self.site.rows}]" if self.site.rows else ""
        end = (self.site.packed or "") + rows
        if not end:
            return self.site.paths
        return tuple(path.removesuffix(end).removesuffix(".") for path in self.site.paths)

    def tensors(self, derived: Derived) -> tuple[Tensor, ...]:
        """The parameters that a method adds here."""
        dtype = str(_dtype(self.module)).removeprefix("torch.")
        prefix = f"{self.owner}." if self.owner else ""
        many = (self.layer.experts,) if self.layer and self.layer.experts else ()
        return tuple(
            Tensor(
                prefix + t.name, (*many, *t.shape), t.init, t.trained, self.group(t.shared), dtype
            )
            for t in derived.tensors
        )


def _dtype(module: nn.Module) -> torch.dtype:
    """The dtype that new parameters of ``module`` take: that of its own, complex if these all are."""
    own = [parameter.dtype for parameter in module.parameters()]
    floating = [dtype for dtype in own if dtype.is_floating_point]
    return next(iter(floating or [dtype for dtype in own if dtype.is_complex]), None) or (
        torch.get_default_dtype()
    )
