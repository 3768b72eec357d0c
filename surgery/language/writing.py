"""Files that are written whole: a reader sees what was there before or what is new, never a part."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from surgery.language.diagnostics import SurgeryError, error

if sys.platform != "win32":
    import fcntl

_Opened = TypeVar("_Opened", int, int | None)
_TEMPORARY = re.compile(r"\.surgery-[0-9a-f]{16}\.partial")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once it is written and on the disk.

    Links are followed: the file that they lead to is replaced, and they stay. That file keeps its
    mode; a new one gets what the umask leaves. Missing folders are made. Of several writers the
    last one wins; what a killed one left behind goes when the next one writes in the same folder.

    Raises:
        SurgeryError: S509 if it cannot be written; then all is as before.

    """
    checked_path(path)
    made: list[Path] = []
    try:
        target = Path(os.path.realpath(path))
        old = _existing(target)
        made = make_folders(target.parent)
        _sweep(target.parent)
        descriptor, temporary = _create(target.parent, _open_file)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                if old is not None:
                    _take_after(temporary, old)
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # An open file keeps its name there.
                temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        in_place(target.parent)
    except OSError as problem:
        unmake(made)
        raise unwritable(path, problem) from None
    except BaseException:
        unmake(made)
        raise


def unwritable(path: str | os.PathLike[str], problem: OSError) -> SurgeryError:
    """S509, with what the system says of it."""
    return error("S509", f"cannot write `{os.fspath(path)}`: {problem.strerror or problem}")


def checked_path(path: str | os.PathLike[str], code: str = "S509") -> str:
    """``path`` as a text that the system can be asked about.

    Raises:
        SurgeryError: ``code`` if no file can have that name.

    """
    try:
        text = os.fspath(path)
        # Callers may give anything, bytes among them.
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError
        os.fsencode(text)
    except (TypeError, ValueError):
        raise error(code, f"{path!r} is not a path") from None
    if "\0" in text:
        raise error(code, f"{text!r} is not a path: it contains a NUL character")
    return text


def _existing(target: Path) -> os.stat_result | None:
    """What is at ``target`` now, which must be a file that may be written."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise OSError("it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    if not os.access(target, os.W_OK):
        raise OSError("it may not be written")
    return found


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and those around it; returns the new ones, the innermost first."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        unmake(missing)
        raise
    return missing


def unmake(folders: list[Path]) -> None:
    """Take back what :func:`make_folders` made, where it is still empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _create(folder: Path, make: Callable[[Path], _Opened]) -> tuple[_Opened, Path]:
    """Something new in ``folder`` under a name of its own, locked for as long as it is open."""
    while True:
        path = folder / f".surgery-{os.urandom(8).hex()}.partial"
        descriptor = make(path)
        if descriptor is None or not _lock(descriptor, wait=True) or _is_at(descriptor, path):
            return descriptor, path
        os.close(descriptor)  # Swept away before it was locked.


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Whether the file is this writer's now; not if another has it, or nothing can be locked."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what writers left behind that were killed: the lock of a living one holds."""
    with suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            with suppress(OSError):
                _sweep_one(folder / name)


def _sweep_one(path: Path) -> None:
    only = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | only)
    try:
        if _lock(descriptor):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _take_after(path: Path, old: os.stat_result) -> None:
    """Give ``path`` the owner, where that is allowed, and the mode of the file it replaces."""
    if sys.platform != "win32":
        with suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    path.chmod(stat.S_IMODE(old.st_mode))


def in_place(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk, where that can be asked for."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def workplace(folder: Path) -> Generator[Path]:
    """A new folder in ``folder`` to work in, which is gone after."""
    _sweep(folder)
    descriptor, path = _create(folder, _open_folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _open_folder(path: Path) -> int | None:
    path.mkdir(mode=0o700)
    # Folders cannot be opened there.
    return None if sys.platform == "win32" else os.open(path, os.O_RDONLY)


def _open_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)
