"""Properties of the artifacts in ML Metadata, and the commit of an image.

backend/src/v2/metadata/converter.go, StructValueToMLMDValue, fails the step for a null. The tables
of ML Metadata, ml_metadata/util/metadata_source_query_config.cc, have names of 255 characters and
texts of the type TEXT, which are 65535 bytes.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from arcloop.artifacts import writer
from arcloop.artifacts.writer import REVISION, git_revision, write_artifact
from arcloop.kfp.pod.lineage import properties

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def store(tmp_path):
    with write_artifact(tmp_path / "store", "store", config={"a": 1}) as made:
        made.info["key"] = "fingerprint"
    return tmp_path / "store"


@pytest.fixture
def outside_git(monkeypatch):
    """The code of an image: git is not installed or finds no repository."""

    def fail(*arguments, **options):
        raise subprocess.CalledProcessError(128, "git")

    git_revision.cache_clear()
    monkeypatch.setattr(writer.subprocess, "run", fail)
    yield
    git_revision.cache_clear()


def evaluation(folder, config, metrics):
    with write_artifact(folder, "evaluation", config=config) as made:
        (made.path / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_an_evaluation_has_commit_data_config_and_metrics(store, tmp_path):
    folder = evaluation(
        tmp_path / "e", {"b": None}, {"top1": 0.5, "n": 3, "none": None, "intervals": {}}
    )
    assert properties(folder, {"store": store}) == {
        "git": git_revision(), "data": "fingerprint", "config": '{"b": null}',
        "metric.top1": 0.5, "metric.n": 3,
    }  # fmt: skip
    assert properties(store, {})["data"] == "fingerprint"


def test_the_limits_of_ml_metadata_are_kept(store, tmp_path):
    folder = evaluation(
        tmp_path / "e", {"b": "\u00e9" * 70_000}, {"x" * 300: 1.0, "y": float("nan")}
    )
    found = properties(folder, {"store": store})
    assert re.fullmatch("sha256:[0-9a-f]{64}", found["config"])
    assert found.keys() == {"git", "data", "config"}


def test_an_unknown_commit_is_left_out(store, tmp_path, outside_git, monkeypatch):
    monkeypatch.delenv(REVISION, raising=False)
    folder = evaluation(tmp_path / "e", {}, {})
    assert properties(folder, {"store": store}).keys() == {"data", "config"}


def test_the_commit_of_an_image_is_the_one_of_its_build(outside_git, monkeypatch, tmp_path):
    monkeypatch.setenv(REVISION, COMMIT)
    with write_artifact(tmp_path / "a", "run", config={}):
        pass
    assert writer.read(tmp_path / "a", "run").code["git"] == COMMIT


def test_the_image_gets_the_commit_of_the_workflow():
    dockerfile = (ROOT / "Dockerfile").read_text()
    declared = set(re.findall(r"^ARG (\w+)", dockerfile, flags=re.M))
    jobs = yaml.safe_load((ROOT / ".github/workflows/pipeline.yml").read_text())["jobs"]
    (build,) = (step for step in jobs["image"]["steps"] if step.get("id") == "build")
    passed = dict(line.split("=", 1) for line in build["with"]["build-args"].splitlines())
    assert passed.keys() <= declared
    assert passed["REVISION"] == "${{ github.sha }}"
    assert f"ENV {REVISION}=$REVISION" in dockerfile
    for label, argument in (("revision", "REVISION"), ("source", "SOURCE"), ("created", "CREATED")):
        assert f"org.opencontainers.image.{label}=${argument}" in dockerfile
    # Kubernetes refuses runAsNonRoot for an image whose user is a name.
    assert re.findall(r"^USER (.+)$", dockerfile, flags=re.M) == ["1000:1000"]
