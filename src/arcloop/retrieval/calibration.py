"""Open-set threshold: the similarity below which the answer is "unknown"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.config.schema import CalibrationSettings
from arcloop.data import Store
from arcloop.display.terminal import print_line, track
from arcloop.errors import list_some
from arcloop.retrieval.embed import Chunks, Embeddings, Gallery, Labels, counted, embed, rebatch
from arcloop.retrieval.exact_search import BlockShape, block_shape, scan_gallery
from arcloop.retrieval.unknown_images import UnknownImages
from arcloop.runtime.searcher import Model

HELD_OUT, UNSEEN, TRAINED, UNKNOWN = PROTOCOLS = (
    "held-out classes", "unseen classes", "trained classes", "unknown images"
)  # fmt: skip
"""Protocols of the calibration, by the images that serve as unknown queries:

- held-out classes: images of train and val whose classes were left out of training
- unseen classes: images of val, if val has no class of train
- trained classes: images of val of trained classes
- unknown images: images of `calibration.unknown`, which belong to no class
"""
MIN_ERRORS = 30
ACCEPT_ALL = -1.0
"""Threshold that accepts every image, because no cosine similarity is lower."""
_BATCH_ROWS, _MEMORY_MB = 2048, 64


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold, and how it was calibrated.

    Attributes:
        threshold: Similarity below which the answer is "unknown".
        protocol: Which images served as unknown queries: one of `PROTOCOLS`.
        far: The false accept rate that the threshold was chosen for.
        measured_far: Share of the unknown queries that the threshold accepts.
        num_queries: Number of unknown queries.
        num_classes: Number of their classes; None if they have none.
        class_far: The false accept rates of the single classes: "min", "median", "p90" and "max".
    """

    threshold: float
    protocol: str
    far: float
    measured_far: float
    num_queries: int
    num_classes: int | None = None
    class_far: dict[str, float] | None = None

    def record(self) -> dict[str, Any]:
        """Return everything but the threshold, for faiss_label.json and the manifest."""
        return {name: value for name, value in asdict(self).items() if name != "threshold"}


def calibrate(
    model: Model,
    store: Store,
    gallery: Gallery,
    settings: CalibrationSettings,
    batch_size: int,
    held_out: Sequence[str] = (),
) -> Calibration:
    """Embed the unknown queries and calibrate the threshold on them.

    Args:
        model: Embeds the queries.
        store: The store that the model was trained on.
        gallery: The gallery.
        settings: False accept rate, number of queries, folder of unknown images.
        batch_size: Images embedded at a time.
        held_out: Names of the classes that were left out of training.
    """
    if settings.unknown is not None:
        unknown = UnknownImages(settings)
        protocol, total = UNKNOWN, len(unknown.files)
        images = unknown.batches(model, batch_size)
    else:
        protocol, rows = _query_rows(store, held_out, settings.max_queries)
        total = sum(map(len, rows.values()))
        images = (
            store.gather(split, chosen[start : start + batch_size])
            for split, chosen in rows.items()
            for start in range(0, len(chosen), batch_size)
        )
    with track("calibrate", total) as advance:
        queries = counted(embed(model, images), advance)
        calibration = calibrate_threshold(queries, gallery.chunks, settings.far, protocol)
    if settings.unknown is not None and unknown.unreadable:
        count, names = len(unknown.unreadable), list_some(unknown.unreadable)
        print_line(f"warning: {count} files in calibration.unknown are not readable: {names}")
    for warning in find_warnings(calibration):
        print_line(f"warning: {warning}")
    return calibration


def _query_rows(
    store: Store, held_out: Sequence[str], max_queries: int
) -> tuple[str, dict[str, Labels]]:
    """Return the protocol, and by split the rows that serve as unknown queries, ascending."""
    names = set(held_out)
    is_query_C = np.array([name in names for name in store.classes], bool)
    protocol, splits = HELD_OUT, ["train", "val"]
    if not held_out:
        protocol, splits = UNSEEN, ["val"]
        is_query_C[store.num_train_classes :] = True
        if not is_query_C[store.labels("val")].any():
            protocol, is_query_C = TRAINED, ~is_query_C
    rows = {split: np.flatnonzero(is_query_C[store.labels(split)]) for split in splits}
    total = sum(map(len, rows.values()))
    if total > max_queries:
        is_drawn = np.zeros(total, bool)
        is_drawn[np.random.default_rng(0).permutation(total)[:max_queries]] = True
        for split in splits:
            of_split, is_drawn = np.split(is_drawn, [len(rows[split])])
            rows[split] = rows[split][of_split]
    return protocol, rows


def calibrate_threshold(
    queries: Iterable[tuple[Embeddings, Labels]], gallery: Chunks, far: float, protocol: str
) -> Calibration:
    """Compute the threshold at which a share `far` of unknown queries is accepted.

    Rows of the query's class are excluded from the gallery, so the query is unknown. Its best match
    is the most similar other row. The threshold is the smallest float32 at which at most a share
    `far` of these best matches is accepted. The rate holds for unknown images that resemble the
    gallery classes as much as the queries do.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels) of images that are neither in
            the gallery nor used for training.
        gallery: Returns an iterator over (embeddings, labels) of the gallery.
        far: False accept rate in [0, 1].
        protocol: Which images the queries are, one of `PROTOCOLS`.

    Returns:
        The threshold is `ACCEPT_ALL` if the gallery has no other class.

    Raises:
        DataError: An embedding is not finite.
    """
    shape = block_shape(_MEMORY_MB, batch=_BATCH_ROWS)
    best, labels = [], []
    for embeddings_QD, labels_Q in rebatch(queries, _BATCH_ROWS):
        best.append(_best_of_another_class(embeddings_QD, labels_Q, gallery, shape))
        labels.append(labels_Q)
    best_Q, labels_Q = np.concatenate(best), np.concatenate(labels)
    threshold = smallest_threshold(best_Q, far)
    accepted_Q = (best_Q >= threshold) | (threshold == ACCEPT_ALL)
    found = Calibration(
        threshold=threshold,
        protocol=protocol,
        far=far,
        measured_far=float(accepted_Q.mean()),
        num_queries=len(best_Q),
    )
    if protocol == UNKNOWN:
        return found
    _, class_Q = np.unique(labels_Q, return_inverse=True)
    far_C = np.bincount(class_Q, accepted_Q) / np.bincount(class_Q)
    spread = np.quantile(far_C, [0, 0.5, 0.9, 1]).tolist()
    class_far = dict(zip(("min", "median", "p90", "max"), spread, strict=True))
    return replace(found, num_classes=len(far_C), class_far=class_far)


