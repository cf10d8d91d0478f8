"""`arcloop compare`: two runs on the same queries, against answers by brute force."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import SMALL, arcloop_in

from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.errors import ArtifactError
from arcloop.evaluation import load_query_results
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.compare_runs import _reorder, compare_runs
from arcloop.retrieval import load_model

OLD, NEW = Path("runs/synthetic"), Path("runs/new")


def answers(run):
    """Label, and file or row, of each query and of its nearest gallery image, by brute force."""
    model, images = load_model(run / "model.pt", "cpu"), Store.open(find_store(run))
    (queries, labels), (gallery, gallery_labels) = (
        images.gather(split, np.arange(images.rows(split))) for split in ("query", "gallery")
    )
    nearest = (model.embed(queries) @ model.embed(gallery).T).argmax(axis=1)

    def name(split, row):
        return images.describe(split, row).get("file", f"{split} row {row}")

    return {
        name("query", row): (labels[row], gallery_labels[n], name("gallery", n))
        for row, n in enumerate(nearest.tolist())
    }


def check_against(found, before, now):
    """Compare a result with the answers of both models."""
    assert found["queries"] == len(before) == len(now)
    right = [{q for q, (label, answer, _) in of.items() if label == answer} for of in (before, now)]
    expected = {"only_a_right": right[0] - right[1], "only_b_right": right[1] - right[0]}
    for side, queries in expected.items():
        assert found[side] == len(queries) > 0
        assert {flip["file"] for flip in found["flips"][side]} == queries
        for flip in found["flips"][side]:
            for run, of in (("a", before), ("b", now)):
                assert flip[run]["file"] == of[flip["file"]][2]
    top1 = found["metrics"]["top1"]
    assert top1["a"] == pytest.approx(len(right[0]) / len(before))
    assert top1["difference"] == pytest.approx((len(right[1]) - len(right[0])) / len(before))
    difference = np.array([(q in right[1]) - float(q in right[0]) for q in before])
    drawn = np.random.default_rng(9).choice(difference, (4000, len(difference))).mean(axis=1)
    assert top1["interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


def test_two_runs_on_one_store(both, capsys):
    assert main(["compare", str(OLD), str(NEW), "--json", "--flips", "70"]) == 0
    found = json.loads(capsys.readouterr().out)
    check_against(found, answers(OLD), answers(NEW))
    assert found["config"] == {
        "seed": {"a": "0", "b": "1"},
        "evaluate.gate.versus": {"a": "None", "b": str(OLD)},
    }
    sizes = {side: (run / "model.pt").stat().st_size for side, run in (("a", OLD), ("b", NEW))}
    assert found["measures"]["model_bytes"] == sizes
    assert found["measures"]["embedding_dim"] == {"a": 16, "b": 16}
    recorded = json.loads((NEW / "gallery/.timing.json").read_bytes())["per_second"]
    assert found["measures"]["images_per_second"]["b"] == recorded
    assert not found["measured_now"]
    versus = json.loads((NEW / "evaluation/versus.json").read_bytes())
    assert found["only_a_right"] == versus["negative_flips"]


def test_speed_is_measured_if_it_was_not_recorded(both, monkeypatch):
    monkeypatch.setattr("arcloop.pipeline.compare_runs._TIMED_SECONDS", 0.05)
    (OLD / "gallery/.timing.json").unlink()
    found = compare_runs(OLD, NEW)
    assert found.is_measured
    assert all(speed > 0 for speed in found.measures["images_per_second"])


def test_the_page_has_the_pictures_and_no_links(both, capsys):
    assert main(["compare", str(OLD), str(NEW), "--html"]) == 0
    output = capsys.readouterr()
    page = Path("runs/new-vs-synthetic.html").read_text("utf-8")
    found = compare_runs(OLD, NEW).comparison
    flips = len(found.flips + found.gains)
    assert page.count('<figure class="mistake flip">') == flips > 0
    assert page.count("data:image/webp;base64,") == 3 * flips
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(""", page)
    assert "page: runs/new-vs-synthetic.html" in output.err
    (line,) = [line for line in output.out.splitlines() if line.startswith("top1 ")]
    assert f"{found.metrics['top1'].difference:+.4f}" in line


def test_without_the_store_metrics_are_compared(both, capsys):
    expected = compare_runs(OLD, NEW).comparison.metrics
    shutil.rmtree("stores")
    found = compare_runs(OLD, NEW)
    assert found.comparison.metrics == expected
    assert main(["compare", str(OLD), str(NEW), "--html", "page.html"]) == 0
    assert "the store of a run was not found" in capsys.readouterr().err
    assert "data:image" not in Path("page.html").read_text("utf-8")


