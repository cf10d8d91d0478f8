"""The objects of a release: their schema, their security, and the checks across objects."""

import copy
import dataclasses
import itertools

import kubernetes_validate
import pytest

from arcloop.errors import ConfigError
from arcloop.serving.deploy import parse_arguments
from arcloop.serving.kubernetes.objects import Release, check_objects, make_objects

VERSION = "20260102T030405Z-0123456789ab"
LINEAGE = {"run": "ab" * 32, "store": "cd" * 32}
VARIANTS = {
    "default": {},
    "fastapi": {"server": "fastapi"},
    "autoscaled": {"max_replicas": 5, "gpus": 1, "image_pull_secrets": ["registry"]},
    "baked": {"model_claim": None, "client_namespaces": ["web", "batch"]},
    "placed": {
        "model_claim_path": "mnist", "node_selector": {"disk": "ssd"},
        "service_type": "LoadBalancer",
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def release_of():
    """A function: target, changes -> a release."""
    composed = {t: parse_arguments([f"deploy={t}"]).settings for t in ("kubernetes", "kserve")}

    def make(target="kubernetes", version=VERSION, **changes):
        settings = dataclasses.replace(composed[target], **changes)
        return Release(version, LINEAGE, False, settings)

    return make


@pytest.fixture
def objects(release_of):
    return {one["kind"]: one for one in make_objects(release_of())}


def pod(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects):
    (found,) = pod(objects)["containers"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_fits_its_schema(release_of, variant):
    release = release_of(**VARIANTS[variant])
    for one, version in itertools.product(make_objects(release), ("1.29", "1.37")):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_pods_of_kserve_fit_the_schema(release_of):
    """There is no schema of an InferenceService; all but KServe's own fields are a pod's."""
    *around, service = make_objects(release_of("kserve"))
    for one in around:
        kubernetes_validate.validate(one, "1.37", strict=True)
    own = ("labels", "annotations", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget",
           "deploymentStrategy")  # fmt: skip
    spec = {key: value for key, value in service["spec"]["predictor"].items() if key not in own}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
    kubernetes_validate.validate(made, "1.37", strict=True)
    assert service["spec"]["predictor"]["containers"][0]["name"] == "kserve-container"


@pytest.mark.parametrize("target", ["kubernetes", "kserve"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_objects_of_any_variant_fit_together(release_of, target, variant):
    objects = make_objects(release_of(target, **VARIANTS[variant]))  # raises for a fault
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    assert {one["metadata"]["namespace"] for one in objects} == {"default"}


HOSTILE = ["true", "1", "no: {", "a'b\"c", "<&>", "{{ 7 * 7 }}", "#x", "a\nb"]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_of_a_setting_stays_one_string(release_of, value):
    changes = {"app": "on", "namespace": "null", "image": "1", "tolerations": [{"key": value}]}
    release = release_of(**changes, model_claim_path=value)
    objects = {one["kind"]: one for one in make_objects(release)}
    assert {one["metadata"]["namespace"] for one in objects.values()} == {"null"}
    assert pod(objects)["serviceAccountName"] == "on"
    assert container(objects)["image"] == "1"
    assert pod(objects)["tolerations"] == [{"key": value}]
    assert container(objects)["volumeMounts"][-1]["subPath"] == value


def test_an_old_pod_is_stopped_after_a_new_one_is_ready(objects):
    spec = objects["Deployment"]["spec"]
    rolling = {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert {c["topologyKey"] for c in pod(objects)["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname", "topology.kubernetes.io/zone",
    }  # fmt: skip
    for constraint in pod(objects)["topologySpreadConstraints"]:
        assert constraint["labelSelector"] == spec["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(("server", "drain"), [("torchserve", 25), ("fastapi", 5)])
def test_a_stopped_pod_answers_its_requests_first(release_of, server, drain):
    """TorchServe drops requests at SIGTERM, so it gets the time for them before."""
    objects = {o["kind"]: o for o in make_objects(release_of(server=server, response_timeout_s=20))}
    stop = container(objects)["lifecycle"]["preStop"]["exec"]["command"]
    assert stop == ["sleep", str(drain)]
    assert pod(objects)["terminationGracePeriodSeconds"] > drain + 20


def test_readiness_probes_the_model_and_liveness_the_front_end(release_of):
    for server, asked in (("torchserve", "exec"), ("fastapi", "httpGet")):
        objects = {o["kind"]: o for o in make_objects(release_of(server=server, workers=2))}
        found = container(objects)
        for kind in ("startupProbe", "readinessProbe"):
            assert asked in found[kind]
        if server == "torchserve":
            assert found["readinessProbe"]["exec"]["command"][-3:] == ["8083", "mnist", "2"]
        else:
            assert found["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert found["livenessProbe"]["httpGet"]["path"] == "/ping"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert found[kind]["timeoutSeconds"] <= found[kind]["periodSeconds"]
        startup = found["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] > 60


def test_a_pod_has_minimal_rights(objects):
    spec, security = pod(objects), container(objects)["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    writable = [m["name"] for m in container(objects)["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["scratch"]
    claims = [v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "model-store", "readOnly": True}]


def test_a_pod_has_requests_and_limits_and_no_secret(objects):
    resources = container(objects)["resources"]
    assert resources["requests"] == {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "4Gi"}
    assert resources["limits"] == {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "4Gi"}
    assert [variable["name"] for variable in container(objects)["env"]] == ["HOME", "TMPDIR"]


def test_the_network_policy_allows_requests_and_metrics(objects):
    assert [p["targetPort"] for p in objects["Service"]["spec"]["ports"]] == ["http"]
    assert {p["containerPort"] for p in container(objects)["ports"]} == {8082, 8084}
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    questions, metrics = policy["ingress"]
    assert [p["port"] for p in questions["ports"]] == [8082]
    assert "from" not in questions
    assert [p["port"] for p in metrics["ports"]] == [8084]
    (scraper,) = metrics["from"]
    assert scraper["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }
    assert scraper["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}


def test_the_config_of_torchserve_in_a_pod(objects):
    text = objects["ConfigMap"]["data"]["config.properties"]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    config = dict(line.split("=", 1) for line in lines)
    assert config["inference_address"] == "http://0.0.0.0:8082"
    assert config["metrics_address"] == "http://0.0.0.0:8084"
    assert config["management_address"] == "http://127.0.0.1:8083"
    assert config["allowed_urls"] == "file:///models/.*"
    assert config["load_models"] == f"mnist=mnist-{VERSION}.mar"
    assert config["enable_model_api"] == config["install_py_dep_per_model"] == "false"


def test_versions_have_different_templates_and_configs(release_of):
    one, same, other = (
        {o["kind"]: o for o in make_objects(release_of(version=version))}
        for version in (VERSION, VERSION, VERSION.replace("2026", "2027"))
    )
    assert one == same
    assert one["Deployment"]["spec"]["template"] != other["Deployment"]["spec"]["template"]
    assert one["ConfigMap"]["metadata"]["name"] != other["ConfigMap"]["metadata"]["name"]
    assert one["ConfigMap"]["immutable"] is True
    assert one["Deployment"]["spec"]["selector"] == other["Deployment"]["spec"]["selector"]
    marks = [
        o["Deployment"]["spec"]["template"]["metadata"]["labels"]["arcloop/release"]
        for o in (one, other)
    ]
    assert marks[0] != marks[1]


def test_the_lineage_is_an_annotation(objects):
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["labels"]["app.kubernetes.io/version"] == VERSION
    assert LINEAGE["run"] in metadata["annotations"]["arcloop/lineage"]
    assert len(LINEAGE["run"]) == 64, "a label has at most 63 characters"


def plant(objects, path, value):
    """Set what is at a path, or remove it."""
    for key in path[:-1]:
        objects = objects[key]
    if value is None:
        objects.pop(path[-1])
    else:
        objects[path[-1]] = value


SPEC = ("Deployment", "spec")
POD = (*SPEC, "template", "spec")
SERVER = (*POD, "containers", 0)
PLANTED = {
    "a selector of other pods": ((*SPEC, "selector", "matchLabels", "a"), "b", "selects a=b"),
    "a Service of other pods":
        (("Service", "spec", "selector", "app.kubernetes.io/instance"), "else",
        "it selects app.kubernetes.io/instance=else"),
    "a Service of all pods": (("Service", "spec", "selector"), {}, "every pod"),
    "a budget of other pods":
        (("PodDisruptionBudget", "spec", "selector", "matchLabels"), {"a": "b"}, "a=b"),
    "a policy for other pods":
        (("NetworkPolicy", "spec", "podSelector", "matchLabels"), {"a": "b"}, "a=b"),
    "a policy of another port":
        (("NetworkPolicy", "spec", "ingress"), [{"ports": [{"port": 1}]}], "allows no port"),
    "a target port by a wrong name":
        (("Service", "spec", "ports", 0, "targetPort"), "htp", "no container has a port 'htp'"),
    "a target port by a wrong number":
        (("Service", "spec", "ports", 0, "targetPort"), 8083, "no container has a port 8083"),
    "a probe of no port":
        ((*SERVER, "livenessProbe", "httpGet", "port"), 9, "livenessProbe requests port 9"),
    "a short grace period":
        ((*POD, "terminationGracePeriodSeconds"), 45, "grace period of 45 s is too short"),
    "a volume that no container mounts":
        ((*SERVER, "volumeMounts"), [], "no container mounts the volume models"),
    "a config that is not there":
        (("ConfigMap", "metadata", "name"), "other", "ConfigMap/mnist-config"),
    "an account that is not there":
        ((*POD, "serviceAccountName"), "root", "ServiceAccount/root"),
    "an autoscaler of another":
        (("HorizontalPodAutoscaler", "spec", "scaleTargetRef", "name"), "x", "Deployment/x"),
    "two managers of replicas": ((*SPEC, "replicas"), 2, "which the autoscaler changes"),
    "a share of nothing":
        ((*SERVER, "resources", "requests", "cpu"), None, "needs a cpu request"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checks_find_each_fault(release_of, planted):
    release = release_of(max_replicas=5)
    objects = {one["kind"]: copy.deepcopy(one) for one in make_objects(release)}
    path, value, expected = PLANTED[planted]
    plant(objects, path, value)
    with pytest.raises(ConfigError) as error:
        check_objects(list(objects.values()), release.settings.response_timeout_s)
    assert expected in str(error.value)


def test_kserve_publishes_one_port(release_of):
    objects = make_objects(release_of("kserve"))
    ports = objects[-1]["spec"]["predictor"]["containers"][0]["ports"]
    assert [port["name"] for port in ports] == ["http"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("name=My_model", "deploy.app='My_model' must be lower case"),
        ("deploy.namespace=Team", "deploy.namespace='Team' must be the name of a namespace"),
        ("deploy.memory_limit=2GB", "deploy.memory_limit='2GB' must be a quantity"),
        ("deploy.cpu_limit=500m", "deploy.cpu_request=1 must not exceed deploy.cpu_limit=500m"),
        ("deploy.replicas=0", "deploy.replicas=0 must be greater than or equal to 1"),
        ("deploy.max_replicas=1", "must not be less than deploy.replicas=2"),
        ("deploy.progress_deadline_s=60", "must be more than deploy.startup_timeout_s=60"),
        ("deploy.endpoint=mnist.team", "must be a http or https URL"),
        ("deploy.endpoint=https://me:word@host", "without a password"),
        ("deploy.model_claim_path=../other", "must be a path inside the claim"),
        ("deploy.service_type=Public", "must be 'ClusterIP', 'NodePort' or 'LoadBalancer'"),
        ("deploy.scraper_namespace=''", "must be the name of a namespace"),
        ("deploy.image=''", "must be the name of an image"),
        ("deploy.replica=3", "did you mean deploy.replicas"),
        ("deploy.memory_limit='0'", "must be a quantity"),
        ("deploy.model_claim=My_claim", "must be the name of an object"),
        ("+deploy.node_selector={a/b/c: d}", "must be the key of a label"),
        (f"+deploy.node_selector.run={'ab' * 32}", "must be the value of a label"),
    ],
)
def test_an_invalid_setting_is_rejected(given, said):
    with pytest.raises(ConfigError) as error:
        parse_arguments(["deploy=kubernetes", given])
    assert said in str(error.value)


def test_a_key_of_deploy_kubernetes_is_unknown_to_deploy_local():
    with pytest.raises(ConfigError, match="deploy=kubernetes has it"):
        parse_arguments(["deploy.namespace=team"])
