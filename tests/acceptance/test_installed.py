"""A user of the installed wheel: a project in an empty folder, without clone and network."""

import csv
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.training.ports import free_ports

from arcloop import __version__
from arcloop.artifacts.writer import read

HEAD = "shop.heads.RampedArcFace"


def config_of(run_dir):
    return json.loads((run_dir / "manifest.json").read_bytes())["config"]


def metrics_of(run_dir):
    return json.loads((run_dir / "evaluation/metrics.json").read_bytes())


def test_the_wheel_is_small_and_complete(installed, tmp_path):
    assert installed.wheel.stat().st_size < 2_000_000
    code = "import arcloop; print(arcloop.__file__, arcloop.__version__)"
    file, version = installed.run(tmp_path, "python", "-c", code).split()
    assert Path(file).is_relative_to(installed.bin.parent)
    assert version == __version__
    assert (Path(file).parent / "py.typed").is_file()


def test_commands_without_data_name_what_to_use_instead_of_mnist(installed, tmp_path):
    printed = installed.run(tmp_path, "arcloop", "run", "experiment=mnist", code=1)
    assert printed.startswith("error: the files of MNIST are in the repository")
    for choice in ("image_folder", "synthetic", "clone", "data.root=FOLDER"):
        assert choice in printed
    assert not list(tmp_path.iterdir())


def test_the_run_has_the_head_and_the_settings_of_the_project(shop):
    config = config_of(shop / "runs/shop")
    assert config["head"]["_target_"] == HEAD
    assert config["embedder"]["embedding_dim"] == 8
    assert 0 <= metrics_of(shop / "runs/shop")["top1"] <= 1


def test_the_tests_of_the_project_pass(installed, shop):
    printed = installed.run(shop, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in printed


def test_a_sweep_in_two_processes_and_its_leaderboard(installed, shop, sweep):
    heads = {name: config_of(sweep / f"head-{name}")["head"] for name in ("arcface", "shop_head")}
    assert [head["_target_"] for head in heads.values()] == ["arcloop.models.ArcFace", HEAD]
    installed.run(shop, "arcloop", "leaderboard", "runs/sweeps/shop")
    rows = list(csv.DictReader((sweep / "leaderboard-jobs.csv").read_text().splitlines()))
    assert {row["head"]: row["state"] for row in rows} == dict.fromkeys(heads, "finished")


def test_two_runs_are_compared(installed, sweep, tmp_path):
    runs = sweep / "head-arcface", sweep / "head-shop_head"
    printed = installed.run(tmp_path, "arcloop", "compare", *runs, "--json")
    top1 = json.loads(printed[printed.index("{") :])["metrics"]["top1"]
    assert [top1["a"], top1["b"]] == [metrics_of(run_dir)["top1"] for run_dir in runs]


def test_verbs_on_the_run_from_another_folder(installed, shop, tmp_path):
    run_dir = shop / "runs/shop"
    for verb, *overrides in (
        ("embed",), ("index", "index=hnsw"), ("evaluate", "evaluate.vote_k=3"),
        ("export", "export=onnx"), ("deploy", "deploy=kubernetes", "deploy.dry_run=true"),
    ):  # fmt: skip
        printed = installed.run(tmp_path, "arcloop", verb, run_dir, *overrides)
    assert "kind: Deployment" in printed
    assert read(run_dir / "index", "index").config["index"]["factory"] == "HNSW32,Flat"
    assert (run_dir / "export/model.onnx").is_file()
    label = np.load(run_dir / "index/faiss_label.npy")[0]
    name = json.loads((run_dir / "index/faiss_label.json").read_bytes())["classes"][label]
    picture = shop / f"pictures/{name}/0.png"
    printed = installed.run(tmp_path, "arcloop", "query", picture, "--run", run_dir)
    assert re.search(rf"\b{name}\b.*\b1\.000", printed), printed


def test_a_run_is_reproduced_from_another_folder(installed, shop, tmp_path):
    printed = installed.run(tmp_path, "arcloop", "reproduce", shop / "runs/sweeps/shop/best")
    assert "equal" in printed


API = """
import json, sys
from pathlib import Path
import arcloop

run = arcloop.load(sys.argv[1])
files = sorted(Path(sys.argv[2]).rglob("*.png"))
embeddings = run.embed(files)
answers = run.search(files[:2], k=1)
print(json.dumps({
    "type": str(embeddings.dtype), "shape": embeddings.shape, "metrics": run.metrics,
    "squares": (embeddings**2).sum(1).tolist(), "classes": [a.class_name for a in answers],
}))
"""


def test_the_python_api_loads_the_run(installed, shop, tmp_path):
    printed = installed.run(tmp_path, "python", "-c", API, shop / "runs/shop", shop / "pictures")
    found = json.loads(printed)
    assert (found["type"], found["shape"]) == ("float32", [48, 8])
    assert found["squares"] == pytest.approx([1] * 48, abs=1e-5)
    assert set(found["classes"]) <= {str(name) for name in range(12)}
    assert found["metrics"]["top1"] == metrics_of(shop / "runs/shop")["top1"]


def test_the_run_is_written_for_the_hub(installed, shop, tmp_path):
    installed.run(tmp_path, "arcloop", "push", shop / "runs/shop", "--to", "hub")
    made = {file.name for file in (tmp_path / "hub").iterdir()}
    assert {"model.safetensors", "config.json", "README.md"} <= made


def test_the_server_answers(installed, shop):
    image = (shop / "pictures/0/0.png").read_bytes()
    ports = zip(("inference", "metrics"), free_ports(2), strict=True)
    ports = [f"deploy.{name}_port={port}" for name, port in ports]
    with installed.serve(shop, "runs/shop", "deploy.server=fastapi", *ports) as url:
        request = urllib.request.Request(url, image, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
    assert answer["model"]["name"] == "shop"
    assert list((shop / "model_store/shop").glob("shop-*.mar"))


def test_a_pipeline_on_this_machine_trains_the_head_of_the_project(installed, shop):
    installed.run(shop, "arcloop", "pipeline", "experiment=shop", "head=shop_head", "force=true")
    (run_dir,) = (
        file.parent
        for file in (shop / "runs").rglob("manifest.json")
        if "pipelines" in file.parts and (file.parent / "model.pt").is_file()
    )
    assert config_of(run_dir)["head"]["_target_"] == HEAD


@pytest.fixture(scope="module", autouse=True)
def _no_connection_is_refused(installed):
    """No command connects to another host, not even one that would ignore the refusal."""
    yield
    assert not installed.refused.exists(), installed.refused.read_text()
