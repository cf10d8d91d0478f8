"""Query split + model + index -> metrics, verdict and report."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.timings import describe_stages
from arcloop.artifacts.writer import git_revision, write_artifact
from arcloop.config.schema import EmbedSettings, EvaluateSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ArtifactError
from arcloop.evaluation import Findings, conclude, examine, gate, search_times, write_report
from arcloop.retrieval import Gallery, embed, load_model, open_index
from arcloop.retrieval.build_index import require_same_model
from arcloop.runtime.searcher import Model, search

_LEAVE_ONE_OUT = "the gallery's own images, each without itself (leave-one-out)"


def evaluate(
    run_dir: Path,
    store: Path,
    gallery: Path,
    index: Path,
    output: Path,
    *,
    settings: EvaluateSettings,
    embed_settings: EmbedSettings,
    reuse: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """Judge a model and its index on the query split, decide the gate, draw the report.

    Args:
        run_dir: The run: model.pt, and metrics.csv and config.yaml if they are there.
        store: Folder of the `store` with the query split.
        gallery: Folder of the `gallery` that the index was built over.
        index: Folder of the `index`.
        output: Folder of the `evaluation` to write.
        settings: How to judge.
        embed_settings: How to embed.
        reuse: Return what is at `output` if it was made of the same parts with these settings.
        group: Processes that share the queries. Rank 0 computes the metrics and the report.

    Raises:
        ArtifactError: A part is missing, damaged, or of another model or store.
    """
    group.barrier()  # rank zero may have been building the index until now
    images, embeddings = Store.open(store), Gallery(gallery)
    model = load_model(run_dir / "model.pt", embed_settings.device)
    require_same_model(embeddings, model.sha256)
    own_rows_Q = _own_rows(images, embeddings)
    index_artifact, faiss_index, labels = open_index(
        index, model.sha256, memory_map=group.world_size > 1
    )
    threshold = float(labels["threshold"])
    del labels  # they hold a Python number for every row of the gallery
    parents = {
        "model": model.sha256,
        "store": images.artifact.sha256,
        "gallery": embeddings.artifact.sha256,
        "index": index_artifact.sha256,
    }
    config = {"evaluate": asdict(settings)}
    if reuse and (current := artifacts.load_if_current(output, "evaluation", config, parents)):
        return current
    part = group.shard(images.rows("query"), settings.batch_size)
    search_index = partial(search, faiss_index)

    def examine_part() -> Findings:
        with track("evaluate", len(part)) as advance:
            return examine(
                _embed_part(model, images, part, embed_settings.batch_size, advance),
                embeddings.chunks,
                search_index,
                embeddings.labels,
                images.classes,
                settings,
                threshold=threshold,
                own_rows_Q=own_rows_Q,
                num_queries=images.rows("query"),
                group=group,
            )

    if group.rank:
        group.gather(examine_part)
        group.barrier()  # until it is sealed
        return artifacts.load(output, "evaluation")
    with write_artifact(output, "evaluation", config=config, parents=parents) as writer:
        findings = group.gather(examine_part)
        assert findings is not None
        judgement = conclude(
            findings,
            embeddings.chunks,
            embeddings.labels,
            images.classes,
            settings,
            threshold=threshold,
        )
        if len(judgement.queries.rows):
            writer.timed = search_times(search_index, judgement.queries.embeddings)
        verdict = gate(judgement.metrics, settings.gate)
        write_json(writer.path / "metrics.json", judgement.metrics)
        write_json(writer.path / "gate.json", verdict)
        write_json(writer.path / "mistakes.json", [asdict(m) for m in judgement.mistakes])
        writer.info |= {
            "metrics": judgement.metrics, "gate": verdict, "leave_one_out": images.leave_one_out
        }  # fmt: skip
        writer.count = images.rows("query")
        times = describe_stages(
            {
                "store": store,
                "validation": store / "validation",
                "run": run_dir,
                "gallery": gallery,
                "index": index,
            }
        )
        write_report(
            writer.path,
            judgement,
            title=run_dir.name,
            classes=images.classes,
            image=lambda split, row: images.gather(split, np.asarray([row]))[0][0],
            curves=_curves(run_dir / "metrics.csv"),
            facts=[
                *times,
                ("index", _describe_index(index_artifact, writer.timed)),
                *([("queries", _LEAVE_ONE_OUT)] if images.leave_one_out else []),
            ],
            config_yaml=_read_text(run_dir / "config.yaml"),
            lineage=[*parents.items(), ("git", str(git_revision()))],
            gate=verdict,
        )
    group.barrier()
    return artifacts.load(output, "evaluation")


def _own_rows(images: Store, gallery: Gallery) -> npt.NDArray[np.int64] | None:
    """Return the gallery row that each query is itself, where gallery is the query split too.

    Raises:
        ArtifactError: The gallery is of another store, so nobody knows which rows those are.
    """
    if not images.leave_one_out:
        return None
    if gallery.artifact.parents["store"] != images.artifact.sha256:
        raise ArtifactError(
            "this store is judged by leave-one-out, but the gallery was embedded from another",
            where=gallery.artifact.path,
            remedy="embed it again: `arcloop embed`",
        )
    return np.arange(images.rows("query"))


def _embed_part(
    model: Model, images: Store, part: range, batch_rows: int, advance: Callable[[int], None]
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Embed a part of the queries in the batches that one process has, whole at either end."""
    row = part.start // batch_rows * batch_rows
    stop = min(-(-part.stop // batch_rows) * batch_rows, images.rows("query"))
    batches = images.batches("query", batch_rows, range(row, stop))
    for embeddings, labels in embed(model, batches):
        own = slice(max(part.start - row, 0), max(part.stop - row, 0))
        row += len(labels)
        advance(len(labels[own]))
        yield embeddings[own], labels[own]


def _describe_index(artifact: Artifact, timed: Mapping[str, float]) -> str:
    size = artifact.info["bytes"] / 2**20
    factory = artifact.info.get("choice", artifact.config["index"])["factory"]
    facts = [factory, f"{artifact.info['rows']:,} rows", f"{size:.1f} MiB"]
    if timed:
        median, slow = timed["search_p50_ms"], timed["search_p99_ms"]
        facts.append(f"{median:.2f} ms a search of one query, 99% within {slow:.2f} ms")
    return ", ".join(facts)


def _curves(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, each with what was logged at that step."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
