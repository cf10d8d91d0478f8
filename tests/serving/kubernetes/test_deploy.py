"""Deployments through the official client and HTTP to a fake API server."""

import _thread
import json
import re
import shutil
import socket

import pytest
import yaml

from arcloop.serving.deploy import main
from arcloop.serving.versions import main as versions


def test_the_first_deploy_serves_and_is_live(cluster, capsys):
    assert cluster.roll(1) == 0
    assert cluster.live == 1
    assert cluster.serving == {1}
    assert len(cluster.api.all("Pod")) == 2
    kinds = ["networkpolicies", "serviceaccounts", "configmaps", "services",
             "poddisruptionbudgets", "deployments"]  # fmt: skip
    assert cluster.applied == kinds
    rehearsed = [plural for verb, plural, dry in cluster.api.requests if dry == "All"]
    assert rehearsed == kinds
    error = capsys.readouterr().err
    assert f"Deployment/synthetic serves {cluster.versions[0]}; its predictions" in error
    assert re.search(r"rollout: \d of 2 new pods ready", error)


def test_deploying_the_same_again_changes_nothing(cluster):
    assert cluster.roll(1) == 0
    before, pods = cluster.api.version, cluster.api.all("Pod")
    assert cluster.roll(1) == 0
    assert cluster.api.version == before
    assert cluster.api.all("Pod") == pods


def test_a_new_version_replaces_the_pods_one_by_one(cluster):
    assert cluster.roll(1, replicas=3) == 0
    cluster.moving.least_ready.clear()
    assert cluster.roll(2, replicas=3) == 0
    assert cluster.live == 2
    assert cluster.serving == {2}
    assert cluster.moving.least_ready["synthetic"] == 3


def test_a_slow_rollout_is_waited_for(cluster, capsys):
    assert cluster.roll(1) == 0
    assert cluster.roll(2, image="a:slow") == 0
    error = capsys.readouterr().err
    for line in ("0 of 2 new pods ready, 2 old pods serving", "2 of 2 new pods ready, 0 old"):
        assert line in error


BROKEN = {
    "absent": 'ImagePullBackOff\n        Back-off pulling image "a:absent"',
    "crashing": "error: cannot serve: FileNotFoundError(2, 'no archive')",
    "stuck": "ProgressDeadlineExceeded",
}


@pytest.mark.parametrize("tag", BROKEN)
def test_a_release_that_cannot_start_is_rolled_back(tag, cluster, capsys):
    assert cluster.roll(1) == 0
    before, pods = cluster.api.find("Deployment", "synthetic"), cluster.api.all("Pod")
    assert cluster.roll(2, image=f"a:{tag}") == 1
    error = capsys.readouterr().err
    assert BROKEN[tag] in error
    assert f"then: rolled back to {cluster.versions[0]}, which serves" in error
    assert cluster.live == 1
    after = cluster.api.find("Deployment", "synthetic")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    names = [{pod["metadata"]["name"] for pod in found} for found in (pods, cluster.api.all("Pod"))]
    assert names[0] == names[1], "the pods that served were never touched"


def test_a_first_release_that_cannot_start_is_removed(cluster, capsys):
    assert cluster.roll(1, image="a:absent") == 1
    assert (
        "nothing was served before, so Deployment/synthetic was removed" in capsys.readouterr().err
    )
    assert cluster.api.find("Deployment", "synthetic") is None
    assert cluster.live == 0


def test_the_same_release_that_no_longer_starts_is_left(cluster, capsys):
    assert cluster.roll(1, image="a:slow") == 0
    pods = cluster.api.all("Pod")
    for pod in pods:
        cluster.moving.ages[pod["metadata"]["name"]] = -10_000
    cluster.moving.deadline_steps = 20
    assert cluster.roll(1, image="a:slow") == 1
    assert "the same release was served before" in capsys.readouterr().err
    assert cluster.api.find("Deployment", "synthetic") is not None


def wrong(answer):
    answer["neighbours"][0]["similarity"] -= 0.01
    return json.dumps(answer).encode()


@pytest.mark.parametrize("fault", ["an old version answers", "other similarities"])
def test_a_release_with_wrong_predictions_is_rolled_back(fault, cluster, capsys):
    assert cluster.roll(1) == 0
    old, new = (f"synthetic-{version}.mar" for version in cluster.versions)

    def lead_astray(verb, plural, dry_run):
        if (verb, plural, dry_run) == ("patch", "deployments", ""):
            cluster.services.answering = {new: old} if fault == "an old version answers" else {}
            cluster.services.spoil = None if cluster.services.answering else wrong

    cluster.api.after_request = lead_astray
    assert cluster.roll(2) == 1
    error = capsys.readouterr().err
    assert "the server fails the parity check" in error
    answered = f"it answers with version {cluster.versions[0]}"
    assert (answered if fault == "an old version answers" else "golden image 0: row") in error
    assert f"then: rolled back to {cluster.versions[0]}" in error
    assert cluster.serving == {1}
    assert cluster.live == 1


