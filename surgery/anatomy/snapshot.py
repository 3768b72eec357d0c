"""All that a forward of a model may depend on, as one list that is compared with a later one.

A list of plain values and of identities, made in one walk: of every module its class, attributes,
children, hooks, parameters and buffers; of tensors what they are, not their numbers; of objects,
functions and classes what they are made of (see code.py). What is identified is held by weak
references: an identity counts as long as all that was met is still alive, so none was given out
twice.
"""

from __future__ import annotations

import enum
import re
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from hashlib import blake2b
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from surgery.anatomy import code
from surgery.anatomy.content import bytes_of
from surgery.anatomy.inputs import as_given
from surgery.anatomy.modules import all_modules
from surgery.anatomy.notes import END, UnseenError, WalkNotes
from surgery.anatomy.surroundings import surroundings
from surgery.anatomy.tensors import storage_of

MOST_BYTES = 2**26
"""Of example inputs, which are told by their content."""

_PLAIN = frozenset((int, str, bytes, type(None), torch.dtype, torch.device, torch.layout))
_TYPED = (bool, float, complex, type(...), range, torch.Size, torch.memory_format)
_CONFIG = (int, float, str, type(None), list, tuple, set, Mapping)
_TABLES = frozenset((dict, OrderedDict, list, set))
_SAME = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.CodeType,
    enum.Enum,
    re.Pattern,
)


class Snapshot:
    """A model and the inputs for it at one time.

    Raises:
        UnseenError: if it cannot be told whether it changes.

    """

    def __init__(self, model: nn.Module, given: Any, hold: bool = True):
        walk = Walk(hold)
        try:
            surroundings(walk)
            walk.registered = set(map(id, all_modules(model)))
            walk.thing(model)
            walk.inputs(given)
            self.tokens = walk.tokens
            self.held = walk.held
            self.constants = walk.constants
            # Those of a lasting snapshot are the model's own, and are not to live by it.
            self.tensors = [] if hold else walk.tensors
        finally:
            cast("dict[str, Any]", walk.__dict__).clear()  # It holds itself, and all that it met.

    def shows(self, later: Snapshot) -> bool:
        """Whether nothing is another in ``later``."""
        return all(ref() is not None for ref in self.held) and self.tokens == later.tokens


def numbers_of(tensors: Iterable[Tensor]) -> str:
    """A digest of all numbers in ``tensors``.

    Raises:
        UnseenError: where these cannot be read.

    """
    found = blake2b(digest_size=16)
    for tensor in tensors:
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise UnseenError
        found.update(bytes_of(tensor))
    return found.hexdigest()


