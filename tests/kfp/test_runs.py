"""Waiting for runs, their states, logs and ends, on a fake KFP server."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import yaml

from arcloop.display.terminal import console
from arcloop.errors import ArcloopError
from arcloop.kfp.config import NotifySettings
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.server.client import KfpClient
from arcloop.kfp.server.runs import _GROUPS, pod_name, show_status, tasks, terminate, wait
from arcloop.kfp.submission import main as submit

from .argo import NAME, workflow

TASKS = ("compute_fingerprint", "prepare", "validate", "train", "embed", "index", "evaluate")
AGAIN = "arcloop pipeline mode=status run=r wait=true"
PASSED = workflow(
    "Succeeded", **dict.fromkeys(TASKS, "Succeeded"), **{"condition-1": "Succeeded"},
    deploy="Succeeded",
)  # fmt: skip
NOT_PASSED = workflow(
    "Succeeded", **dict.fromkeys(TASKS, "Succeeded"), **{"condition-1": "Skipped"}
)
HALF = workflow("Running", compute_fingerprint="Succeeded", prepare="Cached", train="Running")
FAILED = workflow(
    "Failed", prepare="Succeeded", train="Failed", embed="Omitted", failed_message="OOMKilled"
)


@pytest.fixture
def client(recorder, cluster_settings):
    recorder.runs.append({"run_id": "r", "display_name": "mnist"})
    settings = {"host": recorder.url, "poll_s": 0.001, "timeout_s": 5}
    return KfpClient(cluster_settings.model_copy(update=settings))


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (PASSED, 0, "the run succeeded"),
        # v2/compiler/argocompiler/dag.go, task: dsl.If is a DAG with `when`; Argo skips it and
        # creates no node for the tasks in it.
        (NOT_PASSED, 3, "the gate did not pass; not deployed"),
        # A pipeline without a gate, such as that of mode=clean.
        (workflow("Succeeded", clean="Succeeded", prepare="Cached"), 0, "the run succeeded"),
        (FAILED, 1, "the run failed"),
    ],
)
def test_the_exit_code_is_that_of_a_local_run(client, recorder, capsys, end, code, message):
    recorder.workflows["r"] = [HALF, end]
    assert wait(client, "r", AGAIN) == code
    printed = capsys.readouterr().err
    assert f"{message}: {recorder.url}/#/runs/details/r" in printed


def test_states_and_times_are_those_of_the_tasks(client, recorder):
    recorder.workflows["r"] = [HALF]
    found = tasks(client.call(client.runs.run_service_get_run, "r"))
    assert [(task.name, task.state) for task in found] == [
        ("compute-fingerprint", "succeeded"),
        ("prepare", "succeeded"),
        ("train", "running"),
    ]
    assert [task.seconds for task in found[:2]] == [100.0, 100.0]
    recorder.workflows["r"] = [FAILED]
    *_, last = tasks(client.call(client.runs.run_service_get_run, "r"))
    assert (last.name, last.state, last.seconds) == ("embed", "not run", None)


def test_groups_of_tasks_are_not_shown(cluster_settings, tmp_path):
    notify = NotifySettings(webhook_env="WEBHOOK", secret="webhook", key="url")
    compile_pipeline(cluster_settings, notify, tmp_path / "pipeline.yaml", {})
    spec, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    dags = [part["dag"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
    groups = {
        name: "dag" in spec["components"][task["componentRef"]["name"]]
        for dag in dags
        for name, task in dag["tasks"].items()
    }
    assert sum(groups.values()) == 4
    assert groups == {name: bool(re.fullmatch(_GROUPS, name)) for name in groups}


def test_a_line_is_printed_for_every_change_only(client, recorder, capsys):
    recorder.workflows["r"] = [HALF, HALF, HALF, PASSED]
    assert wait(client, "r", AGAIN) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line[1] for line in lines if line[0] == "train"] == ["running", "succeeded"]
    assert len([line for line in lines if line[0] == "prepare"]) == 1


def test_tasks_that_are_reported_after_the_run_are_read_again(client, recorder):
    """apiserver/server/report_server.go, reportWorkflow: the run first, then its tasks."""
    stale = {**workflow("Running", evaluate="Running"), "phase": "Succeeded"}
    recorder.workflows["r"] = [HALF, stale, stale, PASSED]
    assert wait(client, "r", AGAIN) == 0


def test_the_log_of_what_failed_is_printed(client, recorder, capsys):
    recorder.workflows["r"] = [FAILED]
    pods = [n for n in FAILED["nodes"].values() if n["displayName"] == "executor(1)"]
    pod = f"{NAME}-retry-system-container-impl-{pods[0]['id'].rpartition('-')[2]}"
    recorder.logs[pod] = "".join(f"line {number}\n" for number in range(100))
    assert wait(client, "r", AGAIN) == 1
    printed = capsys.readouterr().err
    assert "train failed: OOMKilled" in printed
    assert re.findall(r"line (\d+)", printed) == [str(number) for number in range(80, 100)]
    recorder.is_ui = True
    assert show_status(client, "r") == 1
    assert "line 99" in capsys.readouterr().err


def test_a_log_that_is_gone_becomes_a_command(client, recorder, capsys):
    recorder.workflows["r"] = [FAILED]
    assert wait(client, "r", AGAIN) == 1
    printed = capsys.readouterr().err
    assert re.search(rf"kubectl logs {NAME}-retry-\S+ --container main --namespace team", printed)
    assert "Failed to read logs" not in printed


def test_a_workflow_that_fails_without_a_task(client, recorder, capsys):
    recorder.workflows["r"] = [{**workflow("Failed"), "message": "invalid spec"}]
    assert wait(client, "r", AGAIN) == 1
    assert "no task failed: invalid spec" in capsys.readouterr().err


def test_a_retried_task_that_succeeded_has_not_failed(client, recorder, capsys):
    end = workflow("Failed", train="Failed", index="Failed")
    for node in end["nodes"].values():
        if node["displayName"] in ("train", "executor") and ".train" in node["name"]:
            node["phase"] = "Succeeded"
    recorder.workflows["r"] = [end]
    assert wait(client, "r", AGAIN) == 1
    assert re.findall(r"^(\S+) failed:", capsys.readouterr().err, flags=re.MULTILINE) == ["index"]


@pytest.mark.parametrize(
    ("annotations", "node", "expected"),
    [
        ({}, {"id": "w-12", "name": "w.root.a", "templateName": "impl"}, "w-impl-12"),
        ({}, {"id": "w-12", "name": "w.inline.a", "templateName": "impl"}, "w-12"),
        ({}, {"id": "w", "name": "w", "templateName": "entrypoint"}, "w"),
        (
            {"workflows.argoproj.io/pod-name-format": "v1"},
            {"id": "w-12", "name": "w.root.a", "templateName": "impl"},
            "w-12",
        ),
    ],
)
def test_the_name_of_a_pod(annotations, node, expected):
    """common/util/workflow.go, RetrievePodName"""
    assert pod_name({"metadata": {"name": "w", "annotations": annotations}}, node) == expected


def test_an_outage_does_not_end_the_wait(client, recorder, capsys):
    recorder.workflows["r"] = [HALF, PASSED]
    recorder.outages = [503, None, None, 502, 429]
    assert wait(client, "r", AGAIN) == 0
    printed = capsys.readouterr().err
    assert printed.count("trying again until it answers") == 1
    assert printed.count("the KFP API answers again") == 1


def test_a_refusal_ends_the_wait_and_says_how_to_go_on(client, recorder, capsys):
    recorder.outages = [503, 401]
    with pytest.raises(ArcloopError, match="does not accept the credentials"):
        wait(client, "r", AGAIN)
    assert f"the run continues. Follow it again with\n  {AGAIN}" in capsys.readouterr().err
    with pytest.raises(ArcloopError, match="Run missing not found"):
        show_status(client, "missing")


def test_terminate_waits_for_the_end(client, recorder, capsys):
    """resource_manager.go, ReportWorkflowResource: CANCELING, and in the end FAILED."""
    recorder.workflows["r"] = [HALF, HALF, HALF, FAILED]
    assert terminate(client, "r") == 0
    assert recorder.count("POST", "runs/r:terminate") == 1
    assert "the run has ended: failed" in capsys.readouterr().err
    assert terminate(client, "r") == 0  # run_store.go, TerminateRun, refuses a run that has ended
    assert recorder.count("POST", "runs/r:terminate") == 1
    assert wait(client, "r", AGAIN) == 1
    assert "the run was terminated" in capsys.readouterr().err


def test_a_terminal_shows_a_table(client, recorder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.cache_clear()
    recorder.workflows["r"] = [HALF, PASSED]
    assert wait(client, "r", AGAIN) == 0
    console.cache_clear()
    printed = capsys.readouterr().err
    assert re.search(r"train +running", printed)
    assert re.search(r"train +succeeded +100 s\n", printed)
    assert "\x1b[1A" in printed  # the table is drawn again in its place


def test_interrupting_the_command_leaves_the_run(recorder, image, tmp_path):
    recorder.runs.append({"run_id": "r", "display_name": "mnist"})
    recorder.workflows["r"] = [HALF]
    polled = threading.Event()
    recorder.get_run, read = lambda *a: (polled.set(), read(*a))[1], recorder.get_run
    cluster = ["cluster=onprem", f"cluster.host={recorder.url}", "cluster.poll_s=0.01"]
    options = ["mode=status", "run=r", "wait=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "arcloop", "pipeline", *options, *cluster],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "ARCLOOP_IMAGE": ""},
    )  # fmt: skip
    assert polled.wait(120)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    again = f"arcloop pipeline mode=status run=r wait=true {' '.join(cluster)}"
    assert f"interrupted; the run continues. Follow it again with\n  {again}" in printed
    assert not [path for method, path in recorder.calls if method != "GET"]


def test_submitting_with_wait(recorder, image, in_folder, capsys):
    recorder.workflows["run_id-1"] = [HALF, NOT_PASSED]
    arguments = ["cluster=onprem", f"cluster.host={recorder.url}", f"cluster.image={image}"]
    assert submit([*arguments, "cluster.poll_s=0.001", "data=synthetic", "wait=true"]) == 3
    printed = capsys.readouterr().err
    assert "the gate did not pass; not deployed" in printed