def scale(cluster, manager, replicas):
    """Set the number of pods with another field manager."""
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment",
              "metadata": {"name": "synthetic"}, "spec": {"replicas": replicas}}  # fmt: skip
    query = {"fieldManager": manager, "force": "true"}
    cluster.api.apply("deployments", "team", "synthetic", scaled, query)


def test_fields_of_another_manager_are_a_conflict(cluster, capsys):
    assert cluster.roll(1) == 0
    scale(cluster, "kubectl-scale", 5)
    before = cluster.applied
    assert cluster.roll(2) == 1
    error = capsys.readouterr().err
    assert '.spec.replicas: conflict with "kubectl-scale"' in error
    assert "deploy.force_conflicts=true" in error
    assert cluster.applied == before, "a conflict is found before anything is changed"
    assert cluster.live == 1
    assert cluster.roll(2, force_conflicts=True) == 0
    assert cluster.api.find("Deployment", "synthetic")["spec"]["replicas"] == 2


@pytest.mark.parametrize("plural", ["networkpolicies", "deployments"])
@pytest.mark.parametrize("verb", ["create", "patch"])
def test_a_missing_right_changes_nothing(verb, plural, cluster, capsys):
    cluster.api.allowed.discard((verb, plural))
    assert cluster.roll(1) == 1
    error = capsys.readouterr().err
    assert f'User "me" cannot {verb} "{plural}"' in error
    assert "docs/kubernetes.md" in error
    assert cluster.applied == []
    assert cluster.api.objects == {}


def test_a_url_replaces_the_proxy(cluster, capsys):
    cluster.api.allowed.discard(("create", "services/proxy"))
    assert cluster.roll(1) == 1
    assert 'cannot create "services/proxy"' in capsys.readouterr().err
    gateway = cluster.api.address + "/gateway"
    assert cluster.roll(1, endpoint=gateway) == 0
    assert cluster.roll(1, endpoint=f"{gateway}/none") == 1
    assert "status 503" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"namespace": "nowhere"}, 'namespaces "nowhere" not found'),
        ({"context": "other"}, "no cluster is configured"),
        ({"kubeconfig": "/none/config"}, "no cluster is configured"),
    ],
)
def test_a_wrong_namespace_context_or_kubeconfig(changes, said, cluster, capsys):
    assert cluster.roll(1, **changes) == 2
    assert said in capsys.readouterr().err
    assert cluster.applied == []
    assert cluster.live == 0


def test_expired_credentials(cluster, capsys):
    config = cluster.kubeconfig
    config.write_text(config.read_text().replace("secret-token", "expired"))
    assert cluster.roll(1) == 1
    error = capsys.readouterr().err
    assert "Unauthorized" in error
    assert "log in again" in error
    assert "expired" not in error.replace("wrong or expired", "")


