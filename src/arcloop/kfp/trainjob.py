"""Train on several nodes with a TrainJob of Kubeflow Trainer v2.

The pod of the train step creates the job and waits for it. The nodes run
`torchrun -m arcloop.pipeline.train_worker`; Trainer configures torchrun by PET_* variables. Store
and run are on a volume that all pods mount.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import Any

import kubernetes as k8s
import urllib3
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from arcloop.artifacts import Artifact, load
from arcloop.artifacts.atomic import write_json
from arcloop.config.composition import compose_config
from arcloop.distributed.launcher import worker_job
from arcloop.errors import ArcloopError, ResourceError

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_MAX_FAILED_POLLS = 10
"""Consecutive failed polls after which the step gives up."""


def train(overrides: Sequence[str], store: Path, run_dir: Path, settings: str) -> Artifact:
    """Train with a TrainJob and return the run.

    Args:
        overrides: Hydra overrides of the groups that training reads.
        store: Folder of the `store` on the shared volume.
        run_dir: Folder of the `run` on the shared volume.
        settings: JSON of `arcloop.kfp.pipeline.trainjob_settings`.

    Raises:
        ResourceError: The job failed, or cannot be created or polled.
    """
    trainjob = json.loads(settings)
    config = compose_config([*overrides, f"run_dir={run_dir}"])
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    job_file = run_dir.parent / f"{run_dir.name}.job.json"
    write_json(job_file, worker_job(config, store, run_dir, overrides, pipeline_task=True))
    namespace = trainjob["namespace"] or _NAMESPACE.read_text()
    run_job(_custom_objects_api(), namespace, make_job(trainjob, job_file), trainjob["poll_s"])
    return load(run_dir, "run")


def make_job(settings: Mapping[str, Any], job_file: Path) -> dict[str, Any]:
    """Return the TrainJob, checked against the models of its API.

    Args:
        settings: See `arcloop.kfp.pipeline.trainjob_settings`.
        job_file: File with the training job, which every process reads.

    Raises:
        ArcloopError: The models of the API do not have all of the fields.
    """
    wanted = _without_none(
        {
            "apiVersion": f"{_GROUP}/{_VERSION}",
            "kind": "TrainJob",
            "metadata": {"generateName": "arcloop-train-"},
            "spec": {
                "runtimeRef": {
                    "apiGroup": _GROUP,
                    "kind": "ClusterTrainingRuntime",
                    "name": settings["runtime"],
                },
                "activeDeadlineSeconds": settings["deadline_s"],
                "trainer": _trainer(settings, job_file),
                "runtimePatches": [
                    {
                        "manager": "arcloop.dev/pipeline",
                        "trainingRuntimeSpec": {
                            "template": {"spec": {"replicatedJobs": [_node(settings)]}}
                        },
                    }
                ],
            },
        }
    )
    model = TrainerV1alpha1TrainJob.from_dict(wanted)
    assert model is not None
    made: dict[str, Any] = json.loads(model.to_json())
    if made != wanted:  # the models drop unknown fields
        raise ArcloopError(
            "the installed kubeflow-trainer-api does not know all fields of this TrainJob",
            where=sorted(set(_leaves(wanted)) ^ set(_leaves(made))),
            remedy="install the version in constraints.txt",
        )
    return made


def _trainer(settings: Mapping[str, Any], job_file: Path) -> dict[str, Any]:
    """Return command, number of processes and resources of the nodes."""
    limits = {"cpu": settings["cpu"], "memory": settings["memory"]}
    if settings["gpus"]:
        limits[settings["gpu_type"]] = str(settings["gpus"])
    limits = {name: value for name, value in limits.items() if value}
    env = [{"name": name, "value": value} for name, value in settings["env"].items()]
    env += [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, keys in settings["secrets"].items()
        for key, variable in keys.items()
    ]
    return {
        "image": settings["image"],
        "command": ["torchrun", "-m", "arcloop.pipeline.train_worker", str(job_file)],
        "numNodes": settings["nodes"],
        "numProcPerNode": settings["processes"],
        "resourcesPerNode": {"limits": limits, "requests": limits},
        "env": env or None,
    }


def _node(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return volumes, node selector, tolerations and pull secrets of the nodes' pods."""
    claim = {"claimName": settings["volume"]["claim"]}
    volumes: list[dict[str, Any]] = [{"name": "arcloop", "persistentVolumeClaim": claim}]
    mounts = [{"name": "arcloop", "mountPath": settings["volume"]["mount"]}]
    if settings["shm"]:
        memory = {"medium": "Memory", "sizeLimit": settings["shm"]}
        volumes.append({"name": "shm", "emptyDir": memory})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    renamed = {"toleration_seconds": "tolerationSeconds"}
    tolerations = [
        {renamed.get(key, key): value for key, value in toleration.items()}
        for toleration in settings["tolerations"]
    ]
    pod = {
        "containers": [{"name": "node", "volumeMounts": mounts}],
        "volumes": volumes,
        "nodeSelector": settings["node_selector"] or None,
        "tolerations": tolerations or None,
        "imagePullSecrets": [{"name": name} for name in settings["pull_secrets"]] or None,
    }
    return {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}


