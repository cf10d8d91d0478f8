"""Accuracy, EER and TAR at FAR on lists of pairs.

Shapes: P pairs, N images of a batch (those of a pair follow each other), D dimensions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from arcloop.config.evaluation import EvaluateSettings
from arcloop.display.terminal import track
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.evaluation.metrics.sample import FOLDS, fold_accuracies
from arcloop.evaluation.metrics.verification import Rates, SimilarityHistogram
from arcloop.evaluation.pairs.lists import PairList, open_pair_lists
from arcloop.retrieval.embed import Embeddings
from arcloop.runtime.images import ImageError
from arcloop.runtime.searcher import Model

Similarities = npt.NDArray[np.float64]


def measure_pair_lists(
    model: Model,
    settings: EvaluateSettings,
    batch_size: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Rates:
    """Measure the lists of `settings.pairs` that this process has a share in.

    Args:
        model: The scripted embedder.
        settings: `pairs` and `pairs_flip`.
        batch_size: Images per batch.
        group: Processes that share the lists.

    Returns:
        The metrics of `pair_list_metrics` with the names pairs_NAME_METRIC.

    Raises:
        ConfigError, DataError: See `open_pair_lists`; or an image cannot be decoded.
    """
    rates: Rates = {}
    for pairs in open_pair_lists(settings.pairs)[group.rank :: group.world_size]:
        cosine_P = pair_similarities(model, pairs, batch_size, flip=settings.pairs_flip)
        found = pair_list_metrics(cosine_P, pairs.same)
        rates |= {f"pairs_{pairs.name}_{metric}": value for metric, value in found.items()}
    return rates


def pair_similarities(
    model: Model, pairs: PairList, batch_size: int, *, flip: bool
) -> Similarities:
    """Return the cosine similarity of each pair, with one batch of images in memory.

    Args:
        model: The scripted embedder; images are decoded as it requires.
        pairs: The pairs.
        batch_size: Images per batch.
        flip: Add the embedding of the mirrored image to that of each image.

    Returns:
        float64 [P].

    Raises:
        DataError: An image cannot be decoded.
    """

    def decode(number: int) -> npt.NDArray[np.uint8]:
        try:
            return model.decode(pairs.read(number))
        except (ImageError, OSError) as cause:
            raise pairs.image_error(number, cause) from None

    def embed(images_NHWC: npt.NDArray[np.uint8]) -> Embeddings:
        embeddings_ND = model.embed(images_NHWC)
        if flip:
            embeddings_ND += model.embed(np.ascontiguousarray(images_NHWC[:, :, ::-1]))
            embeddings_ND /= np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
        return embeddings_ND

    total, rows = 2 * len(pairs.same), max(2, batch_size // 2 * 2)
    cosines = []
    with ThreadPoolExecutor() as pool, track(f"pairs {pairs.name}", total) as advance:
        for start in range(0, total, rows):
            numbers = range(start, min(start + rows, total))
            embeddings_ND = embed(np.stack(list(pool.map(decode, numbers))))
            cosines.append(
                np.einsum("pd,pd->p", embeddings_ND[::2], embeddings_ND[1::2], dtype=np.float64)
            )
            advance(len(numbers))
    return np.concatenate(cosines)


def pair_list_metrics(cosine_P: Similarities, same_P: npt.NDArray[np.bool_]) -> Rates:
    """Return the accuracy over ten folds of consecutive pairs, the EER and the TAR at several FAR.

    Huang et al., "Labeled Faces in the Wild", UMass Amherst 07-49, 2007, view 2.

    Args:
        cosine_P: Similarity of each pair, in the order of the list.
        same_P: Whether both images are of one class; at least ten pairs, of both kinds.

    >>> same = np.arange(20) % 2 == 0
    >>> pair_list_metrics(same * 0.5, same)["accuracy"]
    1.0
    """
    fold_P = np.repeat(np.arange(FOLDS), [len(p) for p in np.array_split(same_P, FOLDS)])
    accuracies = fold_accuracies(cosine_P, same_P, fold_P)
    counts = SimilarityHistogram()
    counts.add(cosine_P.astype(np.float32), same_P)
    return {
        "accuracy": float(accuracies.mean()),
        "accuracy_std": float(accuracies.std()),
        **counts.compute(),
    }
