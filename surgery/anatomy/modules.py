"""The modules of a model, looked up and walked through without a chain of generators.

A verb does both thousands of times.
"""

from __future__ import annotations

from torch import nn


def module_at(model: nn.Module, path: str) -> nn.Module:
    """What `model.get_submodule` gives.

    Raises:
        AttributeError: if there is none.

    """
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        module = module._modules.get(name)
        if module is None:
            return model.get_submodule(path)
    return module


def all_modules(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives: every module once, those around others first."""
    found: dict[nn.Module, None] = {}
    left = [model]
    while left:
        module = left.pop()
        if module not in found:
            found[module] = None
            if module._modules:
                left += [m for m in reversed(module._modules.values()) if m is not None]
    return list(found)


def all_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What `model.named_parameters(remove_duplicate=False)` gives: those with several names by each."""
    found: dict[str, nn.Parameter] = {}
    left: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", model, ())]
    while left:
        path, module, around = left.pop()
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[path + name] = parameter
        if module._modules:
            inside = (*around, id(module))
            left += [
                (f"{path}{name}.", child, inside)
                for name, child in reversed(module._modules.items())
                if child is not None and id(child) not in inside
            ]
    return found
