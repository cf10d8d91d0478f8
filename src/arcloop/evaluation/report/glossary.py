"""What each metric is called and means, for the page."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: Its name to a person.
        form: Format of the value.
        meaning: One sentence.
    """

    title: str
    form: str
    meaning: str


_SHARE, _COUNT, _DECIMAL = ".2%", ",", ".4f"
_TAR = "Pairs of one class accepted where {} of the other pairs are."
_DIR = (
    "Queries of a known class answered with it, and as surely as {} of the unknown ones are with "
    "any. Unknown are queries of no gallery class; if there are none, each query without its class."
)

GLOSSARY = {
    "top1": Entry("Top-1", _SHARE, "Queries whose nearest row in the index is of their class."),
    "recall_at_1": Entry("Recall@1", _SHARE, "The same as top-1."),
    "recall_at_5": Entry(
        "Recall@5", _SHARE, "Queries with one of their class among the 5 nearest: the hit rate."
    ),
    "recall_at_10": Entry("Recall@10", _SHARE, "The same among the 10 nearest."),
    "precision_at_5": Entry(
        "Precision@5",
        _SHARE,
        "Of the 5 nearest, those of the query's class; 5 also if it has fewer.",
    ),
    "precision_at_10": Entry("Precision@10", _SHARE, "The same of the 10 nearest."),
    "map_at_r": Entry(
        "MAP@R",
        _SHARE,
        "Mean average precision over the R nearest rows; R is the number of gallery rows of the "
        "query's class.",
    ),
    "r_precision": Entry("R-precision", _SHARE, "Of the R nearest, those of the query's class."),
    "mrr": Entry("MRR", _SHARE, "Mean of one over the rank of the first row of the query's class."),
    "ndcg_at_10": Entry(
        "nDCG@10",
        _SHARE,
        "Discounted gain of the 10 nearest, over that of the best ranking there could be.",
    ),
    "mean_class_accuracy": Entry("Mean class accuracy", _SHARE, "Top-1, each class counting once."),
    "min_class_accuracy": Entry("Worst class", _SHARE, "Top-1 of the class with the lowest."),
    "eer": Entry("Equal error rate", _SHARE, "As many pairs are falsely accepted as rejected."),
    "tar_at_far_1e-2": Entry("TAR at FAR 1%", _SHARE, _TAR.format("1%")),
    "tar_at_far_1e-3": Entry("TAR at FAR 0.1%", _SHARE, _TAR.format("0.1%")),
    "tar_at_far_1e-4": Entry("TAR at FAR 0.01%", _SHARE, _TAR.format("0.01%")),
    "pair_accuracy": Entry(
        "Pair accuracy",
        _SHARE,
        "Pairs of queries told to be of one class or not, as many of each; over 10 folds, each "
        "judged by the threshold that is best on the other 9.",
    ),
    "pair_accuracy_std": Entry("± over the folds", _SHARE, "Standard deviation of the 10 folds."),
    "dir_at_far_1e-1": Entry("DIR at FAR 10%", _SHARE, _DIR.format("10%")),
    "dir_at_far_1e-2": Entry("DIR at FAR 1%", _SHARE, _DIR.format("1%")),
    "nmi": Entry(
        "NMI",
        _DECIMAL,
        "Normalised mutual information of the classes and as many clusters of queries by k-means.",
    ),
    "ami": Entry("AMI", _DECIMAL, "The same less what chance gives; 0 is chance."),
    "index_recall_at_1": Entry("Index recall@1", _SHARE, "Queries whose nearest row it finds."),
    "index_recall_at_10": Entry("Index recall@10", _SHARE, "Of the 10 nearest, those it finds."),
    "threshold": Entry("Threshold", _DECIMAL, "Similarity under which an answer is “unknown”."),
    "unknown_rate": Entry("Answered “unknown”", _SHARE, "Queries with no row that similar."),
    "num_queries": Entry("Queries", _COUNT, "Images that judge."),
    "num_queries_not_in_gallery": Entry(
        "Queries of no gallery class",
        _COUNT,
        "Never right; left out of MAP@R, R-precision, MRR and nDCG.",
    ),
    "num_gallery": Entry("Gallery", _COUNT, "Rows of the index."),
    "num_classes": Entry("Classes", _COUNT, "Classes of the gallery."),
}

HEADLINE = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3", "min_class_accuracy")


def format_metric(entry: Entry, value: float) -> str:
    """Format a value as its entry says.

    >>> format_metric(GLOSSARY["top1"], 0.99312)
    '99.31%'
    """
    return format(value, entry.form)
