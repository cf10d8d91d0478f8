"""Results of the combinations of a sweep: written by `evaluate`, ranked by the leaderboard task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.kfp.parameters import COMBINATION, OVERRIDES, SWEPT
from arcloop.kfp.pod.steps import read_result


def write_result(run: Path, evaluation: Path, file: Path) -> None:
    """Write the results of a run that the leaderboard needs, so that it loads no artifacts.

    Args:
        run: Folder of the run.
        evaluation: Folder of its evaluation.
        file: File to write.
    """
    made = artifacts.read(run, "run")
    config, packages = made.config, made.code["packages"]
    metrics, gate = read_result(evaluation)
    trainer = {key: config["trainer"][key] for key in ("max_epochs", "accelerator", "precision")}
    result = {
        "objective": made.info["objective"],
        "metrics": metrics,
        "passed": gate["passed"] is True,
        "config": {
            "monitor": config["monitor"],
            "monitor_mode": config["monitor_mode"],
            "trainer": trainer,
        },
        "code": {"git": made.code["git"], "packages": {"torch": packages.get("torch")}},
    }
    file.write_text(json.dumps(result), encoding="utf-8")


def rank(
    points: Sequence[Mapping[str, Any] | str], results: Sequence[str], page: str, table: str
) -> str:
    """Write the leaderboard and return the best combination.

    The best setting has the best mean of the monitored metric over its seeds. Of its runs, the one
    with the best value is returned.

    Args:
        points: The combinations, see `read_sweep`, or JSON of each. A search may propose equal
            ones; the last of these is ranked.
        results: For each of them the JSON of `write_result`.
        page: HTML file to write.
        table: Markdown file to write.

    Returns:
        JSON of the best point, with the additional keys `passed`, the decision of the gate,
        `monitor`, the name of the metric on val, its value `objective`, and `page`.
    """
    from arcloop.pipeline.leaderboard.page import markdown_page, render
    from arcloop.pipeline.leaderboard.ranking import Ranking
    from arcloop.pipeline.leaderboard.results import JobResult

    read = [json.loads(point) if isinstance(point, str) else point for point in points]
    ranked = {
        point[COMBINATION]: (point, json.loads(result))
        for point, result in zip(read, results, strict=True)
    }
    jobs = []
    for point, record in ranked.values():
        given, swept = list(point[OVERRIDES]), tuple(point[SWEPT])
        results_of_job = (record["config"], record["objective"], record["metrics"], record["code"])
        jobs.append(JobResult(Path(point[COMBINATION]), given, swept, None, *results_of_job))
    ranking = Ranking.of_jobs(Path("sweep"), jobs, verb="pipeline")
    *_, content = render(ranking).values()
    Path(page).write_bytes(content)
    Path(table).write_text(markdown_page(ranking), encoding="utf-8")
    best = ranking.best_job
    assert best is not None
    point, record = ranked[str(best.folder)]
    found = {key: record[key] for key in ("passed", "objective")}
    found |= {"monitor": record["config"]["monitor"], "page": page}
    return json.dumps({**point, **found})
