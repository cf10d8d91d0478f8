"""`python -m arcloop.pipeline.train_worker JOB`: one process of a training job."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import register_schema
from arcloop.config.schema import Config
from arcloop.distributed.process_group import leave_process_group
from arcloop.distributed.threads import count_threads, use_threads
from arcloop.errors import TrainingPruned, report_errors
from arcloop.pipeline.attempts import record_error
from arcloop.pipeline.training import train_here


def main() -> int:
    """Read the job file, train, and return the exit code."""
    register_schema()
    job = json.loads(Path(sys.argv[1]).read_bytes())
    config = OmegaConf.merge(OmegaConf.structured(Config), job["config"])
    assert isinstance(config, DictConfig)

    def work() -> int:
        store, run_dir = Path(job["store"]), Path(job["run_dir"])
        overrides, is_task = job["overrides"], job["pipeline_task"]
        with record_error(run_dir):
            # The job of a TrainJob has `threads=auto`, because another pod writes it.
            config.threads = count_threads(config, run_dir, is_training=True)
            with use_threads(config.threads), contextlib.suppress(TrainingPruned):
                train_here(config, store, run_dir, overrides, pipeline_task=is_task)
        leave_process_group()
        return 0

    return report_errors(work)


if __name__ == "__main__":
    sys.exit(main())
