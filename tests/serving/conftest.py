"""A small real run, deployments of it with ports of their own, and the word about Java."""

import dataclasses
import shutil
import socket
import warnings

import pytest

from arcloop.cli import main
from arcloop.errors import ResourceError
from settings import PORTS, read_request
from torchserve import require_java

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # it never closes its version.txt
    import model_archiver  # noqa: F401

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
        require_java()
    except ResourceError as absent:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=absent.what))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A finished run; tests that change it take `run_dir`."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", *SMALL]) == 0
    return folder / "runs/synthetic"


@pytest.fixture
def run_dir(small_run, tmp_path):
    """A copy of the run that may be changed."""
    return shutil.copytree(small_run, tmp_path / "run")


def free_ports(count):
    """Ports that nothing listens on; all are held until the last is known."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def make_settings(small_run):
    """A function: store, changes -> settings of the run with free ports."""

    def make(store, **changes):
        settings = read_request([f"run_dir={small_run}"]).settings
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        return dataclasses.replace(settings, model_store=str(store), **ports, **changes)

    return make


@pytest.fixture
def settings(make_settings, tmp_path):
    return make_settings(tmp_path / "store")