def test_no_api_server(cluster, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        config = cluster.kubeconfig
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        config.write_text(config.read_text().replace(cluster.api.address, address))
        assert cluster.roll(1) == 1
    error = capsys.readouterr().err
    assert "the API server does not answer" in error
    assert address in error
    assert cluster.api.requests == []


def test_a_connection_lost_in_the_middle(cluster, capsys):
    assert cluster.roll(1) == 0
    lost = []

    def lose(verb, plural, dry_run):
        if (verb, plural, dry_run) == ("patch", "deployments", "") and not lost:
            cluster.api.lose_requests = 9
            lost.append(True)

    cluster.api.after_request = lose
    assert cluster.roll(2, image="a:slow") == 0
    assert cluster.api.lose_requests == 0
    error = capsys.readouterr().err
    assert "the API server does not answer; retrying" in error
    assert "the API server answers again" in error
    assert cluster.serving == {2}


def test_a_connection_lost_for_good(cluster, capsys, monkeypatch):
    monkeypatch.setattr("arcloop.serving.kubernetes.rollout.MAX_OUTAGE_S", 0.2)
    assert cluster.roll(1) == 0

    def mute(verb, plural, dry_run):
        if (verb, plural, dry_run) == ("patch", "deployments", ""):
            cluster.api.lose_requests = 10**6

    cluster.api.after_request = mute
    assert cluster.roll(2) == 1
    assert "NOT rolled back, Deployment/synthetic is in an unknown state" in capsys.readouterr().err
    assert cluster.live == 1


def test_an_interrupted_rollout_is_rolled_back(cluster, capsys):
    assert cluster.roll(1) == 0
    interrupted = []

    def interrupt(verb, plural, dry_run):
        labels = cluster.api.find("Deployment", "synthetic")["metadata"]["labels"]
        rolling = cluster.versions[1] in labels.values()
        if (verb, plural) == ("list", "pods") and rolling and not interrupted:
            interrupted.append(True)
            _thread.interrupt_main()

    cluster.api.after_request = interrupt
    assert cluster.roll(2, image="a:stuck") == 130
    assert f"rolled back to {cluster.versions[0]}, which serves" in capsys.readouterr().err
    assert cluster.serving == {1}


def test_an_autoscaler_is_added_and_removed(cluster):
    assert cluster.roll(1, replicas=3) == 0
    assert cluster.roll(1, replicas=2, max_replicas=6) == 0
    deployment = cluster.api.find("Deployment", "synthetic")
    assert deployment["spec"]["replicas"] == 3, "its pods stay, until the autoscaler decides"
    scaler = cluster.api.find("HorizontalPodAutoscaler", "synthetic")
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 6)
    scale(cluster, "kube-controller-manager", 4)
    assert cluster.roll(2, replicas=2, max_replicas=6) == 0
    assert cluster.roll(1, replicas=2, max_replicas=6, image="a:absent") == 1
    deployment = cluster.api.find("Deployment", "synthetic")
    assert deployment["spec"]["replicas"] == 4, "neither a deploy nor a rollback takes pods away"
    assert cluster.roll(1, replicas=3, force_conflicts=True) == 0
    assert cluster.api.find("HorizontalPodAutoscaler", "synthetic") is None


def test_configs_of_deleted_revisions_are_removed(cluster):
    assert cluster.roll(1) == 0
    assert cluster.roll(2) == 0
    (old,) = [
        r for r in cluster.api.all("ReplicaSet")
        if cluster.versions[0] in r["metadata"]["labels"].values()
    ]  # fmt: skip
    assert len(cluster.api.all("ConfigMap")) == 2, "one can be gone back to with kubectl"
    cluster.api.remove("replicasets", "team", old["metadata"]["name"])
    assert cluster.roll(2) == 0
    assert len(cluster.api.all("ConfigMap")) == 1


def test_kserve_serves_the_same_archive(cluster, capsys):
    assert cluster.roll(1, "kserve") == 0
    assert cluster.serving == {1}
    assert cluster.roll(2, "kserve", image="a:absent") == 1
    error = capsys.readouterr().err
    assert "ImagePullBackOff" in error
    assert f"rolled back to {cluster.versions[0]}, which serves" in error
    assert cluster.serving == {1}
    assert cluster.live == 1


def test_a_cluster_without_kserve(cluster, capsys):
    cluster.api.absent.add("inferenceservices")
    assert cluster.roll(1, "kserve") == 2
    assert "KServe must be installed" in capsys.readouterr().err
    assert cluster.applied == []


@pytest.fixture
def command(cluster, small_run):
    """Arguments that deploy the small run to the fake cluster."""
    return [
        f"run_dir={small_run}", f"deploy.model_store={cluster.store.path}", "deploy=kubernetes",
        "deploy.namespace=team", f"deploy.kubeconfig={cluster.kubeconfig}",
    ]  # fmt: skip


def test_the_commands_dry_run_deploy_and_roll_back(cluster, command, capsys):
    before = sorted(cluster.store.path.rglob("*"))
    assert main([*command, "deploy.dry_run=true"]) == 0
    assert cluster.api.requests == []
    assert sorted(cluster.store.path.rglob("*")) == before, "a dry run touches nothing"
    planned = capsys.readouterr().out
    assert "\n    inference_address=" in planned, "the server's config is to be read by people"
    assert main(command) == 0
    for wanted in yaml.safe_load_all(planned):
        assert includes(cluster.api.find(wanted["kind"], wanted["metadata"]["name"]), wanted)
    assert main([*command, "deploy.max_k=7"]) == 0
    assert cluster.serving == {cluster.live} == {2}
    assert versions(["rollback", *command]) == 0
    assert cluster.serving == {cluster.live} == {1}


def includes(found, wanted):
    if isinstance(wanted, dict):
        return all(includes(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(includes, found, wanted))
    return found == wanted


def test_a_run_whose_gate_did_not_pass_never_reaches_the_cluster(cluster, command, run_dir):
    shutil.rmtree(run_dir / "evaluation")
    assert main([*command, f"run_dir={run_dir}"]) == 1
    assert cluster.api.requests == []
