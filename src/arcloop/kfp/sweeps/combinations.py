"""`arcloop pipeline -m`: a run for each combination of values, or one run for all of them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.composition import compose_unchecked, to_plain
from arcloop.config.overrides import key_of
from arcloop.display.terminal import print_line, result_console
from arcloop.errors import INTERRUPTED, ArcloopError, ConfigError
from arcloop.kfp.config import NotifySettings
from arcloop.kfp.local import run_pipeline, start_fork_server
from arcloop.kfp.options import split_options
from arcloop.kfp.parameters import (
    COMBINATION,
    OVERRIDES,
    POINTS,
    SEARCH,
    SWEPT,
    varied_steps,
)
from arcloop.kfp.submission import Submission, read_submission, resolve_parameters, submit
from arcloop.kfp.sweeps.study import read_search
from arcloop.pipeline.sweeps.record import folder_name
from arcloop.pipeline.sweeps.space import Space, nothing_varies


@dataclass(frozen=True)
class Combination:
    """One combination of the values of a sweep.

    Attributes:
        name: Its swept keys and values, as in the folders of a local sweep.
        submission: The command for this combination alone.
        point: Values of the parameters that vary in a pipeline over all combinations, and the name
            and overrides that the leaderboard shows.
    """

    name: str
    submission: Submission
    point: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        id: ID of the sweep. Without a search, it is the same for other values of the same keys, so
            that values can be added; with a search, it depends on the values.
        combinations: In the order of the command line; for a search, only those that were checked.
        search: Settings of a search, see `arcloop.kfp.sweeps.study.suggest`, or None.
    """

    id: str
    combinations: Sequence[Combination]
    search: Mapping[str, Any] | None = None

    def as_pipeline(self, chosen: Sequence[Combination]) -> Submission:
        """Return the submission of one pipeline that runs and ranks these combinations."""
        first = self.combinations[0].submission
        points: list[dict[str, Any]] = [dict(combination.point) for combination in chosen]
        cluster, more = first.cluster, {}
        if "data" in points[0]:  # the fingerprint of the data differs between the combinations
            cluster = cluster.model_copy(update={"fingerprint": "step"})
        if self.search:
            points = [{"trial": str(number)} for number in range(self.search["trials"])]
            more = {SEARCH: json.dumps(self.search)}
        return replace(
            first,
            cluster=cluster,
            parameters={POINTS: points, **more, **first.parameters},
            config={**first.config, "name": self.id},
        )


def run_sweep(argv: Sequence[str]) -> int:
    """Run every combination, rank them, and deploy the best if its gate passed.

    On a server with `cluster.sweep=runs`, the combinations are ranked only with `wait=true`.

    Args:
        argv: Overrides and options, with `-m`.

    Returns:
        The exit code: 3 if the gate of the best combination did not pass.

    Raises:
        ArcloopError: The command line is invalid, a combination failed, or the server refused.
    """
    sweep = read_sweep(argv)
    first = sweep.combinations[0].submission
    count = f"{len(sweep.combinations)} combinations"
    if sweep.search:
        count = f"{sweep.search['trials']} trials"
    print_line(f"sweep {sweep.id}: {count}")
    if sweep.search or first.compile_only or first.cluster.sweep == "pipeline":
        return submit(sweep.as_pipeline(sweep.combinations))
    if first.cluster.is_local:
        failures = _run_here(sweep)
    else:
        from arcloop.kfp.sweeps.runs import follow_runs, start_runs

        runs = start_runs(sweep.id, sweep.combinations, _compile(first))
        if not first.options.wait:
            command = shlex.join([*first.command, "wait=true"])
            print_line(f"follow and rank the runs: {command}")
            return 0
        found = follow_runs(first, runs)
        if found is None:
            return INTERRUPTED
        failures = found
    finished = [one for one in sweep.combinations if one.name not in failures]
    code = submit(sweep.as_pipeline(finished)) if finished else 1
    if failures:
        raise ArcloopError(
            f"{len(failures)} of {len(sweep.combinations)} combinations failed; the first error: "
            + next(iter(failures.values())),
            remedy="the same command runs them again, and reads the others from the cache",
        )
    return code


