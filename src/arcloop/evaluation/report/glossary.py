"""Titles, formats and explanations of the metrics on the report page."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Presentation of a metric on the page.

    Attributes:
        title: Name of the metric on the page.
        form: Format specification of the value.
        meaning: One sentence.
    """

    title: str
    form: str
    meaning: str


_PERCENT, _COUNT, _DECIMAL = ".2%", ",", ".4f"
_TAR = "Accepted share of the pairs of the same class, if {} of the other pairs are accepted."
_DIR = (
    "Share of the queries of known classes that are answered with their class, at the threshold at "
    "which {} of the unknown queries get any answer. Unknown are the queries whose class is not in "
    "the gallery; if there are none, each query compared with the gallery without its class."
)

GLOSSARY = {
    "top1": Entry("Top-1", _PERCENT, "Queries whose nearest row in the index has their class."),
    "recall_at_1": Entry("Recall@1", _PERCENT, "The same as top-1."),
    "recall_at_5": Entry(
        "Recall@5",
        _PERCENT,
        "Queries with at least one row of their class among the 5 nearest (hit rate).",
    ),
    "recall_at_10": Entry("Recall@10", _PERCENT, "The same for the 10 nearest rows."),
    "precision_at_5": Entry(
        "Precision@5",
        _PERCENT,
        "Share of the 5 nearest rows that have the query's class. The divisor is 5 even if the "
        "class has fewer rows.",
    ),
    "precision_at_10": Entry("Precision@10", _PERCENT, "The same for the 10 nearest rows."),
    "map_at_r": Entry(
        "MAP@R",
        _PERCENT,
        "Mean average precision over the R nearest rows, where R is the number of gallery rows of "
        "the query's class.",
    ),
    "r_precision": Entry(
        "R-precision", _PERCENT, "Share of the R nearest rows that have the query's class."
    ),
    "mrr": Entry("MRR", _PERCENT, "Mean of 1 / (rank of the first row of the query's class)."),
    "ndcg_at_10": Entry(
        "nDCG@10",
        _PERCENT,
        "Discounted cumulative gain of the 10 nearest rows, divided by that of an ideal ranking.",
    ),
    "mean_class_accuracy": Entry(
        "Mean class accuracy", _PERCENT, "Mean of the top-1 accuracies of all classes."
    ),
    "min_class_accuracy": Entry(
        "Worst class", _PERCENT, "Top-1 accuracy of the class with the lowest accuracy."
    ),
    "eer": Entry(
        "Equal error rate", _PERCENT, "Error rate where false accepts and false rejects are equal."
    ),
    "tar_at_far_1e-2": Entry("TAR at FAR 1%", _PERCENT, _TAR.format("1%")),
    "tar_at_far_1e-3": Entry("TAR at FAR 0.1%", _PERCENT, _TAR.format("0.1%")),
    "tar_at_far_1e-4": Entry("TAR at FAR 0.01%", _PERCENT, _TAR.format("0.01%")),
    "pair_accuracy": Entry(
        "Pair accuracy",
        _PERCENT,
        "Accuracy of deciding whether two queries have the same class, on equal numbers of pairs "
        "of both kinds in 10 folds. The threshold of a fold is the best on the other 9.",
    ),
    "pair_accuracy_std": Entry(
        "Pair accuracy, std", _PERCENT, "Standard deviation of the pair accuracy over the 10 folds."
    ),
    "dir_at_far_1e-1": Entry("DIR at FAR 10%", _PERCENT, _DIR.format("10%")),
    "dir_at_far_1e-2": Entry("DIR at FAR 1%", _PERCENT, _DIR.format("1%")),
    "nmi": Entry(
        "NMI",
        _DECIMAL,
        "Normalized mutual information of classes and k-means clusters of the queries, with as "
        "many clusters as classes.",
    ),
    "ami": Entry(
        "AMI", _DECIMAL, "The same adjusted for chance; 0 is the value of random clusters."
    ),
    "index_recall_at_1": Entry(
        "Index recall@1", _PERCENT, "Queries whose exact nearest row the index finds."
    ),
    "index_recall_at_10": Entry(
        "Index recall@10", _PERCENT, "Share of the exact 10 nearest rows that the index finds."
    ),
    "threshold": Entry("Threshold", _DECIMAL, "Similarity below which the answer is “unknown”."),
    "unknown_rate": Entry(
        "Answered “unknown”", _PERCENT, "Queries whose nearest row is below the threshold."
    ),
    "num_queries": Entry("Queries", _COUNT, "Images of the query split."),
    "num_queries_not_in_gallery": Entry(
        "Queries of no gallery class",
        _COUNT,
        "They are always wrong, and are left out of MAP@R, R-precision, MRR and nDCG.",
    ),
    "num_gallery": Entry("Gallery", _COUNT, "Rows of the index."),
    "num_classes": Entry("Classes", _COUNT, "Classes of the gallery."),
}

HEADLINE = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3", "min_class_accuracy")
