"""The compiled pipeline on a stand-in of a KFP server, see `tests.kfp.launcher`."""

import json
import shutil

import pytest
from tests.kfp.launcher import Server, StepError, local_path, parse_bucket

from arcloop.kfp.local import TaskServer, start_fork_server
from arcloop.kfp.pipeline import compile_cleaning, compile_pipeline
from arcloop.kfp.submission import read_submission
from arcloop.pipeline.steps import STEPS
from arcloop.serving.model_store import ModelStore

ROOTS = {"pvc": "minio://mlpipeline/v2/artifacts", "artifacts": "gs://bucket/arcloop"}
FOR_THE_UI = {"report", "summary", "metrics", "confusion", "roc"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Storage -> folder of a server with one volume."""
    return {storage: tmp_path_factory.mktemp(storage) for storage in ROOTS}


@pytest.fixture(scope="module")
def servers(places):
    return {storage: Server(places[storage] / "server", root) for storage, root in ROOTS.items()}


@pytest.fixture
def command(places, small, image, monkeypatch):
    """A function: storage, overrides -> the checked command line."""

    def read(storage, *overrides):
        folder = places[storage]
        (folder / "volume").mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return read_submission(
            [
                *small, "cluster=onprem", f"cluster.storage={storage}", f"cluster.image={image}",
                f"cluster.volume.mount={folder}/volume", "cluster.steps.train.gpus=0",
                "cluster.steps.embed.gpus=0", *overrides,
            ]
        )  # fmt: skip

    return read


@pytest.fixture
def run(servers, command):
    """A function: storage, overrides -> the server after a run of the compiled pipeline."""
    start_fork_server()

    def run(storage, *overrides):
        made = command(storage, *overrides)
        compile_pipeline(made.cluster, made.notify, made.path, made.parameters)
        with TaskServer(made.path.with_name("log")):
            servers[storage].run(made.path, {})
        return servers[storage]

    return run


@pytest.fixture
def first(run, servers):
    """A function: storage -> the server with at least one run."""
    return lambda storage: servers[storage] if servers[storage].artifacts else run(storage)


@pytest.mark.parametrize("storage", ROOTS)
def test_every_step_runs_and_later_comes_from_the_cache(run, places, storage):
    server = run(storage)
    assert set(server.states.values()) == {"ran"}
    assert {*STEPS, "deploy"} <= server.states.keys()
    store = ModelStore(places[storage] / "volume/model_store/synthetic", "synthetic")
    live = store.live()
    assert live is not None
    root = server.run_root
    server = run(storage)
    # Its inputs are artifacts of the earlier run, outside the pipeline root of this run.
    ran = {name for name, state in server.states.items() if state == "ran"}
    assert ran == {"compute-fingerprint", "deploy"}
    assert all(artifact["uri"].startswith(root) for artifact in server.artifacts.values())
    assert store.live() == live


@pytest.mark.parametrize("storage", ROOTS)
def test_the_launcher_accepts_every_uri(first, storage):
    """It refuses the URI of an input that is not in an object store (fetchNonDefaultBuckets)."""
    for artifact in first(storage).artifacts.values():
        assert ROOTS[storage].startswith(parse_bucket(artifact["uri"]))
        assert local_path(artifact["uri"])


def test_a_mount_path_as_uri_is_refused():
    with pytest.raises(StepError, match="unrecognized uri format"):
        parse_bucket("/mnt/arcloop/mlpipeline/v2/artifacts/arcloop/run/prepare/salt/store_out")
    with pytest.raises(StepError, match="unsupported Cloud bucket"):
        parse_bucket("file:///mnt/arcloop/store")


def test_with_a_volume_only_pointers_and_reports_are_transferred(first, places):
    server = first("pvc")
    sizes = [
        path.stat().st_size
        for path in (places["pvc"] / "server/buckets").rglob("*")
        if path.is_file() and path.name not in FOR_THE_UI
    ]
    assert len(sizes) == len(STEPS)
    assert sum(sizes) < 2000
    assert sum(server.downloaded.values()) < 2000
    data = places["pvc"] / "volume/pipelines"
    assert {path.parent.name.removesuffix("_out") for path in data.rglob("manifest.json")} == {
        step.output for step in STEPS.values()
    }


def delete(server, places, storage, task, name):
    """Delete the data of an output; return a function that restores them."""
    base = places[storage] / ("server/buckets" if storage == "artifacts" else "volume/pipelines")
    (folder,) = base.rglob(f"{task}/*/{name}")
    folder.rename(folder.with_name("moved"))
    return lambda: folder.with_name("moved").rename(folder)


@pytest.mark.parametrize("storage", ROOTS)
def test_a_cache_hit_whose_data_were_removed_is_one_error(first, run, places, storage):
    """The launcher downloads a prefix without objects without an error (DownloadBlob)."""
    restore = delete(first(storage), places, storage, "prepare", "store_out")
    with pytest.raises(StepError) as failed:
        run(storage, "embed.batch_size=7")
    restore()
    text = str(failed.value)
    assert text.startswith("embed: exit code")
    assert "the data of the input store no longer exist" in text
    assert "remedy: submit the run again with another cluster.cache_version" in text


@pytest.mark.parametrize("storage", ROOTS)
def test_a_cache_hit_whose_data_were_replaced_is_one_error(first, run, places, storage):
    restore = delete(first(storage), places, storage, "train", "run_out")
    base = places[storage] / ("server/buckets" if storage == "artifacts" else "volume/pipelines")
    (moved,) = base.rglob("train/*/moved")
    other = moved.with_name("run_out")
    shutil.copytree(moved, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"config": {}}))
    with pytest.raises(StepError, match="the data of the input run have the hash"):
        run(storage, "embed.batch_size=7")
    shutil.rmtree(other)
    restore()


def test_the_cleaning_pipeline_runs(first, servers, command, places):
    first("pvc")
    (run_folder,) = (places["pvc"] / "volume/pipelines").iterdir()
    made = command("pvc", "mode=clean", "dry_run=true")
    compile_cleaning(made.cluster, made.path, keep_days=made.options.keep_days, dry_run=True)
    done = servers["pvc"].run(made.path, {})
    assert done["clean"] == ({"Output": 0}, {})
    assert run_folder.exists()
    done = servers["pvc"].run(made.path, {"keep_days": 30.0, "dry_run": False})
    assert done["clean"] == ({"Output": 0}, {})


def test_another_cache_version_replaces_results_that_were_removed(first, run, places):
    """A task without caching records nothing that later tasks could use (getFingerPrintsAndID).

    The other steps run again because of their new input, so the runs may end after this step.
    """
    server = first("pvc")
    delete(server, places, "pvc", "prepare", "store_out")
    for expected in ("ran", "cached"):
        with pytest.raises(StepError, match="validate: exit code"):
            run("pvc", "cluster.cache_version=1", "validation.min_images_per_class=1000")
        assert server.states["prepare"] == expected
