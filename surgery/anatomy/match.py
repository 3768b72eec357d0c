"""What a name in a selector matches without the model being run: paths, classes, parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from surgery.anatomy.paths import Paths
from surgery.anatomy.site import Site
from surgery.language import syntax
from surgery.language.glob import alternatives, compile_glob
from surgery.language.source import Span


def glob_sites(
    node: syntax.Path, paths: Paths, dead: Callable[[syntax.Path], None] | None = None
) -> tuple[Site, ...]:
    """Modules and parameters whose path matches; ``dead`` hears of alternatives that match none.

    A last component of wildcards alone (`h.0.*`) means modules: naming a parameter takes a name.
    """
    found: list[Site] = []
    for part in parts(node):
        matches = compile_glob(part.pattern)
        sites = [paths.module(path) for path in paths.modules if path and matches(path)]
        if part.pattern.rpartition(".")[2].strip("*?"):
            sites += [paths.parameter(path) for path in paths.parameters if matches(path)]
        if not sites and dead is not None:
            dead(part)
        found += sites
    return tuple(found)


def parts(node: syntax.Path) -> Iterator[syntax.Path]:
    """The parts of a glob between its outermost `|`, each with its own span."""
    found = alternatives(node.pattern)
    if len(found) == 1:
        yield node
        return
    first = node.span.start + node.span.text.startswith("`")
    for text, offset in found:
        start = first + offset
        yield syntax.Path(text, span=Span(node.span.source, start, start + len(text)))


def class_sites(name: str, paths: Paths) -> tuple[Site, ...]:
    """Modules of a class so named, or of one derived from it."""
    verdict: dict[type, bool] = {}
    found: list[Site] = []
    for path, module in paths.modules.items():
        kind = type(module)
        if kind not in verdict:
            verdict[kind] = any(base.__name__ == name for base in kind.__mro__)
        if verdict[kind]:
            found.append(paths.module(path))
    return tuple(found)


def parameter_role_sites(name: str, paths: Paths) -> tuple[Site, ...] | None:
    """The parameters that are a `bias` or a `weight` by name; None for the roles of modules."""
    if name not in ("bias", "weight"):
        return None
    return tuple(
        paths.parameter(path)
        for path in paths.parameters
        if is_named(path.rpartition(".")[2], name)
    )


def is_named(leaf: str, kind: str) -> bool:
    """`bias`, `in_proj_bias` and `bias_ih_l0` are biases; `relative_bias_table` is none."""
    return leaf == kind or leaf.endswith(f"_{kind}") or leaf.startswith(f"{kind}_")
