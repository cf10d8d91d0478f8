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


_SHARE, _COUNT, _COSINE = ".2%", ",", ".4f"
_TAR = "Pairs of one class accepted where {} of the other pairs are."

GLOSSARY = {
    "top1": Entry("Top-1", _SHARE, "Queries whose nearest row in the index is of their class."),
    "recall_at_1": Entry("Recall@1", _SHARE, "The same as top-1."),
    "recall_at_5": Entry(
        "Recall@5", _SHARE, "Queries with one of their class among the 5 nearest."
    ),
    "recall_at_10": Entry("Recall@10", _SHARE, "The same among the 10 nearest."),
    "map_at_r": Entry(
        "MAP@R",
        _SHARE,
        "Mean average precision over the R nearest rows; R is the number of gallery rows of the "
        "query's class.",
    ),
    "r_precision": Entry("R-precision", _SHARE, "Of the R nearest, those of the query's class."),
    "mean_class_accuracy": Entry("Mean class accuracy", _SHARE, "Top-1, each class counting once."),
    "min_class_accuracy": Entry("Worst class", _SHARE, "Top-1 of the class with the lowest."),
    "eer": Entry("Equal error rate", _SHARE, "As many pairs are falsely accepted as rejected."),
    "tar_at_far_1e-2": Entry("TAR at FAR 1%", _SHARE, _TAR.format("1%")),
    "tar_at_far_1e-3": Entry("TAR at FAR 0.1%", _SHARE, _TAR.format("0.1%")),
    "tar_at_far_1e-4": Entry("TAR at FAR 0.01%", _SHARE, _TAR.format("0.01%")),
    "index_recall_at_10": Entry("Index recall@10", _SHARE, "Of the 10 nearest, those it finds."),
    "threshold": Entry("Threshold", _COSINE, "Similarity under which an answer is “unknown”."),
    "unknown_rate": Entry("Answered “unknown”", _SHARE, "Queries with no row that similar."),
    "num_queries": Entry("Queries", _COUNT, "Images that judge."),
    "num_queries_not_in_gallery": Entry(
        "Queries of no gallery class", _COUNT, "Never right; left out of MAP@R and R-precision."
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
