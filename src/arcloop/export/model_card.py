"""The model card of a run: README.md in the layout of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.metrics import read_intervals, read_metrics
from arcloop.artifacts.writer import package_versions
from arcloop.display.html import render_template
from arcloop.evaluation.report.page import read_glossary
from arcloop.retrieval.calibration import describe_calibration
from arcloop.runtime.searcher import Model

TASK = "image-feature-extraction"
_GROUPS = ("head", "sampler", "augmentation", "optimizer", "scheduler", "loader")
"""Config groups that are published, with backbone and embedder. Others contain paths."""
_TRAINER_KEYS = ("max_epochs", "max_steps", "precision", "devices", "accumulate_grad_batches")
_METRICS = (
    "top1", "recall_at_5", "map_at_r", "mean_class_accuracy", "min_class_accuracy", "eer",
    "tar_at_far_1e-3", "dir_at_far_1e-2", "pair_accuracy", "index_recall_at_10",
)  # fmt: skip
_FEW_QUERIES = 1000


def training_config(run: Artifact) -> dict[str, Any]:
    """Return the published settings of a run, without backbone and embedder."""
    found = {name: run.config[name] for name in _GROUPS if name in run.config}
    trainer = run.config["trainer"]
    found["trainer"] = {key: trainer[key] for key in _TRAINER_KEYS if key in trainer}
    return found | {"seed": run.config["seed"]}


def write_card(
    file: Path,
    run: Artifact,
    model: Model,
    *,
    store: Artifact | None,
    license_id: str | None,
    folder: str,
    repository: str | None,
    has_index: bool,
) -> None:
    """Write a model card, from the run's manifest and its evaluation.

    Args:
        file: README.md.
        run: The run.
        model: Its model.
        store: Its store; None if it was not found.
        license_id: Identifier of the license of the weights, e.g. "apache-2.0".
        folder: Folder in the example.
        repository: Repository from which it is downloaded in the example.
        has_index: The folder contains the index.
    """
    evaluation, metrics, intervals = None, {}, {}
    if artifacts.exists(run.path / "evaluation"):
        evaluation = artifacts.load(run.path / "evaluation", "evaluation")
        metrics, intervals = read_metrics(evaluation.path), read_intervals(evaluation.path)
    glossary = read_glossary()
    shown = [name for name in _METRICS if name in metrics and name in glossary]
    rows = [
        (
            glossary[name]["title"],
            format(metrics[name], glossary[name].get("format", ".2%")),
            "{:.2%} to {:.2%}".format(*intervals[name]) if name in intervals else "",
            " ".join(glossary[name]["meaning"].split()),
        )
        for name in shown
    ]
    head = str(run.config["head"]["_target_"]).rpartition(".")[2]
    card = render_template(
        Path(__file__).with_name("model_card.md.j2"),
        front_matter=yaml.safe_dump(
            _front_matter(run, license_id, head, {name: metrics[name] for name in shown}),
            sort_keys=False,
            allow_unicode=True,
        ),
        name=run.path.name,
        model=model,
        conversion=model.conversion,
        **run.info["normalisation"],
        head=head,
        version=package_versions()["arcloop"],
        folder=folder,
        repository=repository,
        has_index=has_index,
        metrics=rows,
        num_queries=metrics.get("num_queries", 0),
        num_gallery=metrics.get("num_gallery", 0),
        leave_one_out=evaluation is not None and evaluation.info.get("leave_one_out", False),
        data=list(_data_facts(run, store)),
        limits=list(_limits(run, evaluation, metrics, license_id)),
        training=yaml.safe_dump(
            {name: run.config[name] for name in ("backbone", "embedder")} | training_config(run),
            sort_keys=False,
        ),
    )
    file.write_text(card.rstrip() + "\n", encoding="utf-8")


def _front_matter(
    run: Artifact, license_id: str | None, head: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Return the metadata of the card, see https://huggingface.co/docs/hub/model-cards."""
    glossary, data = read_glossary(), str(run.config["data"]["name"])
    results = {
        "task": {"type": TASK, "name": "Image retrieval"},
        "dataset": {"type": data, "name": data},
        "metrics": [
            {"type": name, "name": glossary[name]["title"], "value": round(value, 6)}
            for name, value in metrics.items()
        ],
    }
    return {
        **({"license": license_id} if license_id else {}),
        "library_name": "arcloop",
        "pipeline_tag": TASK,
        "tags": ["arcloop", "image-retrieval", "metric-learning", head.lower()],
        **({"model-index": [{"name": run.path.name, "results": [results]}]} if metrics else {}),
    }


def _data_facts(run: Artifact, store: Artifact | None) -> Iterator[tuple[str, str]]:
    """Yield name and value of what is known of the images, without their location."""
    data = run.config["data"]
    yield "name", str(data["name"])
    yield "source", str(data["_target_"]).rpartition(".")[2]
    yield "store", f"`{run.parents['store'][:12]}` (hash)"
    if store is not None:
        trained = store.info.get("train_classes", store.info["classes"])
        yield "classes", f"{store.info['classes']:,}, of which {trained:,} are in train"
        for split, facts in store.info["splits"].items():
            yield f"images in {split}", f"{facts['rows']:,}"
    if held_out := run.info.get("held_out_classes"):
        yield "classes that were left out of training", f"{len(held_out):,}"
    weights = run.config.get("backbone_weights") or {}
    if weights.get("file") or weights.get("pretrained"):
        yield "initial weights", Path(weights.get("file") or "those that timm publishes").name


def _limits(
    run: Artifact,
    evaluation: Artifact | None,
    metrics: Mapping[str, float],
    license_id: str | None,
) -> Iterator[str]:
    """Yield sentences on what is not known of the model, or does not hold."""
    if evaluation is None:
        yield "The model was not evaluated."
    else:
        gate = json.loads((evaluation.path / "gate.json").read_bytes())
        if not gate["passed"]:
            yield "The model did not pass its gate: " + " ".join(gate["reasons"])
        if (queries := metrics["num_queries"]) < _FEW_QUERIES:
            yield f"Only {queries:,} images were used for the evaluation; see the intervals."
        yield "The metrics describe images like those of the data set, not of another origin."
    if artifacts.exists(run.path / "index"):
        index = artifacts.load(run.path / "index", "index")
        calibration = describe_calibration(index.info.get("calibration", {}))
        yield f'Calibration of the threshold for the answer "unknown": {calibration}.'
    else:
        yield 'There is no threshold for the answer "unknown".'
    if license_id is None:
        yield "No license was given."
