"""Random rules as text, made so that most have a meaning: what is drawn fits where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "exp", "abs", "identity")
STARTS = (
    "~ normal(std = 0.5)",
    "~ kaiming_uniform(a = sqrt(5))",
    "~ uniform(bound = 0.5)",
    "~ xavier_uniform(gain = 1)",
    "= 0",
    "= 0",
    "= 1",
    "= 0.5",
)


@dataclass
class Text:
    """One method while it is written. ``sizes`` are those of the dims n and m."""

    random: Random
    name: str
    sizes: dict[str, int]
    bias: bool
    wild: float = 0.003
    numbers: tuple[str, ...] = ("alpha", "r", "gate")
    params: list[str] = field(default_factory=list)
    held: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    lets: list[str] = field(default_factory=list)
    reads: bool = True

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *items: str) -> str:
        return self.random.choice(items)

    def dim(self) -> str:
        """A dim of hidden features."""
        return self.pick("r", "r", "r", "n", "m", "1", "3")

    def param(self, *dims: str) -> str:
        """A param of these dims: one that is there, or a new one."""
        known = self.held.get(dims, [])
        if known and self.chance(0.35):
            return self.random.choice(known)
        name = f"P{len(self.params)}"
        start = self.random.choice(STARTS)
        if self.chance(0.06):
            if dims == ("n", "m"):
                start = "= W"
            elif dims == ("n",) and self.chance(0.5):
                start = "= row_norm(W)"
            elif known:
                start = f"= {known[-1]}"
        frozen = "frozen " if self.chance(0.06) else ""
        self.params.append(f"param {frozen}{name}[{', '.join(dims)}] {start}")
        self.held.setdefault(dims, []).append(name)
        return name

    def number(self) -> str:
        if self.chance(0.03):
            return "0"
        return self.pick("2", "0.5", "-1", "alpha", "(alpha / r)", "gate", "1", "3", "sqrt(r)")

    def matrix(self, rows: str, columns: str, depth: int = 2) -> str:
        if self.chance(self.wild):
            rows, columns = columns, rows
        if depth <= 0 or self.chance(0.5):
            if (rows, columns) == ("n", "m") and self.reads and self.chance(0.4):
                return "W"
            return self.param(rows, columns)
        inner = depth - 1
        match self.random.randrange(14):
            case 0 | 1 | 2:
                middle = self.dim()
                left, right = self.matrix(rows, middle, inner), self.matrix(middle, columns, inner)
                return f"({left} @ {right})"
            case 3:
                return f"transpose({self.matrix(columns, rows, inner)})"
            case 4 | 5:
                sign = self.pick("+", "-", "*")
                left, right = (self.matrix(rows, columns, inner) for _ in "lr")
                return f"({left} {sign} {right})"
            case 6:
                matrix, factor = self.matrix(rows, columns, inner), self.vector(rows, inner)
                return f"scale_rows({matrix}, {factor})"
            case 7:
                return f"({self.matrix(rows, columns, inner)} * {self.vector(columns, inner)})"
            case 8:
                return f"({self.number()} * {self.matrix(rows, columns, inner)})"
            case 9:
                rate = self.pick("0.1", "0", "0.5")
                return f"dropout({self.matrix(rows, columns, inner)}, {rate})"
            case 10:
                inside = self.matrix(rows, columns, inner)
                return f"({inside} + detach({inside}))" if self.chance(0.8) else f"detach({inside})"
            case 11:
                return f"{self.pick(*ACTIVATIONS)}({self.matrix(rows, columns, inner)})"
            case 12 if {rows, columns} == {"n", "m"}:
                p, q = self.divisor(rows), self.divisor(columns)
                small = self.param(str(p), str(q))
                return f"kron({small}, {self.param(f'{rows} / {p}', f'{columns} / {q}')})"
            case _:
                return f"({self.matrix(rows, columns, inner)} / {self.positive(columns)})"

    def divisor(self, dim: str) -> int:
        size = self.sizes[dim]
        return self.random.choice([k for k in range(1, size + 1) if size % k == 0])

    def positive(self, dim: str) -> str:
        return f"(1 + abs({self.param(dim)}))"

    def vector(self, dim: str, depth: int = 1) -> str:
        if self.chance(self.wild):
            dim = self.dim()
        if depth <= 0 or self.chance(0.5):
            if dim == "n" and self.reads and self.chance(0.35):
                return "b"
            return self.param(dim)
        inner = depth - 1
        match self.random.randrange(10):
            case 0:
                return f"row_norm({self.matrix(dim, self.dim(), inner)})"
            case 1:
                return f"({self.number()} * {self.vector(dim, inner)})"
            case 2:
                return f"{self.pick(*ACTIVATIONS)}({self.vector(dim, inner)})"
            case 3 | 4:
                other = self.dim()
                return f"linear({self.vector(other, inner)}, {self.matrix(dim, other, inner)})"
            case 5:
                inside = self.vector(dim, inner)
                return f"({inside} * detach({inside}))" if self.chance(0.7) else f"detach({inside})"
            case 6:
                return f"dropout({self.vector(dim, inner)}, 0.2)"
            case 7 if dim != "1":
                return f"softmax({self.vector(dim, inner)}, over = {dim})"
            case _:
                sign = self.pick("+", "-", "*")
                return f"({self.vector(dim, inner)} {sign} {self.vector(dim, inner)})"

    def flow(self, dim: str, depth: int = 3) -> str:
        """Something that depends on the input, of ``dim`` features."""
        if self.chance(self.wild):
            dim = self.dim()
        if depth <= 0:
            return {"n": "y", "m": "x"}.get(dim) or self.product(dim, 0)
        if self.chance(0.25) and dim in ("n", "m"):
            return {"n": "y", "m": "x"}[dim]
        inner = depth - 1
        match self.random.randrange(26):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7:
                return self.product(dim, inner)
            case 8 | 9 | 10:
                left, right = self.flow(dim, inner), self.flow(dim, inner - 1)
                return f"({left} {self.pick('+', '-')} {right})"
            case 11 | 12:
                return f"({self.vector(dim)} * {self.flow(dim, inner)})"
            case 13:
                return f"({self.flow(dim, inner)} {self.pick('+', '-')} {self.vector(dim)})"
            case 14:
                return f"({self.number()} * {self.flow(dim, inner)})"
            case 15:
                return f"({self.flow(dim, inner)} {self.pick('+', '-', '*')} {self.number()})"
            case 16:
                return f"({self.flow(dim, inner)} / {self.positive(dim)})"
            case 17:
                return f"{self.pick(*ACTIVATIONS)}({self.flow(dim, inner)})"
            case 18:
                return f"dropout({self.flow(dim, inner)}, {self.pick('0.1', '0')})"
            case 19:
                return f"{self.pick('detach', 'identity')}({self.flow(dim, inner)})"
            case 20:
                return f"(-{self.flow(dim, inner)})"
            case 21:
                other = self.pick("n", "m", "r")
                gate = (
                    f"{self.pick('mean', 'sum', 'max')}({self.flow(other, inner)}, over = {other})"
                )
                return f"({gate} * {self.flow(dim, inner - 1)})" if dim != "1" else gate
            case 22:
                gate = self.product("1", inner)
                return f"({gate} {self.pick('*', '+')} {self.flow(dim, inner - 1)})"
            case 23 if dim != "1":
                return f"softmax({self.flow(dim, inner)}, over = {dim})"
            case 24:
                return f"({self.flow(dim, inner)} * {self.flow(dim, inner - 1)})"
            case _:
                return self.product(dim, inner)

    def product(self, dim: str, depth: int) -> str:
        other = self.pick("m", "m", "m", "n", "r", "3")
        x, weight = self.flow(other, depth), self.matrix(dim, other, 2)
        if self.chance(0.1):
            return f"({x} @ transpose({weight}))"
        bias = f", {self.vector(self.pick(dim, dim, '1'))}" if self.chance(0.25) else ""
        return f"linear({x}, {weight}{bias})"

    def steps(self) -> list[str]:
        found: list[str] = []
        if self.chance(0.25):
            found.append(f"x {self.pick('=', '=', '+=', '-=', '*=')} {self.operand('m')}")
        if self.chance(0.2):
            found.append(self.rebound("W", self.matrix("n", "m")))
        elif self.chance(0.06):
            factor = self.pick(self.vector("m"), self.number(), self.matrix("n", "m"))
            found.append(f"W *= {factor}")
        if self.chance(0.1):
            found.append(self.rebound("b", self.vector("n")))
        if not found or self.chance(0.75):
            for _ in range(self.random.choice((1, 1, 1, 2))):
                found.append(self.result())
        return found

    def rebound(self, name: str, value: str) -> str:
        """An assignment that seldom takes away what earlier methods did."""
        whole = re.search(rf"\b{name}\b", value) or self.chance(0.15)
        return f"{name} {self.pick('=', '+=') if whole else self.pick('+=', '-=')} {value}"

    def operand(self, dim: str) -> str:
        if self.chance(0.6):
            return f"{self.vector(dim)} * x"
        if self.chance(0.05):
            return self.pick(self.number(), self.vector(dim))
        return self.flow(dim, 2)

    def result(self) -> str:
        if self.chance(0.06):
            return f"y *= {self.pick(self.vector('n'), self.number(), self.vector('1'))}"
        if self.chance(0.015):
            return f"y = {self.pick(self.vector('n'), self.number(), self.product('1', 1))}"
        sign = self.pick("+=", "+=", "+=", "-=", "=")
        value = self.flow("n", self.random.choice((1, 2, 3)))
        if sign == "=" and not re.search(r"\by\b", value) and self.chance(0.92):
            sign = "+="
        return "y += y * y" if (sign, value) == ("-=", "y") else f"y {sign} {value}"

    def written(self) -> str:
        optional = "" if (self.bias and self.chance(0.1)) or self.chance(0.01) else "?"
        steps = self.steps()
        if not used(self.params, steps) and self.chance(0.95):
            steps.append(f"y += {self.param('n')}")
        if self.chance(0.15):
            steps = [f"require r <= {self.pick('8', 'n + m', '2 * n')}", *steps]
        params = used(self.params, steps) if self.chance(0.99) else self.params
        body = "\n  ".join((*params, *steps))
        return (
            f"method {self.name}(r = 2, alpha = 3, gate = 1) {{\n"
            f"  match y[*, n] = linear(x[*, m], W[n, m], b{optional})\n  {body}\n}}\n"
        )


def verb(random: Random, name: str, sizes: dict[str, int]) -> str:
    """A verb that hands a gate to the method that it takes, or puts one on what that changes."""
    text = Text(random, name, sizes, True, reads=False)
    gate = random.choice(
        (
            f"sigmoid({text.product('1', 1)})",
            text.param("1"),
            text.param("n"),
            text.product("1", 0),
            "2",
            f"tanh({text.param('1')})",
        )
    )
    before = [text.result()] if random.random() < 0.05 else []
    after = [text.result()] if random.random() < 0.2 and not before else []
    if random.random() < 0.5:
        wrapped = ["let base = y", "apply inner", f"y = base + {gate} * (y - base)"]
    else:
        wrapped = [f"apply inner(gate = {gate})"]
    steps = [*before, *wrapped, *after]
    body = "\n  ".join((*used(text.params, steps), *steps))
    return f"method {name}(inner: method, r = 2, alpha = 3, gate = 1) {{\n  match y[*, n] = linear(x[*, m], W[n, m], b?)\n  {body}\n}}\n"


def used(params: list[str], steps: list[str]) -> list[str]:
    """The declarations of what occurs in ``steps``, or in the start of such."""
    kept: list[str] = []
    for line in reversed(params):
        name = next(word for word in line.split() if word.startswith("P")).partition("[")[0]
        if any(re.search(rf"\b{name}\b", text) for text in steps):
            kept.insert(0, line)
    return kept
