"""A stand-in of a KFP server that runs a compiled pipeline step by step.

It restates what the driver and the launcher do with artifacts, parameters and the cache. Each rule
names its file and function in kubeflow/pipelines, release-2.17, backend/src/v2. A step is the
command of the compiled YAML in a process. Differences: a bucket is a folder, every pod has its own
folder in place of `/`, and failed steps are not retried.
"""

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

BUCKET_PATTERN = re.compile(r"(^[a-z][a-z0-9]+:///?)([^/?]+)(/[^?]*)?(\?.+)?$")
"""objectstore/config.go, bucketPattern"""
LOCAL_PREFIXES = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
"""component/launcher_v2.go, LocalPathForURI"""
MOUNTS_IN_THE_POD = """\
import os
from kfp.dsl.types import artifact_types
for name in ("GCS", "MINIO", "S3"):
    variable = f"_{name}_LOCAL_MOUNT_PREFIX"
    setattr(artifact_types, variable, os.environ["POD"] + getattr(artifact_types, variable))
"""


class StepError(Exception):
    """A step that the server or its own process ended."""


def parse_bucket(uri):
    """objectstore/config.go, ParseBucketConfigForArtifactURI: scheme and name of the bucket."""
    found = BUCKET_PATTERN.search(uri)
    if found is None:
        raise StepError(f"parse bucket config failed: unrecognized uri format: {uri}")
    if found[1] not in ("gs://", "s3://", "minio://", "mem://"):
        raise StepError(f"parse bucket config failed: unsupported Cloud bucket: {uri}")
    return found[1] + found[2]


def local_path(uri):
    """component/launcher_v2.go, LocalPathForURI"""
    for scheme, prefix in LOCAL_PREFIXES.items():
        if uri.startswith(scheme):
            return prefix + uri.removeprefix(scheme)
    raise StepError(f"failed to generate local path for URI {uri}: unsupported storage scheme")


def metadata_value(value):
    """metadata/converter.go, StructValueToMLMDValue and toRuntimeArtifact"""
    if value is None:
        raise StepError("unknown/unsupported value type")
    if isinstance(value, list | dict):
        return {"list" if isinstance(value, list) else "struct": value}
    return value if isinstance(value, str) else float(value)


