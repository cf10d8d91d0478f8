"""Retries: when Argo starts them, and a training that continues after its pod was killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from kfp import dsl

from arcloop import artifacts
from arcloop.errors import ConfigError, DataError, ResourceError
from arcloop.kfp.pipeline import compile_cleaning, compile_pipeline
from arcloop.kfp.pod.storage import CHECKPOINTS, PIPELINES, VOLUME, output_folder
from arcloop.kfp.submission import read_submission
from arcloop.pipeline.attempts import RETRY_INDEX, end_retries, record_error
from arcloop.pipeline.steps import STEPS, run_step

DAY = 24 * 3600
GKE = ["cluster=gke", "mode=compile", "trainer=cpu", "cluster.steps.train.gpus=0"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, image):
    """The compiled pipeline of cluster=gke, as the two documents of its YAML."""
    submission = read_submission([*GKE, f"cluster.image={image}"])
    path = tmp_path_factory.mktemp("ir") / "gke.yaml"
    compile_pipeline(submission.cluster, submission.notify, path)
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def tasks(pipeline):
    """Task -> its part of the IR, also of the tasks in the condition."""
    dags = [pipeline[0]["root"]["dag"]]
    dags += [c["dag"] for c in pipeline[0]["components"].values() if "dag" in c]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


@dataclass
class Retry:
    """What Argo decides after a failed attempt, in seconds after the start of the first one."""

    at: float | None
    deadline: float | None = None
    cause: str = ""


def decide(policy, failures, ended):
    """The decision of Argo 4.0 after `failures` attempts, the last of which ended at `ended`.

    KFP passes the policy on as strings: getTaskRetryParametersWithValues and
    getTaskRetryStrategyFromInput in backend/src/v2/compiler/argocompiler/container.go. Argo reads
    them in processNodeRetries of workflow/controller/operator.go: the deadline counts from the
    start of the first attempt (firstChildNode.StartedAt), ends the retries, and becomes the
    execution deadline of the retry. `intstr.Int` refuses a factor that is not an integer.
    """
    duration, longest = (
        int(policy[k].rstrip("s")) for k in ("backoffDuration", "backoffMaxDuration")
    )
    factor = int(f"{policy['backoffFactor']:g}")  # Go formats 2.0 as 2, as `%v` does
    if ended > longest:
        return Retry(None, cause="Max duration limit exceeded")
    wait = duration * factor ** (failures - 1)
    if ended + wait > longest:
        return Retry(None, cause="Backoff would exceed max duration limit")
    if failures > policy["maxRetryCount"]:
        return Retry(None, cause="No more retries left")
    return Retry(ended + wait, longest)


def test_a_training_of_days_is_retried_and_no_deadline_ends_the_retry(tasks):
    for name in [*STEPS, "deploy"]:
        policy, ended, waits = tasks[name]["retryPolicy"], 0.0, []
        for failures in range(1, 6):
            ended += 20 * DAY
            retry = decide(policy, failures, ended)
            assert retry.at is not None, (name, retry.cause)
            assert retry.deadline > ended + 365 * DAY
            waits.append(retry.at - ended)
        assert waits == [60, 120, 240, 480, 960]
        assert decide(policy, 6, ended).cause == "No more retries left"


def test_the_time_that_kfp_writes_by_default_would_prevent_the_retry(tasks):
    """RetryPolicy.to_proto of kfp/dsl/structures.py writes 3600s if a task has no time."""
    policy = {**tasks["train"]["retryPolicy"], "backoffMaxDuration": "3600s"}
    assert decide(policy, 1, 2 * DAY).cause == "Max duration limit exceeded"
    assert decide(policy, 1, 3580).cause == "Backoff would exceed max duration limit"


def test_a_factor_that_argo_cannot_read_is_refused(image):
    """Int of util/intstr/parametrizable.go: "value '1.5' cannot be resolved to an int"."""
    with pytest.raises(ConfigError, match=r"cluster\.retries\.factor=1\.5 must be a valid integer"):
        read_submission([*GKE, f"cluster.image={image}", "cluster.retries.factor=1.5"])


@pytest.mark.parametrize("variable", [VOLUME, CHECKPOINTS])
def test_every_attempt_has_the_same_folder_on_the_volume(tmp_path, monkeypatch, variable):
    """provisionOutputs of backend/src/v2/driver/driver.go appends task, salt and output to the
    root, which ends with the run (keyPipelineRoot of backend/src/v2/metadata/client.go)."""
    monkeypatch.setenv(variable, str(tmp_path))
    for _ in range(2):
        run = dsl.Model(uri="gs://bucket/arcloop/a-run/train/salt/run_out")
        assert output_folder(run) == tmp_path / PIPELINES / "a-run/train/salt/run_out"


def test_old_trainings_are_removed_from_the_volume_of_the_checkpoints(tmp_path, image):
    changes = ["cluster.checkpoints.claim=spot", "cluster.checkpoints.mount=/mnt/spot"]
    arguments = ["cluster=gke", f"cluster.image={image}", "mode=clean", "cluster.host=http://h"]
    settings = read_submission([*arguments, *changes]).cluster
    compile_cleaning(settings, tmp_path / "clean.yaml", keep_days=30, dry_run=True)
    spec, platform = yaml.safe_load_all((tmp_path / "clean.yaml").read_text())
    environment = spec["deploymentSpec"]["executors"]["exec-clean"]["container"]["env"]
    assert environment == [{"name": VOLUME, "value": "/mnt/spot"}]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    (mount,) = executors["exec-clean"]["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("spot", "/mnt/spot")


def attempt(output, index, error=None):
    """An attempt of a task, with the number that KFP gives it; return whether it did its work."""
    worked = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RETRY_INDEX, str(index))
        with end_retries(output):
            worked = True
            if error:
                raise error
    return worked


def test_an_error_that_would_occur_again_ends_the_retries(tmp_path):
    """execute of backend/src/v2/component/launcher_v2.go drops the exit code of the command, and
    main of backend/src/v2/cmd/launcher-v2 exits with 1, so a retry policy cannot know the cause.
    commonEnvs and retryIndexEnv of argocompiler/common.go give each attempt its number."""
    output = tmp_path / "run_out"
    error = DataError("class 'a' has 1 image", where=Path("store"), remedy="add images")
    with pytest.raises(DataError):
        attempt(output, 0, error)
    record = json.loads(output.with_name("run_out.failed.json").read_text())
    assert (record["error"], record["exit_code"]) == ("DataError", 1)
    for index in (1, 2):
        with pytest.raises(DataError) as again:
            attempt(output, index, AssertionError("no work must be done"))
        assert str(again.value) == str(error)
    # GenerateRetryExecution of backend/src/common/util/workflow.go removes the retry node of a run
    # that a user retries, so the numbers begin at 0.
    assert attempt(output, 0)
    assert attempt(output, 1)
    with pytest.raises(DataError):
        attempt(output, 0, error)
    with end_retries(output):  # a server before 2.16, where each attempt may be the first one
        pass


def test_the_first_record_of_an_attempt_is_kept(tmp_path):
    """A process of a distributed training knows the cause, its parent only the exit code."""
    output = tmp_path / "run_out"
    for error in (DataError("the cause"), ConfigError("rank 0 of 2 ended with code 2")):
        with pytest.raises(type(error)), record_error(output):
            raise error
    with pytest.raises(DataError, match="the cause"):
        attempt(output, 1)


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), RuntimeError("a bug")])
def test_other_errors_are_retried(tmp_path, error):
    with pytest.raises(type(error)):
        attempt(tmp_path / "run_out", 0, error)
    assert attempt(tmp_path / "run_out", 1)


class Pod:
    """The command of the train component, started as the launcher starts it in a pod.

    compileCmdAndArgs and getPlaceholders of backend/src/v2/component/launcher_v2.go replace
    `{{$}}` by the ExecutorInput, which the driver makes once for all attempts: it is in the
    pod-spec-patch of the executor, and only the executor has a retryStrategy
    (addContainerExecutorTemplate of argocompiler/container.go).
    """

    def __init__(self, folder, pipeline, parameters, store):
        self.files, self.volume = folder / "pod", folder / "volume"
        container = pipeline[0]["deploymentSpec"]["executors"]["exec-train"]["container"]
        values = {f"{name}_overrides": parameters[name] for name in STEPS["train"].reads}
        output = {"name": "run_out", "uri": f"{self.files}/run-1/train/run_out",
                  "type": {"schemaTitle": "system.Model"}}  # fmt: skip
        data = {"name": "store", "uri": str(store), "type": {"schemaTitle": "system.Dataset"}}
        given = {
            "inputs": {"parameterValues": values, "artifacts": {"store": {"artifacts": [data]}}},
            "outputs": {
                "artifacts": {"run_out": {"artifacts": [output]}},
                "outputFile": str(self.files / "executor_output.json"),
            },
        }
        words = [*container["command"], *container["args"]]
        self.command = [json.dumps(given) if word == "{{$}}" else word for word in words]
        self.run = Path(output["uri"])
        self.last = self.volume / PIPELINES / "run-1/train/run_out/checkpoints/last.ckpt"

    def start(self, index):
        """Start an attempt: another pod has the same volume, and none of the files."""
        shutil.rmtree(self.files, ignore_errors=True)
        self.run.parent.mkdir(parents=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        pod = {"PATH": path, CHECKPOINTS: str(self.volume), RETRY_INDEX: str(index)}
        return subprocess.Popen(
            self.command, env=os.environ | pod, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def signal_after_a_checkpoint(self, process, number):
        """Send a signal to all processes of the pod once last.ckpt changes; return the output."""
        before = self.last.stat().st_mtime_ns if self.last.exists() else None
        while process.poll() is None:
            if self.last.exists() and self.last.stat().st_mtime_ns != before:
                os.killpg(process.pid, number)
                break
            time.sleep(0.01)
        return process.communicate(timeout=60)[0]


def weights(run):
    state = torch.jit.load(run / "model.pt").state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def test_a_training_whose_pod_is_killed_continues_in_the_next_pod(pipeline, small, tmp_path, image):
    """Argo starts the pod of a retry on any node. A preempted pod gets SIGTERM, then SIGKILL."""
    overrides = [*small, "trainer.max_epochs=12"]
    submission = read_submission([*GKE, f"cluster.image={image}", *overrides])
    store = tmp_path / "store"
    run_step("prepare", submission.parameters["data"], {}, store)
    pod = Pod(tmp_path / "spot", pipeline, submission.parameters, store)
    pod.signal_after_a_checkpoint(pod.start(0), signal.SIGKILL)
    assert not pod.run.exists()
    steps = 12 * (240 // 40)
    output = pod.signal_after_a_checkpoint(pod.start(1), signal.SIGTERM)
    assert 0 < resumed_at(output) < steps
    stopped = int(re.search(r"train: stopped by SIGTERM after (\d+) steps", output)[1])
    process = pod.start(2)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    assert resumed_at(output) == stopped < steps
    whole = [value for name in STEPS["train"].reads for value in submission.parameters[name]]
    run_step("train", whole, {"store": store}, tmp_path / "whole")
    artifacts.load(pod.run, "run")
    assert weights(pod.run) == weights(tmp_path / "whole")


def resumed_at(output):
    return int(re.search(r"train: resuming from \S+/last\.ckpt after (\d+) steps", output)[1])
