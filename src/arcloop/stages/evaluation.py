"""Query split + model + index -> metrics, verdict and report."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.atomic import write_json
from arcloop.config import EmbedSettings, EvaluateSettings
from arcloop.data import Store
from arcloop.errors import ArtifactError
from arcloop.evaluation import gate, judge, write_report
from arcloop.progress import track
from arcloop.provenance import git_revision
from arcloop.retrieval import Gallery, embed, load_model, open_index
from arcloop.searcher import search
from arcloop.stages.index import require_same_model
from arcloop.times import stage_times

_LEAVE_ONE_OUT = "the gallery's own images, each without itself (leave-one-out)"

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


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

    Raises:
        ArtifactError: A part is missing, damaged, or of another model or store.
    """
    images, embeddings = Store.open(store), Gallery(gallery)
    model = load_model(run_dir / "model.pt", embed_settings.device)
    require_same_model(embeddings, model.sha256)
    own_rows_Q = _own_rows(images, embeddings)
    index_artifact, faiss_index, labels = open_index(index, model.sha256)
    parents = {
        "model": model.sha256,
        "store": images.artifact.sha256,
        "gallery": embeddings.artifact.sha256,
        "index": index_artifact.sha256,
    }
    config = {"evaluate": asdict(settings)}
    if reuse and (current := artifacts.current(output, "evaluation", config, parents)):
        return current
    with artifacts.writing(output, "evaluation", config=config, parents=parents) as draft:
        with track("evaluate", images.rows("query")) as advance:
            queries = images.batches("query", embed_settings.batch_size)
            judgement = judge(
                embed(model, _counted(queries, advance)),
                embeddings.chunks,
                partial(search, faiss_index),
                embeddings.labels,
                images.classes,
                settings,
                threshold=labels["threshold"],
                own_rows_Q=own_rows_Q,
            )
        verdict = gate(judgement.metrics, settings.gate)
        write_json(draft.path / "metrics.json", judgement.metrics)
        write_json(draft.path / "gate.json", verdict)
        write_json(draft.path / "mistakes.json", [asdict(m) for m in judgement.mistakes])
        draft.info |= {
            "metrics": judgement.metrics, "gate": verdict, "leave_one_out": images.leave_one_out
        }  # fmt: skip
        draft.count = images.rows("query")
        times = stage_times(
            {
                "store": store,
                "validation": store / "validation",
                "run": run_dir,
                "gallery": gallery,
                "index": index,
            }
        )
        write_report(
            draft.path,
            judgement,
            title=run_dir.name,
            classes=images.classes,
            image=lambda split, row: images.gather(split, np.asarray([row]))[0][0],
            curves=_curves(run_dir / "metrics.csv"),
            facts=[
                *times,
                ("index", _describe_index(index_artifact)),
                *([("queries", _LEAVE_ONE_OUT)] if images.leave_one_out else []),
            ],
            config_yaml=_read_text(run_dir / "config.yaml"),
            lineage=[*parents.items(), ("git", str(git_revision()))],
            gate=verdict,
        )
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


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(len(batch[1]))


def _describe_index(artifact: Artifact) -> str:
    size = artifact.info["bytes"] / 2**20
    factory = artifact.info.get("choice", artifact.config["index"])["factory"]
    return f"{factory}, {artifact.info['rows']:,} rows, {size:.1f} MiB"


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
