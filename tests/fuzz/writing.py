"""Random specs and rules, most of which mean something."""

from __future__ import annotations

from random import Random

_METHODS = ["lora", "dora", "ia3", "loha", "lokr", "rslora", "shift", "vera", "ia3_input", "prompt"]
_VERBS = [
    "gated",
    "layer_gated",
    "scaled(0.5)",
    "dropped(0.1)",
    "apply",
    "sequential",
    "parallel",
    "pfeiffer",
]
_PARTS = [
    "Linear",
    "`0`",
    "`*`",
    "`**`",
    "all",
    "linear",
    "q",
    "`{0,2}`",
    "Conv1d",
    "Embedding",
    "bias",
]
_NUMBERS = [
    "1",
    "2",
    "1",
    "2",
    "4",
    "0.5",
    "0",
    "0.1",
    "rank",
    "2 * 2",
    "-1",
    "1 / 2",
    "n",
    "1e3",
    "index",
    "1 + index",
]
_FUNCTIONS = [
    "relu",
    "gelu",
    "tanh",
    "sigmoid",
    "detach",
    "abs",
    "exp",
    "sqrt",
    "identity",
    "transpose",
]


def spec(random: Random, own: tuple[str, ...] = ()) -> str:
    """Statements that apply methods, those called ``own`` among them."""
    lines = ["let rank = 2"] * (random.random() < 0.8)
    if random.random() < 0.6:
        lines += [_plain(random, own) for _ in range(random.randint(1, 3))]
    else:
        lines += [_statement(random, own) for _ in range(random.randint(1, 4))]
    joined = random.choice(["\n", "\n", "; ", "\n\n", "  # note\n"]).join(lines)
    return joined + random.choice(["", "\n", "\n# end"])


def _plain(random: Random, own: tuple[str, ...]) -> str:
    """A statement that fits most modules."""
    name = random.choice(["", f" as a{random.randrange(9)}"])
    method = random.choice([*own, *own, *own, "lora(2)", "ia3", "shift", "loha(1)", "dora(rank)"])
    where = random.choice(["`{0,embed}`", "`{0,embed}`", "all", "`{[!1]*}`"])
    return f"on {where} {random.choice(['apply ', 'apply ', ''])}{method}{name}"


def _statement(random: Random, own: tuple[str, ...]) -> str:
    kind = random.random()
    if kind < 0.7:
        name = random.choice(["", "", "", " as one", " as two", " as weight", " as norm"])
        return f"on {_selector(random)} {_applied(random, own)}{name}"
    if kind < 0.8:
        return f"{random.choice(['freeze', 'train'])} {_selector(random)}"
    if kind < 0.95:
        return f"let a{random.randrange(9)} = {expression(random, 2, _NUMBERS)}"
    return f'use "other.peft"{random.choice(["", " (other)"])}'


