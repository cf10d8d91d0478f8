"""The commands as a user types them; no server is started."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from arcloop import artifacts
from arcloop.serving.archive import read_manifest
from arcloop.serving.deploy import main as deploy
from arcloop.serving.servers.server_config import server_properties
from arcloop.serving.settings import read_request
from arcloop.serving.store.model_store import ModelStore
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
    told = (store.path / "config.properties").read_text()
    assert told == server_properties(read_request(arguments).settings, live.path)
    assert read_manifest(live.path)["version"] == live.version


def test_deploying_the_same_again_adds_nothing(arguments, store):
    assert deploy(arguments) == 0
    first = store.versions()
    assert deploy(arguments) == 0
    assert store.versions() == first


def test_versions_roll_back_and_forth(arguments, store, capsys):
    for k in (11, 12, 13, 14):
        assert deploy([*arguments, f"deploy.max_k={k}", "deploy.keep=2"]) == 0
    made = sorted(store.versions(), key=lambda v: json_config(v.path)["max_k"])
    assert [v.state for v in made] == ["backup", "backup", "previous", "live"]
    assert versions(["rollback", *arguments]) == 0
    assert store.live().version == made[2].version
    assert versions(["rollback", made[0].version, *arguments]) == 0
    assert store.live().version == made[0].version
    assert made[0].version in (store.path / "config.properties").read_text()
    capsys.readouterr()
    assert versions(["list", *arguments]) == 0
    listed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert listed == {v.version: v.state for v in store.versions()}
    assert listed[made[2].version] == "previous"
    assert versions(["prune", *arguments, "deploy.keep=2"]) == 0
    assert [v.state for v in store.versions()].count("backup") == 2


def json_config(archive):
    import yaml

    with zipfile.ZipFile(archive) as packed:
        return yaml.safe_load(packed.read("model-config.yaml"))["handler"]


def reseal(run_dir, name):
    """Make the run's manifest agree with a file that was changed, as a wrong export would."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": artifacts.sha256_file(run_dir / name),
                               "size": (run_dir / name).stat().st_size}  # fmt: skip
    (run_dir / "manifest.json").write_text(json.dumps(manifest))


def test_an_archive_that_answers_wrongly_never_goes_live(arguments, run_dir, store, capsys):
    assert deploy(arguments) == 0
    before = store.versions()
    with np.load(run_dir / "golden.npz") as stored:
        np.savez(run_dir / "golden.npz", images=stored["images"],
                 embeddings=-stored["embeddings"])  # fmt: skip
    reseal(run_dir, "golden.npz")
    assert deploy(arguments) == 1
    assert "the parity gate refuses this archive" in capsys.readouterr().err
    assert store.versions() == before


WRONG = {
    "no run": (deploy, ["run_dir=none"], 1, "there is no run here"),
    "a wrong value": (deploy, ["deploy.keep=0"], 2, "deploy.keep=0 must be greater than"),
    "a misspelt key": (deploy, ["deploy.kep=3"], 2, "did you mean deploy.keep"),
    "no verb": (versions, [], 2, "no verb"),
    "another verb": (versions, ["liszt"], 2, "VERB is list"),
    "an empty store": (versions, ["list", "deploy.model_store=none"], 1, "there is no version"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_clear_message(in_tmp, capsys, case):
    command, arguments, code, message = WRONG[case]
    assert command(arguments) == code
    text = capsys.readouterr().err
    assert message in text
    assert "remedy:" in text
    assert list(in_tmp.iterdir()) == []


def test_rolling_back_what_was_never_live(arguments, capsys):
    assert deploy(arguments) == 0
    assert versions(["rollback", *arguments]) == 1
    assert "no version was live before" in capsys.readouterr().err
    assert versions(["rollback", "20200101T000000Z-000000000000", *arguments]) == 1
    assert "there is no version" in capsys.readouterr().err
