"""Two-dimensional map of the embeddings: t-SNE of the gallery with the queries placed on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from arcloop.display.plotting import CLASSES, WIDTH, WRONG, figure, short_name, styled
from arcloop.retrieval.embed import Embeddings, Labels
from arcloop.retrieval.exact_search import exact_neighbours

Points = npt.NDArray[np.float32]

MIN_ROWS = 10
_PERPLEXITY, _ITERATIONS = 15, 500
_NEIGHBOURS = 5  # number of gallery rows that determine the position of a query
_SHARPNESS = 20.0  # factor of the cosines in the weights of these rows
_MAX_LABELLED_CLASSES = 30


def project(gallery_ND: Embeddings, queries_QD: Embeddings) -> tuple[Points, Points]:
    """Compute a map of the gallery and place queries on it.

    The map is a t-SNE (van der Maaten & Hinton, JMLR 2008) of the gallery rows. A query is placed
    at the weighted mean of its 5 nearest gallery rows. A query that is placed inside another class
    is therefore similar to that class according to the model.

    Args:
        gallery_ND: float32, at least `MIN_ROWS` rows of norm 1; up to a few thousand are fast.
        queries_QD: float32, rows of norm 1.

    Returns:
        Coordinates [N, 2] and [Q, 2], the same in every run.
    """
    from sklearn.manifold import TSNE  # imported here because only the report needs it

    perplexity = min(_PERPLEXITY, (len(gallery_ND) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", max_iter=_ITERATIONS, random_state=0)
    with threadpool_limits(1):  # the order of parallel sums would change the map
        gallery_N2 = np.asarray(tsne.fit_transform(gallery_ND), np.float32)
    cos_QK, rows_QK = exact_neighbours(queries_QD, gallery_ND, _NEIGHBOURS)
    weights_QK = np.exp(_SHARPNESS * cos_QK)
    weights_QK /= weights_QK.sum(axis=1, keepdims=True)
    return gallery_N2, np.einsum("qk,qkc->qc", weights_QK, gallery_N2[rows_QK])


@styled
def projection_map(
    gallery_N2: Points,
    gallery_labels_N: Labels,
    queries_Q2: Points,
    query_labels_Q: Labels,
    right_Q: npt.NDArray[np.bool_],
    classes: Sequence[str],
) -> Figure:
    """Draw the map, coloured by class, with a ring around queries that were answered wrongly.

    Args:
        gallery_N2: Coordinates of gallery rows, drawn pale.
        gallery_labels_N: Their classes.
        queries_Q2: Coordinates of queries.
        query_labels_Q: Their true classes.
        right_Q: Whether each query was answered with its class.
        classes: Class names, shown at the centre of their gallery rows if there are at most 30.
    """
    drawn, (axis,) = figure(width=2 * WIDTH, height=5.2, margins=(0.1, 0.1, 0.1, 0.1))
    colours = np.array(CLASSES)
    x, y = gallery_N2.T
    pale = colours[gallery_labels_N % len(colours)]
    axis.scatter(x, y, s=26, c=pale, alpha=0.22, linewidths=0)
    x, y = queries_Q2.T
    axis.scatter(x, y, s=7, c=colours[query_labels_Q % len(colours)], alpha=0.85, linewidths=0)
    x, y = queries_Q2[~right_Q].T
    axis.scatter(x, y, s=60, facecolors="none", edgecolors=WRONG, linewidths=1.3)
    shown = np.unique(gallery_labels_N)
    for label in shown if len(shown) <= _MAX_LABELLED_CLASSES else ():
        colour = colours[label % len(colours)]
        x, y = np.median(gallery_N2[gallery_labels_N == label], axis=0)
        axis.text(
            x,
            y,
            short_name(classes[label]),
            ha="center",
            va="center",
            weight="bold",
            color="white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.6 else "black",
            bbox={
                "boxstyle": "round,pad=0.3",
                "facecolor": colour,
                "edgecolor": "white",
                "linewidth": 0.8,
            },
        )
    axis.set_axis_off()
    return drawn
