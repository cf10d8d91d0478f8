"""Train, export, index, evaluate and serve ArcFace embedding models from one set of configs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["__version__", "load_sweep"]
__version__ = "0.1.0"


def load_sweep(path: str | os.PathLike[str], *, monitor: str | None = None) -> pd.DataFrame:
    """Return the jobs of a sweep as a DataFrame, one row per job.

    Columns: `folder`, `state` (finished, failed, pruned, running or interrupted), the swept keys as
    numbers, booleans or texts, metrics of val at the kept checkpoint (`val_...`), metrics of the
    query split, `duration_s` in seconds, `failure`, and the paths `run_dir` and `report`. The file
    leaderboard-jobs.csv has the same columns.

    Args:
        path: Folder of the sweep, e.g. runs/sweeps/mnist.
        monitor: Metric of val that is the objective, if the jobs have different monitors.

    Raises:
        ConfigError: pandas is not installed, or the jobs have different monitors.
        ArtifactError: The folder contains no jobs of a sweep.
    """
    from arcloop.pipeline.leaderboard.frame import load_sweep as load  # imported when it is needed

    return load(path, monitor=monitor)
