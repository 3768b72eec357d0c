"""Where commands may write: never onto the base model, and over other things only if told to."""

from __future__ import annotations

import os
from pathlib import Path

from surgery.huggingface.files import FILES
from surgery.language.diagnostics import SurgeryError, error
from surgery.language.writing import checked_path


def check_model_output(output: Path, model: str, force: bool) -> None:
    """Refuse to write a whole model made of the model named ``model`` to ``output``.

    Raises:
        SurgeryError: S534 if the base lies there, within or around; or, without ``force``, if
            anything does. S509 for a file.

    """
    there = _real(output)
    _check_base(there, output, model, whole=True)
    if os.path.exists(there) and not os.path.isdir(there):
        raise error("S509", f"`{output}` is a file, and a directory was expected")
    found = sorted(os.listdir(there)) if os.path.isdir(there) else []
    if found and not force:
        raise _taken(f"`{output}` is not empty: it holds {_some(found)}")


def check_adapter_output(output: Path, model: str, force: bool) -> None:
    """Refuse to write an adapter for the model named ``model`` to ``output``.

    Raises:
        SurgeryError: S534 if that is the base's folder; or, without ``force``, if the adapter's file
            is there already, or a model.

    """
    from surgery.graft.adapter_file import adapter_path

    there = _real(adapter_path(output))
    _check_base(there.parent, output, model, whole=False)
    if force:
        return
    if os.path.exists(there):
        raise _taken(f"`{there}` is there already")
    folder = there.parent
    if output.suffix != ".safetensors" and os.path.isdir(folder):
        found = sorted({p.name for kind in FILES for p in folder.glob(kind)})
        if found:
            raise _taken(f"`{output}` holds a model: {_some(found)}")


def _check_base(there: Path, output: Path, model: str, whole: bool) -> None:
    from surgery.models import folder_of

    found = folder_of(model)
    if found is None:
        return
    base, owned = _real(found[0]), found[1]
    inside = [there, *there.parents] if whole and owned else [there]
    if any(_same(place, base) for place in inside):
        how = "is" if _same(there, base) else "lies in"
        raise error(
            "S534", f"`{output}` {how} the folder of the base model `{model}`", help=_ELSEWHERE
        )
    if whole and any(_same(there, place) for place in base.parents):
        raise error("S534", f"the base model `{model}` lies in `{output}`", help=_ELSEWHERE)


_ELSEWHERE = "write to a folder of its own"


def _taken(how: str) -> SurgeryError:
    return error("S534", how, help=f"{_ELSEWHERE}, or replace what is there with `--force`")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(checked_path(path)))


def _same(one: Path, other: Path) -> bool:
    """Whether both are one folder, however it is written: links, case, mounts."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{n}`" for n in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
