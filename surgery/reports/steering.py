"""What a plan says of the training of methods, as lines: of their rules, and of statements."""

from __future__ import annotations

from surgery.planning.edit import Edit
from surgery.planning.plan import Plan
from surgery.rules.program import build
from surgery.rules.trained import AfterStep, PenaltyTerm, Trained, Tuning


def trained(edit: Edit) -> list[str]:
    """What the rule of ``edit`` says of training, in the names that it gives."""
    said = dict(build(edit.signature, (edit.wrapped,)).training)[edit.graft]
    start = f"{edit.graft}."
    return [line.replace(start, "") for item in said for line in _lines(item)]


def _lines(item: Trained) -> list[str]:
    match item:
        case Tuning():
            names = " | ".join(item.params)
            return [f"optimize {names} with {item.option} {item.operator} {item.value}"]
        case PenaltyTerm():
            return [f"penalty {item.value}"]
        case AfterStep():
            names = [u.target for u in item.updates if not u.target.startswith("let ")]
            return [f"after step: {', '.join(dict.fromkeys(names))}"] if names else []


def steered(plan: Plan) -> list[str]:
    """What statements of the spec say of methods that stand, of the optimizer and of the loss."""
    lines: list[str] = []
    for flag, verb in ((True, "train"), (False, "freeze")):
        names = [n for n, f in plan.flags.items() if f is flag]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if names[3:] else "")
        lines += [f"~ {verb} {shown}"] * bool(names)
    for option in plan.options:
        count = len(option.names)
        lines.append(
            f"~ optimize {count:,} parameter{'s' * (count > 1)} with {option}   {option.place}"
        )
    for number in dict.fromkeys(p.statement for p in plan.penalties):
        statement = plan.spec.statements[number]
        sites = sum(p.statement == number for p in plan.penalties)
        text = " ".join(statement.span.text.split())
        lines.append(f"~ {text}   at {sites:,} site{'s' * (sites > 1)}")
    return lines