class Walk(WalkNotes):
    """WalkNotes what it meets, each thing once; ``hold`` to have identities last."""

    def __init__(self, hold: bool):
        super().__init__(hold)
        self.tensors: list[Tensor] = []
        self.registered: set[int] = set()
        self.memories: dict[int, int] = {}
        self.ways: dict[type, Callable[[Any], None]] = {}
        self.code = code.Code(self)
        self.by_content = False

    def thing(self, thing: Any) -> None:
        """Note anything."""
        kind = cast("Any", type(thing))
        if kind in _PLAIN:
            self.tokens.append(thing)
        else:
            way = self.ways.get(kind)
            if way is None:
                way = self.ways[kind] = self.way(kind)
            way(thing)

    def way(self, kind: type[Any]) -> Callable[[Any], None]:
        """How things of a class are noted."""
        if kind is object:
            return self.same
        ways: tuple[tuple[Any, Callable[[Any], None]], ...] = (
            (Tensor, self.tensor),
            (nn.Module, self.module),
            ((fx.Graph, types.GeneratorType), self.unseen),
            (_TYPED, self.typed),
            (_SAME, self.same),
            (Mapping, self.mapping),
            ((list, tuple, deque), self.sequence),
            ((set, frozenset), self.unordered),
            (types.FunctionType, self.code.function),
            (types.MethodType, self.method),
            (partial, self.partial),
            (type, self.code.cls),
            (weakref.ref, self.reference),
            (ContextVar, self.variable),
            (types.ModuleType, self.python_module),
            (property, self.getter),
            (slice, self.slice),
        )
        return next((way for kinds, way in ways if issubclass(kind, kinds)), self.object)

    def typed(self, thing: Any) -> None:
        self.tokens += (type(thing), thing)

    def unseen(self, thing: Any) -> None:
        raise UnseenError

    def mapping(self, thing: Mapping[Any, Any]) -> None:
        self.tokens.append(len(thing))
        if thing and self.first(thing):
            for key, value in thing.items():
                self.thing(key)
                self.thing(value)
            self.attributes(thing)

    def sequence(self, thing: Any) -> None:
        self.tokens += (len(thing), type(thing) is tuple)
        if thing and (type(thing) is tuple or self.first(thing)):
            for item in cast("tuple[Any, ...]", thing):
                self.thing(item)
            self.attributes(thing)

    def unordered(self, thing: Any) -> None:
        self.tokens.append(len(thing))
        items: list[Any] = sorted(thing, key=lambda one: (type(one).__name__, repr(one)))
        for item in items:
            self.thing(item)

    def tensor(self, thing: Tensor) -> None:
        """What it is, and with which others it shares its memory."""
        if not self.first(thing):
            return
        if not self.by_content:
            self.same(thing)
        self.code.kind(type(thing))
        if is_lazy(thing):
            return  # it has no form yet
        strided = thing.layout is torch.strided
        memory = storage_of(thing) if strided else -1
        self.tokens += (
            thing.dtype,
            thing.device,
            thing.shape,
            thing.stride() if strided else thing.layout,
            thing.requires_grad,
            thing.is_inference(),
            self.memories.setdefault(memory, len(self.memories)) if memory > 0 else -1,
        )
        flatten: Any = getattr(thing, "__tensor_flatten__", None)
        if flatten is None:
            self.tensors.append(thing)
        else:
            for name in flatten()[0]:
                self.thing(getattr(thing, name))
        self.attributes(thing)

    def module(self, module: nn.Module) -> None:
        """A module with all that it has; its mode is the recording's to choose."""
        if not self.first(module):
            return
        self.same(module)
        self.code.kind(type(module), runs=True)
        tokens, known, ways = self.tokens, id(module) in self.registered, self.ways
        for name, value in module.__dict__.items():
            kind = cast("Any", type(value))
            if name == "training" and known:
                continue
            if kind in _PLAIN:
                tokens += (name, value)
            elif kind in _TABLES and not value:
                tokens.append(name)
            else:
                way = ways.get(kind)
                if way is None and not getattr(kind, "BESIDE_FORWARDS", False):
                    way = ways[kind] = self.way(kind)
                if way is not None:
                    tokens.append(name)
                    way(value)
        tokens.append(END)

    def object(self, thing: Any) -> None:
        """Anything else: its class, and its attributes."""
        if not self.first(thing):
            return
        kind = cast("type[Any]", type(thing))
        self.code.kind(kind)
        names = [name for base in kind.__mro__ for name in _slots(base)]
        if kind.__module__.partition(".")[0] == "numpy" and hasattr(thing, "tobytes"):
            if thing.dtype.hasobject:
                raise UnseenError
            self.tokens += (str(thing.dtype), thing.shape, thing.tobytes())
        elif not names and not hasattr(thing, "__dict__"):
            # What has nothing to show may be anything, as an iterator is at any place.
            if kind.__module__.partition(".")[0] not in ("_thread", "torch"):
                raise UnseenError
            self.same(thing)
        for name in names:
            if hasattr(thing, name):
                self.tokens.append(name)
                self.thing(getattr(thing, name))
        self.attributes(thing)

    def method(self, thing: Any) -> None:
        self.thing(thing.__self__)
        self.thing(thing.__func__)

    def partial(self, thing: Any) -> None:
        for part in (thing.func, thing.args, thing.keywords):
            self.thing(part)

    def slice(self, thing: Any) -> None:
        for part in (thing.start, thing.stop, thing.step):
            self.thing(part)

    def reference(self, thing: Any) -> None:
        self.same(thing)
        self.thing(thing())

    def variable(self, thing: ContextVar[Any]) -> None:
        self.same(thing)
        self.thing(thing.get(None))

    def python_module(self, thing: types.ModuleType) -> None:
        """One that a model holds: a config that is a file of Python."""
        self.same(thing)
        if code.looked_into(thing.__name__) and self.first(thing):
            for name, value in vars(thing).items():
                if not name.startswith("__") and isinstance(value, _CONFIG):
                    self.tokens.append(name)
                    self.thing(value)

    def getter(self, thing: Any) -> None:
        for part in (thing.fget, thing.fset, thing.fdel):
            self.thing(part)

    def inputs(self, given: Any) -> None:
        """Example inputs, told by content: they are made anew for each use."""
        self.tokens.append(given is None)
        if given is None:
            return
        args, kwargs = as_given(given)
        known, self.by_content = len(self.tensors), True
        self.thing(args)
        for name in sorted(kwargs):
            self.tokens.append(name)
            self.thing(kwargs[name])
        self.tensors, found = self.tensors[:known], self.tensors[known:]
        if sum(tensor.nbytes for tensor in found) > MOST_BYTES:
            raise UnseenError
        self.tokens.append(numbers_of(tensor for tensor in found if not tensor.is_meta))


def _slots(cls: type[Any]) -> Iterable[str]:
    found: Any = vars(cls).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
