"""Running a traced graph so that the modules it has flattened are seen again."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree

from surgery.anatomy.graph import Key, ModuleCall, index_of, inputs_of, outputs_of

if TYPE_CHECKING:
    from surgery.anatomy.trace import Recorder


_ONCE = frozenset(("wrap_with_set_grad_enabled", "wrap_with_autocast", "hints_wrapper"))
"""The functions of exported programs that run a graph once, as it stands."""


def interpret(
    recorder: Recorder, module: fx.GraphModule, prefix: str, args: Any, kwargs: Any
) -> Any:
    """Run ``module`` node by node; modules that exist as a name only become virtual calls."""
    arguments = _positional(module, args, kwargs)
    interpreter = _StackInterpreter(recorder, module, prefix)
    result = interpreter.run(*arguments)
    interpreter.unwind(())
    interpreter.borders(recorder.keyed(result))
    return result


def class_name(cls: type) -> str:
    """The full name of a class, as exported programs write it."""
    return f"{cls.__module__}.{cls.__qualname__}"


class ModuleRef(NamedTuple):
    """A flattened module around a node, and its class; each call of it has a ``key`` of its own."""

    key: str
    path: str
    kind: str | None = None


class _StackInterpreter(fx.Interpreter):
    def __init__(self, recorder: Recorder, module: fx.GraphModule, prefix: str):
        super().__init__(module)
        self.recorder = recorder
        self.prefix = prefix
        self.frames = frames(module)
        self.open: list[tuple[ModuleRef, ModuleCall]] = []
        self.seen: list[ModuleCall] = []

    def run_node(self, n: fx.Node) -> Any:
        if _checks(n):
            return None
        if n.op in ("call_module", "call_function", "call_method"):
            self.unwind(self.frames[n])
            for frame in self.frames[n][len(self.open) :]:
                full = f"{self.prefix}.{frame.path}" if self.prefix else frame.path
                call = self.recorder.enter(full, {}, frame.kind, virtual=True)
                self.open.append((frame, call))
                self.seen.append(call)
        self.recorder.origin = n
        try:
            if isinstance(n.target, HigherOrderOperator):
                return self.run_graphs(n)
            return super().run_node(n)
        finally:
            self.recorder.origin = None

    def run_graphs(self, n: fx.Node) -> Any:
        """Run a node that runs graphs within the graph: `torch.no_grad`, a branch, a loop.

        Paths in these are those of the whole. What runs once, and in any case, is seen node by node.
        """
        recorder = self.recorder
        function: Any = n.target
        name: str = function.name()
        outer, recorder.within = recorder.within, self.prefix
        recorder.deaf = name not in _ONCE
        try:
            if not recorder.deaf:
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            if recorder.fake is not None:
                args, kwargs = recorder.faked(args), recorder.faked(kwargs)
            with torch._C.DisableTorchFunction():
                result: Any = function(*args, **kwargs)
            recorder.record(name, function, args, kwargs, result, ())
            return result
        finally:
            recorder.within, recorder.deaf = outer, False

    def unwind(self, wanted: tuple[ModuleRef, ...]) -> None:
        """Close the virtual calls that are not in ``wanted``."""
        shared = 0
        for (frame, _), other in zip(self.open, wanted, strict=False):
            if frame != other:
                break
            shared += 1
        while len(self.open) > shared:
            self.recorder.leave(self.open.pop()[1], [])

    def borders(self, results: list[tuple[Key, fx.Node]]) -> None:
        """What passed in and out of each virtual call, told from who made and who read it."""
        ops = self.recorder.ops
        final = {value for _, value in results}
        last_read: dict[fx.Node, int] = {}
        for op in ops:
            last_read.update(dict.fromkeys(inputs_of(op), index_of(op)))
        for call in self.seen:
            inner = ops[call.first : call.last + 1]
            made = {value: None for op in inner for value in outputs_of(op)}
            read = dict.fromkeys(v for op in inner for v in inputs_of(op) if v not in made)
            own = self.recorder.named
            outside = [v for v in read if v not in own["parameter"] and v not in own["buffer"]]
            call.inputs = {f"input_{i}": [(None, value)] for i, value in enumerate(outside)}
            leaving = [v for v in made if v in final or last_read.get(v, -1) > call.last]
            keys: list[Key] = [None] if len(leaving) == 1 else list(range(len(leaving)))
            # What a module returns first it mostly makes last: states behind masks and weights.
            call.outputs = list(zip(keys, leaving[::-1], strict=True))


def _checks(node: fx.Node) -> bool:
    """Whether a node of an exported program gives nothing: it holds sizes and types to account."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return not node.users and name.startswith(("_guards_fn", "_assert_", "sym_constrain_range"))


