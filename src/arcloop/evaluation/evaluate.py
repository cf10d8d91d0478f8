"""The `evaluate` step: computes metrics, gate decision and report of a model and its index."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.timings import describe_stages
from arcloop.artifacts.writer import ArtifactWriter, git_revision, write_artifact
from arcloop.config.evaluation import EvaluateSettings
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ArtifactError
from arcloop.evaluation import (
    EvaluationResult,
    EvaluationSetup,
    check_gate,
    compute_evaluation,
    write_report,
)
from arcloop.evaluation.compare import compare
from arcloop.evaluation.incumbent import answers_of_incumbent, check_incumbent
from arcloop.evaluation.pairs import hash_pair_lists
from arcloop.evaluation.part import evaluate_part
from arcloop.evaluation.query_results import QueryResults
from arcloop.evaluation.setup import Search, make_setup
from arcloop.retrieval import (
    AutoIndex,
    FaissIndex,
    Gallery,
    load_model,
    open_index,
    require_same_model,
)
from arcloop.retrieval.calibration import describe_calibration
from arcloop.retrieval.shortened import dim_of

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

    If `settings.gate.versus` is set, the model is compared with that of another run or of a model
    store on the same queries, and versus.json is written.

    Raises:
        ConfigError: There is nothing to compare with, or it takes images of another shape.
        ArtifactError: A parent is missing, damaged, or belongs to another model or store.
    """
    group.barrier()  # wait until rank 0 has built the index
    images, embeddings = Store.open(store), Gallery(gallery)
    gallery_images = Store.open(gallery_store) if gallery_store else images
    model = load_model(run_dir / "model.pt", embed_settings.device)
    require_same_model(embeddings, model.sha256)
    _require_same_store(embeddings, gallery_images)
    index_artifact = artifacts.load(index, "index")
    parents = {
        "model": model.sha256,
        "store": images.artifact.sha256,
        "gallery": embeddings.artifact.sha256,
        "index": index_artifact.sha256,
    }
    versus, incumbent, before = settings.gate.versus, None, None
    if versus is not None:
        incumbent = check_incumbent(versus, images.image_shape)
        parents["versus"] = incumbent.sha256
    if (pairs := hash_pair_lists(settings.pairs)) is not None:
        parents["pairs"] = pairs
    config = {"evaluate": asdict(settings)}
    if reuse and (current := artifacts.load_if_current(output, "evaluation", config, parents)):
        return current
    if incumbent is not None:  # before the index of the candidate is in memory
        before = answers_of_incumbent(
            incumbent, images, gallery_images, output,
            settings=settings, embed_settings=embed_settings, group=group,
        )  # fmt: skip
    faiss_index, threshold, facts = _open_index(index_artifact, embeddings, index_builder, group)
    is_own = gallery_store is None and index_builder is None  # the store of the run
    held_out = frozenset(index_artifact.info.get("held_out_classes", ()) if is_own else ())
    # All metrics describe the shortened embeddings, by which such an index answers.
    model, setup, label_C = make_setup(
        images, gallery_images, embeddings, model, faiss_index, dim_of(index_artifact), settings,
        threshold, held_out,
    )  # fmt: skip
    update_part = partial(evaluate_part, model, images, label_C, setup, embed_settings, group)
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
            writer.info["calibration"] = index_artifact.info.get("calibration", {})
            _write_files(writer, result, before, setup, stores, folders, facts, parents)
            if gallery_store or index_builder:  # where `arcloop lineage` finds the other data
                writer.info["store_dir"] = str(store)
    group.barrier()  # wait until rank 0 has written the artifact
    return artifacts.load(output, "evaluation")


def _open_index(
    artifact: Artifact,
    embeddings: Gallery,
    builder: FaissIndex | AutoIndex | None,
    group: ProcessGroup,
) -> tuple[Any, float, list[str]]:
    """Return a faiss index of the gallery, the threshold of the artifact, and facts to report."""
    _, faiss_index, labels = open_index(
        artifact.path, embeddings.model_sha256, memory_map=group.world_size > 1
    )
    facts = _describe_index(artifact, embeddings)
    if builder:
        faiss_index, choice = builder.build(embeddings)
        facts = [choice["factory"], facts[1], "built for this evaluation, like that of the run"]
    return faiss_index, float(labels["threshold"]), facts


def _describe_index(index: Artifact, embeddings: Gallery) -> list[str]:
    choice = index.info.get("choice", index.config["index"])
    return [
        choice["factory"],
        f"{embeddings.rows:,} rows",
        f"{index.info['bytes'] / 2**20:.1f} MiB",
        *([f"the first {choice['dim']} coordinates"] if choice.get("dim") else []),
    ]


def _write_files(
    writer: ArtifactWriter,
    result: EvaluationResult,
    before: tuple[QueryResults, Mapping[str, float]] | None,
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
    comparison = None
    if before is not None:
        comparison = compare(
            result.per_query, before[0], result.metrics, before[1],
            name=str(setup.settings.gate.versus), classes=setup.classes,
            num_flips=setup.settings.num_mistakes,
        )  # fmt: skip
        write_json(writer.path / "versus.json", comparison.as_dict())
    decision = check_gate(result.metrics, setup.settings.gate, result.intervals, comparison)
    writer.count = setup.num_queries
    writer.info |= {
        "metrics": result.metrics, "gate": decision, "leave_one_out": leave_one_out
    }  # fmt: skip
    intervals = {"intervals": result.intervals} if result.intervals else {}
    not_measurable = {"not_measurable": result.not_measurable} if result.not_measurable else {}
    write_json(writer.path / "metrics.json", {**result.metrics, **intervals, **not_measurable})
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
        comparison=comparison,
        describe=lambda split, row: stores[split].describe(split, row),
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
