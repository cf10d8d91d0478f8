"""Optional answer modes through the evaluator and the command line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import SMALL
from tests.evaluation.conftest import exact, labelled_corners
from tests.evaluation.metrics.test_ranking import drawn
from tests.evaluation.test_evaluator import ELSEWHERE, evaluated, oracle, sizes
from tests.evaluation.test_leave_one_out import pairs_by_definition

from arcloop.artifacts.metrics import read_metrics
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.evaluation.metrics.answers import vote
from arcloop.evaluation.metrics.reranking import expand_queries, rerank
from arcloop.pipeline.chains import OTHER_DATA, find_store
from arcloop.retrieval import load_model

RUN = Path("runs/synthetic")


@effort(max_examples=40)
@given(
    gallery=labelled_corners(3, st.integers(2, 25)),
    queries=labelled_corners(3, st.integers(1, 12)),
    groups=st.lists(st.integers(-1, 4), min_size=50, max_size=50),
    leave_one_out=st.booleans(),
    batches=sizes,
    chunks=sizes,
)
def test_no_metric_compares_rows_of_a_group(
    gallery, queries, groups, leave_one_out, batches, chunks
):
    groups_G = np.array(groups[: len(gallery[1])])
    queries = gallery if leave_one_out else queries
    groups_Q = groups_G if leave_one_out else np.array(groups[-len(queries[1]) :])
    own = np.arange(len(queries[1])) if leave_one_out else np.full(len(queries[1]), -1)
    left = [
        [row for row in range(len(groups_G)) if row != own[query] and
         (groups_G[row] != groups_Q[query] or groups_Q[query] < 0)]
        for query in range(len(queries[1]))
    ]  # fmt: skip
    if not all(left):
        return  # the oracle needs an answer to each query
    result = evaluated(
        queries, gallery, own=own if leave_one_out else None, batches=batches, chunks=chunks,
        num_mistakes=99, groups=(groups_Q, groups_G),
    )  # fmt: skip
    expected = oracle(queries, gallery, 0.5, left=left)
    assert result.metrics.keys() - ELSEWHERE == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name
    pairs = pairs_by_definition(queries, gallery, left)
    assert np.array_equal(result.pairs.same, pairs.same)
    assert np.array_equal(result.pairs.different, pairs.different)
    for mistake in result.mistakes:
        assert set(mistake.neighbour_rows) <= set(left[mistake.query_row])


@pytest.mark.parametrize("classes", [3, 60])
def test_the_modes_are_those_of_their_functions(classes):
    """With more ranks than are re-ranked (3 classes), and fewer."""
    queries, gallery = drawn(90, classes, seed=1), drawn(300, classes)
    options = {"k1": 8, "k2": 4, "original_weight": 0.2, "memory_mb": 1}
    found = evaluated(
        queries, gallery, classes=[str(label) for label in range(classes)], batches=[40],
        batch_size=40, vote_k=15, query_expansion="alpha", expansion_k=5, expansion_alpha=2.0,
        rerank="k_reciprocal", rerank_depth=30, rerank_k1=8, rerank_k2=4,
        rerank_original_weight=0.2, prototypes=True,
    )  # fmt: skip
    order_QG = exact(gallery[0])(queries[0], 300)[1]
    reranked_QG = order_QG.copy()
    chunks = lambda: [gallery]  # noqa: E731
    reranked_QG[:, :30] = rerank(queries[0], order_QG[:, :30], chunks, **options)
    expanded = expand_queries(queries[0], order_QG[:, :5], chunks, 2.0, 1)
    expanded_QG = exact(gallery[0])(expanded, 300)[1]
    for name, ranking_QG in (("reranked", reranked_QG), ("expanded", expanded_QG)):
        same_QG = gallery[1][ranking_QG] == queries[1][:, None]
        precisions = []
        for same in same_QG:
            if r := same.sum():
                precisions.append(sum(same[: i + 1].mean() for i in range(r) if same[i]) / r)
        metrics = found.metrics
        assert metrics[f"recall_at_1_{name}"] == same_QG[:, 0].mean()
        assert metrics[f"map_at_r_{name}"] == pytest.approx(np.mean(precisions), abs=1e-6), name
        assert metrics[f"map_at_r_{name}"] != metrics["map_at_r"]
    assert metrics["top1_vote_k"] == (vote(gallery[1][order_QG[:, :15]]) == queries[1]).mean()
    sums = np.stack([gallery[0][gallery[1] == c].sum(axis=0) for c in range(classes)])
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    assert metrics["top1_prototype"] == ((queries[0] @ means.T).argmax(axis=1) == queries[1]).mean()
    assert set(found.seconds) == {"vote", "class prototypes", "query expansion", "re-ranking"}


ALL = [
    "evaluate.full_ranking=true", "evaluate.vote_k=20", "evaluate.prototypes=true",
    "evaluate.query_expansion=average", "evaluate.rerank=k_reciprocal",
]  # fmt: skip


def test_the_command_reports_the_modes_and_their_cost(work):
    before = read_metrics(work / "runs/synthetic/evaluation")
    assert main(["evaluate", "run_dir=runs/synthetic", *ALL]) == 0
    after = read_metrics(work / "runs/synthetic/evaluation")
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        "map", "minp", "top1_vote_k", "top1_prototype", "recall_at_1_expanded", "map_at_r_expanded",
        "recall_at_1_reranked", "map_at_r_reranked",
    }  # fmt: skip
    page = (work / "runs/synthetic/evaluation/report.html").read_text()
    for text in ("mINP", "cost per query", "class prototypes ", "re-ranking "):
        assert text in page


def test_groups_that_a_store_lacks_are_reported_before_training(work, capsys):
    """And the settings that exclude each other."""
    excluded = "evaluate.exclude_same_group=true"
    assert main(["evaluate", "run_dir=runs/synthetic", excluded]) == 2
    assert "store with groups" in capsys.readouterr().err
    assert main(["train", *SMALL, "run_dir=runs/other", excluded]) == 2
    assert "store with groups" in capsys.readouterr().err
    assert main(["evaluate", "run_dir=runs/synthetic", excluded, "evaluate.prototypes=true"]) == 2
    assert "evaluate.prototypes=true and" in capsys.readouterr().err


def test_rows_of_a_group_of_a_store_are_no_answers(work):
    """Each image occurs twice, in a group of its own, so that its copy would be its answer."""
    store = Store.open(find_store(RUN))
    images_NHWC, labels = store.gather("query", np.arange(30))
    for row, label in enumerate(labels.tolist()):
        for copy in "ab":
            file = Path(f"pics/class-{label}/{row:02d}_{copy}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images_NHWC[row, ..., 0]).save(file)
    data = ["data=image_folder", "data.root=pics", 'data.group="/(.+)_"']
    excluded = ["evaluate.exclude_same_group=true", "evaluate.gate.min_top1=0"]
    assert main(["evaluate", f"run_dir={RUN}", *data, *excluded]) == 0
    (folder,) = (RUN / OTHER_DATA).iterdir()
    metrics = read_metrics(folder / "evaluation")
    embeddings = load_model(RUN / "model.pt", "cpu").embed(images_NHWC)
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -2)
    assert metrics["top1"] == np.mean(labels[similarities.argmax(axis=1)] == labels)
    assert metrics["top1"] == metrics["recall_at_1"] < 1
    assert metrics["index_recall_at_10"] == 1
    assert main(["evaluate", f"run_dir={RUN}", *data, *excluded, "evaluate.gallery=run"]) == 2
