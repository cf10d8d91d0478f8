"""Training on nodes of its own: a TrainJob of Kubeflow Trainer v2, made, followed, and judged.

It runs in the train step's pod. The nodes run `torchrun -m arcloop.pipeline.train_worker`, which
Trainer's PET_* variables tell of each other; store and run lie on the volume that all share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import Any

import kubernetes as k8s
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from arcloop.artifacts import Artifact, load
from arcloop.artifacts.atomic import write_json
from arcloop.config.composition import compose_config
from arcloop.distributed.launcher import rank_job
from arcloop.errors import ArcloopError, ResourceError

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LOST_LOOKS = 10
"""Looks in a row that may fail before a training that goes on without us is given up."""


def train_on(overrides: Sequence[str], store: Path, run_dir: Path, settings: str) -> Artifact:
    """Train with a TrainJob and return the run.

    Args:
        overrides: Of the groups that training reads.
        store: On the shared volume.
        run_dir: On the shared volume.
        settings: JSON of `placing.trainjob_settings`.

    Raises:
        ResourceError: The job failed, with its reason; or cannot be made or followed.
    """
    needs = json.loads(settings)
    config = compose_config([*overrides, f"run_dir={run_dir}"])
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    job_file = run_dir.parent / f"{run_dir.name}.job.json"
    write_json(job_file, rank_job(config, store, run_dir, overrides, alone=True))
    follow(_api(), needs["namespace"] or _NAMESPACE.read_text(), train_job(needs, job_file), needs)
    return load(run_dir, "run")


def train_job(needs: Mapping[str, Any], job_file: Path) -> dict[str, Any]:
    """Return the TrainJob, proven to hold nothing that its API does not know.

    Args:
        needs: See `placing.trainjob_settings`.
        job_file: What the ranks read.

    Raises:
        ArcloopError: A setting is lost on the way through the API's own models.
    """
    container = {"name": "node", "volumeMounts": _mounts(needs)}
    pod = {
        "containers": [container],
        "volumes": _volumes(needs),
        "nodeSelector": needs["node_selector"] or None,
        "tolerations": [_toleration(t) for t in needs["tolerations"]] or None,
        "imagePullSecrets": [{"name": name} for name in needs["pull_secrets"]] or None,
    }
    node = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    limits = {"cpu": needs["cpu"], "memory": needs["memory"]}
    if needs["gpus"]:
        limits[needs["gpu_type"]] = str(needs["gpus"])
    limits = {name: value for name, value in limits.items() if value}
    wanted = _without_none(
        {
            "apiVersion": f"{_GROUP}/{_VERSION}",
            "kind": "TrainJob",
            "metadata": {"generateName": "arcloop-train-"},
            "spec": {
                "runtimeRef": {
                    "apiGroup": _GROUP, "kind": "ClusterTrainingRuntime", "name": needs["runtime"],
                },
                "activeDeadlineSeconds": needs["deadline_s"],
                "trainer": {
                    "image": needs["image"],
                    "command": ["torchrun", "-m", "arcloop.pipeline.train_worker", str(job_file)],
                    "numNodes": needs["nodes"],
                    "numProcPerNode": needs["processes"],
                    "resourcesPerNode": {"limits": limits, "requests": limits},
                    "env": _env(needs) or None,
                },
                "runtimePatches": [
                    {
                        "manager": "arcloop.dev/pipeline",
                        "trainingRuntimeSpec": {
                            "template": {"spec": {"replicatedJobs": [node]}}
                        },
                    }
                ],
            },
        }
    )  # fmt: skip
    model = TrainerV1alpha1TrainJob.from_dict(wanted)
    assert model is not None
    made: dict[str, Any] = json.loads(model.to_json())
    if made != wanted:  # the models drop what they do not know
        raise ArcloopError(
            "the installed kubeflow-trainer-api does not know all of this TrainJob",
            where=sorted(set(_leaves(wanted)) ^ set(_leaves(made))),
            remedy="install the version that constraints.txt names",
        )
    return made


def follow(api: Any, namespace: str, job: Mapping[str, Any], needs: Mapping[str, Any]) -> None:
    """Create a job and wait for its end, printing each change of its state.

    It is deleted when it succeeded, for what it made is on the volume, and when this step is
    stopped; a failed one stays to be looked at.

    Raises:
        ResourceError: It failed, or vanished, or the API is gone for too long.
    """
    place = (_GROUP, _VERSION, namespace, _PLURAL)
    try:
        name = api.create_namespaced_custom_object(*place, job)["metadata"]["name"]
    except k8s.client.ApiException as refusal:
        raise ResourceError(
            f"the TrainJob was refused ({refusal.status} {refusal.reason}): {_said(refusal)}",
            where=f"namespace {namespace}",
            remedy="apply kubeflow/rbac.yaml, and see that Kubeflow Trainer v2 is installed",
        ) from None
    print(f"TrainJob {namespace}/{name}: created", flush=True)
    ended = False
    try:
        failure = _wait(api, place, name, needs["poll_s"])
        ended = failure is not None
    finally:
        if not ended:
            api.delete_namespaced_custom_object(*place, name, propagation_policy="Foreground")
    if failure:
        raise ResourceError(
            f"TrainJob {name} failed: {failure}",
            where=f"namespace {namespace}",
            remedy=f"kubectl -n {namespace} logs -l jobset.sigs.k8s.io/jobset-name={name} --prefix",
        )


def _wait(api: Any, place: tuple[str, ...], name: str, poll_s: float) -> str | None:
    """Look until the job ends; None: it succeeded, else why it failed."""
    told, lost = "", 0
    while True:
        try:
            status = api.get_namespaced_custom_object(*place, name).get("status") or {}
            lost = 0
        except (
            k8s.client.ApiException,
            OSError,
            k8s.client.rest.urllib3.exceptions.HTTPError,
        ) as gone:
            lost += 1
            if getattr(gone, "status", None) == 404 or lost >= _LOST_LOOKS:
                return f"it cannot be seen any more ({gone.__class__.__name__})"
            status = {}
        if (state := _state(status)) and state != told:
            print(f"TrainJob {name}: {state}", flush=True)
            told = state
        for condition in status.get("conditions", ()):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return None
            if condition["status"] == "True" and condition["type"] == "Failed":
                return f"{condition.get('reason')}: {condition.get('message')}"
        sleep(poll_s)


def _state(status: Mapping[str, Any]) -> str:
    words = [c["type"] for c in status.get("conditions", ()) if c["status"] == "True"]
    for job in status.get("jobsStatus", ()):
        counts = {k: job.get(k) for k in ("ready", "active", "succeeded", "failed") if job.get(k)}
        words.append(" ".join([job["name"], *(f"{k}={n}" for k, n in counts.items())]))
    return ", ".join(words)


def _api() -> Any:
    try:
        k8s.config.load_incluster_config()
    except k8s.config.ConfigException:
        k8s.config.load_kube_config()
    return k8s.client.CustomObjectsApi()


def _said(refusal: Any) -> str:
    try:
        return str(json.loads(refusal.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(refusal.body)


def _env(needs: Mapping[str, Any]) -> list[dict[str, Any]]:
    plain = [{"name": name, "value": value} for name, value in needs["env"].items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, keys in needs["secrets"].items()
        for key, variable in keys.items()
    ]
    return plain + secret


def _mounts(needs: Mapping[str, Any]) -> list[dict[str, Any]]:
    mounts = [{"name": "arcloop", "mountPath": needs["volume"]["mount"]}]
    if needs["shm"]:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    return mounts


def _volumes(needs: Mapping[str, Any]) -> list[dict[str, Any]]:
    claim = {"claimName": needs["volume"]["claim"]}
    volumes: list[dict[str, Any]] = [{"name": "arcloop", "persistentVolumeClaim": claim}]
    if needs["shm"]:
        memory = {"medium": "Memory", "sizeLimit": needs["shm"]}
        volumes.append({"name": "shm", "emptyDir": memory})
    return volumes


def _toleration(given: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"toleration_seconds": "tolerationSeconds"}
    return {renamed.get(key, key): value for key, value in given.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for n, item in enumerate(value) for leaf in _leaves(item, f"{path}[{n}]")]
    return [f"{path}={value}"]
