"""A model from what a user types, and a merged model back to disk.

A MODEL is a transformers directory, a hub id, a GGUF file (or a directory that holds just one), a
`.pt2` file of `torch.export`, or ``package.module:factory``: something that gives an ``nn.Module``
when called, or is one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from surgery.graft.target import is_program
from surgery.graft.tensor_file import write_tensors
from surgery.huggingface.checkpoints import (
    Checkpoint,
    is_pretrained,
    listed,
    read_model,
    read_tokenizer,
    unknown,
    write_model,
    write_tokenizer,
)
from surgery.huggingface.files import KINDS, is_checkpoint
from surgery.language.diagnostics import SurgeryError, did_you_mean, error, nearest
from surgery.language.folders import filling
from surgery.language.writing import checked_path

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PROGRAM = ".pt2"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_model(text: str | os.PathLike[str]) -> nn.Module | ExportedProgram:
    """Return the model that ``text`` names, with its weights, in its own dtype, on the CPU.

    A `.pt2` file gives the exported program that it holds.
    """
    text = checked_path(text, "S501")
    if _FACTORY.fullmatch(text):
        made = _from_factory(text)
        if not (isinstance(made, nn.Module) or is_program(made)):
            raise error(
                "S506",
                f"`{text}` gives a {type(made).__name__}, and a torch.nn.Module was expected",
                help="a factory returns the model itself",
            )
        return made
    path = Path(text).expanduser()
    if path.suffix == _PROGRAM and path.is_file():
        from surgery.programs import read_program

        return read_program(path)
    return read_model(_locate(text))


def load_tokenizer(text: str | os.PathLike[str]) -> Any:
    """The tokenizer beside the model that ``text`` names; a factory must give one itself."""
    text = checked_path(text, "S501")
    if _FACTORY.fullmatch(text):
        return _from_factory(text)
    return read_tokenizer(_locate(text))


def load_inputs(text: str | os.PathLike[str]) -> Any:
    """Example inputs for one forward, from `package.module:factory`: a tensor, a tuple, or a dict.

    Raises:
        SurgeryError: S501 if ``text`` does not read so, S503 to S505 if that gives nothing.

    """
    text = checked_path(text, "S501")
    if not _FACTORY.fullmatch(text):
        raise error(
            "S501",
            f"no inputs `{text}`",
            help="name what gives them: `package.module:factory`, or a tensor, tuple or dict there",
        )
    return _from_factory(text)


def save_model(
    model: nn.Module | ExportedProgram,
    directory: str | os.PathLike[str],
    tokenizer: Any | None = None,
) -> Path:
    """Write a whole model, and the tokenizer if given, into ``directory``; return that path.

    A transformers model is written in its own format and then read back without its values: what
    its architecture would not load again exactly is an error, and then ``directory`` is as before.
    Any other module becomes one safetensors file of its state dict, tied tensors stored once, and an
    exported program `model.pt2`. Other files in ``directory`` stay, but for the shards of a model that was there.

    Raises:
        SurgeryError: S508 for what would not load again, S509 if it cannot be written.

    """
    target = Path(checked_path(directory)).resolve()
    if os.path.exists(target) and not os.path.isdir(target):
        raise error("S509", f"`{directory}` is a file, and a directory was expected")
    with _writing(target), filling(target, _shards) as draft:
        if is_program(model):
            from surgery.programs import FILE, write_program

            write_program(model, draft / FILE)
        else:
            module = cast("nn.Module", model)
            if is_pretrained(module):
                write_model(module, draft)
            else:
                _write_state(module, draft / "model.safetensors")
        if tokenizer is not None:
            write_tokenizer(tokenizer, draft)
    return target


def _write_state(model: nn.Module, path: Path) -> None:
    """Write a state dict; of a tensor with several names the metadata tells which one has it."""
    names: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = names.setdefault(place, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor
        else:
            metadata[name] = first
    with path.open("wb") as file:
        write_tensors(file, tensors, metadata)


def _shards(folder: Path) -> list[Path]:
    """What an earlier model in ``folder`` may have left there that would be read with a new one."""
    return [*folder.glob("model-*-of-*.safetensors"), *folder.glob("*.safetensors.index.json")]


def folder_of(text: str) -> tuple[Path, bool] | None:
    """The folder that the model ``text`` names is read from, and whether all of it is the model.

    Of a GGUF file it is only that file. None for a model that does not come from a folder.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path, is_checkpoint(path)
    return (path.parent, False) if path.is_file() else None


def _locate(text: str) -> Checkpoint:
    path = Path(text).expanduser()
    if path.is_dir():
        if is_checkpoint(path):
            return Checkpoint(str(path))
        packed = sorted(p.name for p in path.glob("*.gguf"))
        if len(packed) == 1:
            return Checkpoint(str(path), packed[0])
        if packed:
            help = f"name one of them: {listed([str(path / name) for name in packed])}"
            raise error("S501", f"`{text}` holds {len(packed)} GGUF files", help=help)
        raise error(
            "S501", f"`{text}` holds no config.json and no GGUF file", help=f"a model is {KINDS}"
        )
    if path.is_file():
        if path.suffix == ".gguf":
            return Checkpoint(str(path.parent), path.name)
        raise error("S501", f"`{text}` is a file of no kind known here", help=f"a model is {KINDS}")
    if _HUB_ID.fullmatch(text) and path.suffix not in (".gguf", _PROGRAM):
        return Checkpoint(text, hub=True)
    raise unknown(text, "there is no such file or directory")


def _from_factory(text: str) -> object:
    name, _, attribute = text.partition(":")
    with _importable(Path.cwd()):
        module = _import(name)
        if not hasattr(module, attribute):
            known = [n for n in vars(module) if not n.startswith("_")]
            help = did_you_mean(attribute, known) or f"it has {listed(known)}"
            raise error("S504", f"module `{name}` has no `{attribute}`", help=help)
        found: object = getattr(module, attribute)
        if isinstance(found, nn.Module) or not callable(found):
            return found
        try:
            return found()
        except SurgeryError:
            raise
        except Exception as cause:
            raise error(
                "S505",
                f"`{text}` raised {type(cause).__name__}: {cause}",
                help="a factory is called without arguments, in the current directory",
            ) from cause


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except Exception as cause:
        absent = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if absent is None or not (name == absent or name.startswith(f"{absent}.")):
            message = f"importing `{name}` raised {type(cause).__name__}: {cause}"
            raise error("S503", message) from cause
        parent, _, last = absent.rpartition(".")
        folders = list(getattr(sys.modules.get(parent), "__path__", ())) or [os.getcwd()]
        close = nearest(last, [m.name for m in pkgutil.iter_modules(folders)])
        meant = f"{parent}.{close}" if parent else close
        here = "modules are also looked for in the current directory"
        help = f"did you mean `{meant}`?" if close else here
        raise error("S503", f"there is no module `{absent}`", help=help) from cause


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Let modules in ``folder`` be imported, as ``python -m`` does."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _writing(target: Path) -> Generator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as cause:
        reason = str(cause).partition("\n")[0]
        raise error("S509", f"`{target}` can't be written: {reason}") from cause
