"""The image of a pipeline must contain the project in which the pipeline was compiled."""

import shutil

import pytest
import yaml

from arcloop.cli.main import main
from arcloop.config.project import VARIABLE, project_hash
from arcloop.errors import ConfigError
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.pod import steps
from arcloop.kfp.submission import read_submission

SHOP = ["data=synthetic", "augmentation=shop"]


@pytest.fixture
def project(in_tmp, monkeypatch):
    assert main(["init", "shop"]) == 0
    monkeypatch.chdir(in_tmp / "shop")
    return in_tmp / "shop"


def environments(folder, overrides):
    """Return the environment variables of each container of a compiled pipeline."""
    submission = read_submission(overrides)
    compile_pipeline(submission.cluster, submission.notify, folder / "pipeline.yaml")
    spec = next(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))
    executors = spec["deploymentSpec"]["executors"].values()
    return [{e["name"]: e["value"] for e in x["container"].get("env", [])} for x in executors]


def test_every_pod_checks_that_its_image_contains_the_project(
    project, in_tmp, image, monkeypatch, capsys
):
    found = environments(in_tmp, ["cluster=onprem", f"cluster.image={image}", *SHOP])
    assert {e["ARCLOOP_PROJECT_HASH"] for e in found} == {project_hash()}
    assert not any("ARCLOOP_PROJECT_HASH" in e for e in environments(in_tmp, SHOP))

    for name, value in found[0].items():
        monkeypatch.setenv(name, value)
    image_folder = in_tmp / "image"
    for folder in ("conf", "src"):  # what the Dockerfile copies
        assert f"COPY {folder} /opt/shop/{folder}\n" in (project / "Dockerfile").read_text()
        shutil.copytree(project / folder, image_folder / folder)
    monkeypatch.chdir(in_tmp)
    with pytest.raises(ConfigError, match="its image has no project"):
        steps.call("prepare", str, 1)
    monkeypatch.setenv(VARIABLE, str(image_folder))
    (image_folder / "src/shop/__pycache__").mkdir()
    (image_folder / "src/shop/__pycache__/heads.pyc").touch()
    assert steps.call("prepare", str, 1) == "1"
    (image_folder / "src/shop/heads.py").write_text("")
    with pytest.raises(ConfigError, match="its image has other files in conf/ and src/"):
        steps.call("prepare", str, 1)
