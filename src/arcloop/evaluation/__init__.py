"""Metrics, plots, the report page and the gate."""

from arcloop.evaluation.calibration import calibrate_threshold
from arcloop.evaluation.gate import gate
from arcloop.evaluation.judge import Findings, Judgement, conclude, examine, judge
from arcloop.evaluation.latency import search_times
from arcloop.evaluation.mistake_sheet import mistake_sheet
from arcloop.evaluation.mistakes import Mistake
from arcloop.evaluation.report import write_report
from arcloop.evaluation.retrieval_evaluation import evaluate_retrieval

__all__ = [
    "Findings", "Judgement", "Mistake", "calibrate_threshold", "conclude", "evaluate_retrieval",
    "examine", "gate", "judge", "mistake_sheet", "search_times", "write_report",
]  # fmt: skip
