"""The best job of a sweep: `best.json` and the link `best` in its folder."""

from __future__ import annotations

import contextlib

from arcloop.artifacts.atomic import temporary_sibling, write_json
from arcloop.errors import write_error
from arcloop.pipeline.leaderboard.page import rerun_command
from arcloop.pipeline.leaderboard.ranking import Ranking

BEST, RECORD = "best", "best.json"


def best_line(ranking: Ranking) -> str | None:
    """Return a line with the values, the mean objective and the folder of the best job."""
    setting, job = ranking.best, ranking.best_job
    if setting is None or setting.objective is None or job is None:
        return None
    seeds = f"({setting.finished} seed{'s' if setting.finished != 1 else ''})"
    score = f"{ranking.monitor} {setting.objective.mean:.4f} {seeds}"
    return " ".join(filter(None, ["best:", setting.text, score, str(job.folder)]))


def write_best(ranking: Ranking) -> None:
    """Write `best.json`, and link `best` to the best job of the best setting.

    The link is relative and replaced in one step. It is not written on a file system without links,
    or if there is a folder with its name. Without a finished job, file and link are removed.

    Raises:
        ResourceError: The folder cannot be written.
    """
    record, link = ranking.folder / RECORD, ranking.folder / BEST
    setting, job = ranking.best, ranking.best_job
    try:
        if setting is None or setting.objective is None or job is None:
            record.unlink(missing_ok=True)
            if link.is_symlink():
                link.unlink()
            return
        content = {
            "folder": job.folder.name,
            "values": setting.values,
            "monitor": ranking.monitor,
            "mode": "max" if ranking.higher_is_better else "min",
            "mean": setting.objective.mean,
            "half_width_95": setting.objective.half_width,
            "seeds": setting.finished,
            "missing_seeds": setting.missing,
            "tied": [s.text for s in ranking.tied],
            "objective": job.objective,
            "overrides": list(job.given),
            "command": rerun_command(ranking, setting),
        }
        write_json(record, content)
    except OSError as cause:
        raise write_error(record, cause) from cause
    if link.exists() and not link.is_symlink():
        return
    temporary = temporary_sibling(link)
    with contextlib.suppress(OSError):  # a file system without links
        temporary.symlink_to(job.folder.name)
        temporary.replace(link)
