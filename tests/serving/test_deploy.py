"""The commands `deploy` and `versions`, without a server."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from arcloop.artifacts.atomic import sha256_file
from arcloop.cli.main import main as arcloop
from arcloop.serving.archive import read_manifest
from arcloop.serving.deploy import main as deploy
from arcloop.serving.deploy import parse_arguments
from arcloop.serving.model_store import ModelStore
from arcloop.serving.servers.config_files import server_configs
from arcloop.serving.versions import main as versions

SERVING = Path(__file__).parents[2] / "serving"


@pytest.fixture
def arguments(run_dir, tmp_path):
    return [f"run_dir={run_dir}", f"deploy.model_store={tmp_path / 'store'}"]


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "store", "synthetic")


def test_deploy_makes_a_store_that_a_server_can_load(arguments, store):
    assert deploy(arguments) == 0
    live = store.live()
    configs = server_configs(parse_arguments(arguments).settings, live.path)
    assert {name: (store.path / name).read_text() for name in configs} == configs
    assert read_manifest(live.path)["version"] == live.version


def test_deploying_the_same_run_again_adds_no_version(arguments, store):
    assert deploy(arguments) == 0
    first = store.versions()
    assert deploy(arguments) == 0
    assert store.versions() == first


def test_rollback_list_and_prune(arguments, store, capsys):
    for k in (11, 12, 13, 14):
        assert deploy([*arguments, f"deploy.max_k={k}", "deploy.keep=2"]) == 0
    made = sorted(store.versions(), key=lambda v: handler_config(v.path)["max_k"])
    assert [v.state for v in made] == ["backup", "backup", "previous", "live"]
    assert versions(["rollback", *arguments]) == 0
    assert store.live().version == made[2].version
    assert versions(["rollback", made[0].version, *arguments]) == 0
    assert store.live().version == made[0].version
    assert made[0].version in (store.path / "config.properties").read_text()
    capsys.readouterr()
    assert versions(["list", *arguments]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {version: state for version, state, _ in lines}
    assert {runtime for *_, runtime in lines} == {"torchscript"}
    assert listed == {v.version: v.state for v in store.versions()}
    assert listed[made[2].version] == "previous"
    assert versions(["prune", *arguments, "deploy.keep=2"]) == 0
    assert [v.state for v in store.versions()].count("backup") == 2


def handler_config(archive):
    import yaml

    with zipfile.ZipFile(archive) as packed:
        return yaml.safe_load(packed.read("model-config.yaml"))["handler"]


def reseal(run_dir, name):
    """Update the hash of a changed file in the run's manifest."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256_file(run_dir / name),
                               "size": (run_dir / name).stat().st_size}  # fmt: skip
    (run_dir / "manifest.json").write_text(json.dumps(manifest))


def test_an_archive_that_fails_the_parity_check_does_not_become_live(
    arguments, run_dir, store, capsys
):
    assert deploy(arguments) == 0
    before = store.versions()
    with np.load(run_dir / "golden.npz") as stored:
        np.savez(run_dir / "golden.npz", images=stored["images"],
                 embeddings=-stored["embeddings"])  # fmt: skip
    reseal(run_dir, "golden.npz")
    assert deploy(arguments) == 1
    assert "the archive fails the parity check" in capsys.readouterr().err
    assert store.versions() == before


def test_an_evaluation_of_an_earlier_index_is_not_enough(
    arguments, run_dir, small_run, store, capsys, monkeypatch
):
    monkeypatch.chdir(small_run.parents[1])  # the store of the run is in a subfolder
    assert arcloop(["index", f"run_dir={run_dir}", "index=hnsw"]) == 0
    assert deploy(arguments) == 1
    error = capsys.readouterr().err
    assert "the evaluation was made from another index" in error
    assert "arcloop evaluate" in error
    assert store.versions() == []
    assert arcloop(["evaluate", f"run_dir={run_dir}"]) == 0
    assert deploy(arguments) == 0


def test_a_model_store_on_a_full_disk(arguments, small_disk, capsys):
    store = ModelStore(small_disk / "store", "synthetic")
    arguments = [*arguments, f"deploy.model_store={store.path}"]
    (small_disk / "filler").write_bytes(bytes(900_000))
    assert deploy(arguments) == 1
    error = capsys.readouterr().err
    assert "No space left" in error
    assert str(store.path) in error
    assert store.versions() == []
    assert [path.name for path in store.path.rglob("*") if path.is_file()] == []
    (small_disk / "filler").unlink()
    assert deploy(arguments) == 0
    assert len(store.versions()) == 1


WRONG = {
    "no run": (deploy, ["run_dir=none"], 1, "there is no run here"),
    "a wrong value": (deploy, ["deploy.keep=0"], 2, "deploy.keep=0 must be greater than"),
    "a misspelt key": (deploy, ["deploy.kep=3"], 2, "did you mean deploy.keep"),
    "no verb": (versions, [], 2, "no verb"),
    "another verb": (versions, ["liszt"], 2, "use list, rollback"),
    "an empty store": (
        versions,
        ["list", "deploy.model_store=none"],
        1,
        "no version of",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_one_message_with_a_remedy(in_tmp, capsys, case):
    command, arguments, code, message = WRONG[case]
    assert command(arguments) == code
    text = capsys.readouterr().err
    assert message in text
    assert "remedy:" in text
    assert list(in_tmp.iterdir()) == []


def test_rollback_needs_a_previous_or_a_named_version(arguments, capsys):
    assert deploy(arguments) == 0
    assert versions(["rollback", *arguments]) == 1
    assert "the store has no previous version" in capsys.readouterr().err
    assert versions(["rollback", "20200101T000000Z-000000000000", *arguments]) == 1
    assert "there is no version" in capsys.readouterr().err