def _positional(module: fx.GraphModule, args: Any, kwargs: Any) -> list[Any]:
    """What the placeholders of a graph get, in order."""
    tree: Any = getattr(module.graph._codegen, "pytree_info", None)  # pyright: ignore[reportPrivateUsage]
    if tree is not None:
        # Exported, a placeholder is a leaf of an argument.
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        names = [name for name in tree.orig_args if name != "self"]
        return pytree.tree_leaves([bound.arguments[name] for name in names])
    given = list(args)
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in places[len(given) :]:
        name = str(node.target)
        if name in kwargs:
            given.append(kwargs[name])
        elif node.args:
            given.append(node.args[0])
        else:
            raise TypeError(f"forward() misses the argument {name!r}")
    return given


def frames(module: fx.GraphModule) -> dict[fx.Node, tuple[ModuleRef, ...]]:
    """For each node the flattened modules around it, outermost first."""
    nodes = [n for n in module.graph.nodes if n.op.startswith("call_")]
    recorded = {node: node.meta.get("nn_module_stack") for node in nodes}
    if any(recorded.values()):
        return {node: _from_meta(node, recorded[node] or {}) for node in nodes}
    return _from_targets(module, nodes)


def _from_meta(node: fx.Node, stack: dict[str, tuple[str, Any]]) -> tuple[ModuleRef, ...]:
    frames = [
        ModuleRef(key, path.partition("@")[0], kind if isinstance(kind, str) else class_name(kind))
        for key, (path, kind) in stack.items()
    ]
    # The innermost entry of a module's own node is that module: its call is a real one.
    if node.op == "call_module" and frames and frames[-1].path == node.target:
        frames.pop()
    return tuple(frame for frame in frames if frame.path)


def _from_targets(
    module: fx.GraphModule, nodes: list[fx.Node]
) -> dict[fx.Node, tuple[ModuleRef, ...]]:
    """Without recorded stacks: a function belongs where its neighbours on both sides do."""
    owners = [_owner(node) for node in nodes]
    before = _carried(owners)
    after = _carried(owners[::-1])[::-1]
    result: dict[fx.Node, tuple[ModuleRef, ...]] = {}
    for i, node in enumerate(nodes):
        if owners[i] is not None:
            result[node] = _called(module, owners[i] or ())
            continue
        shared: list[str] = []
        for one, other in zip(before[i] or (), after[i] or (), strict=False):
            if one != other:
                break
            shared.append(one)
        result[node] = _called(module, tuple(shared))
    return result


def _owner(node: fx.Node) -> tuple[str, ...] | None:
    """The components of the module that a node's own target, or its parameter, lies in."""
    if node.op == "call_module":
        return tuple(str(node.target).split("."))[:-1]
    owned = [n for n in node.all_input_nodes if n.op == "get_attr"]
    return tuple(str(owned[0].target).split("."))[:-1] if owned else None


def _carried(owners: list[tuple[str, ...] | None]) -> list[tuple[str, ...] | None]:
    last: tuple[str, ...] | None = None
    result: list[tuple[str, ...] | None] = []
    for owner in owners:
        last = owner if owner is not None else last
        result.append(last)
    return result


def _called(module: nn.Module, components: tuple[str, ...]) -> tuple[ModuleRef, ...]:
    """The prefixes of a path that stand for modules, not for mere lists of them."""
    found: list[ModuleRef] = []
    for end in range(1, len(components) + 1):
        path = ".".join(components[:end])
        children = module.get_submodule(path)._modules  # pyright: ignore[reportPrivateUsage]
        if not children or not all(name.isdigit() for name in children):
            found.append(ModuleRef(path, path))
    return tuple(found)
