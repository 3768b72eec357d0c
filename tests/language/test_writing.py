"""Files and folders are replaced whole or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from surgery.language import writing
from surgery.language.diagnostics import SurgeryError
from surgery.language.folders import filling
from surgery.language.writing import replacing


def write(path: Path, data: bytes = b"new") -> None:
    with replacing(path) as file:
        file.write(data)


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_gets_the_mode_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        write(tmp_path / "file")
    assert mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.parametrize("old", [0o600, 0o644, 0o664, 0o755])
def test_an_old_file_keeps_its_mode(old: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(old)
    with umask(0o027):
        write(path)
    assert (path.read_bytes(), mode(path)) == (b"new", old)


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/file")
    (tmp_path / "twice").symlink_to("link")
    (tmp_path / "dangling").symlink_to("far/fresh")
    (tmp_path / "folder").symlink_to("far")
    write(tmp_path / "twice", b"one")
    assert (far / "file").read_bytes() == b"one"
    write(tmp_path / "dangling", b"two")
    assert (far / "fresh").read_bytes() == b"two"
    write(tmp_path / "folder" / "third", b"three")
    assert {p.name: p.is_symlink() for p in tmp_path.iterdir()} == {
        "far": False,
        "link": True,
        "twice": True,
        "dangling": True,
        "folder": True,
    }
    assert sorted(p.name for p in far.iterdir()) == ["file", "fresh", "third"]


def everything(folder: Path) -> dict[str, Any]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else None)
        for p in folder.rglob("*")
    }


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


IN_THE_WAY: dict[str, Callable[[Path], Path]] = {
    "a folder": lambda p: folder(p / "it"),
    "a pipe": lambda p: pipe(p / "it"),
    "a device": lambda p: Path("/dev/full"),
    "a link to itself": lambda p: loop(p / "it"),
    "a file where a folder should be": lambda p: p / "old" / "it",
    "a long name": lambda p: p / ("a" * 256),
    "a long folder": lambda p: p / ("a" * 256) / "it",
    "a long path": lambda p: p.joinpath(*(["a" * 200] * 30)) / "it",
    "a NUL": lambda p: p / "it\0",
    "half a character": lambda p: p / "it\ud800",
    "no path": lambda p: None,  # type: ignore[arg-type, return-value]
    "bytes": lambda p: b"it",  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_cannot_be_written_is_an_error_and_leaves_all_as_it_was(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    path = IN_THE_WAY[what](tmp_path)
    before = everything(tmp_path)
    with pytest.raises(SurgeryError, match="S509"):
        write(path)
    assert everything(tmp_path) == before


def test_a_name_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 255))
    write(tmp_path / ("a" * 255), b"again")
    assert (tmp_path / ("a" * 255)).read_bytes() == b"again"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", ["body", "fsync", "replace", "chmod"])
def test_a_failure_at_any_step_leaves_all_as_it_was(
    step: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "deep" / "er" / "file" if not old else tmp_path / "file"
    if old:
        path.write_bytes(b"old")
    before = everything(tmp_path)
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif step in ("replace", "chmod") and (old or step == "replace"):
        monkeypatch.setattr(Path, step, fail)
    elif step == "chmod":
        return

    def write_and_fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            if step == "body":
                fail()

    with pytest.raises(SurgeryError, match=r"S509[\s\S]*No space left on device"):
        write_and_fail()
    assert everything(tmp_path) == before


def test_an_interrupt_leaves_all_as_it_was(tmp_path: Path) -> None:
    def write_and_stop() -> None:
        with replacing(tmp_path / "deep" / "file") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert everything(tmp_path) == {}


LIMITED = """
import resource, sys
from pathlib import Path
from surgery.language.diagnostics import SurgeryError
from surgery.language.writing import replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replacing(sys.argv[1]) as file:
        file.write(b"x" * 5000)
except SurgeryError as problem:
    sys.exit(str(problem))
"""


def test_a_file_larger_than_may_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert "S509" in ran.stderr
    assert "File too large" in ran.stderr
    assert everything(tmp_path).keys() == {"file"}
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_that_may_not_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # As for all but root, of mode 444.
    with pytest.raises(SurgeryError, match=r"S509[\s\S]*may not be written"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_a_killed_writer_left_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    dead = tmp_path / f".surgery-{'0' * 16}.partial"
    dead.write_bytes(b"half")
    (tmp_path / f".surgery-{'1' * 16}.partial").mkdir()
    (tmp_path / f".surgery-{'1' * 16}.partial" / "model").touch()
    mine = tmp_path / ".surgery-mine.partial"
    mine.touch()
    with replacing(tmp_path / "slow") as file:
        file.write(b"slow")
        for _ in range(3):
            write(tmp_path / "fast")
        living = [p.name for p in tmp_path.iterdir() if writing._TEMPORARY.fullmatch(p.name)]
        assert len(living) == 1
        assert not dead.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [mine.name, "fast", "slow"]
    assert (tmp_path / "slow").read_bytes() == b"slow"


def test_many_may_write_at_once(tmp_path: Path) -> None:
    """Each reader sees one of the contents, whole, and every writer succeeds."""
    path, failures = tmp_path / "new" / "file", []
    contents = [bytes([n]) * 200_000 for n in range(4)]

    def work(data: bytes) -> None:
        try:
            for _ in range(15):
                write(path, data)
                if path.read_bytes() not in contents:
                    failures.append("a mixture")
        except Exception as problem:
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def fill(target: Path, *names: str, stop: bool = False) -> None:
    with filling(target, lambda f: [*f.glob("stale*")]) as draft:
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(b"new")
            (draft / name).chmod(0o600)
        if stop:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_is_filled_and_keeps_what_is_not_replaced(tmp_path: Path) -> None:
    with umask(0o022):
        fill(tmp_path / "deep" / "out", "a", "sub/b")
    out = tmp_path / "deep" / "out"
    assert {p: c for p, (_, c) in everything(out).items() if c} == {"a": b"new", "sub/b": b"new"}
    assert mode(out / "a") == 0o644
    for name in ("a", "mine", "stale-1"):
        (out / name).write_bytes(b"old")
    fill(out, "a", "c")
    assert {p: c for p, (_, c) in everything(out).items() if c} == {
        "a": b"new",
        "c": b"new",
        "mine": b"old",
        "sub/b": b"new",
    }
    assert sorted(p.name for p in tmp_path.rglob(".*")) == []


@pytest.mark.parametrize("at", range(6))
def test_a_folder_that_cannot_be_filled_is_as_before(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("a", "mine", "stale-1", "sub/b"):
        (out / name).write_bytes(b"old")
    (out / "link").symlink_to("mine")
    before = everything(tmp_path)
    right, calls = Path.replace, []

    def replace(self: Path, target: Any) -> Any:
        calls.append(target)
        if len(calls) == at:
            raise OSError(errno.EIO, "Input/output error")
        return right(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if at < 5:
        with pytest.raises(OSError):  # noqa: PT011
            fill(out, "a", "link", "sub/b", "new/c", stop=at == 0)
        assert everything(tmp_path) == before
    else:
        (out / "new").mkdir()
        (out / "new" / "c").mkdir()
        before = everything(tmp_path)
        with pytest.raises(IsADirectoryError):
            fill(out, "a", "link", "sub/b", "new/c")
        assert everything(tmp_path) == before
    with pytest.raises(OSError):  # noqa: PT011
        fill(tmp_path / "none" / "out", "a", stop=True)
    assert everything(tmp_path) == before
