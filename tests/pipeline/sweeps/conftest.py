"""Folders of sweeps, written with the functions that jobs use, but without training."""

import pytest

from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.writer import write_artifact, write_manifest
from arcloop.pipeline.sweeps.record import RECORD, Failure, JobRecord, Pruned, folder_name

WHEN, LATER = "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:30+00:00"
FIXED = ["data=synthetic", "loader.batch_size=50"]


class SweepFolder:
    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True)

    def job(
        self, values, objective, metrics=None, failure=None, mode="max", config=None, val=None,
        pruned=None, objectives=None,
    ):  # fmt: skip
        """Write a job; `val`: metrics of val at the checkpoint; `pruned`: (epoch, value)."""
        overrides = [*FIXED, *(f"{key}={value}" for key, value in values.items())]
        swept = {key: str(value) for key, value in values.items()}
        folder = self.path / folder_name(swept)
        folder.mkdir()
        if failure is None and pruned is None:
            config = {
                "monitor": "val_top1", "monitor_mode": mode, "data": {"name": "synthetic"},
                "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true"},
                "head": {"margin": 0.3}, **(config or {}),
            }  # fmt: skip
            info = {"overrides": overrides, "objective": objective}
            names = [config["monitor"], *(val or {})]
            rows = [objective - (0.1 if mode == "max" else -0.1), *[0.123] * len(names[1:])]
            kept = [objective, *(val or {}).values()]
            lines = [["epoch", *names], [0, *rows], [1, *kept], [2, *rows]]
            text = "".join(f"{','.join(map(str, line))}\n" for line in lines)
            (folder / "metrics.csv").write_text(text)
            write_manifest(folder, "run", config=config, parents={"store": "0" * 64}, info=info)
        if metrics is not None:
            with write_artifact(folder / "evaluation", "evaluation", config={}) as writer:
                write_json(writer.path / "metrics.json", metrics)
        recorded = None if failure is None else Failure(failure, retry=False, exit_code=1)
        record = JobRecord(
            "", "train", overrides, swept, WHEN, LATER, objective, recorded,
            pruned=None if pruned is None else Pruned(*pruned), objectives=objectives or {},
        )  # fmt: skip
        record.write(folder / RECORD)
        return folder


@pytest.fixture
def sweep(tmp_path):
    return SweepFolder(tmp_path / "runs/sweeps/synthetic")
