"""From a list with groups and with queries of something unknown to an evaluated model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.evaluation import load_query_results
from arcloop.pipeline.chains import find_store
from arcloop.runtime.images import encode_png

NUMBERS = {"train": 12, "val": 4, "gallery": 5, "query": 6}
DATA = ["data=csv", "data.file=list.csv", "data.image_size=16", "data.channels=1"]
RUN = [
    *DATA, "loader.batch_size=12", "trainer.max_epochs=1", "logger=csv", "backbone.widths=[4,4]",
    "evaluate.num_projected=0", "evaluate.gate.min_top1=null", "run_dir=runs/r",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Classes b, c and d in every split; a and e only in query; two images per group."""
    folder = tmp_path_factory.mktemp("unknown")
    rows = ["path,label,split,group"]
    for seed, name in enumerate("abcde"):
        pattern = np.random.default_rng(seed).integers(0, 200, (16, 16, 1))
        for split in ("query",) if name in "ae" else NUMBERS:
            for number in range(NUMBERS[split]):
                noise = np.random.default_rng([seed, len(rows)]).integers(0, 56, (16, 16, 1))
                file = f"{len(rows)}.png"
                (folder / file).write_bytes(encode_png((pattern + noise).astype(np.uint8)))
                rows.append(f"{file},{name},{split},{name}-{split}-{number // 2}")
    (folder / "list.csv").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", *RUN]) == 0
        store = Store.open(find_store(Path("runs/r")).absolute())
    return folder / "runs/r", store


def test_the_head_has_only_the_classes_of_train(run):
    folder, store = run
    assert store.classes == ["b", "c", "d", "a", "e"]
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    (weight,) = (value for name, value in state.items() if name.startswith("head."))
    assert 3 in weight.shape


def test_queries_of_something_unknown_are_evaluated(run):
    metrics = json.loads((run[0] / "evaluation/metrics.json").read_bytes())
    assert metrics["num_queries"] == 5 * 6
    assert metrics["num_queries_not_in_gallery"] == 2 * 6
    results = load_query_results(run[0] / "evaluation")
    assert results.known.sum() == 3 * 6
    assert metrics["top1"] == results.correct[results.known].mean()
    assert metrics["min_class_accuracy"] > 0


def test_the_store_has_the_groups_of_every_split(run):
    store = run[1]
    for split, number in NUMBERS.items():
        groups = store.groups(split)
        assert len(groups) == store.rows(split)
        assert np.unique(groups, return_counts=True)[1].max() == min(2, number)
    assert not set(store.groups("train")) & set(store.groups("query"))
