"""Whether a processor multiplies in bf16, or imitates it."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CPUAccelerator

from arcloop.display.terminal import say

_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's


def has_bf16(cpuinfo: str) -> bool:
    """Whether a processor has bf16 instructions.

    Args:
        cpuinfo: What /proc/cpuinfo says of it.

    >>> has_bf16("flags : fpu avx512f avx512_bf16"), has_bf16("flags : fpu avx512f")
    (True, False)
    """
    listed = (line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    return not _INSTRUCTIONS.isdisjoint(next(listed, "").split())


def warn_of_slow_bf16(trainer: pl.Trainer) -> None:
    """Say so where a processor is to train in bf16 that it has no instructions for."""
    file = Path("/proc/cpuinfo")
    cpuinfo = file.read_text() if file.exists() else ""
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and "bf16" in str(trainer.precision) and cpuinfo and not has_bf16(cpuinfo):
        say(
            "note: this processor has no bf16 instructions; trainer.precision=32-true is several"
            " times faster here"
        )
