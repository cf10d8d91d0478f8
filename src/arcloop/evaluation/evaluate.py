"""The `evaluate` step: computes metrics, gate decision and report of a model and its index."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.timings import describe_stages
from arcloop.artifacts.writer import ArtifactWriter, git_revision, write_artifact
from arcloop.config.schema import EmbedSettings, EvaluateSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ArtifactError
from arcloop.evaluation import (
    EvaluationResult,
    EvaluationSetup,
    EvaluationState,
    check_gate,
    compute_evaluation,
    update_evaluation,
    write_report,
)
from arcloop.evaluation.evaluator import Search
from arcloop.retrieval import (
    AutoIndex,
    FaissIndex,
    Gallery,
    embed,
    load_model,
    open_index,
    require_same_model,
)
from arcloop.retrieval.calibration import describe_calibration
from arcloop.retrieval.embed import counted
from arcloop.retrieval.exclusion import require_groups
from arcloop.runtime.searcher import Model, search

_LEAVE_ONE_OUT = "the images of the gallery, each compared with all others (leave-one-out)"
_TIMED_QUERIES, _TIMED_SECONDS, _TIMED_NEIGHBOURS = 200, 2.0, 10


def evaluate(
    run_dir: Path,
    store: Path,
    gallery: Path,
    index: Path,
    output: Path,
    *,
    settings: EvaluateSettings,
    embed_settings: EmbedSettings,
    gallery_store: Path | None = None,
    index_builder: FaissIndex | AutoIndex | None = None,
    reuse: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """Evaluate a model and its index on the query split, check the gate and write the report.

    Other data than those of the run are evaluated in one of two ways: against their own gallery,
    for which `index_builder` makes an index in memory, or against the gallery of the run, with
    `gallery_store`. In both, the threshold of the run's index is used.

    Args:
        run_dir: The run with model.pt; metrics.csv and config.yaml are shown if they exist.
        store: Folder of the `store` with the query split.
        gallery: Folder of the `gallery` from which the index was built.
        index: Folder of the `index`.
        output: Folder of the `evaluation` to write.
        settings: Evaluation settings.
        embed_settings: Embedding settings.
        gallery_store: Folder of the store of the gallery, if it is not `store`. Classes of the two
            stores that have the same name are the same class.
        index_builder: Builds an index of `gallery`, if `index` is that of another gallery.
        reuse: Return the artifact at `output` if it has the same parents and settings.
        group: Processes that share the queries. Rank 0 computes the metrics and the report.

    Raises:
        ArtifactError: A parent is missing, damaged, or belongs to another model or store.
    """
    group.barrier()  # wait until rank 0 has built the index
    images, embeddings = Store.open(store), Gallery(gallery)
    gallery_images = Store.open(gallery_store) if gallery_store else images
    model = load_model(run_dir / "model.pt", embed_settings.device)
    require_same_model(embeddings, model.sha256)
    _require_same_store(embeddings, gallery_images)
    index_artifact, faiss_index, index_labels = open_index(
        index, model.sha256, memory_map=group.world_size > 1
    )
    threshold = float(index_labels["threshold"])
    del index_labels  # frees a list with one Python number per gallery row
    parents = {
        "model": model.sha256,
        "store": images.artifact.sha256,
        "gallery": embeddings.artifact.sha256,
        "index": index_artifact.sha256,
    }
    config = {"evaluate": asdict(settings)}
    if reuse and (current := artifacts.load_if_current(output, "evaluation", config, parents)):
        return current
    facts = _describe_index(index_artifact, embeddings)
    if index_builder:
        faiss_index, choice = index_builder.build(embeddings)
        facts = [choice["factory"], facts[1], "built for this evaluation, like that of the run"]
    held_out = frozenset(index_artifact.info.get("held_out_classes", ()))
    setup, label_C = _setup(
        images, gallery_images, embeddings, partial(search, faiss_index), settings, threshold,
        held_out,
    )  # fmt: skip
    update_part = partial(_evaluate_part, model, images, label_C, setup, embed_settings, group)
    if group.rank:
        group.gather(update_part)
    else:
        with write_artifact(output, "evaluation", config=config, parents=parents) as writer:
            states = group.gather(update_part)
            assert states is not None
            result = compute_evaluation(states, setup)
            folders = {
                "store": store, "validation": store / "validation", "run": run_dir,
                "gallery": gallery, "index": index,
            }  # fmt: skip
            stores = {"query": images, "gallery": gallery_images}
            calibration = index_artifact.info.get("calibration", {})
            writer.info["calibration"] = calibration
            _write_files(writer, result, setup, stores, folders, facts, parents)
            if gallery_store or index_builder:  # where `arcloop lineage` finds the other data
                writer.info["store_dir"] = str(store)
    group.barrier()  # wait until rank 0 has written the artifact
    return artifacts.load(output, "evaluation")


def _describe_index(index: Artifact, embeddings: Gallery) -> list[str]:
    choice = index.info.get("choice", index.config["index"])
    return [
        choice["factory"],
        f"{embeddings.rows:,} rows",
        f"{index.info['bytes'] / 2**20:.1f} MiB",
    ]


def _setup(
    images: Store,
    gallery_images: Store,
    embeddings: Gallery,
    search_index: Search,
    settings: EvaluateSettings,
    threshold: float,
    held_out: frozenset[str],
) -> tuple[EvaluationSetup, npt.NDArray[np.int64]]:
    """Return the setup of the evaluation, and the label of each class of `images` in it."""
    # Classes that only the queries have get the last labels.
    classes = list(dict.fromkeys([*gallery_images.classes, *images.classes]))
    position = {name: label for label, name in enumerate(classes)}
    num_queries = images.rows("query")
    leave_one_out = images.leave_one_out and gallery_images is images
    setup = EvaluationSetup(
        gallery=embeddings.chunks,
        gallery_labels=embeddings.labels,
        search=search_index,
        classes=classes,
        settings=settings,
        threshold=threshold,
        num_queries=num_queries,
        own_rows=np.arange(num_queries) if leave_one_out else None,
        groups=images.groups("query"),
        held_out=held_out,
        gallery_groups=(
            require_groups(images, gallery_images) if settings.exclude_same_group else None
        ),
    )
    return setup, np.array([position[name] for name in images.classes], np.int64)


def _evaluate_part(
    model: Model,
    images: Store,
    label_C: npt.NDArray[np.int64],
    setup: EvaluationSetup,
    embed_settings: EmbedSettings,
    group: ProcessGroup,
) -> EvaluationState:
    """Evaluate the queries of this process."""
    # The rounding of matrix products depends on the batch. With these boundaries, every batch
    # has the same rows for any number of processes.
    batch_size = embed_settings.batch_size
    part = group.shard(setup.num_queries, math.lcm(setup.settings.batch_size, batch_size))
    with track("evaluate", len(part)) as advance:
        embedded = counted(embed(model, images.batches("query", batch_size, part)), advance)
        return update_evaluation(((e, label_C[n]) for e, n in embedded), setup, part)


def _write_files(
    writer: ArtifactWriter,
    result: EvaluationResult,
    setup: EvaluationSetup,
    stores: Mapping[str, Store],
    folders: Mapping[str, Path],
    index_facts: list[str],
    parents: Mapping[str, str],
) -> None:
    """Write metrics, gate decision, mistakes, report and the properties in the manifest."""
    facts = describe_stages(folders)
    if len(result.queries.rows):
        writer.timed = measure_search_times(setup.search, result.queries.embeddings)
        median, p99 = writer.timed["search_p50_ms"], writer.timed["search_p99_ms"]
        index_facts.append(f"{median:.2f} ms per search of one query (median), {p99:.2f} ms (p99)")
    facts.append(("index", ", ".join(index_facts)))
    facts.append(("threshold", describe_calibration(writer.info["calibration"])))
    leave_one_out = setup.own_rows is not None
    if leave_one_out:
        facts.append(("queries", _LEAVE_ONE_OUT))
    if result.seconds:
        costs = (f"{mode} {seconds * 1e3:.3g} ms" for mode, seconds in result.seconds.items())
        facts.append(("cost per query", ", ".join(costs)))
    decision = check_gate(result.metrics, setup.settings.gate)
    writer.count = setup.num_queries
    writer.info |= {
        "metrics": result.metrics, "gate": decision, "leave_one_out": leave_one_out
    }  # fmt: skip
    intervals = {"intervals": result.intervals} if result.intervals else {}
    write_json(writer.path / "metrics.json", {**result.metrics, **intervals})
    result.per_query.save(writer.path)
    write_json(writer.path / "gate.json", decision)
    write_json(writer.path / "mistakes.json", [asdict(mistake) for mistake in result.mistakes])
    write_report(
        writer.path,
        result,
        title=folders["run"].name,
        classes=setup.classes,
        image=lambda split, row: stores[split].gather(split, np.asarray([row]))[0][0],
        curves=_read_curves(folders["run"] / "metrics.csv"),
        facts=facts,
        config_yaml=_read_text(folders["run"] / "config.yaml"),
        lineage=[*parents.items(), ("git", str(git_revision()))],
        gate=decision,
    )


def measure_search_times(search: Search, queries_QD: npt.NDArray[np.float32]) -> dict[str, float]:
    """Measure the latency of searching one query at a time, as a server does.

    At most 200 queries are searched, for at most 2 seconds. Times are not metrics, because they
    differ between runs.

    Args:
        search: The index.
        queries_QD: float32, at least one row of norm 1.

    Returns:
        Median and 99th percentile, in milliseconds.

    >>> def search(queries, k):
    ...     return np.zeros((1, k), np.float32), np.zeros((1, k), np.int64)
    >>> list(measure_search_times(search, np.ones((2, 1), np.float32)))
    ['search_p50_ms', 'search_p99_ms']
    """
    # Warm-up, because the first search also allocates memory.
    search(queries_QD[:1], _TIMED_NEIGHBOURS)
    end = time.monotonic() + _TIMED_SECONDS
    seconds = []
    for query in range(min(len(queries_QD), _TIMED_QUERIES)):
        start = time.perf_counter()
        search(queries_QD[query : query + 1], _TIMED_NEIGHBOURS)
        seconds.append(time.perf_counter() - start)
        if time.monotonic() > end:
            break
    median, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"search_p50_ms": float(median), "search_p99_ms": float(p99)}


def _require_same_store(gallery: Gallery, store: Store) -> None:
    if gallery.artifact.parents["store"] != store.artifact.sha256:
        raise ArtifactError(
            f"the gallery was not embedded from the store {store.artifact.path}",
            where=gallery.artifact.path,
            remedy="embed the gallery again: `arcloop embed`",
        )


def _read_curves(path: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv: the values logged at each step."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
