"""Models with everything that may be done to them, and beside each what must then hold.

`test_states.py` has Hypothesis choose what is done, `fuzz_operations.py` a random generator.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgery
from surgery import SurgeryError
from tests.laws.faults import Interrupted, interrupted
from tests.laws.holding import Holding
from tests.laws.lives import DISABLED, DTYPES, KINDS, MERGED, Kind, Life, Standing, same, state_of
from tests.models import randomise


class World(Holding):
    """Some lives, and the operations on them; each checks what must hold after it."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.folder = folder
        self.seed = seed
        self.names = 0
        self.files = 0
        self.lives = [self.born(KINDS[kind])]

    def born(self, kind: Kind) -> Life:
        torch.manual_seed(self.seed)
        model = randomise(kind.make(), self.seed).eval()
        return Life(kind, model, copy.deepcopy(model))

    def life(self, r: random.Random) -> Life:
        return r.choice(self.lives)

    # What changes what is applied

    def apply(self, r: random.Random) -> str:
        life = self.life(r)
        if len(life.stack) == 4:
            return "enough specs"
        text, self.names = r.choice(life.kind.specs), self.names + 1
        name = f"n{self.names}" if "{}" in text else None
        standing = Standing(text.format(name), name, self.names)
        if not self.allowed(life, lambda: self.put(life.model, standing, life.input), "apply"):
            return "apply refused"
        life.stack.append(standing)
        with surgery.disabled(life.model):
            same(state_of(life.model), state_of(life.twin), "the base below a new spec")
        return "apply"

    def remove(self, r: random.Random) -> str:
        life = self.life(r)
        names = [s.name for s in life.stack if s.name]
        name = r.choice([*names, None, "nothing"])
        if not self.allowed(life, lambda: surgery.remove(life.model, name), "remove"):
            return "remove refused"
        assert name != "nothing"
        life.stack = [s for s in life.stack if name is not None and s.name != name]
        self.agrees(life)
        return "remove"

    def merge(self, r: random.Random) -> str:
        life = self.life(r)
        expected = None
        if not life.open:
            with surgery.merged(life.model):
                expected = state_of(life.model)
        before = life.run()
        report: list[surgery.MergeReport] = []
        if not self.allowed(life, lambda: report.append(surgery.merge(life.model)), "merge"):
            return "merge refused"
        assert expected is not None
        same(state_of(life.model), expected, "merging for good, and `merged`")
        self.near(life, life.run(), before)
        stayed = {s.child for s in report[0].stayed}
        life.stack = [s for s in life.stack if s.name in stayed]
        life.partial |= _is_partial(life.model)
        with surgery.disabled(life.model):
            life.twin = copy.deepcopy(life.model)
        return "merge"

    def fold(self, r: random.Random) -> str:
        life = self.life(r)
        before = life.run()
        if not self.allowed(life, lambda: surgery.fold(life.model), "fold"):
            return "fold refused"
        self.near(life, life.run(), before)
        life.partial = True
        return "fold"

    def refuse(self, r: random.Random) -> str:
        """A spec that is wrong in its second half changes nothing."""
        life = self.life(r)
        bad = r.choice(["on `nowhere` apply lora(2)", "train `nowhere`", "on Linear apply lora(0)"])
        before = state_of(life.model)
        try:
            surgery.apply(life.model, f"train bias {bad}", example_inputs=life.input)
        except SurgeryError:
            same(state_of(life.model), before, "after an error")
            return "refused"
        raise AssertionError("a bad spec was applied")

    def fault(self, r: random.Random) -> str:
        """An interrupt at any call within a verb leaves the model as it was."""
        life = self.life(r)
        standing = Standing(r.choice(life.kind.specs).format("faulty"), "faulty", 1)
        victim = copy.deepcopy(life.model)
        verbs: list[Callable[[], Any]] = [
            lambda: self.put(victim, standing, life.input),
            lambda: surgery.remove(victim),
            lambda: surgery.merge(victim),
            lambda: surgery.fold(victim),
            lambda: _briefly(surgery.merged(victim)),
            lambda: _briefly(surgery.disabled(victim)),
            lambda: surgery.plan(victim, standing.text, example_inputs=life.input),
        ]
        before, shown = state_of(victim), life.run(victim)
        try:
            interrupted(r.choice(verbs), r.randrange(r.choice((30, 300, 3000))))
        except (Interrupted, SurgeryError) as problem:
            same(state_of(victim), before, "after an interrupt")
            assert torch.equal(life.run(victim), shown)
            return type(problem).__name__
        return "no fault"

    # Contexts

    def enter(self, r: random.Random) -> str:
        life = self.life(r)
        if len(life.open) >= 3:
            return "enough contexts"
        kind = r.choice((MERGED, DISABLED))
        if not life.open:
            life.shadow, life.cast = copy.deepcopy(life.model), False
            life.before = life.dtype
        context = getattr(surgery, kind)(life.model)
        assert context.__enter__() is life.model
        life.open.append((kind, context))
        return f"enter {kind}"

    def leave(self, r: random.Random) -> str:
        """In any order, and some by an exception."""
        life = self.life(r)
        if not life.open:
            return "nothing open"
        _, context = life.open.pop(r.randrange(len(life.open)))
        problem = ValueError() if r.random() < 0.3 else None
        context.__exit__(type(problem) if problem else None, problem, None)
        if not life.open:
            self.is_back(life, "after leaving")
        return "leave"

    def edit_inside(self, r: random.Random) -> str:
        """What a context put in place of something is its own; edits of it go with it."""
        life = self.life(r)
        if life.shown is None:
            return "nothing open"
        named, tensors = dict(life.model.named_parameters()), life.adapted.state_dict()
        moved = [n for n in named if n in tensors and not torch.equal(named[n], tensors[n])]
        if not moved:
            return "nothing to edit"
        name = r.choice(moved)
        path, _, leaf = name.rpartition(".")
        module, parameter = life.model.get_submodule(path), named[name]
        before, shown = state_of(life.model), life.run()
        how = r.choice(("write", "data", "replace", "flag", "load", "delete"))
        kept = parameter.detach().clone(), parameter.requires_grad
        with torch.no_grad():
            match how:
                case "write":
                    parameter.add_(1)
                case "data":
                    parameter.data = torch.zeros_like(parameter)
                case "replace":
                    setattr(module, leaf, nn.Parameter(torch.ones_like(parameter)))
                case "flag":
                    parameter.requires_grad_(not parameter.requires_grad)
                case "load":
                    life.model.load_state_dict({name: parameter + 1}, strict=False, assign=True)
                case _:
                    delattr(module, leaf)
        if how == "delete" or r.random() < 0.5:
            # Leave by it: all that is open at once, so that no later check runs on the edit.
            while life.open:
                life.open.pop(r.randrange(len(life.open)))[1].__exit__(None, None, None)
            self.is_back(life, f"after an edit inside by {how}")
            return f"edit by {how}, left"
        now = dict(life.model.named_parameters())[name]
        with torch.no_grad():
            now.copy_(kept[0])
        now.requires_grad_(kept[1])
        same(state_of(life.model), before, "an edit taken back")
        assert torch.equal(life.run(), shown)
        return f"edit by {how}"

    # What changes numbers

    def train(self, r: random.Random) -> str:
        """A step of all that trains; inside a context it would be of what goes with it."""
        life = self.life(r)
        if life.open:
            return "not inside"
        base = dict(life.twin.named_parameters())
        added = [
            p
            for n, p in surgery.trainable(life.model).items()
            if n in life.trained or n not in base
        ]
        if not added:
            return "nothing trains"
        optimizer = torch.optim.SGD(added, lr=0.05)
        loss = life.model(life.input).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter in added:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.add_((0.02 * noise).to(parameter.dtype))
        return "train"

    def cast(self, r: random.Random) -> str:
        life = self.life(r)
        if life.open and life.cast:
            return "cast already"
        dtype = r.choice(DTYPES)
        life.model.to(dtype)
        life.twin.to(dtype)
        if life.open:
            assert life.shadow is not None
            life.shadow.to(dtype)
        life.dtype, life.cast = dtype, True
        return "cast"

    # Copies, files, threads

    def twin_life(self, r: random.Random) -> str:
        """A copy has what shows, and goes its own way."""
        life = self.life(r)
        how = r.choice((copy.deepcopy, _pickled, _saved))
        before, shown = state_of(life.model), life.run()
        other = how(life.model)
        same(state_of(life.model), before, "copying")
        assert torch.equal(life.run(other), shown), "a copy computes another result"
        same(state_of(other), before, "a copy")
        copied = Life(life.kind, other, copy.deepcopy(life.twin), dtype=life.dtype)
        copied.stack, copied.partial = list(life.stack), life.partial
        if life.shown == DISABLED:
            copied.stack = []
        elif life.shown == MERGED:
            left = other.__dict__.get("_surgery")
            names = {e.method.child for e in left.edits()} if left else set()
            copied.partial |= _is_partial(other)
            alone = left is not None and any(not a.plan.edits for a in left.applied)
            copied.stack = [s for s in life.stack if s.name in names or (alone and not s.name)]
            with surgery.disabled(other):
                copied.twin = copy.deepcopy(other)
        self.lives.append(copied)
        if len(self.lives) > 3:
            self.close(self.lives.pop(r.randrange(3)))
        return "copy"

    def save(self, r: random.Random) -> str:
        """The file says what is applied, also from inside a context; loaded on the base it is that."""
        life = self.life(r)
        before = state_of(life.model)
        self.files += 1
        path = self.folder / f"{self.files}.safetensors"
        try:
            surgery.save(life.model, path)
        except SurgeryError:
            if life.stack or path.exists():
                raise
            return "nothing to save"
        same(state_of(life.model), before, "saving")
        fresh = copy.deepcopy(life.twin)
        try:
            surgery.load(fresh, path, example_inputs=life.input)
        except SurgeryError as problem:
            # A model that was cast since is another base to a file.
            if problem.diagnostics[0].code not in ("S515", "S516"):
                raise
            same(state_of(fresh), state_of(life.twin), "a load that was refused")
            return "load refused"
        expected, output = state_of(life.adapted), life.run(life.adapted)
        found = state_of(fresh)
        assert found[2] == expected[2], "flags of a loaded model"
        # A twin has no memory in common that the model had, and was trained in.
        if life.kind is not KINDS["shared"]:
            for name, tensor in expected[0].items():
                assert torch.equal(found[0][name], tensor), f"loaded {name}"
            assert torch.equal(life.run(fresh), output), "the output of a loaded model"
        surgery.remove(fresh)
        same(state_of(fresh), state_of(life.twin), "the base below a loaded spec")
        return "save"

    def reload(self, r: random.Random) -> str:
        """A file onto a model that is adapted: it fits beside what is there, or nothing happens."""
        life = self.life(r)
        if not self.files:
            return "no file"
        path = self.folder / f"{r.randint(1, self.files)}.safetensors"
        if not path.exists():
            return "no file"
        fresh = copy.deepcopy(life.model)
        before = state_of(fresh)
        try:
            surgery.load(fresh, path, example_inputs=life.input)
        except SurgeryError:
            same(state_of(fresh), before, "a load that was refused")
            return "reload refused"
        life.run(fresh)
        surgery.remove(fresh)
        return "reload"

    def thread(self, r: random.Random) -> str:
        """Verbs of another thread are as this one's, and refused beside its contexts."""
        life = self.life(r)
        before, shown = state_of(life.model), life.run()
        found: list[BaseException | None] = []
        verb: Callable[[], Any] = r.choice(
            (
                lambda: _briefly(surgery.merged(life.model)),
                lambda: _briefly(surgery.disabled(life.model)),
                lambda: surgery.save(life.model, self.folder / "thread.safetensors"),
                lambda: surgery.apply(life.model, "on `nowhere` apply lora(2)"),
            )
        )

        def work() -> None:
            try:
                verb()
            except BaseException as problem:
                found.append(problem)
            else:
                found.append(None)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found[0] is None or isinstance(found[0], SurgeryError), found[0]
        same(state_of(life.model), before, "a verb of another thread")
        assert torch.equal(life.run(), shown)
        return "thread refused" if found[0] else "thread"

    def backward(self, r: random.Random) -> str:
        """Gradients of what one state computed are right in another, or an error."""
        life = self.life(r)
        if life.open or not life.stack:
            return "not here"
        parameters = list(surgery.trainable(life.model).values())
        expected = torch.autograd.grad(
            life.model(life.input).float().sum(), parameters, allow_unused=True
        )
        loss = life.model(life.input).float().sum()
        with getattr(surgery, r.choice((MERGED, DISABLED)))(life.model):
            life.run()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for one, other in zip(expected, found, strict=True):
            assert (one is None) is (other is None)
            assert one is None or other is None or torch.equal(one, other)
        return "backward"

    def check(self) -> None:
        for life in self.lives:
            self.holds(life)

    def end(self) -> None:
        for life in self.lives:
            self.close(life)


def _is_partial(model: nn.Module) -> bool:
    """Whether a spec has lost some of its methods, and not all."""
    record = model.__dict__.get("_surgery")
    return bool(record) and any(len(a.edits) < len(a.plan.edits) for a in record.applied)


def _briefly(context: AbstractContextManager[nn.Module]) -> None:
    with context:
        pass


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


OPERATIONS = (
    "apply",
    "apply",
    "apply",
    "train",
    "train",
    "enter",
    "remove",
    "merge",
    "fold",
    "refuse",
    "fault",
    "enter",
    "leave",
    "edit_inside",
    "train",
    "cast",
    "twin_life",
    "save",
    "reload",
    "thread",
    "backward",
)
