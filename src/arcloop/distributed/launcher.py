"""Training in several processes: one per device, started and watched by torch's elastic agent.

The processes get the composed config in a file, so that it is the same in all of them, in a sweep
too, where the command line holds several jobs. Each of them runs
`arcloop.pipeline.train_worker`.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from arcloop.artifacts import Artifact, load
from arcloop.artifacts.atomic import write_json
from arcloop.errors import ConfigError, ResourceError


def processes_here(config: DictConfig) -> int:
    """Return how many processes this config's training takes on this machine.

    1 also where a launcher (torchrun, a TrainJob) has started this process already.

    Raises:
        ConfigError: The launcher started another number of processes than the config asks for, or
            several are asked for without a strategy that trains in them.
    """
    trainer = config.trainer
    several = len(trainer.devices) if OmegaConf.is_list(trainer.devices) else trainer.devices
    if trainer.strategy == "auto" and isinstance(several, int) and several > 1:
        raise ConfigError(
            f"{several} devices, but a strategy of one process",
            where="trainer.devices, trainer.strategy",
            remedy="use trainer=ddp (on a CPU trainer=ddp_cpu) with trainer.devices="
            f"{several}, or trainer.devices=1",
        )
    wanted = _devices(trainer) if "ddp" in str(trainer.strategy) else 1
    if "LOCAL_WORLD_SIZE" not in os.environ and "PET_NPROC_PER_NODE" not in os.environ:
        return wanted
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != wanted * trainer.num_nodes:
        raise ConfigError(
            f"the launcher started {started} processes, but the config asks for "
            f"{trainer.num_nodes} nodes x {wanted} devices",
            where="trainer.num_nodes, trainer.devices",
            remedy="make the launcher's and the config's numbers agree, and use `torchrun`",
        )
    return 1


def _devices(trainer: DictConfig) -> int:
    devices = trainer.devices
    if isinstance(devices, int) and devices > 0:
        return devices
    if OmegaConf.is_list(devices):
        return len(devices)
    import torch

    return max(torch.cuda.device_count(), 1)


def train_in_processes(
    count: int,
    config: DictConfig,
    store: Path,
    run_dir: Path,
    overrides: Sequence[str],
    *,
    alone: bool,
) -> Artifact:
    """Train with `count` processes and return the sealed run.

    When one of them ends with an error or is killed, the others are stopped.

    Raises:
        ConfigError, ResourceError: A process failed; says which, and how it ended.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        write_json(job, rank_job(config, store, run_dir, overrides, alone=alone))
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=run_dir.name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.2,
        )
        # The agent logs every start and stop; what matters of it is in the error below.
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
        try:
            elastic_launch(settings, sys.executable)(
                "-m", "arcloop.pipeline.train_worker", str(job)
            )
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            how = failure.signal_name() if failure.exitcode < 0 else f"code {failure.exitcode}"
            kind = ConfigError if failure.exitcode == ConfigError.exit_code else ResourceError
            raise kind(
                f"rank {rank} of {count} ended with {how}; the others were stopped",
                where=run_dir,
                remedy="see its message above; the same command goes on from the last checkpoint",
            ) from None
    return load(run_dir, "run")


def rank_job(
    config: DictConfig, store: Path, run_dir: Path, overrides: Sequence[str], *, alone: bool
) -> dict[str, Any]:
    """Return what `python -m arcloop.pipeline.train_worker` reads from the file it is given."""
    return {
        # Unresolved: an interpolation of typed settings would come back as a plain dict.
        "config": OmegaConf.to_container(config, resolve=False),
        "store": str(store),
        "run_dir": str(run_dir),
        "overrides": list(overrides),
        "alone": alone,
    }


def leave_group() -> None:
    """Leave the process group, if this process is in one, when its work is done.

    A group that is left to the end of the process can outlive what its threads need, and abort it.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
