"""Client of a KFP server's v2beta1 API; converts each error to one message.

It uses the generated API client, because `kfp.Client` has no time-outs, prints messages of its own,
and retries refused connections.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api as api
import urllib3

from arcloop.artifacts.atomic import sha256_file
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ConfigError
from arcloop.kfp.config import ClusterSettings

_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
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
        "check cluster.namespace and cluster.host; the host does not include /apis",
    ),
    409: (
        "the KFP API has an object of this name already",
        "submit again, or choose another cluster.pipeline",
    ),
}


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

    def submit(
        self, compiled: Path, parameters: Mapping[str, Any], name: str, cron: str | None
    ) -> None:
        """Upload the pipeline, start a run or a recurring run, and print what was made.

        A version with the same content is not uploaded again. A recurring run replaces earlier ones
        of the same name.

        Args:
            compiled: The IR YAML; its hash is part of the name of the version.
            parameters: Parameter -> value.
            name: Name of the run in the UI.
            cron: Six fields of the schedule of a recurring run, or None for one run at once.

        Raises:
            ArcloopError: The server refuses or does not answer. No run was started, unless deleting
                an earlier recurring run failed.
        """
        version = self._upload(compiled)
        fields = {
            "experiment_id": self._experiment().experiment_id,
            "display_name": name,
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(
                parameters=dict(parameters), pipeline_root=self._settings.pipeline_root
            ),
            "service_account": self._settings.service_account,
        }
        if not cron:
            run = self._call(self._runs.run_service_create_run, api.V2beta1Run(**fields))
            print_line(f"run: {self._settings.host}/#/runs/details/{run.run_id}")
            return
        service, experiment = self._recurring, fields["experiment_id"]
        earlier = self._find(
            service.recurring_run_service_list_recurring_runs, name, experiment_id=experiment
        ).recurring_runs
        recurring = api.V2beta1RecurringRun(
            **fields,
            mode=api.RecurringRunMode.ENABLE,
            max_concurrency=1,
            no_catchup=True,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
        )
        made = self._call(service.recurring_run_service_create_recurring_run, recurring)
        print_line(f"recurring run: {made.recurring_run_id}, {cron}")
        for run in earlier or []:
            delete = service.recurring_run_service_delete_recurring_run
            self._call(delete, run.recurring_run_id)
            print_line(f"replaces the recurring run {run.recurring_run_id}")

    def _upload(self, compiled: Path) -> Any:
        """Return the version of the pipeline, which is uploaded if it does not exist."""
        service, name = self._pipelines, self._settings.pipeline
        found = self._find(service.pipeline_service_list_pipelines, name, **self._namespace)
        if found.pipelines:
            pipeline = found.pipelines[0]
        else:
            made = api.V2beta1Pipeline(display_name=name, **self._namespace)
            pipeline = self._call(service.pipeline_service_create_pipeline, made)
        name = f"{name}-{sha256_file(compiled)[:16]}"
        print_line(f"pipeline version: {name}")
        versions = self._find(
            service.pipeline_service_list_pipeline_versions, name, pipeline_id=pipeline.pipeline_id
        ).pipeline_versions
        if versions:
            return versions[0]
        upload = self._uploads.upload_pipeline_version
        return self._call(upload, str(compiled), name=name, pipelineid=pipeline.pipeline_id)

    def _experiment(self) -> Any:
        """Return the experiment, which is created if it does not exist."""
        service, name = self._experiments, self._settings.experiment
        find = service.experiment_service_list_experiments
        if found := self._find(find, name, **self._namespace).experiments:
            return found[0]
        made = api.V2beta1Experiment(display_name=name, **self._namespace)
        return self._call(service.experiment_service_create_experiment, made)

    def _find(self, method: Callable[..., Any], name: str, **kwargs: Any) -> Any:
        """Call a method that lists objects, with a filter for this display name."""
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        return self._call(method, **kwargs, filter=json.dumps({"predicates": [predicate]}))

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API; convert its errors to an `ArcloopError`."""
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
            raise ArcloopError(message, where=self._settings.host, remedy=remedy) from None

    def _refusal(self, cause: api.ApiException) -> ArcloopError:
        """Return an error for a response with an error status, with the message of the server."""
        retry = "try again later, and " if cause.status >= 500 else ""
        default = (f"the KFP API answered {cause.status}", f"{retry}see the server's log")
        message, remedy = _REFUSALS.get(cause.status, default)
        message = f"{message.format(namespace=self._settings.namespace)} ({cause.status})"
        try:
            body = json.loads(cause.body)
            details = body.get("message") or body.get("error_message") or body.get("error")
        except (TypeError, ValueError, AttributeError):
            details = cause.reason
        if details:
            message = f"{message}: {' '.join(str(details).split())[:500]}"
        return ArcloopError(message, where=self._settings.host, remedy=remedy)


def kfp_schedule(schedule: str) -> str:
    """Convert a cron schedule to the six fields of KFP: seconds first, weekdays by name.

    KFP numbers the weekdays from 0 to 6 and has no 7, so numbers and ranges become names.

    Args:
        schedule: Minute, hour, day of month, month and day of week, in UTC.

    >>> kfp_schedule("0 0 * * 2")
    '0 0 0 * * TUE'
    >>> kfp_schedule("*/15 6-18 * * SAT-SUN")
    '0 */15 6-18 * * SUN,SAT'

    Raises:
        ConfigError: It is not a cron schedule.
    """
    from cronsim import CronSim, CronSimError

    fields = re.sub(r"-SUN\b", "-7", schedule.upper()).split()  # at the end of a range, SUN is 7
    try:
        if len(fields) != 5:
            raise CronSimError("it needs five fields: minute hour day month weekday")
        if found := re.search(r"[L#]", " ".join([fields[2], fields[4]]).replace("JUL", "")):
            raise CronSimError(f"KFP does not support {found[0]}")
        days = CronSim(" ".join(fields), datetime.now(UTC)).weekdays
    except CronSimError as cause:
        raise ConfigError(
            f"schedule={schedule!r} is not a cron schedule: {cause}",
            remedy="write it as in crontab, e.g. schedule='0 0 * * 2' for Tuesday at midnight, UTC",
        ) from None
    if not fields[4].startswith("*"):
        numbers = sorted({day % 7 for day in days if isinstance(day, int)})
        fields[4] = ",".join(_WEEKDAYS[number] for number in numbers)
    return " ".join(["0", *fields])
