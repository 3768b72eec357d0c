"""Why a part of a selector matched nothing, and what is close by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from surgery.anatomy.paths import Paths
from surgery.anatomy.site import ROLES
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, did_you_mean, nearest
from surgery.language.glob import compile_glob

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy

_WILD = frozenset("*?[]{}|")
_FUSED = {
    "q": ("qkv", "qk"),
    "k": ("qkv", "qk", "kv"),
    "v": ("qkv", "kv"),
    "up": ("gate_up",),
    "gate": ("gate_up",),
}


class Finder:
    """Looks for what the author of a dead part most likely meant."""

    def __init__(self, paths: Paths, anatomy: Callable[[], Anatomy]):
        self.paths = paths
        self.anatomy = anatomy

    def explain(self, part: syntax.Node) -> Diagnostic:
        """The diagnostic for one part that matched nothing."""
        match part:
            case syntax.Path():
                message, help = self.path(part.pattern)
            case syntax.Role():
                message, help = self.role(part.name)
            case syntax.Class():
                message, help = self.kind(part.name)
            case _:
                message, help = "nothing matches", None
        return Diagnostic("S301", message, (Label(part.span),), help)

    def path(self, pattern: str) -> tuple[str, str | None]:
        """For a glob: the first of its components that is nowhere, and the nearest that is."""
        if pattern in ROLES and self.present(pattern):
            message = f"nothing matches: this model has no module named `{pattern}`"
            return message, f"the role is written without backticks: {pattern}"
        components = list(
            dict.fromkeys(
                component
                for path in (*self.paths.modules, *self.paths.parameters)
                for component in path.split(".")
                if not component.isdigit()
            )
        )
        before = ""
        for wanted in pattern.lstrip(".").split("."):
            literal = not _WILD & set(wanted)
            known = wanted in self.components if literal else self.some(wanted)
            if known or wanted == "**":
                before = wanted
                continue
            help = self.numbers(before) if wanted.isdigit() else None
            help = help or did_you_mean(wanted.strip("*"), components)
            return f"nothing matches: no module or parameter is named `{wanted}`", help
        if len(pattern.lstrip(".").split(".")) == 1:
            return "nothing matches: no module has this name", None
        return f"nothing matches: no path matches `{pattern}`", self.tail(pattern)

    @cached_property
    def components(self) -> set[str]:
        return {
            component
            for path in (*self.paths.modules, *self.paths.parameters)
            for component in path.split(".")
        }

    def some(self, component: str) -> bool:
        matches = compile_glob(component)
        return any(matches(known) for known in self.components)

    def numbers(self, parent: str) -> str | None:
        """How far the members of a list of modules are counted."""
        names = [path.split(".") for path in self.paths.modules]
        found = {
            int(child)
            for name in names
            for owner, child in pairwise(name)
            if owner == parent and child.isdigit()
        }
        return f"`{parent}` counts from {min(found)} to {max(found)}" if found else None

    def tail(self, pattern: str) -> str | None:
        """A path that ends as the pattern does."""
        last = pattern.rpartition(".")[2]
        matches = compile_glob(last)
        names = (*self.paths.modules, *self.paths.parameters)
        ending = next((path for path in names if path and matches(path)), None)
        return f"one path that ends in `{last}` is `{ending}`" if ending else None

    def present(self, role: str) -> bool:
        """Whether a role occurs here; a model that can't be run has none."""
        try:
            return bool(self.anatomy().places.get(role))
        except SurgeryError:
            return False

    def role(self, name: str) -> tuple[str, str | None]:
        """For a role: unknown, fused into another, or absent here."""
        if name not in ROLES:
            message = f"nothing matches: there is no role `{name}`"
            if name in self.components:
                return message, f"a path is written between backticks: `{name}`"
            close = nearest(name, ROLES)
            return message, f"did you mean {close}?" if close else f"roles are {', '.join(ROLES)}"
        if name in ("bias", "weight"):
            return f"nothing matches: this model has no parameter that is a {name}", None
        places = self.anatomy().places
        for fused in _FUSED.get(name, ()):
            if sites := places.get(fused):
                count = "" if len(sites) == 1 else f" and {len(sites) - 1} more"
                return (
                    f"nothing matches: {name} is not a separate layer here",
                    f"it is part of the fused layer `{sites[0].path}`{count}, which has the role {fused}",
                )
        reason = self.anatomy().reading.obstacles.get(name)
        if reason:
            return f"nothing matches: {reason}", None
        present = [role for role in ROLES if places.get(role)]
        help = (
            f"available roles: {', '.join(present)}"
            if present
            else "no roles were found in this model"
        )
        return f"nothing matches: no module has the role `{name}` in this model", help

    def kind(self, name: str) -> tuple[str, str | None]:
        """For a class: the nearest class that is present."""
        present = {
            base.__name__ for module in self.paths.modules.values() for base in type(module).__mro__
        }
        known = sorted(present - {"object", "Module"})
        longer = next((other for other in known if name in other), None)
        help = f"did you mean {longer}?" if longer else did_you_mean(name, known, quote="")
        return f"nothing matches: this model has no module of class {name}", help