def _selector(random: Random) -> str:
    parts = [random.choice(_PARTS) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    parts = [
        p + random.choice(["", "", "", "[0]", "[-1:]", "[::2]", "[5]", "[0.5:]", "[:-0.25]"])
        for p in parts
    ]
    text = random.choice(["|", " | "]).join(parts)
    if random.random() < 0.2:
        text += f" in {random.choice(_PARTS)}"
    if random.random() < 0.2:
        facts = ["index", "inputs", "outputs", "parameters", "depth", "2", "class", "path", '"a"']
        test = random.choice(["<", "<=", "==", "!=", ">"])
        text += f" where {expression(random, 1, facts)} {test} {random.choice(facts)}"
    if random.random() < 0.2:
        text += f" except {random.choice(_PARTS)}"
    if random.random() < 0.1:
        text += f" expect {random.randint(0, 3)}"
    return text


def _applied(random: Random, own: tuple[str, ...]) -> str:
    known = [*_METHODS, *own, *own]
    if random.random() < 0.25:
        verbs = " ".join(random.choice(_VERBS) for _ in range(random.randint(1, 2)))
        return f"{verbs} {random.choice(['adapter', *known])}{_arguments(random)}"
    return f"apply {random.choice(known)}{_arguments(random)}"


def _arguments(random: Random) -> str:
    given = [expression(random, 1, _NUMBERS) for _ in range(random.choice([0, 0, 1, 1, 2]))]
    names = random.sample(
        ["alpha", "dropout", "gate", "r", "std", "k"], random.choice([0, 0, 1, 2])
    )
    given += [f"{name} = {expression(random, 1, _NUMBERS)}" for name in names]
    return f"({', '.join(given)})" if given else random.choice(["", "()"])


def expression(random: Random, depth: int, leaves: list[str]) -> str:
    if depth == 0 or random.random() < 0.4:
        return random.choice(leaves)
    left, right = (expression(random, depth - 1, leaves) for _ in range(2))
    kind = random.random()
    if kind < 0.6:
        return f"{left} {random.choice('+-*/@%')} {right}"
    if kind < 0.7:
        return f"-{left}"
    if kind < 0.8:
        return f"({left})"
    if kind < 0.9:
        return f"{random.choice(['min', 'max', 'divisor', 'linear', 'dropout', 'kron'])}({left}, {right})"
    return f"{random.choice([*_FUNCTIONS, 'floor'])}({left})"


def definition(random: Random, name: str) -> str:
    return _sound(random, name) if random.random() < 0.6 else _loose(random, name)


def _sound(random: Random, name: str) -> str:
    """A rule whose dims fit."""
    steps = ["param A[r, m] ~ kaiming_uniform(a = sqrt(5))", "param B[n, r] = 0", "param v[n] = 1"]
    steps.append("param u[m] ~ normal(std = 0.1)")
    steps += ["let s = alpha / r"] * (random.random() < 0.5)
    scale = "s" if len(steps) > 4 else "alpha"
    for _ in range(random.randint(1, 4)):
        kind = random.choice(["y = {}", "y += {}", "y -= {}", "y = {}"])
        steps.append(kind.format(f"y + {_out(random, 3, scale)}"))
    if random.random() < 0.3:
        steps.insert(4, f"x = u * {random.choice(['x', 'dropout(x, p)', 'relu(x)'])}")
    used = "y += linear(linear(u * x, A), B) * v"
    head = (
        f"method {name}(r = 1, alpha = r, p = {random.choice(['0', '0', '0.1', '0.1', '1.5'])}) {{"
    )
    return "\n  ".join([head, "match y[*, n] = linear(x[*, m], W, b?)", *steps, used]) + "\n}"


def _out(random: Random, depth: int, scale: str) -> str:
    """A value with the features of the result."""
    if depth == 0:
        return random.choice(["y", "y", "linear(x, W)", "linear(linear(x, A), B)", "v", "b", scale])
    left, right = (_out(random, depth - 1, scale) for _ in range(2))
    forms = [left, f"({left} {random.choice('+-*/')} {right})", f"{scale} * {left}", f"-{left}"]
    forms += [f"{random.choice(_FUNCTIONS[:8])}({left})", f"dropout({left}, p)", f"v * {left}"]
    return random.choice(forms)


def _loose(random: Random, name: str) -> str:
    block = random.random() < 0.15
    parameters = random.choice(["", "r = 2", "r = 2, k = 0.5", "gate = 1", "f: block", "m: method"])
    dims = random.choice(["[*, m]", "", "[z, s, m]"])
    if block:
        head, known = f"block {name}({parameters}) of h[*, m] {{", ["h", "m", "2"]
    else:
        operator = random.choice(["linear(x{}, W[n, m], b?)", "linear(x{})", "module(x{})"])
        lead = "*, " if dims != "[z, s, m]" else "z, s, "
        match = f"match y[{lead}n] = {operator.format(dims)}"
        head, known = (
            f"method {name}({parameters}) {{\n  {match}",
            ["x", "y", "W", "b", "n", "m", "2"],
        )
    known += [p.split(" ")[0].rstrip(":") for p in parameters.split(", ") if p]
    steps = [_step(random, known, block) for _ in range(random.randint(1, 4))]
    steps.append(f"return {expression(random, 2, known)}" if block else _assignment(random, known))
    return "\n  ".join([head, *steps]) + "\n}"


def _step(random: Random, known: list[str], block: bool) -> str:
    name = random.choice(["A", "B", "C", "s", "l", "forward", "type", "put"])
    kind = random.random()
    if kind < 0.6:
        sizes = random.choice(["n", "m", "r, m", "n, m", "n, r", "2, m", "1", "m / 2, n", "k"])
        flags = random.choice(["", "", "", "frozen ", "shared ", "layer "])
        starts = ["= 0", "= 1", "~ normal(std = 0.02)", "~ kaiming_uniform(a = sqrt(5))"]
        starts += [
            f"= {expression(random, 1, known)}",
            f"~ uniform({expression(random, 1, known)})",
        ]
        known.append(name)
        return f"param {flags}{name}[{sizes}] {random.choice(starts)}"
    if kind < 0.75:
        value = expression(random, 2, known)
        known.append(name)
        return f"let {name} = {value}"
    if kind < 0.85:
        return f"require {expression(random, 1, known)} {random.choice(['<', '<=', '=='])} n"
    return (
        "let c = 1"
        if block
        else random.choice(["apply lora(1)", "apply m", _assignment(random, known)])
    )


def _assignment(random: Random, known: list[str]) -> str:
    target = random.choice(["y", "y", "y", "x", "W", "b"])
    return f"{target} {random.choice(['=', '+=', '-=', '*='])} {expression(random, 2, known)}"
