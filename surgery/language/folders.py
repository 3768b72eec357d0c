"""Folders that are written whole: what goes wrong on the way leaves what was there as it was."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgery.language.writing import in_place, make_folders, unmake, workplace


@contextmanager
def filling(target: Path, stale: Callable[[Path], list[Path]]) -> Generator[Path]:
    """A folder to write into, whose files go to ``target`` once all are written.

    Files of the same names are replaced, those go that ``stale`` finds in ``target`` and that were
    not written, and all others stay. New ones get the modes that the umask leaves.

    Raises:
        OSError: if that fails; then ``target`` is as before.

    """
    made = make_folders(target.parent)
    try:
        with workplace(target if target.is_dir() else target.parent) as beside:
            draft = beside / "new"
            draft.mkdir()
            yield draft
            _finish(draft)
            if target.exists():
                _publish(draft, target, beside / "old", stale)
            else:
                draft.rename(target)
            in_place(target)
    except BaseException:
        unmake(made)
        raise


def _finish(draft: Path) -> None:
    """Give all files the mode of a new file (some libraries make private ones), and write them out."""
    probe = os.open(draft / ".mode", os.O_CREAT | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(probe).st_mode)
    os.close(probe)
    (draft / ".mode").unlink()
    for file in draft.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            in_place(file)


def _publish(draft: Path, target: Path, old: Path, stale: Callable[[Path], list[Path]]) -> None:
    """Move the finished files over, one by one; each is whole at any moment."""
    written = [f.relative_to(draft) for f in sorted(draft.rglob("*")) if f.is_file()]
    undo: list[Callable[[], object]] = []
    try:
        for file in written:
            place, made = target / file, make_folders((target / file).parent)
            undo.append(lambda made=made: unmake(made))
            if os.path.lexists(place):
                undo.append(_set_aside(place, old / file))
            else:
                undo.append(lambda place=place: place.unlink(missing_ok=True))
            (draft / file).replace(place)
        for file in stale(target):
            if file.relative_to(target) not in written:
                undo.append(_set_aside(file, old / file.relative_to(target)))
                file.unlink(missing_ok=True)
    except BaseException:
        for step in reversed(undo):
            with suppress(OSError):
                step()
        raise


def _set_aside(place: Path, aside: Path) -> Callable[[], object]:
    """Keep what is at ``place`` under another name, too; returns what brings it back."""
    if place.is_dir():
        raise IsADirectoryError(f"`{place}` is a directory, and a file would go there")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        if place.is_symlink():
            raise OSError
        aside.hardlink_to(place)
    except OSError:
        # Not every file system has hard links, and one to a link may lead to what that leads to.
        shutil.copy2(place, aside, follow_symlinks=False)
    return lambda: aside.replace(place)
