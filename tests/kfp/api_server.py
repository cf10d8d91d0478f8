"""A fake KFP server, which accepts only valid requests of the API.

Each rule names its file and function in kubeflow/pipelines, release-2.17, backend/src/apiserver.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from .argo import STATES, task_detail, time_of

TERMINABLE = ("PAUSED", "PENDING", "RUNNING", None)
"""storage/run_store.go, TerminateRun"""


@dataclass
class Recorder:
    """A fake server of the v2beta1 API that validates requests with KFP's schemas.

    Attributes:
        url: Where it listens.
        calls: (method, path) of every request.
        refusals: (method, path) -> (status, body) to answer instead.
        delay_s: Wait before every answer.
        page: Answer with this HTML page, as a gateway that asks for a log in.
        outages: How to fail the next requests: a status, or None to close the connection.
        workflows: Run ID -> states of its Argo workflow, one for each time that it is read.
        logs: Pod -> log.
        is_ui: Answer as ml-pipeline-ui, which does not forward /apis/v1alpha1.
        deleted: (ID, propagation policy) of every deleted recurring run.
        page_size: Maximum number of objects in a list.
    """

    url: str = ""
    calls: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)
    delay_s: float = 0.0
    page: str = ""
    outages: list = field(default_factory=list)
    workflows: dict = field(default_factory=dict)
    histories: dict = field(default_factory=dict)
    logs: dict = field(default_factory=dict)
    is_ui: bool = False
    deleted: list = field(default_factory=list)
    page_size: int = 20
    experiments: list = field(default_factory=list)
    pipelines: list = field(default_factory=list)
    versions: list = field(default_factory=list)
    runs: list = field(default_factory=list)
    recurring: list = field(default_factory=list)
    made: Counter = field(default_factory=Counter)

    def count(self, method, path):
        return self.calls.count((method, path))

    def keep(self, things, key, body):
        """Store an object under a new ID, which is never used again."""
        self.made[key] += 1
        body[key] = f"{key}-{self.made[key]}"
        things.append(body)
        return body

    # The methods below answer requests; `query` and `body` are parsed.

    def get_experiments(self, query, body):
        return {"experiments": matching(self.experiments, query)}

    def post_experiments(self, query, body):
        strictly(body, kfp_server_api.V2beta1Experiment)
        return self.keep(self.experiments, "experiment_id", body)

    def get_pipelines(self, query, body):
        return {"pipelines": matching(self.pipelines, query)}

    def post_pipelines(self, query, body):
        strictly(body, kfp_server_api.V2beta1Pipeline)
        return self.keep(self.pipelines, "pipeline_id", body)

    def post_pipelines_upload_version(self, query, content):
        version = {
            "pipeline_id": query["pipelineid"],
            "display_name": query["name"],
            "description": query.get("description", ""),
            "spec": parsed(content),
        }
        self.keep(self.versions, "pipeline_version_id", version)
        return {key: value for key, value in version.items() if key != "spec"}

    def get_version(self, query, pipeline_id, version_id):
        (version,) = [v for v in self.versions if v["pipeline_version_id"] == version_id]
        assert version["pipeline_id"] == pipeline_id
        return {key: value for key, value in version.items() if key != "spec"}

    def get_versions(self, query, pipeline_id):
        own = [v for v in self.versions if v["pipeline_id"] == pipeline_id]
        return {
            "pipeline_versions": [
                {k: x for k, x in v.items() if k != "spec"} for v in matching(own, query)
            ]
        }

    def post_runs(self, query, body):
        strictly(body, kfp_server_api.V2beta1Run)
        self._check_runtime(body)
        return self.keep(self.runs, "run_id", body)

    def get_runs(self, query, body):
        """storage/run_store.go, ListRuns; filter/filter.go: IS_SUBSTRING"""
        own = [run for run in self.runs if run["experiment_id"] == query["experiment_id"]]
        found, more = self.page_of(matching(own, query), query)
        return {"runs": found, **more}

    def get_run(self, query, run_id):
        """server/api_converter.go, toApiRun and toApiPipelineTaskDetail"""
        run = next((run for run in self.runs if run["run_id"] == run_id), None)
        if run is None:
            raise LookupError(f"Run {run_id} not found")
        states = self.workflows.get(run_id, [{"phase": "Running", "nodes": {}}])
        workflow = states.pop(0) if len(states) > 1 else states[0]
        state = STATES.get(workflow["phase"].upper())
        # resource/resource_manager.go, ReportWorkflowResource: a run that is being terminated is
        # CANCELING until its workflow has ended; then it is FAILED.
        if run.get("state") == "CANCELING" and state in TERMINABLE:
            state = "CANCELING"
        history = self.histories.setdefault(run_id, [])
        if not history or history[-1]["state"] != state:
            history.append({"update_time": time_of(0), "state": state})
        run["state"] = state
        tasks = [task_detail(node) for node in workflow["nodes"].values()]
        details = {"run_details": {"task_details": tasks}} if tasks else {}
        return {**run, **details, "state_history": history, "finished_at": time_of(0)}

    def terminate(self, query, run_id):
        (run,) = [run for run in self.runs if run["run_id"] == run_id]
        if run.get("state") not in TERMINABLE:
            raise ValueError(f"Failed to terminate a run {run_id}. Row not found")
        run["state"] = "CANCELING"
        return {}

    def get_run_v1(self, query, run_id):
        """server/api_converter.go, toApiRunDetailV1"""
        workflow = self.workflows[run_id][-1]
        metadata = {"name": workflow["name"], "namespace": "team"}
        status = {"nodes": workflow["nodes"], "message": workflow.get("message")}
        manifest = {"metadata": metadata, "status": status}
        return {"run": {}, "pipeline_runtime": {"workflow_manifest": json.dumps(manifest)}}

    def get_log(self, query, pod):
        """server/run_log_server.go, ReadRunLogV1: errors have the status 200 as well"""
        if self.is_ui:
            raise LookupError(pod)
        error = {"error_message": "Failed to read logs", "error_details": "pod not found"}
        return self.logs.get(pod) or json.dumps(error)

    def get_log_of_ui(self, query):
        """frontend/server/handlers/pod-logs.ts, getPodLogsHandler"""
        if not self.is_ui:
            raise LookupError("pods")
        assert query["podnamespace"] == "team"
        return self.logs[query["podname"]]

    def post_recurringruns(self, query, body):
        strictly(body, kfp_server_api.V2beta1RecurringRun)
        strictly(body["trigger"], kfp_server_api.V2beta1Trigger)
        strictly(body["trigger"]["cron_schedule"], kfp_server_api.V2beta1CronSchedule)
        self._check_runtime(body)
        # server/api_converter.go, toModelJob: cron.Parse of robfig/cron v1.2.0, without time zones
        assert 5 <= len(body["trigger"]["cron_schedule"]["cron"].split()) <= 6
        assert 1 <= int(body["max_concurrency"]) <= 10
        return self.keep(self.recurring, "recurring_run_id", body)

    def get_recurringruns(self, query, body):
        found, more = self.page_of(matching(self.recurring, query), query)
        # camel case, as in recurring_run.proto
        return {"recurringRuns": found, **more}

    def page_of(self, found, query):
        """Return a page of a list, and the token of the next one."""
        start = int(query.get("page_token") or 0)
        end = start + min(self.page_size, int(query.get("page_size") or self.page_size))
        return found[start:end], {"next_page_token": str(end)} if end < len(found) else {}

    def delete_recurringrun(self, query, name):
        self.recurring = [run for run in self.recurring if run["recurring_run_id"] != name]
        self.deleted.append((name, query.get("propagation_policy")))
        return {}

    def _check_runtime(self, body):
        """The parameters are those of the version that is named."""
        strictly(body["pipeline_version_reference"], kfp_server_api.V2beta1PipelineVersionReference)
        strictly(body["runtime_config"], kfp_server_api.V2beta1RuntimeConfig)
        wanted = body["pipeline_version_reference"]["pipeline_version_id"]
        (version,) = [v for v in self.versions if v["pipeline_version_id"] == wanted]
        values = body["runtime_config"]["parameters"]
        json_format.ParseDict({"parameterValues": values}, pb.PipelineJob.RuntimeConfig())
        known = version["spec"].root.input_definitions.parameters
        assert values.keys() <= known.keys()
        for name, definition in known.items():
            assert name in values or definition.is_optional
            if definition.parameter_type == pb.ParameterType.LIST and name in values:
                kind = dict if name == "points" else str
                assert all(isinstance(item, kind) for item in values[name])


def strictly(body, model):
    """Refuse keys that the API's model does not have."""
    assert body.keys() <= set(model.attribute_map.values()), body.keys()


def matching(things, query):
    found = list(things)
    if "filter" in query:
        (predicate,) = json.loads(query["filter"])["predicates"]
        key, wanted = predicate["key"], predicate["stringValue"]
        is_part = predicate["operation"] == "IS_SUBSTRING"
        found = [t for t in found if (wanted in t[key] if is_part else wanted == t[key])]
    if "namespace" in query:
        found = [t for t in found if t.get("namespace") == query["namespace"]]
    return found[::-1] if query.get("sort_by", "").endswith("desc") else found


def parsed(content):
    """The uploaded YAML as PipelineSpec, its platform part as KubernetesExecutorConfigs."""
    spec, *platform = yaml.safe_load_all(content)
    for document in platform:
        json_format.ParseDict(document, pb.PlatformSpec())
        for part in document["platforms"].values():
            for executor in part["deploymentSpec"]["executors"].values():
                json_format.ParseDict(executor, kubernetes_pb.KubernetesExecutorConfig())
    return json_format.ParseDict(spec, pb.PipelineSpec())
