"""Labels, affinity, identity and time limits of the pods, and the paths that they mount.

The comments name the files and functions of KFP's source, in backend/src/v2, that a test encodes.
"""

import subprocess
import sys

import pytest
import yaml

from arcloop.errors import ConfigError
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.submission import read_submission


@pytest.fixture(scope="module")
def pods(tmp_path_factory, image):
    """A function: overrides -> step -> its KubernetesExecutorConfig as a dict."""
    path = tmp_path_factory.mktemp("ir") / "pipeline.yaml"

    def make(*overrides):
        submission = read_submission([f"cluster.image={image}", "cluster=onprem", *overrides])
        compile_pipeline(submission.cluster, submission.notify, path)
        _, platform = yaml.safe_load_all(path.read_text())
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return {name.removeprefix("exec-"): config for name, config in executors.items()}

    return make


@pytest.fixture(scope="module")
def placed(pods):
    return pods(
        "+cluster.labels={kueue.x-k8s.io/queue-name: ml}", "cluster.security.run_as_user=1000",
        "+cluster.annotations={sidecar.istio.io/inject: 'false'}", "notify=slack",
        "cluster.security.run_as_group=2000", "cluster.security.run_as_non_root=true",
        "+cluster.steps.train.timeout_s=7200",
        "+cluster.steps.train.labels={kueue.x-k8s.io/queue-name: gpus}",
        "cluster.node_affinity=[{key: pool, operator: In, values: [a, b]},"
        "{key: spot, operator: DoesNotExist}, {key: zone, operator: In, values: [x], weight: 5}]",
    )  # fmt: skip


def test_labels_and_annotations_of_every_pod(placed):
    # compiler/argocompiler/container.go, extendPodMetadata: only what podMetadata contains.
    for name, pod in placed.items():
        queue = "gpus" if name == "train" else "ml"
        assert pod["podMetadata"] == {
            "labels": {"kueue.x-k8s.io/queue-name": queue},
            "annotations": {"sidecar.istio.io/inject": "false"},
        }, name


def test_required_affinities_are_one_term(placed):
    # driver/k8s.go, extendPodSpecPatch: each nodeAffinity without a weight becomes one of the
    # nodeSelectorTerms, of which Kubernetes requires only one.
    for name, pod in placed.items():
        required, preferred = pod["nodeAffinity"]
        assert [(e["key"], e["operator"]) for e in required["matchExpressions"]] == [
            ("pool", "In"), ("spot", "DoesNotExist"),
        ], name  # fmt: skip
        assert required["matchExpressions"][0]["values"] == ["a", "b"]
        assert "weight" not in required
        assert (preferred["weight"], preferred["matchExpressions"][0]["key"]) == (5, "zone")


def test_identity_of_every_container(placed):
    # driver/k8s.go, extendPodSpecPatch: only these fields; it drops all capabilities itself.
    # compiler/argocompiler/security_context.go, defaultUserContainerSecurityContext: no
    # privilege escalation and the seccomp profile, so with runAsNonRoot the container is
    # "restricted".
    identity = {"runAsUser": "1000", "runAsGroup": "2000", "runAsNonRoot": True}
    assert all(pod["securityContext"] == identity for pod in placed.values())


def test_a_time_limit_is_that_of_one_attempt(placed):
    # driver/k8s.go, extendPodSpecPatch: podSpec.ActiveDeadlineSeconds, so of one pod.
    limits = {name: pod.get("activeDeadlineSeconds") for name, pod in placed.items()}
    assert {name: limit for name, limit in limits.items() if limit} == {"train": "7200"}


def test_a_trainjob_step_keeps_its_time_limit(pods):
    limited = pods("cluster.train=trainjob", "+cluster.steps.train.timeout_s=60")["train"]
    assert limited["activeDeadlineSeconds"] == "60"


def test_the_defaults_have_no_field_that_an_older_server_refuses(pods):
    # compiler/argocompiler/container.go of 2.14 and 2.15: protojson.Unmarshal refuses unknown
    # fields, and securityContext exists since 2.16.
    assert all("securityContext" not in pod for pod in pods().values())


