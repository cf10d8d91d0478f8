"""The content of the compiled YAML, parsed into the protobufs of KFP."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from arcloop.kfp.local import source_hash
from arcloop.kfp.parameters import PARAMETERS
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.placement.placement import SCRATCH
from arcloop.kfp.submission import read_submission
from arcloop.pipeline.steps import STEPS

TITLES = {
    "prepare": "0_data", "validate": "1_validate_data", "train": "2_train_model",
    "embed": "3_embedding", "index": "4_train_faiss", "evaluate": "5_analysis_model",
    "deploy": "6_deploy",
}  # fmt: skip


class Compiled:
    """A compiled pipeline: tasks and containers by step, and their Kubernetes config."""

    def __init__(self, path):
        self.path = path
        spec, *platform = yaml.safe_load_all(path.read_text())
        self.spec = json_format.ParseDict(spec, pb.PipelineSpec())
        deployment = json_format.ParseDict(spec["deploymentSpec"], pb.PipelineDeploymentConfig())
        self.tasks = dict(self._tasks(self.spec.root.dag))
        self.containers = {
            name.removeprefix("exec-"): executor.container
            for name, executor in deployment.executors.items()
        }
        executors = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.kubernetes = {
            name.removeprefix("exec-"): json_format.ParseDict(
                config, kubernetes_pb.KubernetesExecutorConfig()
            )
            for name, config in executors.items()
        }

    def _tasks(self, dag):
        for name, task in dag.tasks.items():
            component = self.spec.components[task.component_ref.name]
            if component.HasField("dag"):
                yield name, task
                yield from self._tasks(component.dag)
            else:
                yield name, task


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, image):
    folder = tmp_path_factory.mktemp("ir")

    def make(*overrides):
        submission = read_submission([f"cluster.image={image}", "mode=compile", *overrides])
        path = folder / f"{len(list(folder.iterdir()))}.yaml"
        compile_pipeline(submission.cluster, submission.notify, path)
        return Compiled(path)

    return make


@pytest.fixture(scope="module")
def onprem(compiled):
    return compiled(
        "cluster=onprem", "notify=slack", "+cluster.secrets={bucket: {key: BUCKET_KEY}}",
        "+cluster.env.TZ=UTC", "+cluster.node_selector.pool=ml", "cluster.pull_secrets=[registry]",
        "+cluster.data_volumes.arcloop-data=/mnt/data",
    )  # fmt: skip


@pytest.fixture(scope="module")
def local(compiled):
    submission = read_submission(["mode=compile"])
    assert submission.cluster.is_local
    return compiled("cluster.image=python:arcloop")


def test_every_step_has_its_title_and_the_image(onprem, image):
    assert {name: onprem.tasks[name].task_info.name for name in TITLES} == TITLES
    assert {container.image for container in onprem.containers.values()} == {image}


def test_the_image_of_a_local_step_is_the_hash_of_the_source(local):
    images = {container.image for container in local.containers.values()}
    assert images == {f"python:arcloop-{source_hash()}"}
    assert re.fullmatch(r"[0-9a-f]{16}", source_hash())


def test_each_step_takes_only_the_groups_that_it_reads(local):
    for name, step in STEPS.items():
        inputs = local.tasks[name].inputs
        groups = {f"{group}_overrides" for group in step.reads}
        assert set(inputs.parameters) - {"fingerprint", "cache_version"} == groups
        given = {parameter.component_input_parameter for parameter in inputs.parameters.values()}
        assert given - {"fingerprint", ""} == set(step.reads)
        assert set(inputs.artifacts) == set(step.inputs)
    of_prepare = {"data_overrides", "fingerprint", "cache_version"}
    assert set(local.tasks["prepare"].inputs.parameters) == of_prepare


def test_parameters_are_lists_of_strings(local):
    known = local.spec.root.input_definitions.parameters
    assert set(known) == {*PARAMETERS, "fingerprint"}
    for name in PARAMETERS:
        assert known[name].parameter_type == pb.ParameterType.LIST
        assert known[name].is_optional


def test_artifacts_have_types_of_kfp(onprem):
    kinds = {
        f"{step}.{name}": artifact.artifact_type.schema_title.removeprefix("system.")
        for step in STEPS
        for name, artifact in onprem.spec.components[
            f"comp-{step}"
        ].output_definitions.artifacts.items()
    }
    assert kinds == {
        "prepare.store_out": "Dataset", "validate.validation_out": "Artifact",
        "validate.report": "HTML", "train.run_out": "Model", "embed.gallery_out": "Dataset",
        "index.index_out": "Model", "evaluate.evaluation_out": "Artifact",
        "evaluate.report": "HTML", "evaluate.metrics": "Metrics",
        "evaluate.confusion": "ClassificationMetrics", "evaluate.roc": "ClassificationMetrics",
        "evaluate.summary": "Markdown",
    }  # fmt: skip


def test_deploy_waits_for_the_gate(local):
    (gate,) = (task for task in local.tasks.values() if task.trigger_policy.condition)
    assert gate.trigger_policy.condition.endswith("== true")
    assert "evaluate-Output" in gate.trigger_policy.condition
    assert "deploy" in local.spec.components[gate.component_ref.name].dag.tasks
    assert "deploy" not in local.spec.root.dag.tasks


def test_training_waits_for_validation(local):
    assert set(local.tasks["train"].dependent_tasks) == {"prepare", "validate"}


def test_steps_are_cached_and_other_tasks_are_not(onprem, compiled):
    cached = {name for name, task in onprem.tasks.items() if task.caching_options.enable_cache}
    assert cached & set(onprem.containers) == set(STEPS)
    without = compiled("cluster=onprem", "cluster.cache=false")
    assert not any(without.tasks[name].caching_options.enable_cache for name in STEPS)


def test_resources(onprem):
    train = onprem.containers["train"].resources
    assert (train.resource_cpu_request, train.resource_cpu_limit) == ("4", "4")
    assert (train.resource_memory_request, train.resource_memory_limit) == ("16Gi", "16Gi")
    assert train.accelerator.resource_type == "nvidia.com/gpu"
    assert train.accelerator.resource_count == "1"
    assert not onprem.containers["prepare"].resources.HasField("accelerator")


def test_shared_memory_volumes_and_secrets(onprem):
    (shm,) = onprem.kubernetes["train"].empty_dir_mounts
    assert (shm.mount_path, shm.medium, shm.size_limit) == ("/dev/shm", "Memory", "8Gi")
    mounts = {
        name: {m.pvc_name_parameter.runtime_value.constant.string_value or m.constant: m.mount_path
               for m in config.pvc_mount}
        for name, config in onprem.kubernetes.items()
    }  # fmt: skip
    assert mounts["embed"] == {"arcloop": "/mnt/arcloop"}
    assert mounts["prepare"] == {"arcloop": "/mnt/arcloop", "arcloop-data": "/mnt/data"}
    (secret,) = onprem.kubernetes["index"].secret_as_env
    assert secret.secret_name == "bucket"
    assert [(k.secret_key, k.env_var) for k in secret.key_to_env] == [("key", "BUCKET_KEY")]
    (webhook,) = onprem.kubernetes["notify-failure"].secret_as_env
    assert [(k.secret_key, k.env_var) for k in webhook.key_to_env] == [("url", "ARCLOOP_WEBHOOK")]
    environment = {variable.name: variable.value for variable in onprem.containers["embed"].env}
    assert environment == {"ARCLOOP_VOLUME": "/mnt/arcloop", "TZ": "UTC"}


def test_node_selectors_tolerations_and_pull_settings(onprem):
    assert dict(onprem.kubernetes["train"].node_selector.labels) == {"pool": "ml"}
    (toleration,) = onprem.kubernetes["train"].tolerations
    assert (toleration.key, toleration.operator, toleration.effect) == (
        "nvidia.com/gpu", "Exists", "NoSchedule",
    )  # fmt: skip
    assert not onprem.kubernetes["evaluate"].tolerations
    for config in onprem.kubernetes.values():
        assert config.image_pull_policy == "IfNotPresent"
        assert [secret.secret_name for secret in config.image_pull_secret] == ["registry"]


def test_retries_with_increasing_waits(onprem):
    for name in TITLES:
        policy = onprem.tasks[name].retry_policy
        assert policy.max_retry_count == 2
        assert policy.backoff_duration.seconds == 30
        assert policy.backoff_factor == 2


def test_an_exit_task_notifies_of_failures(onprem):
    exit_task = onprem.spec.root.dag.tasks["notify-failure"]
    strategy = pb.PipelineTaskSpec.TriggerPolicy.TriggerStrategy
    assert exit_task.trigger_policy.strategy == strategy.ALL_UPSTREAM_TASKS_COMPLETED
    assert exit_task.inputs.parameters["status"].HasField("task_final_status")


def test_gke_uses_spot_nodes(compiled):
    gke = compiled("cluster=gke")
    labels = dict(gke.kubernetes["train"].node_selector.labels)
    assert labels == {
        "cloud.google.com/gke-spot": "true", "cloud.google.com/gke-accelerator": "nvidia-l4",
    }  # fmt: skip
    assert gke.tasks["train"].retry_policy.max_retry_count == 5
    environment = {variable.name: variable.value for variable in gke.containers["train"].env}
    assert environment == {"ARCLOOP_CHECKPOINTS": "/mnt/arcloop"}
    (mount,) = gke.kubernetes["train"].pvc_mount
    assert (mount.constant, mount.mount_path) == ("arcloop", "/mnt/arcloop")
    assert not gke.kubernetes["embed"].pvc_mount
    assert len(gke.kubernetes["deploy"].pvc_mount) == 1
    assert len(gke.kubernetes["evaluate"].pvc_mount) == 1  # for evaluate.gate.versus


def test_compiling_twice_gives_equal_bytes(compiled):
    first, second = (
        compiled("cluster=onprem", "notify=slack"),
        compiled("cluster=onprem", "notify=slack"),
    )
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()


def test_the_ir_contains_no_path_of_this_machine(onprem, local):
    for made in (onprem, local):
        text = made.path.read_text()
        for ours in (Path(__file__).parents[2], Path.home(), Path(sys.prefix)):
            assert str(ours) not in text


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl merges the patch")
def test_the_size_limit_is_merged_into_the_volumes_of_the_pod(compiled, tmp_path):
    """The driver adds the mount to the pod's patch (driver/k8s.go, extendPodSpecPatch).

    Argo merges the patch into the pod of compiler/argocompiler/container.go, addContainerExecutor
    Template, which has volumes of these names, as a strategic merge patch, like `kubectl patch`.
    """
    config = compiled("cluster=gke", "+cluster.steps.embed.ephemeral=50Gi").kubernetes["embed"]
    pod = {
        "containers": [
            {"name": "main", "image": "x",
             "volumeMounts": [{"name": n, "mountPath": p} for n, p in SCRATCH.items()]},
        ],
        "volumes": [{"name": name, "emptyDir": {}} for name in SCRATCH],
    }  # fmt: skip
    added = config.empty_dir_mounts
    patch = {
        "containers": [
            {"name": "main",
             "volumeMounts": [{"name": a.volume_name, "mountPath": a.mount_path} for a in added]},
        ],
        "volumes": [
            {"name": a.volume_name, "emptyDir": {"sizeLimit": a.size_limit}} for a in added
        ],
    }  # fmt: skip
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    (tmp_path / "pod.json").write_text(json.dumps({**head, "spec": pod}))
    command = ["kubectl", "patch", "--local", "--type=strategic", "--output=json"]
    command += [f"--filename={tmp_path}/pod.json", f"--patch={json.dumps({'spec': patch})}"]
    merged = json.loads(subprocess.check_output(command))["spec"]
    assert {v["name"]: v["emptyDir"] for v in merged["volumes"]} == {
        name: {"sizeLimit": "50Gi"} for name in SCRATCH
    }
    mounts = merged["containers"][0]["volumeMounts"]
    assert {m["name"]: m["mountPath"] for m in mounts} == SCRATCH
    assert len(mounts) == len(merged["volumes"]) == 3
