"""The tests of `where`: arithmetic and comparisons over what is known of one site."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from surgery.anatomy.paths import Paths, elements_of
from surgery.anatomy.site import BareParameter, OutputSlice, Site
from surgery.language import syntax
from surgery.language.diagnostics import did_you_mean, error
from surgery.language.glob import GlobError, compile_glob

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
                    f"`{name}` is not an attribute of a site",
                    node.span,
                    help=did_you_mean(name, NAMES) or f"a test knows {known}",
                )

    def count(self) -> int:
        match self.site.operator:
            case BareParameter():
                return self.paths.parameters[self.site.path].numel()
            case OutputSlice(rows):
                return elements_of(self.paths.modules[self.site.exit.path], rows)
            case _:
                pass
        names = dict.fromkeys(
            name for member in self.site.spans for name in self.paths.below(member)
        )
        found = {id(self.paths.parameters[n]): self.paths.parameters[n].numel() for n in names}
        return sum(found.values())


def features_of(site: Site, paths: Paths) -> tuple[int, int] | None:
    """Input and output features of the site's weight matrix."""
    match site.operator:
        case BareParameter():
            shape = paths.parameters[site.path].shape
            return (shape[-1], shape[-2]) if len(shape) > 1 else None
        case OutputSlice(rows, packed):
            path = site.exit.path
            weight = paths.parameter(f"{path}.{packed}".lstrip(".")) if packed else None
            whole = features_of(weight or paths.module(path), paths)
            return whole and (whole[0], rows.size)
        case _:
            return _features(paths.modules.get(site.path))


def _features(module: nn.Module | None) -> tuple[int, int] | None:
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
        case syntax.Binary():
            first, run = syntax.spine(node)
            value = _value(first, facts)
            for operation in run:
                value = _operation(operation, value, facts)
            return value
        case _:
            raise error("S304", "a test compares facts of a site with numbers", node.span)


def _operation(node: syntax.Binary, left: Value, facts: _Facts) -> Value:
    """``node``, whose left side is ``left``."""
    match node.operator:
        case "and":
            return bool(left) and bool(_value(node.right, facts))
        case "or":
            return bool(left) or bool(_value(node.right, facts))
        case "==" | "!=":
            return _equal(node, left, facts) == (node.operator == "==")
        case _ if node.operator in _ORDER:
            return bool(_computed(_ORDER[node.operator], left, _value(node.right, facts), node))
        case _ if node.operator in _ARITHMETIC:
            return _computed(_ARITHMETIC[node.operator], left, _value(node.right, facts), node)
        case _:
            raise error("S304", f"a test has no `{node.operator}`", node.span)


def _equal(node: syntax.Binary, left: Value, facts: _Facts) -> bool:
    right = _value(node.right, facts)
    if isinstance(node.left, syntax.Name) and node.left.name == "path" and isinstance(right, str):
        try:
            matches = compile_glob(right)
        except GlobError as problem:
            raise error("S304", f"this path means nothing: {problem}", node.right.span) from None
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
        value = function(left, right)
    except ZeroDivisionError:
        raise error("S304", "this divides by zero", node.span) from None
    except OverflowError:
        value = math.inf
    if isinstance(value, int | float) and not abs(value) < math.inf:
        raise error("S304", "this becomes too large a number", node.span)
    return value
