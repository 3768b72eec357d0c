"""The params of methods that a statement of training means: `freeze A of lora`, `train adapter`.

A method goes by the name that its params live under: its own, or that which `as` gave it. Those of
the spec itself are meant wherever they stand in it, and those of specs applied before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from surgery.anatomy.scope import inside
from surgery.anatomy.select import select
from surgery.anatomy.site import ROLES
from surgery.anatomy.where import test
from surgery.language import syntax
from surgery.language.diagnostics import SurgeryError, did_you_mean, error
from surgery.planning.edit import Edit, Tensor
from surgery.planning.usage import Usage

Found = tuple[Edit, Tensor]


@dataclass
class MethodParams:
    """All params that methods have at this point: ``own`` ones of a spec, and ``standing`` ones."""

    usage: Usage
    own: Sequence[Edit]
    standing: Sequence[Edit] = ()
    _names: dict[object, list[str]] = field(default_factory=dict[object, list[str]])

    @cached_property
    def methods(self) -> dict[str, list[Edit]]:
        """The edits of each method, by its name."""
        found: dict[str, list[Edit]] = {}
        for edit in (*self.standing, *self.own):
            found.setdefault(edit.method.child, []).append(edit)
        return found

    def means(self, selector: syntax.Selector) -> bool:
        """Whether ``selector`` selects params of methods, and not the base's.

        Raises:
            SurgeryError: S283 if it does both, or asks for a method that is not there.

        """
        if selector.of is not None:
            return True
        parts = selector.union.parts
        named = [p for p in parts if _name(p) in self.methods and _name(p) not in ROLES]
        if named and len(named) < len(parts):
            other = next(p for p in parts if p not in named)
            raise error(
                "S283",
                "one statement speaks of the params of methods, or of the base's",
                other.span,
                help=f"write two statements, one of them for `{_name(named[0])}`",
            )
        for part in parts:
            near = did_you_mean(_name(part) or "", self.methods)
            if isinstance(part, syntax.Role) and part.name not in ROLES and not named and near:
                raise error(
                    "S283", f"no role and no method is named `{part.name}`", part.span, help=near
                )
        return bool(named)

    def find(self, selector: syntax.Selector) -> list[Found]:
        """The params that ``selector`` means; one that several sites share is there once.

        Raises:
            SurgeryError: S283 for a method that is not there, S284 for a param that it lacks, S301
                where nothing is left, and S303 for another number than is expected.

        """
        whole = selector.of is None
        edits = self._edits(selector.union if whole else selector.of or selector.union)
        found = [(e, t) for e in edits for t in e.tensors if not t.state]
        if not whole:
            found = [f for part in selector.union.parts for f in _named(part, found)]
        found = self._within(selector, found)
        if selector.exceptions is not None:
            gone = [f for part in selector.exceptions.parts for f in _named(part, found)]
            found = [f for f in found if f not in gone]
            if not found:
                raise error("S301", "`except` removes every param", selector.exceptions.span)
        once = {_key(*f): f for f in reversed(found)}
        found = [f for f in found if once[_key(*f)] is f]
        if selector.expect is not None and len(found) != selector.expect:
            raise error(
                "S303", f"expected {selector.expect}, but {len(found)} match", selector.span
            )
        return found

    def names(self, edit: Edit, tensor: Tensor) -> tuple[str, ...]:
        """The names of ``tensor``: a shared one has one at each of its sites."""
        if not self._names:
            for e in (*self.standing, *self.own):
                for t in e.tensors:
                    self._names.setdefault(_key(e, t), []).append(t.name)
        return tuple(self._names[_key(edit, tensor)])

    def _edits(self, union: syntax.Union) -> list[Edit]:
        found: list[Edit] = []
        for part in union.parts:
            name = _name(part)
            if name not in self.methods:
                known = ", ".join(self.methods)
                raise error(
                    "S283",
                    f"no method here is named `{name or part.span.text}`",
                    part.span,
                    help=did_you_mean(name or "", self.methods)
                    or (f"there are {known}" if known else "no method is applied"),
                )
            found += [e for e in self.methods[name] if e not in found]
        return found

    def _within(self, selector: syntax.Selector, found: list[Found]) -> list[Found]:
        sites = list({id(e): e.site for e, _ in found}.values())
        anatomy = lambda: self.usage.anatomy  # noqa: E731
        if selector.within is not None:
            whole = syntax.Selector(selector.within, span=selector.within.span)
            places = select(self.usage.model, whole, anatomy, paths=self.usage.paths).sites
            sites = list(inside(sites, places))
        if selector.where is not None:
            where, paths = selector.where, self.usage.paths
            sites = [s for s in sites if test(where, s, paths, anatomy)]
        left = [f for f in found if f[0].site in sites]
        if found and not left:
            clause = selector.within or selector.where or selector.union
            many = len({id(e) for e, _ in found})
            text = f"nothing matches: the method is at {many} sites, and none of them is meant"
            raise error("S301", text, clause.span)
        return left


def _name(part: syntax.Node) -> str | None:
    return part.name if isinstance(part, syntax.Role | syntax.Class) else None


def _key(edit: Edit, tensor: Tensor) -> object:
    """What is equal for the tensors of several sites that are one."""
    shared = edit.shared_key(tensor)
    return (id(edit.method.spec), shared) if shared else tensor.name


def _named(part: syntax.Node, found: Iterable[Found]) -> list[Found]:
    """Those of ``found`` that ``part`` names."""
    found = list(found)
    if isinstance(part, syntax.All):
        return found
    name = _name(part)
    if name is None:
        raise error(
            "S284",
            "a param goes by the name that its rule gives it",
            part.span,
            help="`A of lora`, or `all of lora`",
        )
    held = [f for f in found if _is(local_name(*f), name)]
    if not held:
        known = list(dict.fromkeys(local_name(*f) for f in found))
        where = found[0][0].method.child if found else "it"
        raise error(
            "S284",
            f"`{where}` has no param `{name}`",
            part.span,
            help=did_you_mean(name, known) or f"it has {', '.join(known)}",
        )
    return held


def _is(local: str, name: str) -> bool:
    return local == name or local.endswith(f".{name}")


def local_name(edit: Edit, tensor: Tensor) -> str:
    """The name that the rule gives a param: `A` of `q_proj.lora.A`."""
    return tensor.name.removeprefix(f"{edit.prefix}{edit.graft}.")


def with_flags(edit: Edit, flags: Mapping[str, bool]) -> Edit:
    """``edit`` with those of its tensors frozen and trained that ``flags`` name."""
    if not any(t.name in flags for t in edit.tensors):
        return edit
    return replace(
        edit,
        tensors=tuple(replace(t, trained=flags.get(t.name, t.trained)) for t in edit.tensors),
    )


def refused(problem: SurgeryError, settled: bool) -> bool:
    """Whether what is not there is an error: of a spec that was applied before it may be gone."""
    return not (settled and problem.diagnostics[0].code in ("S283", "S284", "S301", "S303"))
