"""The compiled pipeline on a stand-in of a KFP server, see `tests.kfp.launcher`."""

import json

import pytest

from arcloop.kfp.local import TaskServer, start_fork_server
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.submission import read_submission
from arcloop.pipeline.steps import STEPS
from arcloop.serving.model_store import ModelStore
from tests.kfp.launcher import Server, StepError, local_path, parse_bucket

ROOTS = {"pvc": "minio://mlpipeline/v2/artifacts", "artifacts": "gs://bucket/arcloop"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Storage -> folder of a server with one volume."""
    return {storage: tmp_path_factory.mktemp(storage) for storage in ROOTS}


@pytest.fixture(scope="module")
def servers(places):
    return {storage: Server(places[storage] / "server", root) for storage, root in ROOTS.items()}


@pytest.fixture
def run(places, servers, small, image, monkeypatch):
    """A function: storage, overrides -> the server after a run of the compiled pipeline."""
    start_fork_server()

    def run(storage, *overrides):
        folder = places[storage]
        monkeypatch.chdir(folder)
        submission = read_submission(
            [
                *small, "cluster=onprem", f"cluster.storage={storage}", f"cluster.image={image}",
                f"cluster.volume.mount={folder}/volume", *overrides,
            ]
        )  # fmt: skip
        compile_pipeline(submission.cluster, submission.notify, submission.path)
        with TaskServer(folder / "log"):
            servers[storage].run(submission.path, dict(submission.parameters))
        return servers[storage]

    return run


@pytest.mark.parametrize("storage", ROOTS)
def test_a_server_runs_every_step_and_then_uses_its_cache(run, places, storage):
    first = run(storage)
    assert set(first.states.values()) == {"ran"}
    assert {*STEPS, "deploy"} <= first.states.keys()
