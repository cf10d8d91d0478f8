"""The machine, the versions and the date of a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib

_PACKAGES = (
    "torch", "onnxruntime", "pytorch-lightning", "hydra-core", "faiss-cpu", "numpy", "pillow",
    "opencv-python-headless", "pytorch-metric-learning", "open-metric-learning",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return CPU, cores, SIMD level, memory, GPU, load average, Python, packages, and the date."""
    import torch

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": joblib.cpu_count(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def in_words(machine: dict[str, Any]) -> str:
    """Return one line for a page."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores ({machine['simd']}), "
        f"{machine['memory_gib']} GiB{gpu}; load average before {machine['load_before']}; "
        f"Python {machine['python']}, {packages}"
    )


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
