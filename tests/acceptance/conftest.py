"""The wheel, installed into a fresh virtual environment, and a project that uses it offline."""

import contextlib
import os
import re
import signal
import site
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
OFFLINE = """\
import os, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "0.0.0.0", "::1") and not host.startswith("127."):
        with open(os.environ["REFUSED"], "a") as file:
            print(event, host, *sys.argv, file=file)
        raise ConnectionRefusedError(f"the test has no network: {host}")

sys.addaudithook(refuse)
"""
"""Module that each Python process of the environment imports: refuses and records connections."""
TINY = """\
data: {image_size: 16}
backbone: {widths: [8, 8]}
embedder: {embedding_dim: 8}
loader: {batch_size: 8}
trainer: {max_epochs: 1, accelerator: cpu}
evaluate: {num_projected: 0, gate: {min_top1: 0}}
callbacks: {tensorboard: null}
"""


@dataclass
class Installed:
    """The environment with the wheel.

    Attributes:
        wheel: The wheel.
        bin: Folder of the commands of the environment.
        refused: File that lists the refused connections.
    """

    wheel: Path
    bin: Path
    refused: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self):
        hidden = ("PYTHONPATH", "ARCLOOP_", "HYDRA_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        self.environment = {**kept, "REFUSED": str(self.refused)}

    def run(self, folder, *command, code=0):
        """Run a command of the environment in a folder and return what it printed."""
        program, *arguments = command
        done = subprocess.run(
            [self.bin / program, *arguments], cwd=folder, env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def serve(self, folder, *arguments):
        """Yield the URL of a server for predictions, and stop the server."""
        with open(folder / "serve.log", "w") as log:
            server = subprocess.Popen(
                [self.bin / "arcloop", "serve", *arguments], cwd=folder, env=self.environment,
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            line = server.stdout.readline().strip()
            assert line, (folder / "serve.log").read_text()
            yield re.search(r"http://\S+$", line).group()
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            server.stdout.close()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A fresh virtual environment with the wheel.

    Its dependencies are those of the environment that runs the tests.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, folder], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    # A path in a .pth file is not searched for .pth files, so an editable install of arcloop in
    # the environment of the tests stays invisible.
    dependencies = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "offline.py").write_text(OFFLINE)
    (packages / "dependencies.pth").write_text("\n".join([*dependencies, "import offline\n"]))
    return Installed(wheel, folder / "venv/bin", folder / "refused.txt")


@pytest.fixture(scope="session")
def shop(installed, tmp_path_factory):
    """The project `shop` with pictures of 12 classes and the finished run runs/shop."""
    folder = tmp_path_factory.mktemp("empty")
    installed.run(folder, "arcloop", "init", "shop")
    project = folder / "shop"
    generator = np.random.default_rng(0)
    for name in range(12):
        colour = generator.integers(60, 196, 3)
        (project / f"pictures/{name}").mkdir(parents=True)
        for number in range(4):
            pixels = (colour + generator.integers(-40, 40, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(project / f"pictures/{name}/{number}.png")
    with open(project / "conf/experiment/shop.yaml", "a") as file:
        file.write(TINY)
    data = project / "conf/data/shop.yaml"
    data.write_text(data.read_text().replace("root: ???", "root: pictures"))
    installed.run(project, "arcloop", "run", "experiment=shop", "head=shop_head")
    return project


@pytest.fixture(scope="session")
def sweep(installed, shop):
    """The folder of a sweep of two jobs in two processes, one of them with the project's head."""
    swept = ["head=arcface,shop_head", "launcher=joblib", "launcher.jobs=2"]
    installed.run(shop, "arcloop", "train", "-m", "experiment=shop", *swept)
    return shop / "runs/sweeps/shop"
