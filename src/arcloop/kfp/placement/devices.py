"""The devices that a step uses, compared with the GPUs that `cluster.steps` reserves for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arcloop.kfp.config import ClusterSettings
from arcloop.kfp.parameters import add_default_choices, read_choices
from arcloop.pipeline.steps import STEPS

_GPU = ("gpu", "cuda")
_EMBEDDING_STEPS = tuple(name for name, step in STEPS.items() if "embed" in step.reads)
_STEPS_WITH_DEVICES = ("train", *_EMBEDDING_STEPS)


def derive_trainer(settings: ClusterSettings, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that make the trainer use what the cluster reserves for `train`.

    Args:
        settings: The cluster.
        overrides: The user's overrides. A choice of `trainer` among them is kept.

    Returns:
        Additional overrides; empty if the trainer was chosen or nothing needs to change.
    """
    given = {override.partition("=")[0] for override in overrides}
    gpus, job = _gpus(settings, "train"), settings.trainjob
    on_nodes = settings.train == "trainjob"
    if settings.is_local or not (gpus or on_nodes) or given & {"trainer", "trainer.accelerator"}:
        return []
    chosen = read_choices(tuple(add_default_choices(overrides)))["trainer"]
    if chosen != read_choices(())["trainer"]:
        return []  # chosen by an experiment
    if on_nodes:
        choice = "ddp" if gpus else "ddp_cpu"
        values = {"devices": job.processes, "num_nodes": job.nodes}
    else:
        choice, values = ("ddp" if gpus > 1 else "gpu"), {"devices": gpus}
    values = {key: value for key, value in values.items() if f"trainer.{key}" not in given}
    return [f"trainer={choice}", *(f"trainer.{key}={value}" for key, value in values.items())]


def device_faults(config: Mapping[str, Any], settings: ClusterSettings) -> Iterator[str]:
    """Yield contradictions between the devices in the config and the reserved GPUs.

    Args:
        config: The resolved config.
        settings: The cluster.
    """
    trainer, job = config["trainer"], settings.trainjob
    asked = (trainer["num_nodes"], trainer["devices"])
    if settings.train == "trainjob" and asked != (job.nodes, job.processes):
        yield (
            f"trainer.num_nodes, trainer.devices are {asked[0]}, {asked[1]}, but "
            f"cluster.trainjob.nodes, processes are {job.nodes}, {job.processes}: make them equal"
        )
    if settings.is_local:
        return
    for name, step in settings.steps.items():
        if step.gpus and name not in _STEPS_WITH_DEVICES:
            yield f"cluster.steps.{name}.gpus={step.gpus}, but {name} uses no GPU: set it to 0"
    if settings.train == "step" and trainer["num_nodes"] != 1:
        yield f"trainer.num_nodes={trainer['num_nodes']} needs cluster.train=trainjob"
    yield from _trainer_faults(trainer, _gpus(settings, "train"))
    device = config["embed"]["device"]
    for name in _EMBEDDING_STEPS:
        gpus = _gpus(settings, name)
        if gpus > 1:
            yield f"cluster.steps.{name}.gpus={gpus}, but {name} uses one GPU: set it to 1"
        if device == "cpu" and gpus:
            yield (
                f"embed.device=cpu, but cluster.steps.{name}.gpus={gpus} reserves a GPU: use "
                f"embed.device=auto or cluster.steps.{name}.gpus=0"
            )
        if str(device).startswith("cuda") and not gpus:
            yield (
                f"embed.device={device}, but cluster.steps.{name}.gpus=0 reserves no GPU: use "
                f"embed.device=auto or cluster.steps.{name}.gpus=1"
            )


def _trainer_faults(trainer: Mapping[str, Any], gpus: int) -> Iterator[str]:
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if gpus and accelerator == "cpu":
        yield (
            f"trainer.accelerator=cpu, but cluster.steps.train.gpus={gpus} reserves GPUs: use "
            f"trainer={'gpu' if gpus == 1 else 'ddp'} or cluster.steps.train.gpus=0"
        )
    elif gpus and devices not in ("auto", -1, "-1") and _count(devices) != gpus:
        yield (
            f"trainer.devices={devices}, but cluster.steps.train.gpus={gpus}: make them equal"
            f"{' with trainer=ddp' if gpus > 1 else ''}"
        )
    elif accelerator in _GPU and not gpus:
        yield (
            f"trainer.accelerator={accelerator}, but cluster.steps.train.gpus=0 reserves no GPU: "
            "use trainer=cpu or set cluster.steps.train.gpus"
        )


def _gpus(settings: ClusterSettings, name: str) -> int:
    return settings.steps[name].gpus if name in settings.steps else 0


def _count(devices: Any) -> Any:
    """Return the number of devices; a list contains their indices."""
    return len(devices) if isinstance(devices, list) else devices
