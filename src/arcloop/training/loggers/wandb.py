"""Logger for Weights & Biases: config, metrics per step, and the files of the run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from arcloop.config.targets import require_extra
from arcloop.config.value_types import checked
from arcloop.training.loggers.tracking import Row, TrackingLogger


class WandbLogger(TrackingLogger):
    """Logs to W&B, or to files in the run folder that `wandb sync` can upload later.

    Args:
        run_dir: Folder of the run; its name becomes the name of the W&B run, and W&B writes to its
            subfolder `wandb/`.
        project: Name of the project.
        mode: "offline" sends nothing; "online" requires a login.

    Raises:
        ConfigError: W&B is not installed, or the mode is unknown.
    """

    service: ClassVar[str] = "wandb"
    id_file: ClassVar[str] = ".wandb.json"

    @checked("logger.wandb")
    def __init__(self, *, run_dir: str, project: str, mode: Literal["offline", "online"]) -> None:
        super().__init__(run_dir=run_dir)
        require_extra("wandb", "wandb", where="logger=wandb")
        self._project, self._mode = project, mode
        self._run: Any = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        if self._mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=self._run_dir.name,
            id=known or secrets.token_hex(4),
            resume="allow" if self._mode == "online" else None,  # `wandb sync` merges offline runs
            dir=str(self._run_dir.resolve()),  # W&B's service may run in another folder
            mode=self._mode,
            config=dict(config),
            reinit="create_new",  # a sweep has several runs in one process
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        return str(self._run.id)

    def _send(self, rows: Mapping[int, Row]) -> None:
        for step, row in rows.items():
            self._run.log(row, step=step)

    def _send_summary(self, metrics: Row) -> None:
        self._run.summary.update(metrics)

    def _send_files(self) -> None:
        import wandb

        sent = wandb.Artifact(f"run-{self._id}", "model")
        for name in self._files():
            # Upload from the run folder; by default, W&B copies the file to the home folder.
            file = str((self._run_dir / name).resolve())
            sent.add_file(file, name=name, policy="immutable", skip_cache=True)
        self._run.log_artifact(sent)

    def _close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)
