"""Rules run as they are written, without anything of the compiler but its parser.

A rule is run on the positions of a layer's input, in float64. What flows is [*positions, groups, k]:
each group of a grouped convolution has patches of its own, and what has the dim `n` is there once
for each output, made in the output's group. The weight that a rule reads is found by running what
stands on the basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.language import syntax

Label = str | int
Number = int | float


class MeaninglessError(Exception):
    """The rule has no meaning here; the compiler should refuse it, too."""


class NoWeightError(MeaninglessError):
    """The rule reads a weight where what stands has none."""


@dataclass(frozen=True)
class Value:
    """A tensor; one that flows has positions and groups in front of its features."""

    tensor: Tensor
    labels: tuple[Label, ...]
    flows: bool = False
    outputs: bool = False


@dataclass(frozen=True)
class Rule:
    """A method or a block with its arguments."""

    syntax: syntax.Method | syntax.Block
    arguments: Mapping[str, object]
    rows: slice | None = None
    """The outputs that it is applied to, if not all."""


@dataclass(frozen=True)
class Layer:
    """A layer as a matrix over the positions of its input."""

    weight: Tensor
    bias: Tensor | None
    groups: int
    positions: Callable[[Tensor], Tensor]
    shaped: Callable[[Tensor, Tensor], Tensor]
    is_module: bool = False

    @property
    def out(self) -> int:
        return self.weight.shape[0]

    def own(self, value: Tensor) -> Tensor:
        """What each output has of its own group, for all groups."""
        index = torch.arange(self.out) // (self.out // self.groups)
        return value[..., index, torch.arange(self.out)].unsqueeze(-2).expand(value.shape)


def layer_of(module: nn.Module) -> Layer:
    """How a layer's input is read as positions, and its output made of them."""
    weight = module.weight.detach().double()
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach().double()
    if isinstance(module, nn.Embedding):
        rows = weight.shape[0]
        return Layer(
            weight.t(),
            None,
            1,
            lambda ids: functional.one_hot(ids, rows).double().unsqueeze(-2),
            lambda value, _: value,
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _convolution(module, weight, bias)
    matrix = weight if isinstance(module, nn.Linear) else weight.t()
    return Layer(matrix, bias, 1, lambda x: x.unsqueeze(-2), lambda value, _: value)


def _convolution(module: nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Layer:
    flat = isinstance(module, nn.Conv1d)

    def both(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (0, *sizes) if flat and len(sizes) == 1 else tuple(sizes)

    kernel = (1, *module.kernel_size) if flat else module.kernel_size
    stride, dilation = ((1, *s) if flat else s for s in (module.stride, module.dilation))
    padding = both(module.padding)

    def padded(x: Tensor) -> Tensor:
        image = x.unsqueeze(-2) if flat else x
        sides = [p for size in reversed(padding) for p in (size, size)]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if mode == "constant" or not any(sides):
            return functional.pad(image, sides)
        if flat:
            return functional.pad(x, sides[:2], mode).unsqueeze(-2)
        return functional.pad(image, sides, mode)

    def positions(x: Tensor) -> Tensor:
        patches = functional.unfold(padded(x), kernel, dilation, 0, stride)
        return patches.unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2)

    def shaped(value: Tensor, like: Tensor) -> Tensor:
        return value.transpose(1, 2).reshape(like.shape)

    return Layer(weight.flatten(1), bias, module.groups, positions, shaped)


Function = Callable[[Value], Value]


@dataclass
class Site:
    """A layer while rules are run on it, one after the other."""

    layer: Layer

    def base(self, x: Value) -> Value:
        weight = Value(self.layer.weight, ("n", "m"))
        value = self.linear(x, weight)
        if self.layer.bias is not None:
            value = replace(value, tensor=value.tensor + self.layer.bias)
        return value

    def linear(self, x: Value, weight: Value) -> Value:
        if len(weight.labels) != 2 or weight.flows:
            raise MeaninglessError("a weight is a matrix")
        if x.tensor.shape[-1] != weight.tensor.shape[1]:
            raise MeaninglessError("dims differ")
        tensor = x.tensor @ weight.tensor.t()
        if not x.flows:
            return Value(tensor, (*x.labels[:-1], weight.labels[0]))
        outputs = weight.labels[0] == "n"
        tensor = self.layer.own(tensor) if outputs else tensor
        return Value(tensor, weight.labels[:1], True, outputs)

    def effective(self, origin: Function) -> tuple[Value, Value]:
        """The weight and bias of what stands, from what it makes of the basis.

        Raises:
            NoWeightError: if it is not affine.

        """
        groups, into = self.layer.groups, self.layer.weight.shape[1]
        generator = torch.Generator().manual_seed(0)
        basis = torch.cat([torch.eye(into), torch.zeros(1, into)]).double()
        tried = torch.randn(4, groups, into, generator=generator, dtype=torch.float64)
        x = torch.cat([basis.unsqueeze(1).expand(-1, groups, -1), tried])
        y = origin(Value(x, ("m",), True)).tensor
        offset = y[into, 0]
        matrix = (y[:into, 0] - offset).t()
        made = self.layer.own(tried @ matrix.t() + offset)
        if not torch.allclose(made, y[into + 1 :], rtol=1e-6, atol=1e-6 * float(y.abs().max())):
            raise NoWeightError("what stands is not affine")
        return Value(matrix, ("n", "m")), Value(offset, ("n",))


Store = Callable[[int, int, list[int]], Tensor]
"""The params of rules: by the rule's number, and by the order of declaration in it."""


def run(layer: Layer, rules: list[Rule], store: Store, x: Tensor) -> Value:
    """What ``rules`` make of the layer's input ``x`` as positions."""

    def after(count: int) -> Function:
        if count == 0:
            return Site(layer).base
        number = count - 1
        rule, before = rules[number], after(number)

        def function(value: Value) -> Value:
            params = _Params(lambda order, shape: store(number, order, shape))
            rows = rule.rows
            if rows is None:
                return Running(Site(layer), before, value, params).whole(rule)

            def part(x: Value) -> Value:
                whole = before(x)
                return replace(whole, tensor=whole.tensor[..., rows])

            bias = None if layer.bias is None else layer.bias[rows]
            site = Site(replace(layer, weight=layer.weight[rows], bias=bias))
            changed = Running(site, part, value, params).whole(rule)
            whole = before(value)
            tensor = whole.tensor.clone()
            tensor[..., rows] = changed.tensor
            return replace(whole, tensor=tensor)

        return function

    return after(len(rules))(Value(x, ("m",), True))


@dataclass
class _Params:
    """The params of one rule while it runs, in the order in which it declares them."""

    get: Callable[[int, list[int]], Tensor]
    order: int = 0

    def next(self, shape: list[int]) -> Tensor:
        tensor = self.get(self.order, shape)
        self.order += 1
        assert list(tensor.shape) == shape, f"{[*tensor.shape]} is not {shape}"
        return tensor


def drawn() -> tuple[Store, dict[tuple[int, int], Tensor]]:
    """Random params, drawn as they are declared and kept."""
    generator = torch.Generator().manual_seed(5)
    made: dict[tuple[int, int], Tensor] = {}

    def store(number: int, order: int, shape: list[int]) -> Tensor:
        if (number, order) not in made:
            tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
            made[number, order] = tensor.requires_grad_()
        return made[number, order]

    return store, made


class Running:
    """One rule while it runs: its operands, and the result so far."""

    def __init__(self, site: Site, origin: Function, x: Value, params: _Params):
        self.site = site
        self.origin = origin
        self.x = x
        self.y: Value | None = None
        self.params = params
        self.rebound = False

    def whole(self, rule: Rule) -> Value:
        self.rule(rule, {})
        return self.result()

    def result(self) -> Value:
        if self.y is None:
            self.y = self.origin(self.x)
        return self.y

    def rule(self, rule: Rule, given: Mapping[str, object]) -> None:
        names: dict[str, object] = {"n": self.site.layer.out, "m": self.site.layer.weight.shape[1]}
        targets = {"y": "y", "x": "x", "W": "W", "b": "b"}
        for p in rule.syntax.parameters:
            found = {**rule.arguments, **given}.get(p.name)
            names[p.name] = self.value(p.default, names, targets) if found is None else found
        for step in rule.syntax.body:
            match step:
                case syntax.Let():
                    names[step.name] = self.value(step.value, names, targets)
                case syntax.Param():
                    names[step.name] = self.declare(step, names, targets)
                case syntax.Require():
                    if not self.value(step.condition, names, targets):
                        raise MeaninglessError("a requirement")
                case syntax.Assign():
                    self.assign(step, names, targets)
                case syntax.Apply():
                    inner = names[step.application.name]
                    assert isinstance(inner, Rule)
                    more = {
                        a.name: self.value(a.value, names, targets)
                        for a in step.application.arguments
                        if a.name
                    }
                    self.rule(inner, more)
                case _:
                    pass

    def declare(self, step: syntax.Param, names: dict[str, object], targets: Mapping) -> Value:
        labels = tuple(_label(d, self.value(d, names, targets)) for d in step.dims)
        shape = [int(self.value(d, names, targets)) for d in step.dims]
        return Value(self.params.next(shape), labels)

    def assign(self, step: syntax.Assign, names: dict[str, object], targets: Mapping) -> None:
        value = self.tensor(self.value(step.value, names, targets))
        if step.operator != "=":
            value = self.combine(step.operator[0], self.read(step.target), value)
        layer = self.site.layer
        if step.target == "y":
            self.y, self.rebound = self.as_large(value, self.result(), layer.out), True
            if value.flows and layer.groups > 1:
                self.y = replace(self.y, tensor=layer.own(self.y.tensor))
            return
        if self.rebound:
            raise MeaninglessError("an operand after the result")
        if step.target == "x":
            x = self.as_large(value, self.x, layer.weight.shape[1])
            self.x = replace(x, outputs=False)
        else:
            held = self.known(value)
            weight, bias = self.site.effective(self.origin)
            if step.target == "W":
                weight = Value(held.tensor.expand(weight.tensor.shape), weight.labels)
            else:
                bias = Value(held.tensor.expand(bias.tensor.shape), bias.labels)

            def changed(x: Value) -> Value:
                made = self.site.linear(x, weight)
                return replace(made, tensor=made.tensor + bias.tensor)

            self.origin = changed
        self.y = None

    def as_large(self, value: Value, like: Value, features: int) -> Value:
        tensor = value.tensor
        if not value.flows and tensor.dim() > 1:
            tensor = tensor.reshape(-1) if tensor.numel() == tensor.shape[-1] else tensor
        shape = (*like.tensor.shape[:-1], features)
        try:
            return Value(tensor.expand(shape), like.labels, True, like.outputs)
        except RuntimeError:
            raise MeaninglessError("shapes differ") from None

    def read(self, target: str) -> Value:
        match target:
            case "x":
                return self.x
            case "y":
                return self.result()
            case "W":
                return self.site.effective(self.origin)[0]
            case _:
                return self.site.effective(self.origin)[1]

    def tensor(self, value: object) -> Value:
        if isinstance(value, Value):
            return value
        if isinstance(value, int | float):
            return Value(torch.tensor(float(value), dtype=torch.float64), ())
        raise MeaninglessError("no tensor")

    def known(self, value: object) -> Value:
        found = self.tensor(value)
        if found.flows:
            raise MeaninglessError("depends on the input")
        return found

    # expressions

    def value(self, e: syntax.Expression | None, names: Mapping, targets: Mapping) -> object:
        match e:
            case syntax.Number() | syntax.Text():
                return e.value
            case syntax.Name():
                if e.name in names:
                    return names[e.name]
                if e.name in targets:
                    return self.read(targets[e.name])
                return e.name
            case syntax.Unary():
                inner = self.value(e.operand, names, targets)
                if e.operator == "not":
                    return not inner
                if isinstance(inner, int | float):
                    return -inner
                return replace(self.tensor(inner), tensor=-self.tensor(inner).tensor)
            case syntax.Binary():
                left, right = (self.value(a, names, targets) for a in (e.left, e.right))
                if isinstance(left, int | float) and isinstance(right, int | float):
                    return _ARITHMETIC[e.operator](left, right)
                return self.combine(e.operator, self.tensor(left), self.tensor(right))
            case syntax.Call():
                return self.call(e, names, targets)
            case _:
                raise MeaninglessError("an expression")

    def combine(self, operator: str, left: Value, right: Value) -> Value:
        if operator == "@":
            return self.matmul(left, right)
        flows = left.flows or right.flows
        a, b = left, right
        if flows:
            a, b = (v if v.flows else self.vector(v) for v in (left, right))
        try:
            tensor = _TENSORS[operator](a.tensor, b.tensor)
        except RuntimeError:
            raise MeaninglessError("shapes differ") from None
        labels = _joint(a.labels, b.labels)
        outputs = flows and (a.outputs or b.outputs or labels[-1:] == ("n",))
        if outputs and tensor.shape[-1] == self.site.layer.out:
            tensor = self.site.layer.own(tensor)
        return Value(tensor, labels, flows, outputs)

    def vector(self, value: Value) -> Value:
        if value.tensor.dim() < 2:
            return value
        if value.tensor.numel() != value.tensor.shape[-1]:
            raise MeaninglessError("another for each position")
        return Value(value.tensor.reshape(-1), value.labels[-1:])

    def matmul(self, left: Value, right: Value) -> Value:
        if right.flows or right.tensor.dim() != 2 or (not left.flows and left.tensor.dim() < 2):
            raise MeaninglessError("matrices")
        turned = Value(right.tensor.t(), right.labels[::-1])
        if left.flows:
            return self.site.linear(left, turned)
        if left.tensor.shape[-1] != right.tensor.shape[0]:
            raise MeaninglessError("dims differ")
        return Value(left.tensor @ right.tensor, (left.labels[0], right.labels[1]))

    def call(self, e: syntax.Call, names: Mapping, targets: Mapping) -> object:
        given = [self.value(a.value, names, targets) for a in e.arguments if a.name is None]
        local = names.get(e.function)
        name = local if isinstance(local, str) else e.function
        if name in _NUMBERS and all(isinstance(v, int | float) for v in given):
            return _NUMBERS[name](*given)
        values = [self.tensor(v) for v in given]
        first = values[0]
        over = next((a.value for a in e.arguments if a.name in ("over", "along")), None)
        if over is not None:
            return self.over(name, over, values, names, targets)
        if name in _ELEMENTWISE:
            return replace(first, tensor=_ELEMENTWISE[name](first.tensor))
        matrix = not first.flows and first.tensor.dim() == 2
        match name:
            case "linear":
                product = self.site.linear(first, values[1])
                return self.combine("+", product, values[2]) if len(values) == 3 else product
            case "dropout":
                return first
            case "detach":
                return replace(first, tensor=first.tensor.detach())
            case "transpose" if matrix:
                return Value(first.tensor.t(), first.labels[::-1])
            case "row_norm" if matrix:
                return Value(first.tensor.norm(dim=1), first.labels[:1])
            case "scale_rows" if matrix and not values[1].flows:
                factor = values[1].tensor.reshape(-1, 1)
                return Value(first.tensor * factor, first.labels)
            case "kron" if matrix and not values[1].flows and values[1].tensor.dim() == 2:
                pairs = zip(first.labels, values[1].labels, strict=True)
                labels = tuple(_times(a, b) for a, b in pairs)
                return Value(torch.kron(first.tensor, values[1].tensor), labels)
            case _:
                raise MeaninglessError(name)

    def over(
        self,
        name: str,
        dim: syntax.Expression,
        values: list[Value],
        names: Mapping,
        targets: Mapping,
    ) -> Value:
        first = values[0]
        label = _label(dim, self.value(dim, names, targets))
        places = [i - len(first.labels) for i, known in enumerate(first.labels) if known == label]
        if len(places) != 1:
            raise MeaninglessError("which dim")
        (axis,) = places
        if name == "softmax":
            return replace(first, tensor=torch.softmax(first.tensor, axis))
        tensor = _OVER[name](first.tensor, axis)
        labels = list(first.labels)
        labels[axis] = 1
        return Value(tensor, tuple(labels), first.flows)


def _label(e: syntax.Expression, value: object) -> Label:
    if isinstance(e, syntax.Name) and e.name in ("n", "m"):
        return e.name
    text = "".join(e.span.text.split())
    if isinstance(e, syntax.Binary) and text[:2] in ("n/", "m/"):
        return f"{text[0]}/{value}"
    assert isinstance(value, int | float)
    return int(value)


def _times(a: Label, b: Label) -> Label:
    for whole, part in ((b, a), (a, b)):
        if isinstance(whole, str) and "/" in whole:
            return whole[0]
        if whole == 1:
            return part
    return int(a) * int(b) if isinstance(a, int) and isinstance(b, int) else f"{a}*{b}"


def _joint(a: tuple[Label, ...], b: tuple[Label, ...]) -> tuple[Label, ...]:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    found = list(longer)
    for i in range(1, len(shorter) + 1):
        if found[-i] == 1:
            found[-i] = shorter[-i]
    return tuple(found)


def _quotient(a: Number, b: Number) -> Number:
    return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


_ARITHMETIC: dict[str, Callable] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _quotient,
    "%": lambda a, b: a % b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}
_TENSORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
}
_NUMBERS: dict[str, Callable] = {
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "divisor": lambda n, k: next(d for d in range(int(k), 0, -1) if n % d == 0),
}
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "identity": lambda t: t,
}
_OVER: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda t, axis: t.mean(axis, keepdim=True),
    "sum": lambda t, axis: t.sum(axis, keepdim=True),
    "max": lambda t, axis: t.amax(axis, keepdim=True),
    "pool": lambda t, axis: t.mean(axis, keepdim=True),
}
