"""The jobs of a sweep as a pandas DataFrame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from arcloop.config.targets import require_extra
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import as_number
from arcloop.pipeline.leaderboard.tables import job_rows

if TYPE_CHECKING:
    import pandas as pd


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
    require_extra("sweeps", "pandas", where="arcloop.load_sweep")
    import pandas as pd

    ranking = Ranking.of(Path(path), monitor=monitor)
    rows = job_rows(ranking)
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: _typed([row.get(name) for row in rows]) for name in names})


def _typed(values: list[object]) -> list[object]:
    """Convert strings to bool, int or float if all of them can be converted."""
    texts = [value for value in values if value is not None]
    if not texts or not all(isinstance(text, str) for text in texts):
        return values
    words = [str(text).lower() for text in texts]
    if all(word in ("true", "false") for word in words):
        return [None if value is None else str(value).lower() == "true" for value in values]
    numbers = [as_number(word) for word in words]
    if any(number is None for number in numbers):
        return values
    whole = all(word.lstrip("+-").isdecimal() for word in words)
    return [None if value is None else (int if whole else float)(str(value)) for value in values]