def test_the_profile_names_no_secret_and_no_claim_but_the_volume(pods):
    for pod in pods().values():
        assert "imagePullSecret" not in pod
        assert {mount["constant"] for mount in pod.get("pvcMount", [])} <= {"arcloop"}


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["data=image_folder", "data.root=/mnt/data/x"],
         "data.root=/mnt/data/x is outside every mount: /mnt/arcloop"),
        (["data=image_folder", "data.root=/mnt/data/../x", "+cluster.data_volumes.d=/mnt/data"],
         "data.root=/mnt/data/../x is outside every mount"),
        (["data=image_folder", "data.root=data"], "must be an absolute path"),
        (["data=image_folder", "data.root=/mnt/arcloop/x", "cluster.storage=artifacts"],
         "is outside every mount: nothing"),
        (["backbone_weights.file=/mnt/data/best.ckpt", "+cluster.data_volumes.d=/mnt/data"],
         "backbone_weights.file=/mnt/data/best.ckpt is outside every mount: /mnt/arcloop"),
        (["calibration.unknown=/mnt/unknown"], "(step index)"),
        (["evaluate.pairs=[lfw.bin]"], "evaluate.pairs=lfw.bin must be an absolute path"),
        (["evaluate.gate.versus=runs/x"], "evaluate.gate.versus=runs/x must be an absolute path"),
        (["deploy.model_store=/srv/models"], "deploy.model_store=/srv/models is outside"),
        (["cluster.node_affinity=[{key: a, operator: Is}]"], "cluster.node_affinity.0.operator"),
        (["cluster.node_affinity=[{key: a, operator: In, weight: 0}]"], "node_affinity.0.weight"),
        (["+cluster.steps.train.timeout_s=0"], "cluster.steps.train.timeout_s=0"),
        (["cluster.security.run_as_user=-1"], "cluster.security.run_as_user=-1"),
        (["+cluster.labels={a b: c}"], "cluster.labels"),
    ],
)  # fmt: skip
def test_wrong_placements_are_refused(image, overrides, fault):
    with pytest.raises(ConfigError) as refused:
        read_submission([f"cluster.image={image}", "cluster=onprem", *overrides])
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=image_folder", "data.root=/mnt/data/x", "+cluster.data_volumes.d=/mnt/data"],
        ["data=image_folder", "data.root=/mnt/arcloop/x"],
        ["data=image_folder", "data.root=/opt/arcloop/x"],
        ["backbone_weights.file=/mnt/arcloop/best.ckpt"],
    ],
)
def test_mounted_paths_are_accepted(image, overrides):
    read_submission([f"cluster.image={image}", "cluster=onprem", *overrides])


def test_the_tasks_without_a_model_do_not_import_torch():
    code = (
        "import sys; from arcloop.kfp.pod import notification, steps;"
        "steps.compute_fingerprint([]); notification.post('NONE', 1.0, 'text');"
        "assert not {'torch', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_served_pods_mount_the_volume_of_the_run(image):
    overrides = [f"cluster.image={image}", "cluster=onprem", "deploy=kserve"]
    with pytest.raises(ConfigError, match=r"deploy\.namespace must be the namespace of the run"):
        read_submission(overrides)
    served = read_submission([*overrides, "cluster.namespace=team"]).config["deploy"]
    assert served["namespace"] == "team"
    named = read_submission([*overrides, "cluster.namespace=default"]).config["deploy"]
    assert named["namespace"] == "default"
    assert served["model_claim"] == "arcloop"
    assert served["model_claim_path"] == served["model_store"] == "model_store/mnist"
    own = [*overrides, "deploy.namespace=serving", "deploy.model_claim=models"]
    served = read_submission([*own, "deploy.model_store=/mnt/arcloop/a"]).config["deploy"]
    assert (served["namespace"], served["model_claim"]) == ("serving", "models")
    assert served["model_claim_path"] == "a"
