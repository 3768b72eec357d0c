"""Which names the params of methods and blocks have, by what takes what.

A method that takes one other is a verb: what it takes keeps the name of the whole, and its own
params stand under the verb's name (`lora.A`, `lora.gated.w`). What takes several has a name of its
own, and each that it takes stands under its parameter's (`fusion.w`, `fusion.f.D`, `fusion.g.D`).
How it is written, with parentheses or one behind the other, makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from surgery.language.diagnostics import Label, error
from surgery.rules.naming import clash
from surgery.rules.shapes import Shapes, show_shape
from surgery.rules.values import Closure, Declaration


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


def is_again(made: Declaration, declared: Iterable[Declaration], shapes: Shapes) -> bool:
    """Whether a method or block that is used twice has declared this param before.

    Raises:
        SurgeryError: S215 if another stands in its place, S271 if it had another size then.

    """
    name = made.name
    earlier = next((d for d in declared if clash(d.name, name)), None)
    if earlier is None:
        return False
    first = Label(earlier.span, "first")
    if earlier.name != name:
        one, other = sorted((name, earlier.name))
        raise error("S215", f"`{one}` names a param and what holds `{other}`", made.span, first)
    if earlier.span != made.span:
        raise error("S215", f"the param `{name}` is declared twice", made.span, first)
    pairs = zip(earlier.shape, made.shape, strict=True)
    if all(shapes.equal(a, b, f"`{name}`, used twice", made.span) for a, b in pairs):
        return True
    raise error(
        "S271",
        f"this is used twice, and its `{name}` would be {show_shape(earlier.shape)} and "
        f"{show_shape(made.shape)}",
        made.span,
        help="what is used twice has the same params twice: give each use a block of its own",
    )