def test_a_run_without_its_model_is_compared(both):
    """`arcloop clean` removes these files of a job."""
    expected = compare_runs(OLD, NEW).as_dict()
    for name in ("checkpoints", "gallery", "index"):
        shutil.rmtree(OLD / name)
    (OLD / "model.pt").unlink()
    (OLD / ".cleaned.json").write_text("{}")
    found = compare_runs(OLD, NEW).as_dict()
    for name in ("model_bytes", "search_p50_ms"):
        assert found["measures"][name] == expected["measures"][name]
    assert not found["measured_now"]
    for result in (expected, found):
        del result["measures"]
    assert found == expected


def draw(root):
    """Twenty images of each of four classes: a bar in a place of the class, in noise."""
    random = np.random.default_rng(0)
    for number in range(4):
        (root / f"c{number}").mkdir(parents=True)
        for row in range(20):
            pixels = random.integers(0, 200, (20, 20)).astype(np.uint8)
            pixels[:, 4 * number + 2 : 4 * number + 4] = 255 - random.integers(0, 120)
            Image.fromarray(pixels).save(root / f"c{number}/{row}.png")


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory):
    """Two runs on the same pictures, which two lists name in another order, in two sizes."""
    folder = tmp_path_factory.mktemp("sizes")
    draw(folder / "pictures")
    splits = ["train"] * 8 + ["val"] * 2 + ["gallery"] * 4 + ["query"] * 6
    lines = [f"pictures/c{n}/{row}.png,c{n},{splits[row]}" for n in range(4) for row in range(20)]
    for size in (12, 16):
        order = np.random.default_rng(size).permutation(len(lines))
        rows = [lines[number] for number in order]
        (folder / f"{size}.csv").write_text("\n".join(["path,label,split", *rows]))
        command = ["train", "data=csv", f"data.file={size}.csv", "data.channels=1",
                   f"data.image_size={size}", "backbone.widths=[8]", "embedder.embedding_dim=8",
                   "loader.batch_size=8", "trainer.max_epochs=1", "evaluate.gate.min_top1=null",
                   f"run_dir=runs/{size}"]  # fmt: skip
        arcloop_in(folder, *command)
    return folder


def test_two_sizes_of_the_same_pictures(two_sizes, monkeypatch):
    monkeypatch.chdir(two_sizes)
    small, large = Path("runs/12"), Path("runs/16")
    stored = [load_query_results(run / "evaluation").label.tolist() for run in (small, large)]
    assert stored[0] != stored[1]
    check_against(compare_runs(small, large).as_dict(), answers(small), answers(large))


def test_results_are_reordered_with_their_labels(finished):
    results = load_query_results(finished / OLD / "evaluation")
    rows = np.random.default_rng(0).permutation(len(results.label))
    found = _reorder(replace(results, predicted=results.predicted - 1), rows, np.array([2, 0, 1]))
    assert found.label.tolist() == [(2, 0, 1)[label] for label in results.label[rows]]
    before = [label - 1 for label in results.predicted[rows]]
    assert found.predicted.tolist() == [-1 if label < 0 else (2, 0, 1)[label] for label in before]
    assert np.array_equal(found.similarity, results.similarity[rows])
    assert all(np.array_equal(found.metrics[name], values[rows])
               for name, values in results.metrics.items())  # fmt: skip


def test_other_queries_are_refused_until_a_run_is_evaluated_on_them(work, capsys):
    other = Path("runs/other")
    assert main(["train", *SMALL, "data.seed=1", f"run_dir={other}"]) == 0
    capsys.readouterr()
    with pytest.raises(ArtifactError) as error:
        compare_runs(OLD, other)
    first, second = find_store(OLD), find_store(other)
    assert f"{first} and {second}" in str(error.value)
    (command,) = re.findall(r"`arcloop (.*?)`", str(error.value))
    assert command == f"evaluate run_dir={other} store_dir={first}"
    assert main(command.split()) in (0, 3)
    found = compare_runs(OLD, other)
    assert found.as_dict()["metrics"]["top1"]["a"] == pytest.approx(
        np.mean([label == answer for label, answer, _ in answers(OLD).values()])
    )


def test_errors(both, capsys):
    assert main(["compare", str(OLD), "runs/missing"]) == 1
    assert "there is no run here" in capsys.readouterr().err
    assert main(["compare", str(OLD), str(NEW), "--html", "runs"]) == 2
    assert "runs" in capsys.readouterr().err
    manifest = NEW / "evaluation/manifest.json"
    content = json.loads(manifest.read_bytes())
    content["config"]["evaluate"]["exclude_same_group"] = True
    manifest.write_text(json.dumps(content))
    assert main(["compare", str(OLD), str(NEW)]) == 1
    assert "evaluate.exclude_same_group is False for runs/synthetic" in capsys.readouterr().err
    shutil.rmtree(NEW / "evaluation")
    assert main(["compare", str(OLD), str(NEW)]) == 1
    assert "there is no evaluation here" in capsys.readouterr().err
