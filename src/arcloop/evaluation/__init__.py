"""Metrics, plots, the report page and the gate."""

from arcloop.evaluation.evaluator import Findings, Judgement, conclude, examine, judge
from arcloop.evaluation.gate import gate
from arcloop.evaluation.latency import search_times
from arcloop.evaluation.metrics.retrieval_evaluation import evaluate_retrieval
from arcloop.evaluation.mistakes import Mistake
from arcloop.evaluation.report.mistake_sheet import mistake_sheet
from arcloop.evaluation.report.page import write_report
from arcloop.retrieval.calibration import calibrate_threshold

__all__ = [
    "Findings", "Judgement", "Mistake", "calibrate_threshold", "conclude", "evaluate_retrieval",
    "examine", "gate", "judge", "mistake_sheet", "search_times", "write_report",
]  # fmt: skip
