"""Every command of the tutorials runs, in the order it is written, on a few pictures.

The tutorials on products and sweeps share a project, as their text says. A command `curl` asks the
server that the last `arcloop serve` of the page starts.
"""

import contextlib
import json
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.data.sources import test_recordio
from tests.docs.test_docs import pictures
from tests.evaluation.pairs.test_pairs import noise

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics
from arcloop.cli.main import main
from arcloop.models import IResNet

TUTORIALS = Path(__file__).parents[2] / "docs/tutorials"
SMALLER = {
    "sweep.trials=10": "sweep.trials=2",
    "seed=0,1,2": "seed=0,1",
    "evaluate.gate.min_top1=0.4": "evaluate.gate.min_top1=0",
    "launcher=joblib": None,  # tests/pipeline/sweeps runs jobs in parallel
    "launcher.jobs=2": None,
    "trainer.devices=2": "trainer.devices=1",
    "data.image_size=112": "data.image_size=32",
    "loader.batch_size=64": None,
    "trainer.max_epochs=10": None,
    "trainer.max_epochs=5": None,
}
QUICK = [
    "trainer.max_epochs=1", "loader.batch_size=16", "backbone.widths=[8,8]",
    "evaluate.num_projected=0",
]  # fmt: skip
NARROW = ["backbone.layers=[1,1]", "data.val_classes=2", "data.test_classes=2"]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (TUTORIALS / page).read_text(), flags=re.DOTALL)


def smaller(arguments):
    """The arguments of a command with what makes it quick."""
    verb, *rest = [SMALLER.get(argument, argument) for argument in arguments]
    rest = [argument for argument in rest if argument is not None]
    if verb not in ("run", "train"):
        return [verb, *rest]
    narrow = NARROW if "data=recordio" in rest else []
    ungated = [] if any("gate.min_top1" in r for r in rest) else ["evaluate.gate.min_top1=0"]
    return [verb, *rest, *QUICK, *narrow, *ungated]


@contextlib.contextmanager
def served(command):
    """Start the server of a command on free ports; gives the port of inference."""
    ports = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    names = ("inference_port", "management_port", "metrics_port")
    chosen = [f"deploy.{name}={port}" for name, port in zip(names, ports, strict=True)]
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command), *chosen],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "curl" in line:
                break
        assert process.poll() is None, "".join(lines)
        yield ports[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def run(page, monkeypatch):
    """Run the commands of a page; gives the answers of its server."""
    answers = []
    serve = re.findall(r"^\$ (arcloop serve .*)$", (TUTORIALS / page).read_text(), flags=re.M)
    for command in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        if program == "cd":
            monkeypatch.chdir(arguments[0])
            add_products()
        elif program == "curl":
            with served(serve[-1]) as port:
                words = [program, *arguments[:-1], arguments[-1].replace("8082", str(port))]
                done = subprocess.run(words, capture_output=True, check=True)
            answers.append(json.loads(done.stdout))
        else:
            assert program == "arcloop"
            assert main(smaller(arguments)) == 0, command
    return answers


def add_products():
    pictures(Path("pictures"))
    Path("pictures/circle").rename("pictures/lemon")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the first tutorial starts."""
    return tmp_path_factory.mktemp("tutorials")


def test_products(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (answer,) = run("products.md", monkeypatch)
    assert Path("pictures", answer["class_name"]).is_dir()
    assert answer["lineage"]["run"] == artifacts.load(Path("runs/shop-256"), "run").sha256
    versus = json.loads(Path("runs/shop-256/evaluation/versus.json").read_bytes())
    assert versus
    assert list(Path("model_store/shop").glob("*.mar"))


def test_sweeps(folder, monkeypatch):
    monkeypatch.chdir(folder)
    if not Path("shop").exists():  # this test runs without the first one
        assert main(["init", "shop"]) == 0
        monkeypatch.chdir("shop")
        add_products()
    monkeypatch.chdir(folder / "shop")
    run("sweeps.md", monkeypatch)
    for snippet in blocks("sweeps.md", "python"):
        exec(snippet, {})
    heads = {path.name.split("_seed")[0] for path in Path("runs/sweeps/heads").glob("head-*")}
    assert heads == {"head-arcface", "head-shop_head"}
    best = json.loads(Path("runs/sweeps/margins/best.json").read_bytes())
    assert best["values"].keys() >= {"head.margin", "head.ramp_from"}


def test_from_pytorch_metric_learning(in_tmp, monkeypatch, capsys):
    pictures(in_tmp / "icons")
    make_list, train, compare_metrics = blocks("from-pytorch-metric-learning.md", "python")
    exec(make_list, {})
    exec(train.replace("EPOCHS, BATCH = 20, 64", "EPOCHS, BATCH = 1, 16"), {})
    assert "mean_average_precision_at_r" in capsys.readouterr().out
    run("from-pytorch-metric-learning.md", monkeypatch)
    exec(compare_metrics, {})


def test_from_insightface(in_tmp, monkeypatch):
    images = [(test_recordio.png(row)[0], [float(row // 6)]) for row in range(60)]
    test_recordio.write(Path("faces"), images)
    Path("faces/lfw.bin").write_bytes(pickle.dumps((noise(24), [True, False] * 6)))
    network = IResNet(in_channels=3, layers=[1, 1], widths=[8, 8])
    neck = {"fc.weight": torch.zeros(4, 4), "features.weight": torch.zeros(4)}
    torch.save({**network.state_dict(), **neck}, "backbone.pth")
    run("from-insightface.md", monkeypatch)
    assert "pairs_lfw_accuracy" in read_metrics(Path("runs/faces/evaluation"))
    config = artifacts.load(Path("runs/partial"), "run").config
    assert config["head"]["sample_rate"] == 0.1
