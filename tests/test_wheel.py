"""The installed wheel works in an empty folder, without the clone."""

import json
import os
import re
import signal
import site
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest
from tests.conftest import SMALL
from tests.training.ports import free_ports

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `arcloop` command of a fresh virtual environment that holds only the wheel.

    Its dependencies are those of the environment that runs the tests.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, folder], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet"]
    subprocess.run([*install, wheel], check=True)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    # A path in a .pth file is not searched for .pth files, so an editable install of arcloop in
    # the environment of the tests stays invisible.
    dependencies = [p for p in site.getsitepackages() if Path(p).is_dir()]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return folder / "venv/bin/arcloop"


@pytest.fixture(scope="module")
def arcloop(installed, tmp_path_factory):
    """A function that runs the installed command in a folder that was empty before."""
    folder = tmp_path_factory.mktemp("empty")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        return subprocess.run(
            [installed, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )

    run.folder, run.environment, run.command = folder, environment, installed
    done = run("run", *SMALL)
    assert done.returncode == 0, done.stderr
    return run


def test_the_package_is_imported_from_the_wheel(arcloop):
    python = arcloop.command.with_name("python")
    code = "import arcloop; print(arcloop.__file__)"
    done = subprocess.run(
        [python, "-c", code], env=arcloop.environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(arcloop.command.parents[1])


@pytest.fixture(scope="module")
def picture(arcloop):
    """The first image of the gallery, as a file."""
    code = (
        "import numpy as np; from arcloop.data import Store; from pathlib import Path;"
        "from arcloop.runtime.images import encode_png;"
        "store = Store.open(next(Path('stores').iterdir()));"
        "Path('0.png').write_bytes(encode_png(store.gather('gallery', np.asarray([0]))[0][0]))"
    )
    python = arcloop.command.with_name("python")
    subprocess.run([python, "-c", code], cwd=arcloop.folder, env=arcloop.environment, check=True)
    return arcloop.folder / "0.png"


def test_query(arcloop, picture):
    done = arcloop("query", picture, "--run", "runs/synthetic")
    assert done.returncode == 0, done.stderr
    assert "1.000" in done.stdout


def test_deploy_as_a_dry_run_to_kubernetes(arcloop):
    plan = arcloop("deploy", "run_dir=runs/synthetic", "deploy=kubernetes", "deploy.dry_run=true")
    assert plan.returncode == 0, plan.stderr
    assert "kind: Deployment" in plan.stdout


def test_serve_deploys_and_answers(arcloop, picture):
    ports = zip(("inference", "metrics"), free_ports(2), strict=True)
    ports = [f"deploy.{name}_port={port}" for name, port in ports]
    command = [arcloop.command, "serve", "run_dir=runs/synthetic", "deploy.server=fastapi", *ports]
    with open(arcloop.folder / "serve.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=arcloop.folder, env=arcloop.environment, stdout=subprocess.PIPE,
            stderr=log, text=True,
        )  # fmt: skip
    try:
        line = server.stdout.readline()
        url = re.search(r"http://\S+$", line.strip()).group()
        image = picture.read_bytes()
        request = urllib.request.Request(url, image, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
        assert answer["model"]["name"] == "synthetic"
        assert list((arcloop.folder / "model_store/synthetic").glob("synthetic-*.mar"))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        server.stdout.close()


def test_a_pipeline_runs_its_tasks(arcloop):
    """The first two are enough; the others run the same code as the run above."""
    done = arcloop("pipeline", *SMALL, "validation.min_images_per_class=1000")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "prepare: ran" in done.stdout + done.stderr
    assert "step validate failed: the store has 3 error(s)" in done.stdout + done.stderr
