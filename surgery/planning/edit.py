"""One method at one site, as a plan has it: plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Port, Region, Site
from surgery.layers import Layer
from surgery.planning.derived import Derived
from surgery.planning.spec import Spec
from surgery.rules.expand import Wrapped
from surgery.rules.signature import Signature


@dataclass(frozen=True)
class Tensor:
    """A parameter to add. ``name`` is its full name in the adapted model.

    Those of one method with equal ``shared`` are one: it names the sites that share, or is None. A
    ``state`` is a buffer.
    """

    name: str
    shape: tuple[int, ...]
    init: str
    trained: bool
    shared: str | None
    dtype: str
    state: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def marks(self) -> list[str]:
        """What is uncommon about it, for reports."""
        kind = ["state"] if self.state else ["frozen"] * (not self.trained)
        return kind + ["shared"] * (self.shared is not None)


@dataclass(frozen=True)
class PlannedMethod:
    """The method that one `on` statement of a spec applies.

    ``statement`` counts the spec's statements, ``text`` is what is written there, at ``place``; its
    parameters are named under ``child``. When ``folded``, it has what its networks computed.
    """

    spec: Spec = field(repr=False, compare=False)
    statement: int
    child: str
    text: str
    place: str
    folded: bool = False


@dataclass(frozen=True)
class Edit:
    """One method at one site.

    ``sizes`` give the rule's dims their values. Methods at slices of a layer are part of the
    program of the whole of it.
    """

    site: Site
    sizes: dict[str, int]
    method: PlannedMethod
    tensors: tuple[Tensor, ...]
    derived: Derived

    @property
    def key(self) -> tuple[str, str]:
        """What tells this edit from others of the model: its site, and its name there."""
        return self.site.name, self.method.child

    @property
    def layer(self) -> Layer | None:
        """The site as the operator `linear`, if it is one."""
        return self.site.layer

    @property
    def signature(self) -> Signature:
        """What decided how the method expanded there."""
        return self.site.signature

    @property
    def core(self) -> AttentionCore | None:
        """The attention that the method changes."""
        return self.site.core if "core" in self.derived.uses else None

    @property
    def residual(self) -> Port | None:
        """Where the residual can be seen that the method reads."""
        return self.site.residual if "residual" in self.derived.uses else None

    @property
    def norm(self) -> str | None:
        """The module behind the site that the method runs."""
        return self.site.norm if "norm" in self.derived.uses else None

    @property
    def owner(self) -> str:
        """The module that gets the parameters: of a region's attention, that which runs its core."""
        core = self._apart
        return self.site.owner if core is None else core.path

    @property
    def graft(self) -> str:
        """Where its parameters are below ``owner``: `lora`, `q.lora` on a slice, `lora.w1` of w1."""
        return graft_name(self.method.child, self.site, self._apart)

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with: ``owner`` and a dot."""
        return f"{self.owner}." if self.owner else ""

    @property
    def _apart(self) -> AttentionCore | None:
        return self.core if isinstance(self.site.operator, Region) else None

    @property
    def wrapped(self) -> Wrapped:
        """The method with its place in the program of the whole site."""
        wrapped = self.method.spec.wrapped(self.method.statement)
        folded = self.method.folded
        return replace(wrapped, child=self.graft, rows=self.site.rows, folded=folded)

    @property
    def added(self) -> tuple[Tensor, ...]:
        """The parameters by the names that the rule gives them: `A` of `q_proj.lora.A`.

        Of shared ones they tell that they are, and not with which sites, so that they are equal
        where the same is added.
        """
        start = f"{self.prefix}{self.graft}."
        return tuple(
            replace(t, name=t.name.removeprefix(start), shared=t.shared and "shared")
            for t in self.tensors
        )

    def shared_key(self, tensor: Tensor) -> tuple[Any, ...] | None:
        """What tells ``tensor`` from others, if several sites share it."""
        if tensor.shared is None:
            return None
        name = tensor.name[len(self.owner) :]
        return (self.method.text, name, tensor.shape, tensor.shared)


def by_site(edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    """``edits`` by the site whose program they are part of, in order."""
    found: dict[str, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.site.whole, []).append(edit)
    return found


def graft_name(child: str, site: Site, core: AttentionCore | None = None) -> str:
    """The path below a module at which the parameters of a method named ``child`` live there.

    ``core`` is the attention of a region, of which the module may run others, too.
    """
    if core is not None and core.order:
        return f"core{core.order}.{child}"
    if site.rows is not None:
        return f"{site.rows}.{child}"
    layer = site.layer
    return f"{child}.{layer.weight}" if layer and (layer.experts or layer.held) else child
