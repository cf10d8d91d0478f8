"""The pipeline of cluster=vertex is in the subset that Vertex AI Pipelines documents.

Vertex AI reads one document of YAML (kubeflow/pipelines issue 11241 shows the error for two). Its
page "Specify the machine configuration for a pipeline step" has the forms of CPU, memory and
accelerators, and its reference of MachineSpec the accelerator types.
"""

import re

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from arcloop.errors import ConfigError
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.submission import read_submission

VERTEX = ["cluster=vertex", "mode=compile", "deploy.model_store=/gcs/bucket/models"]


@pytest.fixture(scope="module")
def submission(image):
    return read_submission([*VERTEX, f"cluster.image={image}", "notify.webhook_env=WEBHOOK"])


def test_the_compiled_file_is_in_the_documented_subset(submission, tmp_path):
    compile_pipeline(submission.cluster, submission.notify, tmp_path / "p.yaml")
    (document,) = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    spec = json_format.ParseDict(document, pb.PipelineSpec())
    assert re.fullmatch("[a-z0-9][a-z0-9-]{0,127}", spec.pipeline_info.name)
    executors = document["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        assert executor.keys() == {"container"}, name
        container = executor["container"]
        assert container.keys() <= {"args", "command", "env", "image", "resources"}
        resources = container["resources"]
        assert re.fullmatch("[0-9]+m?", resources["resourceCpuLimit"])
        assert re.fullmatch("[0-9]+[KMG]?", resources["resourceMemoryLimit"])
        assert not {"ARCLOOP_VOLUME", "ARCLOOP_STORES"} & {
            e["name"] for e in container.get("env", [])
        }
    train = executors["exec-train"]["container"]["resources"]["accelerator"]
    assert (train["resourceType"], train["resourceCount"]) == ("NVIDIA_L4", "1")
    assert submission.config["trainer"]["accelerator"] == "gpu"


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["mode=run"], "cluster.platform=vertex has no KFP API: pass mode=compile"),
        (["deploy.model_store=models"], "deploy.model_store=models must be an absolute path"),
        (["data=image_folder", "data.root=/mnt/data"], "outside every mount: /gcs"),
        (["cluster.storage=pvc"], "need Kubernetes"),
        (["deploy=kserve", "cluster.namespace=a"], "deploy=kserve is not possible"),
        (["notify=slack"], "notify.secret is a secret of Kubernetes"),
        (["cluster.security.run_as_non_root=true"], "cluster.security has no equivalent"),
        (["+cluster.labels={a: b}"], "cluster.labels has no equivalent"),
        (["cluster.service_account=trainer"], "cluster.service_account has no equivalent"),
        (["cluster.pull_policy=Always"], "cluster.pull_policy has no equivalent"),
        (["cluster.model_registry=http://a"], "cluster.model_registry has no equivalent"),
        (["cluster.steps.train.shm=1Gi"], "cluster.steps.train.shm has no equivalent"),
        (["+cluster.steps.train.timeout_s=9"], "cluster.steps.train.timeout_s has no equivalent"),
        (["cluster.steps.train.memory=16Gi"], "cluster.steps.train.memory=16Gi must be"),
        (["cluster.steps.train.gpu_type=nvidia.com/gpu"], "must be an AcceleratorType"),
    ],
)
def test_what_vertex_refuses_is_refused_before(image, overrides, fault):
    keys = {override.partition("=")[0] for override in overrides}
    kept = [option for option in VERTEX if option.partition("=")[0] not in keys]
    with pytest.raises(ConfigError) as refused:
        read_submission([*kept, f"cluster.image={image}", *overrides])
    assert fault in str(refused.value)
