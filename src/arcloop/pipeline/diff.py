"""`arcloop diff RUN_A [RUN_B]`: compare config, data, code and metrics of two runs.

With one run, it prints data, code and metrics, and the command that trained it. It verifies no
hashes, so runs whose model was removed can be compared; `arcloop lineage` verifies a run.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config.composition import quote_override
from arcloop.config.recorded import flatten
from arcloop.display.terminal import result_console
from arcloop.errors import ArcloopError
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.leaderboard.results import read_job

_MISSING = "-"
_COPY = re.compile(r"callbacks\.\w+\.(embed|index|calibration|settings|torchscript)\.")
"""Keys of callbacks whose values are those of other config groups."""


@dataclass(frozen=True)
class RunFacts:
    """What `arcloop diff` compares of a run; each mapping is name -> text.

    Attributes:
        path: Folder of the run.
        command: Command that trains it; for a job of a sweep, without the other jobs.
        config: Resolved config; the folder of the run is replaced by RUN_DIR.
        data: Fingerprints and sizes of the data.
        code: Git revision and versions of packages.
        val: Metrics on the val split, at the kept checkpoint.
        query: Metrics on the query split.
    """

    path: Path
    command: str
    config: Mapping[str, str]
    data: Mapping[str, str]
    code: Mapping[str, str]
    val: Mapping[str, str]
    query: Mapping[str, str]

    @classmethod
    def of(cls, path: Path) -> RunFacts:
        """Read a finished run.

        Raises:
            ArtifactError: The folder is not a finished run, or its metrics cannot be read.
        """
        run = artifacts.read(artifacts.without_link(path), "run")
        job = read_job(run.path)
        assert job is not None
        folder = str(run.config["run_dir"])
        origin = run.config.get("origin") or {}
        settings = {key: value for key, value in run.config.items() if key != "origin"}
        config = {
            key: str(value).replace(folder, "RUN_DIR")
            for key, value in flatten(settings)
            if not _COPY.match(key)
        }
        code = {"git": str(run.code["git"]), **run.code["packages"]}
        val, query = (
            {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in m}
            for m in (job.val.items(), job.metrics.items())
        )
        command = str(origin.get("command") or training_command(run))
        return cls(run.path, command, config, _data_facts(run), code, val, query)


def diff(arguments: Sequence[str]) -> int:
    """Print the differences between two runs, or the facts of one run; return 0.

    Raises:
        ArtifactError: A folder is not a finished run, or its metrics cannot be read.
    """
    parser = argparse.ArgumentParser("arcloop diff", description=__doc__)
    parser.add_argument("run_a", metavar="RUN_A", help="a finished run")
    parser.add_argument("run_b", metavar="RUN_B", nargs="?", help="the run to compare it with")
    options = parser.parse_args(arguments)
    names = [name for name in (options.run_a, options.run_b) if name is not None]
    runs = [RunFacts.of(Path(name)) for name in names]
    console = result_console()
    for run in runs:
        console.print(f"{run.path}\n  {run.command}", soft_wrap=True)
    sections = {
        "config": [run.config for run in runs] if len(runs) > 1 else [],
        "data": [run.data for run in runs],
        "code": [run.code for run in runs],
        "val": [run.val for run in runs],
        "query": [run.query for run in runs],
    }
    for title, columns in sections.items():
        keys = list(dict.fromkeys(key for column in columns for key in column))
        if len(runs) > 1 and title not in ("val", "query"):
            keys = [key for key in keys if len({column.get(key) for column in columns}) > 1]
            if not keys:
                console.print(f"{title}: equal")
        if keys:
            console.print(table_of_runs(title, keys, columns))
    return 0


def training_command(run: Artifact) -> str:
    """Return the command that trains a run that recorded only its overrides.

    >>> training_command(Artifact(Path("runs/a"), "run", "", {}, {}, {},
    ...     {"overrides": ["head=arcface", "data.classes=[1,2]"]}, {}))
    "arcloop train head=arcface 'data.classes=[1,2]' run_dir=runs/a"
    """
    given = [o for o in run.info["overrides"] if not o.startswith("run_dir=")]
    return f"{shlex.join(['arcloop', 'train', *given])} {quote_override('run_dir', str(run.path))}"


def _data_facts(run: Artifact) -> dict[str, str]:
    facts = {"store": run.parents["store"][:12]}
    with contextlib.suppress(ArcloopError):  # the store was moved, or the run was cleaned
        store = artifacts.read(find_store(run.path), "store")
        facts["source"] = str(store.info["source"])[:12]
        facts["classes"] = str(store.info["classes"])
        facts |= {f"{name} images": str(s["rows"]) for name, s in store.info["splits"].items()}
    return facts


def table_of_runs(title: str, keys: Sequence[str], columns: Sequence[Mapping[str, str]]) -> Table:
    """Return a table with one column for each run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(title, overflow="fold")
    for name in "AB"[: len(columns)] if len(columns) > 1 else " ":
        table.add_column(name, overflow="fold")
    for key in keys:
        table.add_row(Text(key), *(Text(column.get(key, _MISSING)) for column in columns))
    return table