def find_warnings(calibration: Calibration) -> Iterator[str]:
    """Yield the reasons why the real false accept rate may differ from the nominal one."""
    far, count = calibration.far, calibration.num_queries
    if calibration.threshold == ACCEPT_ALL and far < 1:
        yield (
            "the gallery has no images of a class other than that of the unknown queries, so the"
            " threshold accepts every image. Add classes to the gallery, or pass"
            " calibration.unknown=FOLDER with images of unknown things"
        )
    elif far * count < 1:
        limit = 1 - 0.05 ** (1 / count)  # of the rate at which `count` trials have no error
        yield (
            f"{count:,} unknown queries cannot measure a false accept rate of {far:.4g}; the"
            f" threshold accepts none of them, so the rate is at most {limit:.2g} with 95%"
            " confidence. Use more images, or a larger calibration.far"
        )
    elif count < (needed := min_trials(far)):
        yield (
            f"the threshold was calibrated on {count:,} unknown queries; {needed:,} are needed to"
            f" measure a false accept rate of {far:.4g} to within 30% with 90% confidence"
        )
    if calibration.protocol == TRAINED:
        yield (
            "the threshold was calibrated on trained classes, and new classes can be accepted many"
            " times as often as calibration.far says. Train with calibration.held_out_classes=N,"
            " or pass calibration.unknown=FOLDER with images of unknown things"
        )


def describe_calibration(record: Mapping[str, Any]) -> str:
    """Describe how a threshold was made.

    Args:
        record: `Calibration.record`; empty if an older version made the index.

    >>> describe_calibration({"far": 0.01, "protocol": UNKNOWN, "num_queries": 1200})
    'false accept rate 0.01 on 1,200 unknown images'
    """
    if not record:
        return "not recorded"
    kind = str(record["protocol"])
    text = f"false accept rate {record['far']:g} on {record['num_queries']:,} "
    if kind == UNKNOWN:
        return text + kind
    spread = ", ".join(f"{name} {value:.2%}" for name, value in record["class_far"].items())
    return f"{text}images of {record['num_classes']:,} {kind} (per class: {spread})"


def held_out_of_run(run_dir: Path, settings: CalibrationSettings) -> list[str]:
    """Return the classes that a run was trained without.

    Prints a warning if `held_out_classes` now has another value, which has no effect.
    """
    run, setting = artifacts.read(run_dir, "run"), settings.held_out_classes
    held_out: list[str] = run.info.get("held_out_classes", [])
    before = run.config.get("calibration", {}).get("held_out_classes", setting)
    if setting != before:
        print_line(
            f"warning: calibration.held_out_classes={setting} has no effect: the run was trained"
            f" with {before}, which left out {len(held_out)} classes"
        )
    return held_out


def _best_of_another_class(
    embeddings_QD: Embeddings, labels_Q: Labels, gallery: Chunks, shape: BlockShape
) -> Embeddings:
    """Return the largest cosine of each query to a gallery row of another class, [Q]."""
    best_Q = np.full(len(labels_Q), -np.inf, np.float32)

    def visit(block: slice, _: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        sim_BN[labels_Q[block, None] == labels_N] = -np.inf
        np.maximum(best_Q[block], sim_BN.max(axis=1), out=best_Q[block])

    scan_gallery(visit, embeddings_QD, gallery, shape)
    return best_Q


def min_trials(far: float) -> int:
    """Return the number of trials from which an error rate is measurable: the rule of 30.

    With at least 30 errors, the true rate is within 30% of the observed one with a confidence of
    90%, if trials are independent. Source: Doddington et al., "The NIST speaker recognition
    evaluation", Speech Communication 31 (2000).

    Args:
        far: The error rate in (0, 1].

    >>> min_trials(0.01), min_trials(1e-6), min_trials(1.0)
    (3000, 30000000, 30)
    """
    return math.ceil(round(MIN_ERRORS / far, 6))  # without the rounding error of the quotient


def smallest_threshold(best_Q: npt.NDArray[np.floating], far: float) -> float:
    """Return the lowest threshold that accepts at most a share `far` of similarities.

    Args:
        best_Q: Similarities, float32 or float64 like the threshold; -inf: none.
        far: A share in [0, 1].

    >>> round(smallest_threshold(np.array([0.1, 0.4, 0.2, 0.3], np.float32), far=0.25), 6)
    0.3
    """
    falling = np.sort(best_Q)[::-1]
    allowed = int(far * len(falling))
    if allowed >= len(falling) or falling[allowed] == -np.inf:
        return ACCEPT_ALL
    return float(np.nextafter(falling[allowed], falling.dtype.type(np.inf)))
