"""What the statements of a spec say of the params of methods, and to the optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, Label, SurgeryError, error
from surgery.planning.edit import Edit, Tensor
from surgery.planning.options import Option, SitePenalty, setting_value
from surgery.planning.spec import Spec, Statement
from surgery.planning.stated import stated_penalty
from surgery.planning.targets import MethodParams, local_name, refused
from surgery.rules.acting import acting
from surgery.rules.program import build


@dataclass
class Steering:
    """The statements so far: which params train, options of the optimizer, and penalties."""

    params: MethodParams
    spec: Spec
    found: list[Diagnostic]
    settled: bool = False
    flags: dict[str, bool] = field(default_factory=dict[str, bool])
    options: list[Option] = field(default_factory=list[Option])
    penalties: list[SitePenalty] = field(default_factory=list[SitePenalty])

    def concerns(self, statement: Statement) -> bool:
        """Whether ``statement`` speaks of params of methods; not if what it says makes no sense."""
        if isinstance(statement, syntax.On):
            return False
        try:
            return isinstance(statement, syntax.Penalty) or self.params.means(statement.selector)
        except SurgeryError:
            return True

    def take(self, number: int, statement: Statement) -> None:
        """Let ``statement`` decide; what is wrong with it goes to ``found``."""
        assert not isinstance(statement, syntax.On)
        try:
            self.params.means(statement.selector)
            held = self.params.find(statement.selector)
            match statement:
                case syntax.Freeze() | syntax.Train():
                    trains = isinstance(statement, syntax.Train)
                    for found in held if trains else ():
                        _check_acting(*found, statement)
                    self.flags |= {n: trains for f in held for n in self.params.names(*f)}
                case syntax.Optimize():
                    names = tuple(n for f in held for n in self.params.names(*f))
                    self.options += options_of(number, statement, self.spec, names)
                case syntax.Penalty():
                    edits = list({id(edit): edit for edit, _ in held}.values())
                    for edit in edits:
                        stated_penalty(self.spec, number, edit)
                    self.penalties += [SitePenalty(number, e.key, len(edits)) for e in edits]
        except SurgeryError as problem:
            # What an `on` with a mistake did not apply is not there, and that has been said.
            if not self.found and refused(problem, self.settled):
                self.found += problem.diagnostics

    @property
    def trains(self) -> bool:
        """Whether any param of a method trains after these statements."""
        return any(self._trains(t) for e in self._edits for t in e.tensors)

    def check_trained(self, base: set[str]) -> None:
        """Refuse options for parameters of which none trains; ``base`` are those of the base that do."""
        trained = {t.name for e in self._edits for t in e.tensors if self._trains(t)}
        for number in dict.fromkeys(option.statement for option in self.options):
            names = {n for o in self.options if o.statement == number for n in o.names}
            if not names & (trained | base):
                selector = self.spec.statements[number].selector
                self.found.append(
                    Diagnostic(
                        "S286",
                        "an optimizer has none of these parameters: they are frozen",
                        (Label(selector.span),),
                        "`train` them, or leave this out",
                    )
                )

    def _trains(self, tensor: Tensor) -> bool:
        return not tensor.state and self.flags.get(tensor.name, tensor.trained)

    @property
    def _edits(self) -> list[Edit]:
        return [*self.params.standing, *self.params.own]


def options_of(
    number: int, statement: syntax.Optimize, spec: Spec, names: tuple[str, ...]
) -> list[Option]:
    """The settings of a statement, for parameters of these names.

    Raises:
        SurgeryError: S280 for what is no number that an option takes.

    """
    place = str(statement.span).rpartition(":")[0]
    return [
        Option(number, s.option, s.operator, setting_value(s, spec), names, place)
        for s in statement.settings
    ]


def _check_acting(edit: Edit, tensor: Tensor, statement: syntax.Train) -> None:
    """Refuse to train what its rule lets no gradient reach."""
    if tensor.trained:
        return
    program = build(edit.signature, (edit.wrapped,))
    results = [program.result, *([program.core] if program.core is not None else [])]
    name = tensor.name.removeprefix(edit.prefix)
    if name not in acting(results, edit.sizes).trained:
        own = local_name(edit, tensor)
        where = edit.site.name or "the model"
        raise error(
            "S225",
            f"`{own}` of `{edit.method.child}` could never train: its derivative is always zero",
            Label(statement.selector.span, f"at `{where}`"),
        )
