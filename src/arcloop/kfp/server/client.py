"""Client of a KFP server's v2beta1 API; converts each error to one message.

It uses the generated API client, because `kfp.Client` 2.17 has no time-outs, reads and writes
~/.config/kfp/context.json, and warns and prints for every call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kfp_server_api as api
import urllib3

from arcloop.artifacts.atomic import sha256_file
from arcloop.artifacts.writer import git_revision
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError
from arcloop.kfp.config import ClusterSettings
from arcloop.kfp.server.credentials import connect
from arcloop.kfp.server.origin import version_name

_LOG_IN = (
    "the KFP API asks for a log in",
    "set cluster.cookie_env, cluster.token_env, cluster.token_file or cluster.iap_client_id",
)
_REFUSALS = {
    302: _LOG_IN,
    401: (
        "the KFP API does not accept the credentials",
        "renew the token or cookie, which may have expired",
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


class UnavailableError(ArcloopError):
    """The server cannot be reached, or cannot answer now. The same request can succeed later."""


class KfpClient:
    """Client of one server and one namespace.

    Args:
        settings: Host, namespace, credentials and time-out.

    Attributes:
        settings: As given.
        runs, pipelines, recurring: The generated clients of the services.

    Raises:
        ConfigError: The host or the credentials are missing.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._namespace = {"namespace": settings.namespace} if settings.namespace else {}
        self._client = connect(settings)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._uploads = api.PipelineUploadServiceApi(self._client)
        self.pipelines = api.PipelineServiceApi(self._client)
        self.runs = api.RunServiceApi(self._client)
        self.recurring = api.RecurringRunServiceApi(self._client)

    def start_run(self, fields: Mapping[str, Any]) -> str:
        """Start a run, print its address and return its ID.

        Args:
            fields: Fields of a run, see `run_fields`.

        Raises:
            ArcloopError: The server refuses or does not answer.
        """
        run = self.call(self.runs.run_service_create_run, api.V2beta1Run(**fields))
        print_line(f"run: {self.address(run.run_id)}")
        return str(run.run_id)

    def address(self, run_id: str) -> str:
        """Return the address of a run in KFP's UI."""
        return f"{self.settings.host}/#/runs/details/{run_id}"

    def run_fields(
        self, version: Any, parameters: Mapping[str, Any], name: str, description: str
    ) -> dict[str, Any]:
        """Return the fields that a run and a recurring run have in common.

        Args:
            version: The pipeline version.
            parameters: Parameter -> value.
            name: Name in the UI.
            description: Description in the UI.
        """
        experiment = self.experiment()
        if experiment is None:
            made = api.V2beta1Experiment(display_name=self.settings.experiment, **self._namespace)
            experiment = self.call(self._experiments.experiment_service_create_experiment, made)
        return {
            "experiment_id": experiment.experiment_id,
            "display_name": name,
            "description": description,
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(
                parameters=dict(parameters), pipeline_root=self.settings.pipeline_root
            ),
            "service_account": self.settings.service_account,
        }

    def upload(self, compiled: Path, description: str) -> Any:
        """Upload a version of the pipeline unless the server has it, and return it.

        Args:
            compiled: The IR YAML; its hash is part of the name of the version.
            description: Description of a new version.

        Raises:
            ArcloopError: The server refuses or does not answer.
        """
        service, pipeline = self.pipelines, self.pipeline()
        if pipeline is None:
            made = api.V2beta1Pipeline(display_name=self.settings.pipeline, **self._namespace)
            pipeline = self.call(service.pipeline_service_create_pipeline, made)
        name = version_name(self.settings.pipeline, sha256_file(compiled), git_revision())
        print_line(f"pipeline version: {name}")
        versions = self.find(
            service.pipeline_service_list_pipeline_versions, name, pipeline_id=pipeline.pipeline_id
        ).pipeline_versions
        if versions:
            return versions[0]
        fields = {"name": name, "pipelineid": pipeline.pipeline_id, "description": description}
        return self.call(self._uploads.upload_pipeline_version, str(compiled), **fields)

    def pipeline(self) -> Any | None:
        """Return the pipeline named in the settings, or None."""
        find = self.pipelines.pipeline_service_list_pipelines
        found = self.find(find, self.settings.pipeline, **self._namespace).pipelines
        return found[0] if found else None

    def experiment(self) -> Any | None:
        """Return the experiment named in the settings, or None."""
        find = self._experiments.experiment_service_list_experiments
        found = self.find(find, self.settings.experiment, **self._namespace).experiments
        return found[0] if found else None

    def find(self, method: Callable[..., Any], name: str, **kwargs: Any) -> Any:
        """Call a method that lists objects, with a filter for this display name."""
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        return self.call(method, **kwargs, filter=json.dumps({"predicates": [predicate]}))

    def pages(self, method: Callable[..., Any], **kwargs: Any) -> Iterator[Any]:
        """Yield the pages of a method that lists objects."""
        token = ""
        while True:
            page = self.call(method, **kwargs, page_size=100, page_token=token)
            yield page
            if not (token := page.next_page_token):
                return

    def read(self, path: str, limit: int = 2**30, **query: str) -> bytes:
        """Send a GET request that the generated client has no method for; return the answer's end.

        Args:
            path: Path of the request.
            limit: Maximum number of bytes to return, counted from the end.
            **query: Query of the request.

        Raises:
            ArcloopError: The server refuses or does not answer.
        """

        def get(**timeout: int) -> bytes:
            response = self._client.call_api(
                path, "GET", query_params=list(query.items()), auth_settings=["Bearer"],
                _return_http_data_only=True, _preload_content=False, **timeout,
            )  # fmt: skip
            end = b""
            for part in response.stream():
                end = (end + part)[-limit:]
            return end

        return bytes(self._request(get))

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API; convert its errors to an `ArcloopError`.

        Raises:
            UnavailableError: The server cannot be reached, or cannot answer now.
            ArcloopError: The server refuses, or is not a KFP server.
        """
        result = self._request(method, *args, **kwargs)
        # A gateway may answer with a login page, which the generated client parses to an object
        # without values.
        kind = self._client.last_response.getheader("content-type", "")
        if not kind.startswith("application/json"):
            message, remedy = _LOG_IN
            raise ArcloopError(
                f"{message}: it answered with {kind or 'no content'}",
                where=self.settings.host,
                remedy=f"{remedy}, and check cluster.host",
            )
        return result

    def _request(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seconds = self.settings.timeout_s
        try:
            return method(*args, **kwargs, _request_timeout=seconds)
        except api.ApiException as cause:
            raise self._refusal(cause) from None
        except (urllib3.exceptions.HTTPError, ValueError, AttributeError) as cause:
            # After a TLS error, the generated client fails to decode the missing body of its
            # ApiException, and raises an AttributeError.
            tls = cause.__context__
            if isinstance(cause, AttributeError) and not isinstance(tls, api.ApiException):
                raise
            # In urllib3, NewConnectionError is a subclass of TimeoutError.
            is_timeout = isinstance(cause, urllib3.exceptions.TimeoutError)
            if is_timeout and not isinstance(cause, urllib3.exceptions.NewConnectionError):
                message = f"the KFP API did not answer within {seconds} s"
                remedy = "check the state of the server, or increase cluster.timeout_s"
            else:
                reason = tls.reason if isinstance(tls, api.ApiException) else cause
                message = f"the KFP API cannot be reached: {reason}"
                remedy = "check cluster.host, and that the port-forward is running"
            raise UnavailableError(message, where=self.settings.host, remedy=remedy) from None

    def _refusal(self, cause: api.ApiException) -> ArcloopError:
        """Return an error for a response with an error status, with the message of the server."""
        later = cause.status >= 500 or cause.status == 429
        default = f"the KFP API answered {cause.status}"
        remedy = f"{'try again later, and ' if later else ''}see the server's log"
        message, remedy = _REFUSALS.get(cause.status, (default, remedy))
        message = f"{message.format(namespace=self.settings.namespace)} ({cause.status})"
        try:
            body = json.loads(cause.body)
            details = body.get("message") or body.get("error_message") or body.get("error")
        except (TypeError, ValueError, AttributeError):
            details = cause.reason
        if details:
            message = f"{message}: {' '.join(str(details).split())[:500]}"
        kind = UnavailableError if later else ArcloopError
        return kind(message, where=self.settings.host, remedy=remedy)
