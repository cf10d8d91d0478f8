"""Requests to a fake Model Registry, see `tests.kfp.model_registry`."""

from types import SimpleNamespace

import pytest
import yaml
from tests.kfp.model_registry import FIND, running_registry

from arcloop.artifacts.writer import write_artifact
from arcloop.errors import ConfigError, ResourceError
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.pod import registry
from arcloop.kfp.submission import read_submission


@pytest.fixture
def server():
    with running_registry() as running:
        yield running


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """A function: URL, the run that is live -> ID of the version."""
    file = tmp_path / "model_store/things/things-1.mar"
    live = SimpleNamespace(version="20260101T000000Z-abc", path=file)
    with write_artifact(tmp_path / "evaluation", "evaluation", config={}, parents={"index": "i1"}):
        pass
    monkeypatch.setenv("ARCLOOP_STORES", str(tmp_path))
    monkeypatch.setattr("arcloop.serving.model_store.ModelStore.live", lambda self: live)

    def register(url, index="i1"):
        manifest = {"parents": {"run": "r1", "index": index}}
        monkeypatch.setattr("arcloop.serving.archive.read_manifest", lambda path: manifest)
        metadata = {"git": "c0ffee", "metric.top1": 1, "sha256": "x", "display_name": "y"}
        return registry.register(
            url, "pvc://arcloop", "run-7", ["name=things"], tmp_path / "evaluation", metadata
        )

    return register


def test_a_version_is_registered_once(server, deployed):
    assert deployed(server.url) == deployed(server.url + "/")
    model, version, artifact = server.made
    assert (model["kind"], model["name"]) == ("registered_models", "things")
    assert version["registeredModelId"] == model["id"]
    assert version["customProperties"] == {
        "run": {"metadataType": "MetadataStringValue", "string_value": "r1"},
        "kfp_run": {"metadataType": "MetadataStringValue", "string_value": "run-7"},
        "git": {"metadataType": "MetadataStringValue", "string_value": "c0ffee"},
        "metric.top1": {"metadataType": "MetadataDoubleValue", "double_value": 1.0},
    }
    assert artifact["uri"] == "pvc://arcloop/model_store/things/things-1.mar"
    assert (artifact["modelSourceId"], artifact["parent"]) == ("run-7", version["id"])


def test_an_object_that_another_client_creates_is_used(server, deployed):
    deployed(server.url)
    server.unseen |= set(FIND.values())
    deployed(server.url)
    assert len(server.made) == 3


def test_a_token_is_sent_if_there_is_one(server, deployed, monkeypatch):
    deployed(server.url)
    monkeypatch.setenv(registry.TOKEN, "s3cret")
    deployed(server.url)
    assert server.tokens == [None] * 3 + ["Bearer s3cret"] * 3


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, registry.TOKEN), (500, "the run is deployed")]
)
def test_a_refusal_is_one_error(server, deployed, status, remedy):
    server.refuse = status
    with pytest.raises(ResourceError, match=f"answers {status}") as refused:
        deployed(server.url)
    assert remedy in str(refused.value)


def test_a_registry_that_does_not_answer_is_one_error(deployed):
    with pytest.raises(ResourceError, match="does not answer"):
        deployed("http://127.0.0.1:9")


def test_a_run_that_is_no_longer_live_is_not_registered(server, deployed):
    with pytest.raises(ResourceError, match="another run was deployed"):
        deployed(server.url, index="i2")
    assert server.made == []


def test_the_task_follows_the_deployment(image, tmp_path):
    submission = read_submission(
        ["cluster=onprem", f"cluster.image={image}", "cluster.model_registry=http://reg:8080"]
    )
    compile_pipeline(submission.cluster, submission.notify, tmp_path / "p.yaml")
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    (tasks,) = [dag["dag"]["tasks"] for dag in spec["components"].values()
                if "register" in dag.get("dag", {}).get("tasks", ())]  # fmt: skip
    assert tasks["register"]["dependentTasks"] == ["deploy"]
    values = tasks["register"]["inputs"]["parameters"]
    assert values["root"] == {"runtimeValue": {"constant": "pvc://arcloop"}}
    assert values["run_id"] == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-register"]["pvcMount"][0]["mountPath"] == "/mnt/arcloop"


def test_the_registry_must_be_a_url(image):
    with pytest.raises(ConfigError, match=r"cluster\.model_registry"):
        read_submission(["cluster.model_registry=registry:8080"])