def run_job(api: Any, namespace: str, job: Mapping[str, Any], poll_s: float) -> None:
    """Create a job and wait for its end, printing each change of its state.

    The job is deleted if it succeeded (its results are on the volume) or if this step is stopped. A
    failed job is kept for inspection.

    Args:
        api: A `CustomObjectsApi`.
        namespace: Namespace of the job.
        job: The TrainJob.
        poll_s: Seconds between two polls.

    Raises:
        ResourceError: The job failed or was deleted, or the API did not answer repeatedly.
    """
    place = (_GROUP, _VERSION, namespace, _PLURAL)
    try:
        name = api.create_namespaced_custom_object(*place, job)["metadata"]["name"]
    except k8s.client.ApiException as cause:
        raise ResourceError(
            f"the TrainJob was refused ({cause.status} {cause.reason}): {_message(cause)}",
            where=f"namespace {namespace}",
            remedy="apply kubeflow/rbac.yaml, and check that Kubeflow Trainer v2 is installed",
        ) from None
    print(f"TrainJob {namespace}/{name}: created", flush=True)
    failure = None
    try:
        failure = _wait(api, place, name, poll_s)
    finally:
        if failure is None:
            api.delete_namespaced_custom_object(*place, name, propagation_policy="Foreground")
    if failure:
        raise ResourceError(
            f"TrainJob {name} failed: {failure}",
            where=f"namespace {namespace}",
            remedy=f"kubectl -n {namespace} logs -l jobset.sigs.k8s.io/jobset-name={name} --prefix",
        )


def _wait(api: Any, place: tuple[str, ...], name: str, poll_s: float) -> str | None:
    """Poll the job until it ends; return the reason if it failed, else None."""
    printed, failed_polls = "", 0
    while True:
        try:
            status = api.get_namespaced_custom_object(*place, name).get("status") or {}
            failed_polls = 0
        except (k8s.client.ApiException, OSError, urllib3.exceptions.HTTPError) as cause:
            failed_polls += 1
            if getattr(cause, "status", None) == 404 or failed_polls >= _MAX_FAILED_POLLS:
                return f"its state cannot be read any more ({cause.__class__.__name__})"
            status = {}
        if (state := _format_state(status)) and state != printed:
            print(f"TrainJob {name}: {state}", flush=True)
            printed = state
        for condition in status.get("conditions", ()):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return None
            if condition["status"] == "True" and condition["type"] == "Failed":
                return f"{condition.get('reason')}: {condition.get('message')}"
        sleep(poll_s)


def _format_state(status: Mapping[str, Any]) -> str:
    """Return the conditions of the job and the pod counts of its parts, for one line of output."""
    words = [c["type"] for c in status.get("conditions", ()) if c["status"] == "True"]
    for job in status.get("jobsStatus", ()):
        counts = {k: job.get(k) for k in ("ready", "active", "succeeded", "failed") if job.get(k)}
        words.append(" ".join([job["name"], *(f"{k}={n}" for k, n in counts.items())]))
    return ", ".join(words)


def _custom_objects_api() -> Any:
    try:
        k8s.config.load_incluster_config()
    except k8s.config.ConfigException:
        k8s.config.load_kube_config()
    return k8s.client.CustomObjectsApi()


def _message(cause: Any) -> str:
    try:
        return str(json.loads(cause.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(cause.body)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, path: str = "") -> list[str]:
    """Return "path=value" of all scalars in nested dicts and lists."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for n, item in enumerate(value) for leaf in _leaves(item, f"{path}[{n}]")]
    return [f"{path}={value}"]
