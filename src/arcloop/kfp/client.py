"""Client of a KFP server's v2beta1 API; converts each error to one message.

It uses the generated API client, because `kfp.Client` has no time-outs, writes to the home folder
and does not check parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api as api
import urllib3

from arcloop.artifacts.atomic import sha256_file
from arcloop.errors import ArcloopError, ConfigError
from arcloop.kfp.settings import ClusterSettings

_DIGITS = 16
_REFUSALS = {
    401: (
        "the KFP API does not accept the credentials",
        "set cluster.token_env to a variable with a valid token",
    ),
    403: (
        "the KFP API forbids this in namespace {namespace}",
        "ask for the rights to run pipelines there, or choose another cluster.namespace",
    ),
    404: (
        "the KFP API found nothing in namespace {namespace}",
        "check cluster.namespace and cluster.host, which ends before /apis",
    ),
    409: (
        "the KFP API has an object of this name already",
        "submit again, or choose another cluster.pipeline",
    ),
}


class SubmissionError(ArcloopError):
    """Raised if the server did not accept the pipeline; no run was started."""


@dataclass(frozen=True)
class PipelineVersion:
    """A version of a pipeline on the server.

    Attributes:
        pipeline_id: ID of the pipeline.
        version_id: ID of the version.
        name: Name of the version.
    """

    pipeline_id: str
    version_id: str
    name: str


class KfpClient:
    """Client of one server and one namespace.

    Args:
        settings: Host, namespace, credentials and time-out.

    Raises:
        ConfigError: The host is missing, or the environment variable with the token is empty.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        if not settings.host:
            raise ConfigError(
                "cluster.host is required",
                remedy="pass cluster.host=http://HOST:PORT of the KFP API",
            )
        self._settings = settings
        self._namespace = {"namespace": settings.namespace} if settings.namespace else {}
        configuration = api.Configuration(host=settings.host.rstrip("/"))
        configuration.retries = False  # report a refused connection immediately
        configuration.ssl_ca_cert = settings.ca_cert
        if settings.token_env:
            token = os.environ.get(settings.token_env)
            if not token:
                raise ConfigError(
                    f"the environment variable {settings.token_env} contains no token",
                    where="cluster.token_env",
                    remedy="export it, or set cluster.token_env=null",
                )
            configuration.api_key = {"authorization": token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        client = api.ApiClient(configuration)
        self._experiments = api.ExperimentServiceApi(client)
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._recurring = api.RecurringRunServiceApi(client)

    def upload(self, compiled: Path) -> PipelineVersion:
        """Upload a version of the pipeline, unless a version with the same content exists.

        Args:
            compiled: The IR YAML; its hash is part of the name of the version.

        Raises:
            SubmissionError: The server refuses or does not answer.
        """
        pipeline = self._settings.pipeline
        name = f"{pipeline}-{sha256_file(compiled)[:_DIGITS]}"
        list_versions = self._pipelines.pipeline_service_list_pipeline_versions
        found = self._call(
            self._pipelines.pipeline_service_list_pipelines,
            **self._namespace,
            filter=_name_filter(pipeline),
        ).pipelines
        if not found:
            upload = self._uploads.upload_pipeline
            made = self._call(upload, str(compiled), name=pipeline, **self._namespace)
            # The response describes the pipeline but lacks the ID of its first version.
            newest = {"page_size": 1, "sort_by": "created_at desc"}
            versions = self._call(list_versions, made.pipeline_id, **newest).pipeline_versions
            return PipelineVersion(made.pipeline_id, versions[0].pipeline_version_id, pipeline)
        pipeline_id = found[0].pipeline_id
        versions = self._call(
            list_versions, pipeline_id, filter=_name_filter(name)
        ).pipeline_versions
        if versions:
            return PipelineVersion(pipeline_id, versions[0].pipeline_version_id, name)
        upload = self._uploads.upload_pipeline_version
        version = self._call(upload, str(compiled), name=name, pipelineid=pipeline_id)
        return PipelineVersion(pipeline_id, version.pipeline_version_id, name)

    def start(self, version: PipelineVersion, parameters: Mapping[str, Any], name: str) -> str:
        """Start a run and return its ID.

        Args:
            version: Version of the pipeline.
            parameters: Parameter -> value.
            name: Name of the run in the UI.
        """
        run = api.V2beta1Run(**self._run_fields(version, parameters, name))
        return str(self._call(self._runs.run_service_create_run, run).run_id)

    def schedule(
        self, version: PipelineVersion, parameters: Mapping[str, Any], name: str, cron: str
    ) -> tuple[str, list[str]]:
        """Create a recurring run, then delete earlier ones of the same name.

        Args:
            version: Version of the pipeline.
            parameters: Parameter -> value.
            name: Name of the recurring run in the UI.
            cron: Six fields of the schedule.

        Returns:
            ID of the new recurring run, and the IDs of the deleted ones.
        """
        fields = self._run_fields(version, parameters, name)
        earlier = self._call(
            self._recurring.recurring_run_service_list_recurring_runs,
            experiment_id=fields["experiment_id"],
            filter=_name_filter(name),
        ).recurring_runs
        recurring = api.V2beta1RecurringRun(
            **fields,
            mode=api.RecurringRunMode.ENABLE,
            max_concurrency=1,
            no_catchup=True,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
        )
        made = self._call(self._recurring.recurring_run_service_create_recurring_run, recurring)
        deleted = [str(run.recurring_run_id) for run in earlier or []]
        for run_id in deleted:
            self._call(self._recurring.recurring_run_service_delete_recurring_run, run_id)
        return str(made.recurring_run_id), deleted

    def _run_fields(
        self, version: PipelineVersion, parameters: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        """Return the fields that a run and a recurring run have in common."""
        return {
            "experiment_id": self._experiment_id(),
            "display_name": name,
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(
                parameters=dict(parameters), pipeline_root=self._settings.pipeline_root
            ),
            "service_account": self._settings.service_account,
        }

    def _experiment_id(self) -> str:
        """Return the ID of the experiment, which is created if it does not exist."""
        name = self._settings.experiment
        found = self._call(
            self._experiments.experiment_service_list_experiments,
            **self._namespace,
            filter=_name_filter(name),
        ).experiments
        if found:
            return str(found[0].experiment_id)
        wanted = api.V2beta1Experiment(display_name=name, namespace=self._settings.namespace)
        made = self._call(self._experiments.experiment_service_create_experiment, wanted)
        return str(made.experiment_id)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API; convert its errors to a `SubmissionError`."""
        seconds = self._settings.timeout_s
        try:
            return method(*args, **kwargs, _request_timeout=seconds)
        except api.ApiException as cause:
            raise self._refusal(cause) from None
        except (urllib3.exceptions.HTTPError, ValueError) as cause:
            # In urllib3, NewConnectionError is a subclass of TimeoutError.
            is_timeout = isinstance(cause, urllib3.exceptions.TimeoutError)
            if is_timeout and not isinstance(cause, urllib3.exceptions.NewConnectionError):
                message = f"the KFP API did not answer within {seconds} s"
                remedy = "check the state of the server, or increase cluster.timeout_s"
            else:
                message = f"the KFP API cannot be reached: {cause}"
                remedy = "check cluster.host, and that the port-forward is running"
            raise SubmissionError(message, where=self._settings.host, remedy=remedy) from None

    def _refusal(self, cause: api.ApiException) -> SubmissionError:
        """Return an error for a response with an error status."""
        retry = "try again later, and " if cause.status >= 500 else ""
        default = (f"the KFP API answered {cause.status}", f"{retry}see the server's log")
        message, remedy = _REFUSALS.get(cause.status, default)
        message = f"{message.format(namespace=self._settings.namespace)} ({cause.status})"
        details = _details(cause)
        return SubmissionError(
            f"{message}: {details}" if details else message,
            where=self._settings.host,
            remedy=remedy,
        )


def _details(cause: api.ApiException) -> str:
    """Return the message of the server in one line."""
    try:
        body = json.loads(cause.body)
        message = body.get("message") or body.get("error_message") or body.get("error") or ""
    except (TypeError, ValueError, AttributeError):
        message = cause.reason or ""
    return " ".join(str(message).split())[:500]


def _name_filter(name: str) -> str:
    """Return a filter of the API for objects with this display name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})
