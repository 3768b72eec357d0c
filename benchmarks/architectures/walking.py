"""The walk: every architecture in a process of its own, with a limit of time."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.architectures.catalogue import Architecture
from benchmarks.architectures.columns import COLUMNS, no_place

Result = dict[str, Any]


def walk(
    chosen: Sequence[Architecture], columns: Sequence[str], jobs: int, limit: float
) -> Iterator[tuple[Architecture, Result]]:
    """The result of each architecture as it comes; none can end the walk or hold it up."""
    prepare()
    context = multiprocessing.get_context("fork")
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_apart, context, a, columns, limit): a for a in chosen}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def prepare() -> None:
    """Import, once and before any fork, what every model needs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with _silence():
        examined(Architecture("causal", "llama", "LlamaForCausalLM"), tuple(COLUMNS))


def _apart(
    context: Any, architecture: Architecture, columns: Sequence[str], limit: float
) -> Result:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, architecture, columns))
    process.start()
    sender.close()
    found: Result = {"runs": False, "reason": f"takes more than {limit:g} seconds", "cells": {}}
    try:
        # A child that is killed later still leaves what it had found by then.
        end = time.monotonic() + limit
        while receiver.poll(max(0.0, end - time.monotonic())):
            found = receiver.recv()
            if found.pop("done"):
                break
    except EOFError:
        found = {**found, "reason": "its process died"} if not found["cells"] else found
    finally:
        process.kill()
        process.join()
    return found


def _child(sender: Connection, architecture: Architecture, columns: Sequence[str]) -> None:
    with _silence():
        found: Result = {}
        for found in _examined(architecture, columns):
            sender.send({**found, "done": False})
        sender.send({**found, "done": True})


def examined(architecture: Architecture, columns: Sequence[str]) -> Result:
    """Build one architecture, run it, and try ``columns`` on it, in this very process."""
    *_, last = _examined(architecture, columns)
    return last


def _examined(architecture: Architecture, columns: Sequence[str]) -> Iterator[Result]:
    from benchmarks.architectures.building import build
    from benchmarks.architectures.running import example, obstacle
    from benchmarks.architectures.trying import Cell, tried

    start = time.process_time()
    try:
        model = build(architecture)
        inputs = example(model, architecture.task)
        reason = obstacle(model, inputs, architecture.task)
    except Exception as problem:
        reason = _told(problem)
    found: Result = {"runs": reason is None, "reason": reason or "", "cells": {}}
    if reason is None:
        for name in columns:
            excuse = no_place(architecture.name, name)
            try:
                cell = tried(model, inputs, COLUMNS[name].spec)
            except Exception as problem:
                cell = Cell("failed", type(problem).__name__, _told(problem))
            if excuse is not None and cell.verdict != "good":
                cell = Cell("no place", reason=excuse)
            found["cells"][name] = asdict(cell)
            yield found
    found["seconds"] = round(time.process_time() - start, 2)
    yield found


def _told(problem: Exception) -> str:
    lines = str(problem).strip().splitlines() or [""]
    last = traceback.extract_tb(problem.__traceback__)[-1]
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    return f"{type(problem).__name__} at {where}: {lines[0][:160]}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing a model prints or warns of gets through."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
