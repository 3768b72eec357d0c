from __future__ import annotations

from typing import Any

from surgery.language.build.base import Parts
from surgery.language.build.expressions import Sequence, unquote
from surgery.language.build.training import TrainingBuilder
from surgery.language.source import Span
from surgery.language.syntax import (
    Application,
    Apply,
    Assign,
    Block,
    Freeze,
    Item,
    Let,
    Match,
    Method,
    Name,
    Node,
    On,
    Operand,
    Parameter,
    Require,
    Return,
    Step,
    Train,
    Unpack,
    Use,
)


class Builder(TrainingBuilder):
    def file(self, parts: Parts) -> tuple[Item, ...]:
        return self.nodes(parts)

    def on(self, parts: Parts) -> On:
        self.of_modules(parts[1])
        named = not isinstance(parts[-1], Node)
        name, chain = (parts[-1].value, parts[-3]) if named else (None, parts[-1])
        return On(parts[1], chain, name, span=self.over(parts))

    def chain(self, parts: Parts) -> Application:
        name, *rest = parts
        operand = rest.pop() if rest and isinstance(rest[-1], Application) else None
        return self._application(name, rest, operand, self.over(parts))

    def _application(
        self, name: Any, arguments: Parts, operand: Application | None, span: Span
    ) -> Application:
        given = arguments[0].items if arguments else ()
        inner = (*given, *([operand] if operand else []))
        return Application(
            name.value,
            given,
            operand,
            span=span,
            depth=self.below(inner, span),
            name_span=self.at(name),
        )

    def freeze(self, parts: Parts) -> Freeze:
        return Freeze(parts[1], span=self.over(parts))

    def train(self, parts: Parts) -> Train:
        return Train(parts[1], span=self.over(parts))

    def let(self, parts: Parts) -> Let:
        name, value = parts[1], parts[3]
        return Let(name.value, value, span=self.over(parts), name_span=self.at(name))

    def unpack(self, parts: Parts) -> Unpack:
        tokens = [p for p in parts[1:-1] if p.type == "NAME"]
        names = tuple(Name(t.value, span=self.at(t)) for t in tokens)
        return Unpack(names, parts[-1], span=self.over(parts))

    def use(self, parts: Parts) -> Use:
        names = parts[2] if len(parts) == 3 else None
        end = names[1] if names else parts[1].end_pos
        span = Span(self.source, parts[0].start_pos, end)
        return Use(unquote(parts[1]), names[0] if names else None, span=span)

    def names(self, parts: Parts) -> tuple[tuple[str, ...], int]:
        return tuple(x.value for x in parts if x.type == "NAME"), parts[-1].end_pos

    # Definitions

    def method(self, parts: Parts) -> Method:
        _, name, parameters, _, doc, *rest = parts
        return Method(
            name.value,
            parameters,
            doc,
            self._steps(rest),
            span=self.over(parts),
            name_span=self.at(name),
        )

    def block(self, parts: Parts) -> Block:
        _, name, parameters, _, operand, _, doc, *rest = parts
        return Block(
            name.value,
            parameters,
            operand,
            doc,
            self._steps(rest),
            span=self.over(parts),
            name_span=self.at(name),
        )

    def _steps(self, parts: Parts) -> tuple[Step, ...]:
        return self.nodes(parts)

    def parameters(self, parts: Parts) -> tuple[Parameter, ...]:
        return tuple(x for x in parts if isinstance(x, Parameter))

    def parameter(self, parts: Parts) -> Parameter:
        default = next(iter(self.nodes(parts)), None)
        kind = parts[2].value if len(parts) > 2 and parts[1].type == "COLON" else "value"
        return Parameter(parts[0].value, kind, default, span=self.over(parts))

    def doc(self, parts: Parts) -> str | None:
        return "\n".join(unquote(line) for line in parts) if parts else None

    # Steps

    def match(self, parts: Parts) -> Match:
        _, result, _, operator, operands = parts
        return Match(
            result,
            operator.value,
            operands.items,
            span=self.over(parts),
            operator_span=self.at(operator),
        )

    def operands(self, parts: Parts) -> Sequence:
        return self.sequence(parts)

    def operand(self, parts: Parts) -> Operand:
        name, *rest = parts
        dims = rest[0].items if rest and isinstance(rest[0], Sequence) else None
        optional = not isinstance(parts[-1], Node) and len(parts) > 1
        return Operand(name.value, dims, optional, span=self.over(parts))

    input = operand

    def require(self, parts: Parts) -> Require:
        return Require(parts[1], span=self.over(parts))

    def assign(self, parts: Parts) -> Assign:
        target, operator, value = parts
        return Assign(
            target.value,
            operator.value,
            value,
            span=self.over(parts),
            target_span=self.at(target),
        )

    def apply(self, parts: Parts) -> Apply:
        _, name, *arguments = parts
        inner = self._application(name, arguments, None, self.over(parts[1:]))
        return Apply(inner, span=self.over(parts))

    def returned(self, parts: Parts) -> Return:
        return Return(parts[1], span=self.over(parts))
