"""Attention cores that run as a program has them, whichever functions they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from surgery.anatomy.roles.operators import ATTENTIONS, WHOLE_ATTENTIONS
from surgery.anatomy.roles.trails import SCORED, softens
from surgery.anatomy.site import Core
from surgery.graft.attention import interfaces
from surgery.graft.attention.calls import called
from surgery.graft.attention.change import Change
from surgery.graft.attention.fused import attend
from surgery.graft.attention.products import Trail, product
from surgery.graft.attention.steps import FIRST, KINDS, Step, among, step, tensors
from surgery.graft.attention.whole import opened
from surgery.graft.attention.windows import WindowedCore
from surgery.graft.hooks import around, in_hook
from surgery.language.diagnostics import SurgeryError, error


def rerouted(changes: Sequence[tuple[Core, Change]]) -> AbstractContextManager[Any]:
    """Inside, the cores that run in one call of a module have their ``changes``.

    To be entered for one call of the module at the cores' ``path``: they are told apart by the
    order in which they come. Cores of modules inside may be rerouted by these themselves. What hooks
    run inside is left as it is.

    Raises:
        SurgeryError: S430 if a core that is to be changed never came, or more came than are known.

    """
    return _Rerouting(changes, around(1))


class _Rerouting(TorchFunctionMode):
    """Sees every torch function; which core is next is counted."""

    def __init__(self, changes: Sequence[tuple[Core, Change]], beginning: int):
        super().__init__()
        self.beginning = beginning
        self.changes = [pair for pair in changes if not pair[0].windows]
        self.windowed = [WindowedCore(*pair) for pair in changes if pair[0].windows]
        self.path = changes[0][0].path if changes else ""
        self.strays = 0
        self.among = max([core.among for core, _ in self.changes] or [0])
        # A loop over images or documents runs as many as it is given: no other attention is there.
        self.every = (
            bool(self.changes)
            and self.changes[0][0].how != "products"
            and len(self.changes) == self.among
            and all(change is self.changes[0][1] for _, change in self.changes)
        )
        self.waiting = (1 if self.every else len(self.changes)) + len(self.windowed)
        self.came = 0
        self.trails: list[Trail] = []
        self.compiled = torch.compiler.is_compiling()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Most functions are not of a core: they are the price of all others.
        if getattr(func, "__name__", "") not in FIRST and not (self.trails or self.windowed):
            return called(func, args, kwargs)
        # What is compiled by itself, in a module that is not, is left as it is.
        if torch.compiler.is_compiling() != self.compiled:
            return called(func, args, kwargs)
        if self.beginning and in_hook(self.beginning):
            return called(func, args, kwargs)
        if self.windowed:
            return self.window(func, args, kwargs)
        return self.function(func, args, kwargs)

    def window(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function that cores with windows may take note of."""
        result = self.function(func, args, kwargs)
        for windowed in self.windowed:
            result = windowed.seen(func, args, kwargs, result)
            if windowed.is_done:
                self.changed()
        self.windowed = [windowed for windowed in self.windowed if not windowed.is_done]
        return result

    def stray(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A softmax of what has come from no product by known steps."""
        order = self.strays
        self.strays += 1
        for windowed in self.windowed:
            if windowed.core.order == order:
                softmax = Step.of("softmax", func, args, kwargs, args[0])
                weights = windowed.soften(softmax, args[0])
                if weights is not None:
                    return weights
        return called(func, args, kwargs)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function that other cores may be made of."""
        kind = KINDS.get(getattr(func, "__name__", ""), "")
        if not kind and not self.trails:
            return called(func, args, kwargs)
        if kind in ATTENTIONS:
            return self.fused(kind, func, args, kwargs)
        if kind in WHOLE_ATTENTIONS:
            return self.whole(func, args, kwargs)
        trail, before = self.trail(args, kwargs)
        if trail is None:
            return self.start(kind, func, args, kwargs)
        if trail.core is None:
            return self.score(trail, before, kind, func, args, kwargs)
        return self.weigh(trail, kind, func, args, kwargs)

    def next(self) -> tuple[Core, Change] | None:
        """The core that comes now with its change, if it has one."""
        order = self.came
        self.came += 1
        if self.every:
            return self.changes[0]
        if self.changes and order >= self.among:
            raise self.unlike()
        for core, change in self.changes:
            if core.order == order:
                return core, change
        return None

    def changed(self) -> None:
        """Note that a core has been changed."""
        self.waiting = max(self.waiting - 1, 0)

    def fused(self, kind: str, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function that is a core, and no more."""
        found = self.next()
        if found is None or kind == "flex_attention":
            return called(func, args, kwargs)
        self.changed()
        core, change = found
        if kind == "attention_interface":
            return interfaces.attend(change, *args)
        return attend(func, args, kwargs, change, core.query_heads)

    def whole(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function that projects, attends and projects again."""
        found = self.next()
        if found is None:
            return called(func, args, kwargs)
        core, change = found
        with _Rerouting([(replace(core, order=0, among=1), change)], around(0)):
            result = opened(*args, **kwargs)
        self.changed()
        return result

    def trail(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trail | None, Tensor | None]:
        """The first trail that has come to one of the arguments, and to which.

        To none of them, if it is a shift of all scores that is among the arguments. Weights come
        first: values may be on the trail of the product that projected them.
        """
        if not self.trails:
            return None, None
        given = [*args, *kwargs.values()]
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, list | tuple):
                given += arg
        for trail in sorted(self.trails, key=lambda trail: trail.core is None):
            before = trail.reached(given)
            if before is not None or any(among(arg, trail.shifts) for arg in given):
                return trail, before
        return None, None

    def start(self, kind: str, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function of what no trail has come to: a product starts one."""
        softmax = self.windowed and kind == "softmax" and isinstance(args[0], Tensor)
        if softmax and softens(kind, args, kwargs, args[0].dim()):
            return self.stray(func, args, kwargs)
        result = called(func, args, kwargs)
        if kind in SCORED and isinstance(result, Tensor):
            found = product(kind, func, args, kwargs)
            if found is not None:
                self.trails.append(Trail(found, result))
        return result

    def score(
        self,
        trail: Trail,
        before: Tensor | None,
        kind: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """A function of scores: their softmax, a step towards it, or something else."""
        if before is not None and softens(kind, args, kwargs, before.dim()):
            found = self.next()
            if found is not None:
                softmax = Step.of(kind, func, args, kwargs, before)
                weights = trail.soften(softmax, before, *found)
                if weights is not None:
                    return weights
            self.trails = [other for other in self.trails if other is not trail]
            return called(func, args, kwargs)
        result = self.start(kind, func, args, kwargs)
        taken = before is not None and step(kind, func, args, kwargs, before, result)
        if before is not None and taken:
            trail.score(taken, before, result)
        elif kind not in SCORED:
            trail.shifts += [t for t in tensors((result,), {}) if t.shape[-1] == 1]
        return result

    def weigh(self, trail: Trail, kind: str, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A function of weights: their product with values, a step towards it, or another."""
        if kind in SCORED:
            found = product(kind, func, args, kwargs)
            result = trail.weigh(found) if found is not None else None
            if result is not None:
                self.changed()
                self.trails = [t for t in self.trails if self.waiting and t is not trail]
                return result
        result = called(func, args, kwargs)
        if kind == "exp" and trail.written:
            trail.tensor, trail.written = result, False
            return result
        taken = step(kind, func, args, kwargs, trail.tensor, result)
        if taken is not None:
            trail.take(taken, result)
        return result

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)  # pyright: ignore[reportUnknownMemberType]
        if exc_type is None and self.waiting:
            raise self.unlike()

    def unlike(self) -> SurgeryError:
        return error(
            "S430",
            f"the attention of `{self.path}` did not run as it did when the "
            "model was read: its core cannot be changed",
            help='load the model with attn_implementation="sdpa", or with the one it was '
            "adapted with",
        )
