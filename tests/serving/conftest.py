"""A small real run, settings with free ports, running servers, and the check for Java."""

import contextlib
import dataclasses
import runpy
import shutil
from pathlib import Path

import pytest
from tests.conftest import arcloop_in
from tests.training.ports import free_ports

from arcloop.errors import ResourceError
from arcloop.runtime import ARCHIVED_PACKAGE
from arcloop.serving import archive
from arcloop.serving.deploy import deploy, parse_arguments
from arcloop.serving.serve import SERVERS
from arcloop.serving.servers.process import TorchServe
from arcloop.serving.settings import PORTS

SMALL = [
    "data=synthetic", "data.train=300", "data.val=60", "data.gallery=90", "data.query=70",
    "data.num_classes=3", "data.image_size=16", "data.shard_rows=64", "loader.batch_size=50",
    "trainer.max_epochs=2", "backbone.widths=[8,8]", "embedder.embedding_dim=16",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    needing = [item for item in items if item.get_closest_marker("java")]
    if not needing:
        return
    try:
        TorchServe.require()
    except ResourceError as error:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=error.what))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A finished run. Tests that change it use `run_dir`."""
    return arcloop_in(tmp_path_factory.mktemp("small"), "run", *SMALL) / "runs/synthetic"


@pytest.fixture
def run_dir(small_run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture(scope="session")
def make_settings(small_run):
    """A function (store, **changes) that returns settings of the run with free ports."""

    def make(store, **changes):
        settings = parse_arguments([f"run_dir={small_run}"]).settings
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        return dataclasses.replace(settings, model_store=str(store), **ports, **changes)

    return make


@pytest.fixture
def settings(make_settings, tmp_path):
    return make_settings(tmp_path / "store")


@pytest.fixture(scope="module")
def servers(small_run, make_settings, tmp_path_factory):
    """A function ("torchserve" or "fastapi") that returns a running server and its live version.

    Each server is started once for the tests of a file, and does not run during those of others. It
    listens on all addresses, as in a pod.
    """
    found = {}
    with contextlib.ExitStack() as running:

        def server(kind):
            if kind not in found:
                folder = tmp_path_factory.mktemp(kind)
                settings = make_settings(
                    folder / "store", host="0.0.0.0", max_pixels=4096, max_request_bytes=50_000
                )
                live = deploy(small_run, settings, force=False)
                started = running.enter_context(SERVERS[kind](settings, live.path, folder))
                started.wait_until_ready()
                found[kind] = started, live
            return found[kind]

        yield server


@pytest.fixture
def broken_archive():
    """A context manager (old, new) that replaces a line of predictor.py in new archives."""

    @contextlib.contextmanager
    def block(old, new):
        files = archive.runtime_files()
        name = f"{ARCHIVED_PACKAGE}/predictor.py"
        source = files[name].decode()
        assert source.count(old) == 1
        changed = {**files, name: source.replace(old, new).encode()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "runtime_files", lambda: changed)
            yield

    return block


@pytest.fixture
def switch():
    """A fake Kubernetes Service; see switch.py."""
    with runpy.run_path(str(Path(__file__).with_name("switch.py")))["Switch"]() as made:
        yield made
