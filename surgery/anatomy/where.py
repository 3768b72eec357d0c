"""The tests of `where`: arithmetic and comparisons over what is known of one site."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.anatomy.paths import Paths, elements_of
from surgery.anatomy.site import Site
from surgery.language import syntax
from surgery.language.diagnostics import did_you_mean, error
from surgery.language.glob import compile_glob

if TYPE_CHECKING:
    from surgery.anatomy.read import Anatomy

Value = int | float | bool | str | None
NAMES = ("index", "inputs", "outputs", "parameters", "depth", "class", "path")

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right,
    "%": operator.mod,
}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def test(
    condition: syntax.Expression, site: Site, paths: Paths, anatomy: Callable[[], Anatomy]
) -> bool:
    """Whether ``condition`` holds at ``site``; comparing what a site does not have is false."""
    return bool(_value(condition, _Facts(site, paths, anatomy)))


class _Facts:
    def __init__(self, site: Site, paths: Paths, anatomy: Callable[[], Anatomy]):
        self.site = site
        self.paths = paths
        self.anatomy = anatomy

    def get(self, node: syntax.Name) -> Value:
        name = node.name
        match name:
            case "index":
                anatomy = self.anatomy()
                return anatomy.layer_of(self.site.spans[0])
            case "inputs" | "outputs":
                features = features_of(self.site, self.paths)
                return features and features[name == "outputs"]
            case "parameters":
                return self.count()
            case "depth":
                return self.site.path.count(".") + 1 if self.site.path else 0
            case "path":
                return self.site.path
            case "class":
                module = self.paths.modules.get(self.site.spans[0])
                return type(module).__name__ if module is not None else None
            case _:
                known = ", ".join(NAMES)
                raise error(
                    "S304",
                    f"`{name}` says nothing about a site",
                    node.span,
                    help=did_you_mean(name, NAMES) or f"a test knows {known}",
                )

    def count(self) -> int:
        if self.site.kind == "parameter":
            return self.paths.parameters[self.site.path].numel()
        if self.site.rows is not None:
            return elements_of(self.paths.modules[self.site.exit.path], self.site.rows)
        names = dict.fromkeys(
            name for member in self.site.spans for name in self.paths.below(member)
        )
        found = {id(self.paths.parameters[n]): self.paths.parameters[n].numel() for n in names}
        return sum(found.values())


def features_of(site: Site, paths: Paths) -> tuple[int, int] | None:
    """Input and output features of the site's weight matrix."""
    if site.kind == "parameter":
        shape = paths.parameters[site.path].shape
        return (shape[-1], shape[-2]) if len(shape) > 1 else None
    if site.rows is not None:
        return _of_slice(site, paths)
    module = paths.modules.get(site.path)
    weight = getattr(module, "weight", None)
    for names in (
        ("in_features", "out_features"),
        ("in_channels", "out_channels"),
        ("num_embeddings", "embedding_dim"),
        ("nx", "nf"),
    ):
        sizes = [getattr(module, name, None) for name in names]
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    if isinstance(weight, nn.Parameter) and weight.dim() == 2:
        return weight.shape[1], weight.shape[0]
    return None


def _of_slice(site: Site, paths: Paths) -> tuple[int, int] | None:
    assert site.rows is not None
    if site.packed:
        whole = features_of(paths.parameter(f"{site.exit.path}.{site.packed}".lstrip(".")), paths)
    else:
        whole = features_of(paths.module(site.exit.path), paths)
    return whole and (whole[0], site.rows.size)


def _value(node: syntax.Expression, facts: _Facts) -> Value:
    match node:
        case syntax.Number() | syntax.Text():
            return node.value
        case syntax.Name():
            return facts.get(node)
        case syntax.Unary("not"):
            return not _value(node.operand, facts)
        case syntax.Unary("-"):
            return _computed(operator.mul, -1, _value(node.operand, facts), node)
        case syntax.Binary("and"):
            return bool(_value(node.left, facts)) and bool(_value(node.right, facts))
        case syntax.Binary("or"):
            return bool(_value(node.left, facts)) or bool(_value(node.right, facts))
        case syntax.Binary("==" | "!="):
            return _equal(node, facts) == (node.operator == "==")
        case syntax.Binary():
            left, right = _value(node.left, facts), _value(node.right, facts)
            if node.operator in _ORDER:
                held = _computed(_ORDER[node.operator], left, right, node)
                return bool(held)
            if node.operator in _ARITHMETIC:
                return _computed(_ARITHMETIC[node.operator], left, right, node)
            raise error("S304", f"a test has no `{node.operator}`", node.span)
        case _:
            raise error("S304", "a test compares facts of a site with numbers", node.span)


def _equal(node: syntax.Binary, facts: _Facts) -> bool:
    left, right = _value(node.left, facts), _value(node.right, facts)
    if isinstance(node.left, syntax.Name) and node.left.name == "path" and isinstance(right, str):
        matches = compile_glob(right)
        return any(matches(path) for path in facts.site.paths)
    return left is not None and left == right


def _computed(
    function: Callable[[Any, Any], Any], left: Value, right: Value, node: syntax.Expression
) -> Value:
    if left is None or right is None:
        return None
    if isinstance(left, str) or isinstance(right, str):
        raise error("S304", "text can only be compared with `==` and `!=`", node.span)
    try:
        return function(left, right)
    except ZeroDivisionError:
        raise error("S304", "this divides by zero", node.span) from None
