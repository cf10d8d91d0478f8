"""The TensorBoard logger, which adds a run to TensorBoard's table of hyperparameters."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import loggers
from pytorch_lightning.utilities import rank_zero_only

from arcloop.errors import DivergedError


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's logger, and a row in TensorBoard's table of hyperparameters.

    The row has the values that were given on the command line, in a sweep the swept ones, and the
    last value of every metric. `tensorboard --logdir SWEEP` compares all jobs.

    Args:
        save_dir: Folder of the run.
        name: Subfolder of the files.
        version: Subfolder of `name`; "" for none.
    """

    def __init__(self, save_dir: str, name: str = "tensorboard", version: str = "") -> None:
        super().__init__(save_dir=save_dir, name=name, version=version)
        self._begun = False

    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Add the row; called on rank zero before training starts or resumes."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # `api` imports keras

        values = (config.get("origin") or {}).get("values", {})
        self.experiment.file_writer.add_summary(hparams_pb(values))
        self._begun = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._begun:
            self._end_row(status)
        super().finalize(status)

    def _end_row(self, status: str) -> None:
        """Write the state of the run.

        TensorBoard reads only the first state, so nothing is written for a run that may continue.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._begun = False
        if status == "success":
            state = api_pb2.STATUS_SUCCESS
        elif isinstance(sys.exception(), DivergedError):
            state = api_pb2.STATUS_FAILURE
        else:
            return
        end = plugin_data_pb2.SessionEndInfo(status=state, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        about = metadata.create_summary_metadata(data)
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)
        self.experiment.file_writer.add_summary(Summary(value=[value]))
