"""Which names the params of methods and blocks have, by what takes what.

A method that takes one other is a verb: what it takes keeps the name of the whole, and its own
params stand under the verb's name (`lora.A`, `lora.gated.w`). What takes several has a name of its
own, and each that it takes stands under its parameter's (`fusion.w`, `fusion.f.D`, `fusion.g.D`).
How it is written, with parentheses or one behind the other, makes no difference.
"""

from __future__ import annotations

from dataclasses import replace

from surgery.rules.values import Closure


def taken(closure: Closure) -> dict[str, Closure]:
    """The methods and blocks that ``closure`` takes, if they have no place yet."""
    found = {k: v for k, v in closure.arguments.items() if isinstance(v, Closure)}
    return {k: v for k, v in found.items() if v.path is None}


def placed(closure: Closure, path: str) -> Closure:
    """``closure`` with names for its params, and for those of all that it takes, below ``path``."""
    if closure.path is not None:
        return closure
    inner = taken(closure)
    if len(inner) == 1:
        ((formal, only),) = inner.items()
        own = f"{path}{_verb(closure)}."
        return replace(
            closure, path=own, arguments={**closure.arguments, formal: placed(only, path)}
        )
    below = {formal: placed(c, f"{path}{formal}.") for formal, c in inner.items()}
    return replace(closure, path=path, arguments={**closure.arguments, **below})


def child_name(closure: Closure) -> str:
    """The default name of a statement's params: that of the innermost, or of what takes several."""
    while len(inner := taken(closure)) == 1:
        (closure,) = inner.values()
    return closure.definition.name


def _verb(closure: Closure) -> str:
    """The verb's name; of two alike around one method, the outer one is `scaled_2`."""
    name, count = closure.definition.name, 1
    while len(inner := taken(closure)) == 1:
        (closure,) = inner.values()
        verb = len(taken(closure)) == 1
        count += verb and closure.definition.name == name
    return name if count == 1 else f"{name}_{count}"
