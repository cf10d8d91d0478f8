"""Folders of sweeps, written with the functions that jobs use, but without training."""

import pytest

from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.writer import write_artifact, write_manifest
from arcloop.pipeline.sweeps.record import RECORD, Failure, JobRecord, folder_name

WHEN = "2026-01-01T00:00:00+00:00"
FIXED = ["data=synthetic", "loader.batch_size=50"]


class SweepFolder:
    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True)

    def job(self, values, objective, metrics=None, failure=None, mode="max", config=None):
        overrides = [*FIXED, *(f"{key}={value}" for key, value in values.items())]
        swept = {key: str(value) for key, value in values.items()}
        folder = self.path / folder_name(swept)
        folder.mkdir()
        if failure is None:
            config = {
                "monitor": "val_top1", "monitor_mode": mode, "data": {"name": "synthetic"},
                "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true"},
                "head": {"margin": 0.3}, **(config or {}),
            }  # fmt: skip
            info = {"overrides": overrides, "objective": objective}
            write_manifest(folder, "run", config=config, parents={}, info=info)
        if metrics is not None:
            with write_artifact(folder / "evaluation", "evaluation", config={}) as writer:
                write_json(writer.path / "metrics.json", metrics)
        recorded = None if failure is None else Failure(failure, retry=False, exit_code=1)
        record = JobRecord("", "train", overrides, swept, WHEN, WHEN, objective, recorded)
        record.write(folder / RECORD)
        return folder


@pytest.fixture
def sweep(tmp_path):
    return SweepFolder(tmp_path / "runs/sweeps/synthetic")
