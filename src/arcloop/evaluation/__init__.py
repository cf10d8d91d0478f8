"""Metrics, report and deployment gate of a model and its index."""

from arcloop.evaluation.embeddings import evaluate_retrieval
from arcloop.evaluation.evaluator import (
    EvaluationResult,
    EvaluationState,
    compute_evaluation,
    evaluate_embeddings,
    update_evaluation,
)
from arcloop.evaluation.gate import check_gate
from arcloop.evaluation.metrics.ranked_lists import evaluate_ranked_lists
from arcloop.evaluation.mistakes import Mistake, mistake_sheet
from arcloop.evaluation.query_results import QueryResults, load_query_results
from arcloop.evaluation.report.page import write_report
from arcloop.evaluation.setup import EvaluationSetup

__all__ = [
    "EvaluationResult", "EvaluationSetup", "EvaluationState", "Mistake", "QueryResults",
    "check_gate", "compute_evaluation", "evaluate_embeddings", "evaluate_ranked_lists",
    "evaluate_retrieval", "load_query_results", "mistake_sheet", "update_evaluation",
    "write_report",
]  # fmt: skip
