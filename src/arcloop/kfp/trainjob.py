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
import yaml

from arcloop.artifacts import load
from arcloop.artifacts.atomic import write_json
from arcloop.config.composition import compose_config
from arcloop.display.html import render_template
from arcloop.distributed.launcher import worker_job
from arcloop.errors import ResourceError
from arcloop.kfp.config import ClusterSettings

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_TEMPLATE = Path(__file__).with_name("trainjob.yaml.j2")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_POLL = "arcloop.dev/poll-seconds"
"""Annotation of the job with the seconds between two polls of its state."""
_MAX_FAILED_POLLS = 10
"""Consecutive failed polls after which the step gives up."""


def make_job(settings: ClusterSettings) -> str:
    """Return the TrainJob as JSON, without the path of the job file.

    Every node has the resources and the scheduling of the train step.
    """
    step = settings.steps["train"]
    resources = {"cpu": step.cpu, "memory": step.memory, step.gpu_type: step.gpus}
    tolerations = [*settings.tolerations, *step.tolerations]
    text = render_template(
        _TEMPLATE,
        cluster=settings,
        trainjob=settings.trainjob,
        step=step,
        resources={name: str(amount) for name, amount in resources.items() if amount},
        node_selector=settings.node_selector | step.node_selector,
        tolerations=[t.model_dump(exclude_none=True, by_alias=True) for t in tolerations],
    )
    return json.dumps(yaml.safe_load(text))


def train(overrides: Sequence[str], store: Path, run_dir: Path, job: str) -> str:
    """Train with a TrainJob and return the hash of the run.

    Args:
        overrides: Hydra overrides of the groups that training reads.
        store: Folder of the `store` on the shared volume.
        run_dir: Folder of the `run` on the shared volume.
        job: JSON of `make_job`.

    Raises:
        ResourceError: The job failed, or cannot be created or polled.
    """
    config = compose_config(overrides)
    config.run_dir = str(run_dir)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    job_file = run_dir.parent / f"{run_dir.name}.job.json"
    write_json(job_file, worker_job(config, store, run_dir, overrides, pipeline_task=True))
    try:
        k8s.config.load_incluster_config()
    except k8s.config.ConfigException:
        k8s.config.load_kube_config()
    api = k8s.client.CustomObjectsApi()
    run_job(api, _NAMESPACE.read_text(), json.loads(job), job_file)
    return load(run_dir, "run").sha256


def run_job(api: Any, namespace: str, job: dict[str, Any], job_file: Path) -> None:
    """Create a job and wait for its end, printing each change of its state.

    The job is deleted if it succeeded (its results are on the volume) or if this step is stopped. A
    failed job is kept for inspection.

    Args:
        api: A `CustomObjectsApi`.
        namespace: Namespace of the job.
        job: The TrainJob of `make_job`.
        job_file: File with the training job, which every process reads.

    Raises:
        ResourceError: The job was refused, failed or was deleted, or the API did not answer
            repeatedly.
    """
    place = (_GROUP, _VERSION, namespace, _PLURAL)
    job["spec"]["trainer"]["command"].append(str(job_file))
    try:
        # "Strict" also refuses fields that the installed version of Trainer does not know.
        made = api.create_namespaced_custom_object(*place, job, field_validation="Strict")
    except k8s.client.ApiException as cause:
        raise ResourceError(
            f"the TrainJob was refused ({cause.status} {cause.reason}): {_message(cause)}",
            where=f"namespace {namespace}",
            remedy="apply kubeflow/rbac.yaml, and check that Kubeflow Trainer v2 is installed",
        ) from None
    name = made["metadata"]["name"]
    print(f"TrainJob {namespace}/{name}: created", flush=True)
    failure = None
    try:
        failure = _wait(api, place, name, float(job["metadata"]["annotations"][_POLL]))
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
                return f"its state can no longer be read ({cause.__class__.__name__})"
            status = {}
        conditions = {c["type"]: c for c in status.get("conditions", ()) if c["status"] == "True"}
        words = [*conditions, *map(_format_part, status.get("jobsStatus", ()))]
        if words and (state := ", ".join(words)) != printed:
            print(f"TrainJob {name}: {state}", flush=True)
            printed = state
        if "Complete" in conditions:
            return None
        if failed := conditions.get("Failed"):
            return f"{failed.get('reason')}: {failed.get('message')}"
        sleep(poll_s)


def _format_part(job: Mapping[str, Any]) -> str:
    """Return the name and the pod counts of a part of the job, for one line of output."""
    counts = {k: job.get(k) for k in ("ready", "active", "succeeded", "failed") if job.get(k)}
    return " ".join([job["name"], *(f"{k}={n}" for k, n in counts.items())])


def _message(cause: Any) -> str:
    try:
        return str(json.loads(cause.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(cause.body)
