"""Metrics, plots, the report page and the gate."""

from arcloop.evaluation.calibration import calibrate_threshold
from arcloop.evaluation.gate import gate
from arcloop.evaluation.judge import Judgement, judge
from arcloop.evaluation.mistake_sheet import mistake_sheet
from arcloop.evaluation.mistakes import Mistake
from arcloop.evaluation.report import write_report

__all__ = [
    "Judgement", "Mistake", "calibrate_threshold", "gate", "judge", "mistake_sheet",
    "write_report",
]  # fmt: skip
