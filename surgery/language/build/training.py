"""What a text says of training: params, states, draws, and what an optimizer is told."""

from __future__ import annotations

from surgery.language.build.base import Parts
from surgery.language.build.expressions import Sequence
from surgery.language.build.selectors import SelectorBuilder
from surgery.language.diagnostics import did_you_mean
from surgery.language.syntax import (
    After,
    Assign,
    Charge,
    Draw,
    Expression,
    Let,
    Name,
    Optimize,
    Param,
    Penalty,
    Selector,
    Setting,
    Sharing,
    Tune,
)

SHARING = ("shared", "stack", "layer")
FLAGS = ("frozen", *SHARING)
OPTIONS = ("lr", "weight_decay", "momentum", "eps")
"""What a statement may say of an optimizer's groups, by torch's names."""


class TrainingBuilder(SelectorBuilder):
    def optimize(self, parts: Parts) -> Optimize:
        return Optimize(parts[1], parts[3], span=self.over([*parts[:-1], parts[3][-1]]))

    def penalty(self, parts: Parts) -> Penalty:
        selector: Selector = parts[3]
        if selector.of is not None:
            self.reject(
                "S281",
                "a penalty is of methods, and names their params in its expression",
                selector.of.span,
                help="`penalty 0.1 * frobenius(A) of lora`",
            )
        return Penalty(parts[1], selector, span=self.over(parts))

    def settings(self, parts: Parts) -> tuple[Setting, ...]:
        given: list[Setting] = list(self.nodes(parts))
        for place, setting in enumerate(given):
            if any(setting.option == other.option for other in given[:place]):
                self.reject("S280", f"`{setting.option}` is said twice", setting.option_span)
        return tuple(given)

    def setting(self, parts: Parts) -> Setting:
        option, operator, value = parts
        if option.value not in OPTIONS:
            self.reject(
                "S280",
                f"`{option}` is no option of an optimizer that can be set here",
                self.at(option),
                help=did_you_mean(option.value, OPTIONS)
                or f"there are {', '.join(f'`{name}`' for name in OPTIONS)}",
            )
        return Setting(
            option.value,
            operator.value,
            value,
            span=self.over(parts),
            option_span=self.at(option),
        )

    def of_modules(self, selector: Selector) -> None:
        """Refuse ``selector`` if it selects params that methods add."""
        if selector.of is not None:
            self.reject(
                "S281",
                "`of` names params that methods add, and a method is applied to modules",
                selector.of.span,
                help="`freeze`, `train`, `optimize` and `penalty` speak of such params",
            )

    # Steps

    def param(self, parts: Parts) -> Param:
        _, *flags, name, dims, sign, init = parts
        shared = self._flags(flags, FLAGS, "param")
        return Param(
            name.value,
            dims.items,
            init,
            random=sign.type == "TILDE",
            frozen="frozen" in flags,
            shared=shared,
            span=self.over(parts),
            name_span=self.at(name),
        )

    def state(self, parts: Parts) -> Param:
        _, *flags, name, dims, sign, init = parts
        shared = self._flags(flags, SHARING, "state")
        return Param(
            name.value,
            dims.items,
            init,
            random=sign.type == "TILDE",
            frozen=True,
            shared=shared,
            state=True,
            span=self.over(parts),
            name_span=self.at(name),
        )

    def draw(self, parts: Parts) -> Draw:
        sign = next(i for i, part in enumerate(parts) if getattr(part, "type", "") == "TILDE")
        *flags, name = [part for part in parts[1:sign] if not isinstance(part, Sequence)]
        dims = parts[sign - 1].items if isinstance(parts[sign - 1], Sequence) else None
        distribution, *otherwise = self.nodes(parts[sign + 1 :])
        shared = self._flags(flags, SHARING, "draw")
        return Draw(
            name.value,
            dims,
            distribution,
            otherwise[0] if otherwise else None,
            shared,
            span=self.over(parts),
            name_span=self.at(name),
        )

    def _flags(self, flags: Parts, known: tuple[str, ...], word: str) -> Sharing | None:
        """Who shares what ``flags`` are said of."""
        others = "one of `shared`, `stack` and `layer`"
        for place, flag in enumerate(flags):
            if flag.value not in known:
                self.reject(
                    "S118",
                    f"`{flag}` is not a modifier of `{word}`",
                    self.at(flag),
                    help=did_you_mean(flag, known)
                    or f"a {word} may be {f'`frozen`, and {others}' if 'frozen' in known else others}",
                )
            elif flag.value in flags[:place]:
                self.reject("S118", f"`{flag}` is said twice", self.at(flag))
        words = [flag for flag in flags if flag.value in SHARING]
        if len(words) > 1:
            self.reject("S118", f"a {word} is shared in one way", self.at(words[1]))
        return words[0].value if words else None

    def tune(self, parts: Parts) -> Tune:
        *names, _, settings = [part for part in parts[1:] if getattr(part, "type", "") != "VBAR"]
        params = tuple(Name(name.value, span=self.at(name)) for name in names)
        return Tune(params, settings, span=self.over([*parts[:-1], settings[-1]]))

    def charge(self, parts: Parts) -> Charge:
        return Charge(parts[1], span=self.over(parts))

    def after(self, parts: Parts) -> After:
        _, event, *rest = parts
        if event.value != "step":
            self.reject(
                "S282",
                f"`after {event}` is not known: what follows each step of the optimizer is "
                "written `after step { … }`",
                self.at(event),
                help=did_you_mean(event.value, ["step"]),
            )
        guarded = getattr(rest[0], "type", "") == "WHERE"
        where: Expression | None = rest[1] if guarded else None
        body = tuple(part for part in rest[2 * guarded :] if isinstance(part, Let | Assign))
        return After(event.value, where, body, span=self.over(parts), event_span=self.at(event))
