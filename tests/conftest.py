"""What every test shares: one thread for torch, so that two workers do not fight over two cores."""

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts in the background with Ctrl-C ignored; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = [
    "data=synthetic", "data.train=300", "data.val=60", "data.gallery=90", "data.query=70",
    "data.num_classes=3", "data.image_size=16", "data.noise=1.0", "data.shard_rows=64",
    "loader.batch_size=50", "trainer.max_epochs=2", "backbone.widths=[8,8]",
    "embedder.embedding_dim=16",
]  # fmt: skip


def pytest_collection_finish():
    """Let the garbage collector skip the modules and tests that exist now, and always will."""
    gc.collect()
    gc.freeze()


def arcloop_in(folder, *arguments):
    """Run a command that succeeds in a folder, and return the folder."""
    from arcloop.cli.main import main

    with contextlib.chdir(folder):
        assert main([*arguments]) == 0
    return folder


@pytest.fixture(scope="session", autouse=True)
def compose_once():
    """Let commands compose the config once.

    Hydra composes it a second time to read `hydra.mode`, which no file in conf/ sets. That takes a
    third of the time of a short command.
    """
    from hydra._internal.hydra import Hydra

    compose = Hydra.get_mode

    def get_mode(hydra, config_name, overrides):
        is_given = any(override.startswith("hydra.mode=") for override in overrides)
        return compose(hydra, config_name, overrides) if is_given else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


@pytest.fixture(scope="session", autouse=True)
def share_compiled_code(tmp_path_factory):
    """Share what torch compiles, most of all its checks of the instruction set, between all tests.

    Later runs of the tests must not use it, because its keys do not include the instruction set.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which `arcloop run` ended well; tests that change it use `work`.

    A module whose tests need another run overrides this fixture.
    """
    return arcloop_in(tmp_path_factory.mktemp("finished"), "run", *SMALL)


@pytest.fixture
def work(finished, tmp_path, monkeypatch):
    """Work in a copy of the folder `finished`."""
    shutil.copytree(finished, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Work in an empty folder: relative paths of the defaults lead there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """What `arcloop init shop` writes; tests that change it use `shop`."""
    return arcloop_in(tmp_path_factory.mktemp("project"), "init", "shop") / "shop"


@pytest.fixture
def shop(new_project, in_tmp, monkeypatch):
    """A new project, which is the current directory."""
    shutil.copytree(new_project, in_tmp / "shop")
    monkeypatch.chdir("shop")
    return in_tmp / "shop"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture(scope="module")
def lora_extra():
    """Find peft in .venv/lora, where `make install` puts it, unless it is installed."""
    folder = Path(sys.prefix, "lora")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("peft") is None:
            if not folder.is_dir():
                pytest.skip("peft is not installed")
            patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield
