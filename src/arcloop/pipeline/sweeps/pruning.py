"""Pruning: a job reports the monitored metric of each epoch to the study of its sweep.

The study is a SQLite file, which every process opens by its path. A pruner of Optuna compares the
values with those of other trials. The decision is stored in the trial, so that it also applies to
the jobs of the other seeds, and to a job that is killed and repeated.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from arcloop import artifacts
from arcloop.config.composition import build_node
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, TrainingPruned

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

T = TypeVar("T")

STORAGE, STUDY = "optuna.db", "sweep"
_JOB, _PRUNER = "sweep.job", "sweep.pruner"
_PRUNED = "pruned"
_LOCK_TIMEOUT_S, _ATTEMPTS = 20.0, 3
_GROUP = "sweep/pruner"


def check_pruner(config: DictConfig) -> None:
    """Check the pruner of a sweep before its first job.

    Raises:
        ConfigError: The value is no pruner, its constructor rejects the values, or the sweep has
            several objectives.
    """
    node = OmegaConf.select(config, _PRUNER)
    if node is None:
        return
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(
            f"{_PRUNER}={node} is not a pruner", remedy=f"write {_GROUP}=asha or {_GROUP}=median"
        )
    if not hasattr(build_node(node), "prune"):
        raise ConfigError(
            f"{node._target_} is not a pruner",
            where=f"{_PRUNER}._target_",
            remedy="choose a class of optuna.pruners",
        )
    if OmegaConf.select(config, "sweep.objectives"):
        raise ConfigError(
            "a pruner compares the values of one metric, but sweep.objectives names several",
            where=_GROUP,
            remedy=f"omit {_GROUP}, or sweep.objectives",
        )


def require_search(arguments: Sequence[str]) -> None:
    """Check that `sweep/pruner` is given together with `sweep`.

    Raises:
        ConfigError: `sweep` is missing.
    """
    groups = {argument.partition("=")[0]: argument for argument in arguments}
    if _GROUP in groups and "sweep" not in groups:
        raise ConfigError(
            f"{groups[_GROUP]} needs a sweep=",
            remedy="add sweep=grid, which runs every combination, or sweep=random or sweep=optuna",
        )


def assign_job(config: DictConfig, storage: Path, number: int) -> None:
    """Add to the config of a job the study to which it reports, if the sweep has a pruner.

    Args:
        config: Config of the job.
        storage: File of the study.
        number: Number of the job in the sweep.
    """
    if OmegaConf.select(config, _PRUNER) is not None:
        job = {"storage": str(storage), "number": number}
        OmegaConf.update(config, _JOB, job, force_add=True)


def require_not_pruned(config: DictConfig) -> None:
    """Check that the trial of a job was not pruned by an earlier command or by another seed.

    Raises:
        TrainingPruned: It was pruned, and the run is not finished.
    """
    trial = JobTrial.of(config)
    if trial is None or artifacts.exists(Path(config.run_dir)):
        return
    if decision := trial.decision():
        raise decision


@dataclass(frozen=True)
class JobTrial:
    """The trial of a job, in the study of a sweep with a pruner.

    The job with the first seed of a trial reports its values, and the pruner decides by them. The
    jobs with the other seeds end when the first one is pruned.

    Attributes:
        storage: File of the study.
        number: Number of the job: number of the trial * number of seeds + index of the seed.
        pruner: A pruner of Optuna.
    """

    storage: Path
    number: int
    pruner: Any

    @classmethod
    def of(cls, config: DictConfig) -> JobTrial | None:
        """Return the trial of the job with this config; None if its sweep has no pruner."""
        job, pruner = (OmegaConf.select(config, key) for key in (_JOB, _PRUNER))
        return cls(Path(job.storage), job.number, build_node(pruner)) if job and pruner else None

    def decision(self) -> TrainingPruned | None:
        """Return the stored decision to prune the trial, if there is one."""
        return self._use(lambda study, storage: self._find(study, storage)[1])

    def report(self, epoch: int, value: float, *, is_last: bool) -> TrainingPruned | None:
        """Report an epoch and return the decision to prune the trial, if there is one.

        Args:
            epoch: Number of completed epochs.
            value: The monitored metric.
            is_last: Training ends after this epoch, so that pruning it would save nothing.
        """

        def decide(study: Study, storage: RDBStorage) -> TrainingPruned | None:
            trial, pruned, is_first_seed = self._find(study, storage)
            if pruned is not None or not is_first_seed:
                return pruned
            storage.set_trial_intermediate_value(trial, epoch, value)
            if is_last or not self.pruner.prune(study, storage.get_trial(trial)):
                return None
            storage.set_trial_user_attr(trial, _PRUNED, [epoch, value])
            return TrainingPruned(epoch, value)

        return self._use(decide)

    def _find(self, study: Study, storage: RDBStorage) -> tuple[int, TrainingPruned | None, bool]:
        """Return the id of the trial, its decision, and whether the job has the first seed."""
        seeds = study.user_attrs.get("settings", {}).get("seeds", [""])
        number, seed = divmod(self.number, len(seeds))
        study_id = storage.get_study_id_from_name(STUDY)
        trial = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        pruned = storage.get_trial(trial).user_attrs.get(_PRUNED)
        return trial, None if pruned is None else TrainingPruned(*pruned), seed == 0

    def _use(self, work: Callable[[Study, RDBStorage], T]) -> T | None:
        """Open the study and call `work`; None if the file cannot be used.

        SQLite waits for the locks of other processes. Training continues without a decision if the
        file stays locked or is damaged, because the decision only saves time.
        """
        import optuna
        from optuna.exceptions import StorageInternalError
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import SQLAlchemyError

        settings = {"connect_args": {"timeout": _LOCK_TIMEOUT_S}}
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                storage = RDBStorage(
                    f"sqlite:///{self.storage}", settings, skip_table_creation=True
                )
                try:
                    study = optuna.load_study(study_name=STUDY, storage=storage, pruner=self.pruner)
                    return work(study, storage)
                finally:
                    storage.remove_session()
                    storage.engine.dispose()
            except (SQLAlchemyError, StorageInternalError, KeyError) as cause:
                reason = str(cause.__cause__ or cause).partition("\n")[0]
                time.sleep(random.random())  # noqa: S311 - separates the attempts of processes
        print_line(f"warning: the pruner cannot use {self.storage}: {reason}")
        return None
