"""The deploy step of a pipeline with deploy=kserve, with the rights of kubeflow/rbac.yaml."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from arcloop.kfp.pod import steps

RBAC = list(yaml.safe_load_all((Path(__file__).parents[3] / "kubeflow/rbac.yaml").read_text()))


class Rights(set):
    """The rights of the Role; it records which are used."""

    used = frozenset()

    def __contains__(self, right):
        self.used |= {right}
        return super().__contains__(right)


@pytest.fixture
def rights(cluster):
    (role,) = (
        obj for obj in RBAC if (obj["kind"], obj["metadata"]["name"]) == ("Role", "arcloop-deploy")
    )
    cluster.api.allowed = Rights(
        (verb, each)
        for rule in role["rules"]
        for each in rule["resources"]
        for verb in rule["verbs"]
    )
    return cluster.api.allowed


@pytest.fixture
def step(cluster, small_run, monkeypatch):
    """The overrides and the input folders of the step, which sets this process's environment."""
    monkeypatch.setenv("ARCLOOP_TRACEBACK", "")
    handler = signal.getsignal(signal.SIGTERM)
    overrides = [
        "deploy=kserve", "deploy.namespace=team", f"deploy.kubeconfig={cluster.kubeconfig}",
        f"deploy.model_store={cluster.store.path}",
    ]  # fmt: skip
    inputs = {name: small_run / name for name in ("gallery", "index", "evaluation")}
    yield overrides, {**inputs, "run": small_run}
    signal.signal(signal.SIGTERM, handler)


def test_the_step_serves_the_run(cluster, rights, step, capsys):
    steps._deploy(*step)
    assert cluster.serving == {cluster.live} == {1}
    (service,) = cluster.api.all("InferenceService")
    assert service["metadata"]["namespace"] == "team"


def test_a_terminated_step_rolls_back(cluster, rights, step):
    overrides, inputs = step
    code = (
        "import pathlib, sys; from arcloop.kfp.pod import steps;"
        "steps._deploy(eval(sys.argv[1]), eval(sys.argv[2], {'PosixPath': pathlib.Path}))"
    )
    arguments = [repr([*overrides, "deploy.image=a:stuck"]), repr(inputs)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not cluster.api.all("Pod") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert "nothing was served before, so InferenceService/synthetic was removed" in error
    assert cluster.api.find("InferenceService", "synthetic") is None
    assert process.returncode != 0
    assert cluster.live == 0


def test_the_role_has_exactly_the_rights_that_are_used(cluster, rights):
    assert cluster.roll(1, replicas=2, max_replicas=6) == 0
    assert cluster.roll(1, force_conflicts=True) == 0
    assert cluster.roll(2) == 0
    for old in cluster.api.all("ReplicaSet"):
        if cluster.versions[0] in old["metadata"]["labels"].values():
            cluster.api.remove("replicasets", "team", old["metadata"]["name"])
    assert cluster.roll(2) == 0
    for kind in ("Deployment", "InferenceService"):
        if cluster.api.find(kind, "synthetic"):
            cluster.api.remove(f"{kind.lower()}s", "team", "synthetic")
    assert cluster.roll(1, image="a:absent") == 1
    assert cluster.roll(1, "kserve", image="a:absent") == 1
    assert rights.used == set(rights)


def test_every_role_is_bound_to_the_accounts_of_the_steps():
    bound = {
        obj["roleRef"]["name"]: {subject["name"] for subject in obj["subjects"]}
        for obj in RBAC
        if obj["kind"] == "RoleBinding"
    }
    roles = {obj["metadata"]["name"] for obj in RBAC if obj["kind"] == "Role"}
    assert bound == {role: {"pipeline-runner", "default-editor"} for role in roles}