def read_sweep(argv: Sequence[str]) -> Sweep:
    """Read and check the command line of a sweep.

    Raises:
        ConfigError: No key has several values, or a combination is invalid or not supported.
    """
    _, overrides = split_options(argv)
    chosen = [word for word in argv if word not in overrides and not word.startswith("-")]
    settings = [word for word in overrides if re.split(r"[./]", key_of(word))[0] == "sweep"]
    overrides = [word for word in overrides if word not in settings]
    space, node = Space.of(overrides), to_plain(compose_unchecked(settings))["sweep"]
    space, searches = space.zipped(node["zip"]), "objective" in node
    if not space.axes:
        raise nothing_varies()
    swept, lists = space.keys, space.checks() if searches else space.jobs()
    first = read_submission([*chosen, *lists[0]])
    others = [read_submission([*chosen, *more], announce=False) for more in lists[1:]]
    command = ("arcloop", "pipeline", *argv)
    submissions = [replace(submission, command=command) for submission in (first, *others)]
    varied = [
        name
        for name in first.parameters
        if any(s.parameters[name] != first.parameters[name] for s in submissions)
    ]
    if faults := list(_faults(first, swept, varied, searches=searches)):
        raise ConfigError("\n".join(faults), remedy="nothing was submitted")
    found = []
    for given, submission in zip(lists, submissions, strict=True):
        shown = [word for word in given if not word.startswith(("cluster", "notify"))]
        pairs = {key_of(word): word.partition("=")[2] for word in shown}
        name = folder_name({key: pairs[key] for key in swept if key in pairs})
        parameters = {group: submission.parameters[group] for group in varied}
        point = {COMBINATION: name, OVERRIDES: shown, SWEPT: list(swept), **parameters}
        found.append(Combination(name, submission, point))
    fixed = sorted(word for word in space.fixed if not word.startswith(("cluster", "notify")))
    values = sorted(word for word in overrides if key_of(word) in swept)
    chosen_from = [*values, *map(str, node["zip"])] if searches else sorted(swept)
    digest = sha256_json([fixed, chosen_from, first.cluster.image])[:8]
    sweep = Sweep(f"{first.cluster.pipeline}-{digest}", found)
    if not searches:
        return sweep
    search = read_search(settings, space, first.config, first.cluster)
    more = {"study": sweep.id, "overrides": fixed, "derived": first.derived, "varied": varied}
    return replace(sweep, search={**search, **more})


def _faults(
    first: Submission, swept: Sequence[str], varied: Sequence[str], *, searches: bool
) -> list[str]:
    """Return the faults of settings that are valid for a single run but not in a sweep."""
    faults = []
    if settings := [key for key in swept if key.startswith(("cluster", "notify"))]:
        faults.append(f"{settings[0]} cannot have several values: the combinations share it")
    elif searches and "train" not in varied_steps(varied):
        faults.append(
            f"{', '.join(swept)}: sweep= compares by {first.config['monitor']}, which "
            "depends only on the training"
        )
    elif "evaluate" not in varied_steps(varied):
        faults.append(f"{', '.join(swept)}: no metric depends on the values, which -m compares")
    if not first.cluster.cache:
        faults.append("-m needs cluster.cache=true: the best combination is read from the cache")
    if searches and (metric := [key for key in varied if key.startswith("monitor")]):
        faults.append(f"{metric[0]} cannot vary: a search compares all trials by it")
    if first.cron and first.cluster.sweep != "pipeline" and not searches:
        faults.append("schedule= with -m needs cluster.sweep=pipeline, which is a single run")
    return faults


def _compile(first: Submission) -> Path:
    """Write the pipeline of a single combination, which deploys nothing and sends no message."""
    from arcloop.kfp.pipeline import compile_pipeline

    path = first.path.with_name(f"{first.path.stem}-combination.yaml")
    parameters = resolve_parameters(first)
    compile_pipeline(
        first.cluster, NotifySettings(webhook_env=None), path, parameters, deploys=False
    )
    return path


def _run_here(sweep: Sweep) -> dict[str, str]:
    """Run the combinations one after another; return the error of each one that failed."""
    start_fork_server()
    first = sweep.combinations[0].submission
    path = _compile(first)
    failures: dict[str, str] = {}
    states: dict[str, str] = {}
    for one in sweep.combinations:
        print_line(f"{one.name}:")
        folder = Path(first.cluster.folder or "")
        try:
            passed = run_pipeline(path, resolve_parameters(one.submission), folder, cache=True)
            states[one.name] = "the gate passed" if passed else "the gate did not pass"
        except ArcloopError as cause:
            print_line(f"failed: {cause}")
            failures[one.name], states[one.name] = cause.what, "failed"
    print_states(states)
    return failures


def print_states(states: Mapping[str, str]) -> None:
    """Print a table: combination -> its state."""
    table = Table("combination", "state")
    for name, state in states.items():
        table.add_row(name, state)
    result_console().print(table)
