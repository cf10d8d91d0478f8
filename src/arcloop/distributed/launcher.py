"""Start the processes of a training job, one per device, with torch's elastic agent.

The workers read the composed config from a file and not from the command line, because in a sweep
the command line describes several jobs. Each worker runs `arcloop.pipeline.train_worker`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from arcloop.artifacts import Artifact, load
from arcloop.artifacts.atomic import write_json
from arcloop.errors import TERMINATED, ConfigError, ResourceError, Terminated

_AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def count_processes_to_start(config: DictConfig) -> int:
    """Return the number of training processes of this machine.

    It is 1 if a launcher (torchrun, a TrainJob) has already started this process.

    Raises:
        ConfigError: `trainer.devices` is invalid on this machine, the strategy supports one process
            but there are several devices, or a launcher started another number of processes.
    """
    trainer = config.trainer
    devices = _count_devices(trainer)
    uses_ddp = "ddp" in str(trainer.strategy).lower()
    if trainer.strategy == "auto" and devices > 1:
        raise ConfigError(
            f"{devices} devices, but a strategy for one process",
            where="trainer.devices, trainer.strategy",
            remedy="use trainer=ddp (on a CPU trainer=ddp_cpu) with trainer.devices="
            f"{devices}, or trainer.devices=1",
        )
    processes = devices if uses_ddp else 1
    if "LOCAL_WORLD_SIZE" not in os.environ and "PET_NPROC_PER_NODE" not in os.environ:
        return processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes * trainer.num_nodes:
        raise ConfigError(
            f"the launcher started {started} processes, but the config asks for "
            f"{trainer.num_nodes} nodes x {processes} devices",
            where="trainer.num_nodes, trainer.devices",
            remedy="use the same numbers in the launcher and the config, and start with `torchrun`",
        )
    return 1


def _count_devices(trainer: DictConfig) -> int:
    """Return how many devices Lightning will use, for every form of `trainer.devices`."""
    devices: Any = trainer.devices
    if devices == 1:
        return 1
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator

    on_cuda = trainer.accelerator in ("gpu", "cuda") or (
        trainer.accelerator == "auto" and CUDAAccelerator.is_available()
    )
    accelerator = CUDAAccelerator if on_cuda else CPUAccelerator
    devices = OmegaConf.to_object(devices) if OmegaConf.is_config(devices) else devices
    try:
        if devices == "auto":
            return max(accelerator.auto_device_count(), 1)
        parsed: Any = accelerator.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError) as cause:
        raise ConfigError(
            f"trainer.devices={devices!r} is not possible with trainer.accelerator="
            f"{trainer.accelerator}: {str(cause).strip()}",
            where="trainer.devices",
            remedy="give the number of devices, or on GPUs a list of their indices such as [0,1]",
        ) from None
    return parsed if isinstance(parsed, int) else max(len(parsed or ()), 1)


def launch_training(num_processes: int, job: Mapping[str, Any]) -> Artifact:
    """Train in several processes of this machine and return the finished run.

    When a process fails or is killed, the agent stops the others.

    Args:
        num_processes: Number of processes to start.
        job: Result of `worker_job`.

    Raises:
        ConfigError, ResourceError: A process failed; the message names its rank and exit code.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    run_dir = Path(job["run_dir"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        write_json(file, job)
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=run_dir.name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.2,
        )
        # Hides the agent's log of every start and stop; the error below has the relevant part.
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
        try:
            launch = elastic_launch(settings, sys.executable)
            with _restore_signal_handlers():
                launch("-m", "arcloop.pipeline.train_worker", str(file))
        except SignalException as received:  # the agent has stopped the processes
            is_sigterm = received.sigval == signal.SIGTERM
            raise (Terminated if is_sigterm else KeyboardInterrupt) from None
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode == TERMINATED:
                raise Terminated from None
            how = failure.signal_name() if failure.exitcode < 0 else f"code {failure.exitcode}"
            error = ConfigError if failure.exitcode == ConfigError.exit_code else ResourceError
            raise error(
                f"rank {rank} of {num_processes} ended with {how}; the others were stopped",
                where=run_dir,
                remedy="see the error message of that rank above; the same command resumes from"
                " the last checkpoint",
            ) from None
    return load(run_dir, "run")


@contextlib.contextmanager
def _restore_signal_handlers() -> Iterator[None]:
    """Restore the handlers of signals, which the agent replaces and keeps after its end.

    Without this, Ctrl-C in a later job of a sweep would be an error of that job.
    """
    before = {number: signal.getsignal(number) for number in _AGENT_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: not installed from Python
                    signal.signal(number, handler)


def worker_job(
    config: DictConfig, store: Path, run_dir: Path, overrides: Sequence[str], *, pipeline_task: bool
) -> dict[str, Any]:
    """Return the job that `arcloop.pipeline.train_worker` reads from a JSON file.

    Args:
        config: The composed config.
        store: Folder of the `store`.
        run_dir: Folder of the `run`.
        overrides: Overrides to record in the run.
        pipeline_task: Training is a task of a pipeline; see `arcloop.pipeline.steps.apply`.
    """
    return {
        # Interpolations stay unresolved, because typed settings would become plain dicts.
        "config": OmegaConf.to_container(config, resolve=False),
        "store": str(store),
        "run_dir": str(run_dir),
        "overrides": list(overrides),
        "pipeline_task": pipeline_task,
    }
