"""The KFP server's v2beta1 API, as far as a submission needs it; a failure is one message.

kfp's own `Client` cannot be told how long to wait, writes to the home folder and takes any
parameter; so this is over the generated client that it wraps.
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


class SubmissionError(ArcloopError):
    """The server did not take the pipeline; nothing was started."""


@dataclass(frozen=True)
class Uploaded:
    """A version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    name: str


class KfpClient:
    """One server, one namespace.

    Args:
        settings: Host, namespace, credentials, time limit.

    Raises:
        ConfigError: There is no host, or no token where one is named.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        if not settings.host:
            raise ConfigError(
                "cluster.host is required",
                remedy="pass cluster.host=http://HOST:PORT of the KFP API",
            )
        self._settings = settings
        configuration = api.Configuration(host=settings.host.rstrip("/"))
        configuration.retries = False  # a refused connection is told at once
        configuration.ssl_ca_cert = settings.ca_cert
        if settings.token_env:
            token = os.environ.get(settings.token_env)
            if not token:
                raise ConfigError(
                    f"the environment variable {settings.token_env} holds no token",
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

    def upload(self, compiled: Path) -> Uploaded:
        """Upload a version of the pipeline, named by its content: the same one is there only once.

        Raises:
            SubmissionError: The server refuses or does not answer.
        """
        name = f"{self._settings.pipeline}-{sha256_file(compiled)[:_DIGITS]}"
        namespace = self._settings.namespace
        found = self._call(
            self._pipelines.pipeline_service_list_pipelines,
            **({"namespace": namespace} if namespace else {}),
            filter=_named(self._settings.pipeline),
        ).pipelines
        if not found:
            made = self._call(
                self._uploads.upload_pipeline,
                str(compiled),
                name=self._settings.pipeline,
                **({"namespace": namespace} if namespace else {}),
            )
            newest = self._call(
                self._pipelines.pipeline_service_list_pipeline_versions,
                made.pipeline_id,
                page_size=1,
                sort_by="created_at desc",
            ).pipeline_versions[0]
            return Uploaded(made.pipeline_id, newest.pipeline_version_id, self._settings.pipeline)
        pipeline_id = found[0].pipeline_id
        versions = self._call(
            self._pipelines.pipeline_service_list_pipeline_versions,
            pipeline_id,
            filter=_named(name),
        ).pipeline_versions
        version = (
            versions[0]
            if versions
            else self._call(
                self._uploads.upload_pipeline_version,
                str(compiled),
                name=name,
                pipelineid=pipeline_id,
            )
        )
        return Uploaded(pipeline_id, version.pipeline_version_id, name)

    def start(self, uploaded: Uploaded, parameters: Mapping[str, Any], name: str) -> str:
        """Start a run and return its id."""
        run = api.V2beta1Run(
            experiment_id=self._experiment(),
            display_name=name,
            pipeline_version_reference=_reference(uploaded),
            runtime_config=self._runtime(parameters),
            service_account=self._settings.service_account,
        )
        return str(self._call(self._runs.run_service_create_run, run).run_id)

    def schedule(
        self, uploaded: Uploaded, parameters: Mapping[str, Any], name: str, cron: str
    ) -> tuple[str, list[str]]:
        """Make a recurring run; earlier ones of this name are deleted once it is there.

        Returns:
            Its id, and those of the ones it replaces.
        """
        experiment = self._experiment()
        earlier = self._call(
            self._recurring.recurring_run_service_list_recurring_runs,
            experiment_id=experiment,
            filter=_named(name),
        ).recurring_runs
        recurring = api.V2beta1RecurringRun(
            experiment_id=experiment,
            display_name=name,
            mode=api.RecurringRunMode.ENABLE,
            max_concurrency=1,
            no_catchup=True,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            pipeline_version_reference=_reference(uploaded),
            runtime_config=self._runtime(parameters),
            service_account=self._settings.service_account,
        )
        made = self._call(self._recurring.recurring_run_service_create_recurring_run, recurring)
        replaced = [str(run.recurring_run_id) for run in earlier or []]
        for run_id in replaced:
            self._call(self._recurring.recurring_run_service_delete_recurring_run, run_id)
        return str(made.recurring_run_id), replaced

    def _experiment(self) -> str:
        name, namespace = self._settings.experiment, self._settings.namespace
        found = self._call(
            self._experiments.experiment_service_list_experiments,
            **({"namespace": namespace} if namespace else {}),
            filter=_named(name),
        ).experiments
        if found:
            return str(found[0].experiment_id)
        wanted = api.V2beta1Experiment(display_name=name, namespace=namespace)
        made = self._call(self._experiments.experiment_service_create_experiment, wanted)
        return str(made.experiment_id)

    def _runtime(self, parameters: Mapping[str, Any]) -> Any:
        return api.V2beta1RuntimeConfig(
            parameters=dict(parameters), pipeline_root=self._settings.pipeline_root
        )

    def _call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call the API; what goes wrong becomes a `SubmissionError`."""
        seconds = self._settings.timeout_s
        try:
            return method(*arguments, **named, _request_timeout=seconds)
        except api.ApiException as refusal:
            raise self._explained(refusal) from None
        except urllib3.exceptions.NewConnectionError as cause:  # a kind of TimeoutError to urllib3
            raise self._unreachable(cause) from None
        except urllib3.exceptions.TimeoutError:
            raise SubmissionError(
                f"the KFP API gave no answer within {seconds} s",
                where=self._settings.host,
                remedy="see whether the server is well, or raise cluster.timeout_s",
            ) from None
        except (urllib3.exceptions.HTTPError, ValueError) as cause:
            raise self._unreachable(cause) from None

    def _unreachable(self, cause: Exception) -> SubmissionError:
        return SubmissionError(
            f"the KFP API cannot be reached: {cause}",
            where=self._settings.host,
            remedy="check cluster.host; is the port-forward running?",
        )

    def _explained(self, refusal: Any) -> SubmissionError:
        said = _message(refusal)
        namespace = self._settings.namespace
        what, remedy = {
            401: (
                "the KFP API does not know who asks",
                "name a variable with a valid token: cluster.token_env=...",
            ),
            403: (
                f"the KFP API forbids this in namespace {namespace}",
                "ask for the rights to run pipelines there, or choose another cluster.namespace",
            ),
            404: (
                f"the KFP API finds no such thing in namespace {namespace}",
                "check cluster.namespace and cluster.host, which ends before /apis",
            ),
            409: (
                "the KFP API has a thing of this name already",
                "submit again; or choose another cluster.pipeline",
            ),
        }.get(
            refusal.status,
            (
                f"the KFP API answered {refusal.status}",
                "try again later, and see the server's log" if refusal.status >= 500
                else "see the server's log",
            ),
        )  # fmt: skip
        return SubmissionError(
            f"{what} ({refusal.status})" + (f": {said}" if said else ""),
            where=self._settings.host,
            remedy=remedy,
        )


def _message(refusal: Any) -> str:
    """What the server says of it, in a line."""
    try:
        body = json.loads(refusal.body)
        said = body.get("message") or body.get("error_message") or body.get("error") or ""
    except (TypeError, ValueError, AttributeError):
        said = refusal.reason or ""
    return " ".join(str(said).split())[:500]


def _named(name: str) -> str:
    """A filter of the API: what has this display name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _reference(uploaded: Uploaded) -> Any:
    return api.V2beta1PipelineVersionReference(
        pipeline_id=uploaded.pipeline_id, pipeline_version_id=uploaded.version_id
    )
