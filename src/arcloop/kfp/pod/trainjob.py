"""Train on several nodes with a TrainJob of Kubeflow Trainer v2.

The pod of the train step creates the job and waits for it. The nodes run
`torchrun -m arcloop.pipeline.train_worker`; Trainer configures torchrun by PET_* variables. Store
and run are on a volume that all pods mount.

The name of the job follows from the folder of the run, which is the same in every attempt of the
step. A retry therefore finds the job of an attempt whose pod was killed, and waits for that job.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import kubernetes as k8s
import urllib3
import yaml
from kubernetes.client import ApiException
from pydantic.alias_generators import to_camel

from arcloop.artifacts import load
from arcloop.artifacts.atomic import write_json
from arcloop.config.composition import compose_config
from arcloop.display.html import render_template
from arcloop.distributed.launcher import worker_job
from arcloop.errors import ResourceError, raise_terminated
from arcloop.kfp.config import ClusterSettings
from arcloop.pipeline.attempts import end_retries, raise_recorded

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_TEMPLATE = Path(__file__).with_name("trainjob.yaml.j2")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_POLL = "arcloop.dev/poll-seconds"
"""Annotation of the job with the seconds between two polls of its state."""
_LONGEST_WAIT = 6
"""Longest wait between two requests while the API does not answer, in multiples of `poll_s`."""
_TIMEOUT_S = 30
_LAST_TIMEOUT_S = 5
"""Time-out, in seconds, of the request by which a step deletes its job after SIGTERM."""


def make_job(settings: ClusterSettings) -> str:
    """Return the TrainJob as JSON, without its name and the path of the job file.

    Every node has the resources and the scheduling of the train step.
    """
    step = settings.steps["train"]
    resources = {"cpu": step.cpu, "memory": step.memory, step.gpu_type: step.gpus}
    tolerations = [*settings.tolerations, *step.tolerations]
    needs = [
        (r.weight, r.model_dump(exclude={"weight"}))
        for r in [*settings.node_affinity, *step.node_affinity]
    ]
    identity = settings.security.model_dump(exclude_none=True)
    text = render_template(
        _TEMPLATE,
        cluster=settings,
        trainjob=settings.trainjob,
        step=step,
        resources={name: str(amount) for name, amount in resources.items() if amount},
        labels=settings.labels | step.labels,
        annotations=settings.annotations | step.annotations,
        required=[expression for weight, expression in needs if weight is None],
        preferred=[(weight, expression) for weight, expression in needs if weight is not None],
        security={to_camel(key): value for key, value in identity.items()},
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
        ConfigError, DataError, DivergedError: A node failed with this error, which would occur
            again.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with end_retries(run_dir):
        config = compose_config(overrides)
        config.run_dir = str(run_dir)
        job_file = run_dir.parent / f"{run_dir.name}.job.json"
        write_json(job_file, worker_job(config, store, run_dir, overrides, pipeline_task=True))
        try:
            k8s.config.load_incluster_config()
        except k8s.config.ConfigException:
            k8s.config.load_kube_config()
        try:
            run_job(
                k8s.client.CustomObjectsApi(), _NAMESPACE.read_text(), json.loads(job), job_file
            )
        except ResourceError:
            raise_recorded(run_dir)
            raise
        return load(run_dir, "run").sha256


def run_job(api: Any, namespace: str, job: dict[str, Any], job_file: Path) -> None:
    """Create the job or find that of an earlier attempt, and wait for its end.

    Each change of the job's state is printed. The job is deleted if it succeeded (its results are
    on the volume), and if this process is interrupted or receives SIGTERM. A failed job is kept for
    inspection until the next attempt. A process that is killed leaves its job to the next attempt.

    Args:
        api: A `CustomObjectsApi`.
        namespace: Namespace of the job.
        job: The TrainJob of `make_job`.
        job_file: File with the training job, which every process reads.

    Raises:
        ResourceError: The job was refused, failed or was deleted, or the API did not answer for the
            deadline of the job.
    """
    name = f"arcloop-train-{hashlib.sha256(str(job_file).encode()).hexdigest()[:16]}"
    job["metadata"] |= {"name": name, "ownerReferences": _owners()}
    job["spec"]["trainer"]["command"].append(str(job_file))
    submitted = _TrainJob(api, namespace, job)
    handler = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        submitted.start()
        failure = submitted.wait()
    except KeyboardInterrupt:
        # In a pod of KFP there is about one second for this; see docs/kubeflow.md.
        submitted.delete(timeout_s=_LAST_TIMEOUT_S)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
    if failure:
        raise ResourceError(
            f"TrainJob {name} failed: {failure}",
            where=f"namespace {namespace}",
            remedy=f"kubectl -n {namespace} logs -l jobset.sigs.k8s.io/jobset-name={name} --prefix",
        )
    submitted.delete()


def _owners() -> list[dict[str, str]]:
    """Return this pod as the owner of the job: Kubernetes deletes the job after the pod."""
    pod = {variable: os.environ.get(f"KFP_POD_{variable.upper()}") for variable in ("name", "uid")}
    if not all(pod.values()):
        return []
    return [{"apiVersion": "v1", "kind": "Pod", **{key: str(value) for key, value in pod.items()}}]


class _TrainJob:
    """The TrainJob of one step in the Kubernetes API."""

    def __init__(self, api: Any, namespace: str, job: dict[str, Any]) -> None:
        self._api, self._job, self._name = api, job, job["metadata"]["name"]
        self._place = (_GROUP, _VERSION, namespace, _PLURAL)
        self._poll_s = float(job["metadata"]["annotations"][_POLL])
        self._printed = ""

    def start(self) -> None:
        """Create the job, or adopt the job of an earlier attempt unless that failed."""
        try:
            while not (self._create() or self._adopt()):
                sleep(self._poll_s)
        except ApiException as cause:
            raise ResourceError(
                f"the TrainJob was refused ({cause.status} {cause.reason}): {_message(cause)}",
                where=f"namespace {self._place[2]}",
                remedy="apply kubeflow/rbac.yaml, and check that Kubeflow Trainer 2.2 or 2.3 is"
                " installed",
            ) from None

    def _create(self) -> bool:
        create = self._api.create_namespaced_custom_object
        try:
            # "Strict" also refuses fields that the installed version of Trainer does not know.
            self._call(create, *self._place, self._job, field_validation="Strict")
        except ApiException as cause:
            if cause.status == 409:  # the name exists
                return False
            raise
        self._print("created")
        return True

    def _adopt(self) -> bool:
        """Make this pod the owner of the existing job; return False to create another one."""
        try:
            found = self._call(self._api.get_namespaced_custom_object, *self._place, self._name)
            if "deletionTimestamp" in found["metadata"]:
                self._print("waiting until the job of an earlier attempt is deleted")
                return False
            if "Failed" in _conditions(found):
                self._print("the job of an earlier attempt failed; deleting it")
                self._call(self._delete)
                return False
            owners = {"metadata": {"ownerReferences": self._job["metadata"]["ownerReferences"]}}
            patch = self._api.patch_namespaced_custom_object
            self._call(patch, *self._place, self._name, owners)
        except ApiException as cause:
            if cause.status == 404:  # it was deleted in the meantime
                return False
            raise
        self._print("continues; an earlier attempt created it")
        return True

    def wait(self) -> str | None:
        """Poll the job until it ends; return the reason if it failed, else None."""
        while True:
            try:
                found = self._call(self._api.get_namespaced_custom_object, *self._place, self._name)
            except ApiException as cause:
                if cause.status == 404:
                    return "it was deleted"
                return f"its state cannot be read ({cause.status} {cause.reason})"
            conditions = _conditions(found)
            parts = (found.get("status") or {}).get("jobsStatus", ())
            if words := [*conditions, *map(_format_part, parts)]:
                self._print(", ".join(words))
            if "Complete" in conditions:
                return None
            if failed := conditions.get("Failed"):
                return f"{failed.get('reason')}: {failed.get('message')}"
            sleep(self._poll_s)

    def delete(self, timeout_s: float = _TIMEOUT_S) -> None:
        """Delete the job and its pods; if this fails, print the reason and continue."""
        try:
            self._delete(_request_timeout=timeout_s)
        except (ApiException, OSError, urllib3.exceptions.HTTPError) as cause:
            if getattr(cause, "status", None) != 404:
                self._print(
                    f"was not deleted ({type(cause).__name__}); kubectl -n {self._place[2]} delete"
                    f" trainjob {self._name}"
                )

    def _delete(self, **kwargs: Any) -> None:
        delete = self._api.delete_namespaced_custom_object
        delete(*self._place, self._name, propagation_policy="Foreground", **kwargs)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the API; while it does not answer, repeat this until the deadline of the job."""
        wait_s, started = self._poll_s, monotonic()
        while True:
            try:
                return method(*args, **kwargs, _request_timeout=_TIMEOUT_S)
            except (ApiException, OSError, urllib3.exceptions.HTTPError) as cause:
                status = getattr(cause, "status", None)
                if status and status != 429 and status < 500:
                    raise
                outage_s = monotonic() - started
                if outage_s > self._job["spec"]["activeDeadlineSeconds"]:
                    raise ResourceError(
                        f"the Kubernetes API has not answered for {outage_s:.0f} s:"
                        f" {type(cause).__name__}",
                        where=f"TrainJob {self._name}",
                        remedy="repair the API server; a retry of the step continues with the job",
                    ) from None
                self._print(f"the Kubernetes API does not answer ({type(cause).__name__}); waiting")
            sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT * self._poll_s)

    def _print(self, state: str) -> None:
        """Print a state of the job, unless it was the last one printed."""
        if state != self._printed:
            print(f"TrainJob {self._place[2]}/{self._name}: {state}", flush=True)
            self._printed = state


def _conditions(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions of a job that are true, by type."""
    conditions = (job.get("status") or {}).get("conditions", ())
    return {c["type"]: c for c in conditions if c["status"] == "True"}


def _format_part(job: Mapping[str, Any]) -> str:
    """Return the name and the pod counts of a part of the job, for one line of output."""
    counts = {k: job.get(k) for k in ("ready", "active", "succeeded", "failed") if job.get(k)}
    return " ".join([job["name"], *(f"{k}={n}" for k, n in counts.items())])


def _message(cause: Any) -> str:
    try:
        return str(json.loads(cause.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(cause.body)
