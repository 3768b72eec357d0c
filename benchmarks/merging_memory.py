"""Peak memory and seconds of a merge in place, each side in a process of its own.

``python -m benchmarks.merging_memory SIDE LAYERS`` is one of them: it merges for good, and prints what
the process held before, at its peak while merging, and how long that took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.harness import NothingMeasuredError

WIDTH, RANK = 512, 8
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def layers(count: int) -> nn.Module:
    """Square linear layers in float32, 1 MiB each."""
    every = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count))
    holder = nn.ModuleList(nn.ModuleDict({"linear": layer}) for layer in every)
    return nn.ModuleDict({"layers": holder}).requires_grad_(False)


def measured(side: str, count: int) -> dict[str, float]:
    """What one merge takes, in a fresh process.

    Raises:
        NothingMeasuredError: where the kernel does not tell peaks, or PEFT is not installed.

    """
    command = [sys.executable, "-m", "benchmarks.merging_memory", side, str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = ran.stderr.strip().rpartition("\n")[2]
        raise NothingMeasuredError(f"merging in a process of its own: {reason}")
    return json.loads(ran.stdout)


def _mebibytes(field: str) -> float:
    line = next(row for row in _STATUS.read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) / 1024


def _adapted(side: str, count: int) -> Any:
    import torch

    model = layers(count)
    if side == "ours":
        import surgery

        surgery.apply(model, f"on `**.linear` apply lora({RANK})", seed=0)
        for name, parameter in surgery.trainable(model).items():
            if name.endswith(".B"):
                torch.nn.init.normal_(parameter, std=0.1)
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, target_modules=["linear"], init_lora_weights=False)
    return get_peft_model(model, settings)  # pyright: ignore[reportArgumentType]


def _merge(side: str, model: Any) -> None:
    if side == "ours":
        import surgery

        surgery.merge(model)
    else:
        model.merge_and_unload()


def main(side: str, count: int) -> None:
    import torch

    torch.set_num_threads(1)
    _merge(side, _adapted(side, 2))  # what is imported and allocated once
    model = _adapted(side, count)
    before = _mebibytes("VmRSS")
    _RESET.write_text("5")
    start = time.process_time()
    _merge(side, model)
    took = time.process_time() - start
    print(json.dumps({"before": before, "peak": _mebibytes("VmHWM") - before, "seconds": took}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