class Server:
    """One server with its object store, its metadata and its cache.

    Attributes:
        states: Task -> "ran", "cached" or "skipped", of the last run.
        uploaded, downloaded: (task, name of the artifact) -> bytes, of the last run.
        artifacts: Every artifact that was recorded, by its id.
        runs: Folders of the runs in the bucket.
    """

    def __init__(self, folder, root="minio://mlpipeline/v2/artifacts"):
        self.folder, self.root = folder, root
        self.artifacts, self.cache, self.runs = {}, {}, []
        (folder / "site").mkdir(parents=True)
        (folder / "site/sitecustomize.py").write_text(MOUNTS_IN_THE_POD)

    def run(self, compiled, parameters):
        """Run a compiled pipeline; return the artifacts that the root's tasks made, by task."""
        self.spec, *platform = yaml.safe_load_all(Path(compiled).read_text())
        executors = [p["platforms"]["kubernetes"]["deploymentSpec"]["executors"] for p in platform]
        self.kubernetes = executors[0] if executors else {}
        self.states, self.uploaded, self.downloaded = {}, {}, {}
        self.run_id = str(uuid.uuid4())
        # metadata/client.go, GetPipeline: the pipeline root of a run
        self.run_root = f"{self.root}/{self.spec['pipelineInfo']['name']}/{self.run_id}"
        defined = self.spec["root"]["inputDefinitions"]["parameters"]
        values = {k: d["defaultValue"] for k, d in defined.items() if "defaultValue" in d}
        return self._run_dag(self.spec["root"]["dag"], values | parameters, {})

    def _run_dag(self, dag, parameters, artifacts):
        waiting, done = dict(dag["tasks"]), {}
        while waiting:
            name = next(
                n for n, t in waiting.items() if not {*t.get("dependentTasks", ())} - {*done}
            )
            task = waiting.pop(name)
            if "strategy" in task.get("triggerPolicy", {}):
                continue  # an exit task
            done[name] = self._run_task(name, task, done, parameters, artifacts)
        return done

    def _run_task(self, name, task, done, parameters, artifacts):
        inputs = task.get("inputs", {})
        given = {
            key: self._resolve(source, done, parameters)
            for key, source in inputs.get("parameters", {}).items()
        }
        taken = {
            key: self._resolve(source, done, artifacts)
            for key, source in inputs.get("artifacts", {}).items()
        }
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None:  # of dsl.If and dsl.Else on a Boolean
            (channel,) = re.findall(r"parameter_values\['(.+?)'\]", condition)
            if given[channel] is condition.startswith("!"):
                self.states[name] = "skipped"
                return {}, {}
        component = self.spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            self._run_dag(component["dag"], given, taken)
            return {}, {}
        return self._run_container(name, task, component, given, taken)

    def _resolve(self, source, done, of_parent):
        """driver/resolve.go, resolveInputParameter and resolveInputArtifact"""
        match source:
            case {"componentInputParameter": key} | {"componentInputArtifact": key}:
                return of_parent[key]
            case {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}:
                return done[task][0][key]
            case {"taskOutputArtifact": {"producerTask": task, "outputArtifactKey": key}}:
                return done[task][1][key]
            case {"runtimeValue": {"constant": constant}}:
                return constant
        raise StepError(f"unknown source {source}")

    def _run_container(self, name, task, component, values, inputs):
        label = component["executorLabel"]
        container = self.spec["deploymentSpec"]["executors"][label]["container"]
        outputs = component.get("outputDefinitions", {})
        # driver/driver.go, provisionOutputs, and metadata/client.go, GenerateOutputURI
        task_root = f"{self.run_root}/{name}/{uuid.uuid4()}"
        made = {
            key: {"name": key, "uri": f"{task_root}/{key}", "type": definition["artifactType"]}
            for key, definition in outputs.get("artifacts", {}).items()
        }
        # cacheutils/cache.go, GenerateCacheKey: artifacts by id, without the URIs of outputs
        claims = [str(mount) for mount in self.kubernetes.get(label, {}).get("pvcMount", ())]
        command = [*container["command"], *container["args"]]
        names = sorted(made), {key: artifact["name"] for key, artifact in inputs.items()}
        key = json.dumps([names, values, command, container["image"], claims], sort_keys=True)
        is_cached = task.get("cachingOptions", {}).get("enableCache")
        if is_cached and key in self.cache:
            self.states[name] = "cached"
            return self.cache[key]  # driver/cache.go, reuseCachedOutputs: URIs of an earlier run
        executor_input = {
            "inputs": {
                "parameterValues": self._defaults(component) | values,
                "artifacts": {key: {"artifacts": [a]} for key, a in inputs.items()},
            },
            "outputs": {
                "artifacts": {key: {"artifacts": [a]} for key, a in made.items()},
                "parameters": {
                    key: {"outputFile": f"/tmp/kfp/outputs/{key}"}
                    for key in outputs.get("parameters", {})
                },
                "outputFile": f"{local_path(task_root)}/output_metadata.json",
            },
        }
        results = self._launch(name, container, executor_input)
        self.states[name] = "ran"
        if is_cached:  # driver/cache.go, getFingerPrintsAndID
            self.cache[key] = results
        return results

    def _defaults(self, component):
        """component/launcher_v2.go, addDefaultParams"""
        definitions = component.get("inputDefinitions", {}).get("parameters", {})
        return {k: d["defaultValue"] for k, d in definitions.items() if "defaultValue" in d}

    def _launch(self, name, container, executor_input):
        """component/launcher_v2.go, Execute: download, run the command, upload"""
        pod = self.folder / "pods" / f"{self.run_id}-{name}"
        outputs = executor_input["outputs"]
        inputs = {k: v["artifacts"][0] for k, v in executor_input["inputs"]["artifacts"].items()}
        for artifact in inputs.values():  # fetchNonDefaultBuckets
            if not artifact["uri"].startswith(self.run_root):
                parse_bucket(artifact["uri"])
        for key, artifact in inputs.items():  # downloadArtifacts
            self.downloaded[name, key] = self._download(artifact["uri"], pod)
        for listed in outputs["artifacts"].values():  # prepareOutputFolders
            target = pod / local_path(listed["artifacts"][0]["uri"]).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
        outputs["outputFile"] = f"{pod}{outputs['outputFile']}"
        text = json.dumps(executor_input)
        command = [word.replace("{{$}}", text) for word in container["command"] + container["args"]]
        environment = os.environ | {v["name"]: v["value"] for v in container.get("env", ())}
        environment |= {
            "POD": str(pod),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        paths = [str(self.folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = ":".join(paths)
        pod.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(command, env=environment, cwd=pod, capture_output=True, text=True)
        if ended.returncode:
            raise StepError(f"{name}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")
        # getExecutorOutputFile: protojson refuses unknown fields
        output = json.loads(Path(outputs["outputFile"]).read_text())
        json_format.ParseDict(output, pb.ExecutorOutput())
        made = {k: v["artifacts"][0] for k, v in outputs["artifacts"].items()}
        for key, artifact in made.items():  # uploadOutputArtifacts, mergeRuntimeArtifacts
            written = output.get("artifacts", {}).get(key, {}).get("artifacts", [{}])[0]
            uri = artifact["uri"] = written.get("uri") or artifact["uri"]
            self.uploaded[name, key] = self._upload(uri, pod)
            # metadata/client.go, RecordArtifact; metadata/converter.go, toRuntimeArtifact
            metadata = {k: metadata_value(v) for k, v in written.get("metadata", {}).items()}
            artifact["metadata"] = {"display_name": key, "store_session_info": "{}"} | metadata
            artifact["name"] = str(len(self.artifacts) + 1)
            self.artifacts[artifact["name"]] = artifact
        return output.get("parameterValues", {}), made

    def _blob(self, uri):
        return self.folder / "buckets" / uri.partition("://")[2]

    def _download(self, uri, pod):
        """objectstore/object_store.go, DownloadBlob: a prefix without objects is no error."""
        return _copy(self._blob(uri), pod / local_path(uri).lstrip("/"))

    def _upload(self, uri, pod):
        """objectstore/object_store.go, UploadBlob; a missing file or scheme is no error here."""
        if not uri.startswith(tuple(LOCAL_PREFIXES)):
            return 0
        if not uri.startswith(self.run_root):  # objectstore/config.go, KeyFromURI
            raise StepError(f"URI {uri} does not have expected bucket prefix {self.run_root}")
        return _copy(pod / local_path(uri).lstrip("/"), self._blob(uri))


def _copy(source, target):
    """Copy a file, or the files in a folder; return the bytes."""
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    for file in files:
        place = target / file.relative_to(source) if file != source else target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return sum(file.stat().st_size for file in files)
