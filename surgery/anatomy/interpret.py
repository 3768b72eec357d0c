"""Running a traced graph so that the modules it has flattened are seen again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx, nn

from surgery.anatomy.record import Call, Key

if TYPE_CHECKING:
    from surgery.anatomy.trace import Recorder


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


class _StackInterpreter(fx.Interpreter):
    def __init__(self, recorder: Recorder, module: fx.GraphModule, prefix: str):
        super().__init__(module)
        self.recorder = recorder
        self.prefix = prefix
        self.stacks = stacks(module)
        self.open: list[tuple[str, Call]] = []
        self.seen: list[Call] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("call_module", "call_function", "call_method"):
            self.unwind(self.stacks[n])
            for key in self.stacks[n][len(self.open) :]:
                path = key.partition("@")[0]
                full = f"{self.prefix}.{path}" if self.prefix else path
                call = self.recorder.enter(full, {}, virtual=True)
                self.open.append((key, call))
                self.seen.append(call)
        return super().run_node(n)

    def unwind(self, wanted: tuple[str, ...]) -> None:
        """Close the virtual calls that are not in ``wanted``."""
        shared = 0
        for (key, _), other in zip(self.open, wanted, strict=False):
            if key != other:
                break
            shared += 1
        while len(self.open) > shared:
            self.recorder.leave(self.open.pop()[1], [])

    def borders(self, results: list[tuple[Key, int]]) -> None:
        """What passed in and out of each virtual call, told from who made and who read it."""
        ops = self.recorder.ops
        final = {value for _, value in results}
        last_read: dict[int, int] = {}
        for op in ops:
            last_read.update(dict.fromkeys(op.inputs, op.index))
        for call in self.seen:
            inner = ops[call.first : call.last + 1]
            made = {value for op in inner for value in op.outputs}
            read = dict.fromkeys(v for op in inner for v in op.inputs if v not in made)
            own = self.recorder.named
            outside = [v for v in read if v not in own["parameter"] and v not in own["buffer"]]
            call.inputs = {f"input_{i}": [(None, value)] for i, value in enumerate(outside)}
            leaving = [v for v in made if v in final or last_read.get(v, -1) > call.last]
            keys: list[Key] = [None] if len(leaving) == 1 else list(range(len(leaving)))
            call.outputs = list(zip(keys, sorted(leaving), strict=True))


def _positional(module: fx.GraphModule, args: Any, kwargs: Any) -> list[Any]:
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


def stacks(module: fx.GraphModule) -> dict[fx.Node, tuple[str, ...]]:
    """For each node the flattened modules around it, outermost first."""
    nodes = [n for n in module.graph.nodes if n.op.startswith("call_")]
    recorded = {node: node.meta.get("nn_module_stack") for node in nodes}
    if any(recorded.values()):
        return {node: _from_meta(node, recorded[node] or {}) for node in nodes}
    return _from_targets(module, nodes)


def _from_meta(node: fx.Node, stack: dict[str, Any]) -> tuple[str, ...]:
    # The innermost entry of a module's own node is that module: its call is a real one.
    keys = list(stack)
    if node.op == "call_module" and keys and keys[-1].partition("@")[0] == node.target:
        keys.pop()
    return tuple(key for key in keys if key)


def _from_targets(module: fx.GraphModule, nodes: list[fx.Node]) -> dict[fx.Node, tuple[str, ...]]:
    """Without recorded stacks: a function belongs where its neighbours on both sides do."""
    owners = [_owner(node) for node in nodes]
    before = _carried(owners)
    after = _carried(owners[::-1])[::-1]
    result: dict[fx.Node, tuple[str, ...]] = {}
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


def _called(module: nn.Module, components: tuple[str, ...]) -> tuple[str, ...]:
    """The prefixes of a path that stand for modules, not for mere lists of them."""
    found: list[str] = []
    for end in range(1, len(components) + 1):
        path = ".".join(components[:end])
        children = module.get_submodule(path)._modules  # pyright: ignore[reportPrivateUsage]
        if not children or not all(name.isdigit() for name in children):
            found.append(path)
    return tuple(found)
