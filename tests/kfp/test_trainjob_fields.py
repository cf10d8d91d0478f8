"""The fields of the TrainJob that the train step creates."""

import json

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from arcloop.errors import ConfigError
from arcloop.kfp.config import NodeRequirement, Security, Toleration
from arcloop.kfp.pod import trainjob
from arcloop.kfp.submission import read_submission

ADDED_IN_2_3 = ("terminationGracePeriodSeconds",)
"""Fields of trainjob_types.go in kubeflow/trainer that v2.3.0 has and v2.2.1 does not."""


@pytest.fixture(scope="module")
def settings(image):
    submission = read_submission(
        [
            "cluster=onprem", f"cluster.image={image}", "cluster.train=trainjob", "mode=compile",
            "cluster.service_account=trainer", "cluster.pull_secrets=[registry]",
            "+cluster.secrets={bucket: {key: BUCKET_KEY}}",
        ]
    )  # fmt: skip
    return submission.cluster


@pytest.fixture
def job(settings):
    return json.loads(trainjob.make_job(settings))


def test_the_fields_of_the_job(job, image):
    spec = job["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    trainer = spec["trainer"]
    assert trainer["command"] == ["torchrun", "-m", "arcloop.pipeline.train_worker"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (image, 2, 1)
    wanted = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert trainer["resourcesPerNode"] == {"limits": wanted, "requests": wanted}
    (variable,) = trainer["env"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "bucket", "key": "key"}
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == (
        "trainer",
        [{"name": "registry"}],
    )
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "arcloop"}
    assert pod["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"arcloop": "/mnt/arcloop", "shm": "/dev/shm"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


@pytest.mark.parametrize("full", [True, False])
def test_the_models_of_the_api_know_all_fields(settings, full):
    toleration = Toleration(key="a", effect="NoExecute", toleration_seconds=60)
    changes = {"tolerations": [toleration], "node_selector": {"a": "b"}, "env": {"N": 1}}
    changes |= {"labels": {"team": "a"}, "annotations": {"b": "c"}}
    changes["security"] = Security(run_as_user=1000, run_as_non_root=True)
    spot = {"key": "spot", "operator": "DoesNotExist"}
    changes["node_affinity"] = [NodeRequirement(**spot), NodeRequirement(**spot, weight=50)]
    if not full:
        changes = {"pull_secrets": [], "secrets": {}, "env": {}, "service_account": None}
    text = trainjob.make_job(settings.model_copy(update=changes))
    assert json.loads(TrainerV1alpha1TrainJob.from_dict(json.loads(text)).to_json()) == json.loads(
        text
    )
    assert "null" not in text
    assert not any(field in text for field in ADDED_IN_2_3)
    assert ("tolerationSeconds" in text) == full
    (patch,) = json.loads(text)["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    if not full:
        assert "affinity" not in pod["spec"]
        return
    assert pod["metadata"] == {"labels": {"team": "a"}, "annotations": {"b": "c"}}
    assert json.loads(text)["metadata"]["labels"] == {"team": "a"}  # where Kueue reads its queue
    identity = pod["spec"]["containers"][0]["securityContext"]
    assert identity == {"runAsUser": 1000, "runAsNonRoot": True}
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    expressions = [{**spot, "values": []}]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": expressions}
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred == {"weight": 50, "preference": {"matchExpressions": expressions}}


def test_names_that_yaml_reads_as_other_types_stay_text(settings):
    names = {"env": {"ON": 1}, "pull_secrets": ["1e3"], "secrets": {"007": {"yes": "NO"}}}
    spec = json.loads(trainjob.make_job(settings.model_copy(update=names)))["spec"]
    plain, secret = spec["trainer"]["env"]
    assert plain == {"name": "ON", "value": "1"}
    assert secret == {"name": "NO", "valueFrom": {"secretKeyRef": {"name": "007", "key": "yes"}}}
    assert '[{"name": "1e3"}]' in json.dumps(spec)


def test_a_pull_policy_that_the_nodes_cannot_have_is_refused(image):
    """ContainerPatch of pkg/apis/trainer/v1alpha1/trainjob_types.go has no imagePullPolicy."""
    arguments = ["cluster=onprem", f"cluster.image={image}", "mode=compile"]
    arguments += ["cluster.train=trainjob", "cluster.pull_policy=Always"]
    with pytest.raises(ConfigError, match="pull_policy=Always has no effect on the nodes"):
        read_submission(arguments)
