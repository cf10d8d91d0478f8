"""Which code made an artifact: git revision and versions of the packages that shape results."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import subprocess
from pathlib import Path

_RECORDED_PACKAGES = (
    "arcloop", "faiss-cpu", "faiss-gpu", "hydra-core", "numpy", "omegaconf", "pillow",
    "pytorch-lightning", "timm", "torch", "torchmetrics",
)  # fmt: skip


@functools.cache
def git_revision() -> str | None:
    """Return the commit of the code, with "-dirty" if it was changed since; None outside git."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
