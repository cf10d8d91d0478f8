"""A fake cluster, whose Services answer with the archives of their pods."""

import dataclasses
import json
import re
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.serving.kubernetes import controllers
from tests.serving.kubernetes.api_server import ApiServer

from arcloop.errors import report_errors
from arcloop.runtime.predictor import K_HEADER, Predictor, PredictRequest
from arcloop.serving.deploy import parse_arguments, publish, stage
from arcloop.serving.kubernetes import deploy, rollout
from arcloop.serving.model_store import ModelStore

FATES = {
    "slow": controllers.is_slow,
    "stuck": controllers.is_never_ready,
    "absent": controllers.has_no_image,
    "crashing": controllers.crashes,
}


def fate(pod, age):
    """Return the state of a pod, which the tag of its image determines."""
    tag = pod["spec"]["containers"][0]["image"].rpartition(":")[2]
    return FATES.get(tag, controllers.starts)(pod, age)


class Services:
    """Answers requests to Services with the archive that a selected, ready pod is configured for.

    Attributes:
        answering: Archive -> another one that answers in its place.
        spoil: Changes the JSON of an answer.
    """

    def __init__(self, api, predictors):
        self.api, self.predictors = api, predictors
        self.answering, self.spoil = {}, None
        self._lock = threading.Lock()

    def __call__(self, service, port, path, body, headers):
        selected = self._pod(self.api.find("Service", service), port)
        if selected is None:
            return 503, {"message": f'no endpoints available for service "{service}"'}
        if path != "/predictions/synthetic":
            return 503, {"message": f"nothing is at {path}"}
        archive = self._archive(selected)
        with self._lock:
            predictor = self.predictors[self.answering.get(archive, archive)]
            (reply,) = predictor.predict([PredictRequest(body, headers[K_HEADER])])
        if self.spoil is None:
            return reply.status, reply.body
        return reply.status, self.spoil(json.loads(reply.body))

    def _pod(self, service, number):
        (port,) = [p for p in service["spec"]["ports"] if p["port"] == number]
        for pod in self.api.all("Pod"):
            labels = pod["metadata"]["labels"]
            selected = service["spec"]["selector"].items() <= labels.items()
            ports = [p for c in pod["spec"]["containers"] for p in c["ports"]]
            asked = [p for p in ports if port["targetPort"] in (p["name"], p["containerPort"])]
            if selected and asked and controllers.ready(pod):
                return pod
        return None

    def _archive(self, pod):
        (name,) = [v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v]
        ((file, text),) = self.api.find("ConfigMap", name)["data"].items()
        if file == "http-server.json":
            return json.loads(text)["archive"]
        lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return lines["load_models"].partition("=")[2]


@pytest.fixture(scope="session")
def settings_of(small_run):
    """A function: overrides -> settings of the small run on a cluster; each composed once."""
    composed = {}

    def compose(*overrides):
        if overrides not in composed:
            given = [f"run_dir={small_run}", "deploy.namespace=team", *overrides]
            composed[overrides] = parse_arguments(given).settings
        return composed[overrides]

    return compose


@pytest.fixture(scope="session")
def archived(small_run, settings_of, tmp_path_factory):
    """Two versions of the small run in a store, their golden batches, and their predictors."""
    store = tmp_path_factory.mktemp("archived") / "store"
    made, golden, predictors = [], [], {}
    for k in (100, 7):
        settings = settings_of("deploy=kubernetes")
        settings = dataclasses.replace(settings, max_k=k, model_store=str(store))
        with stage(small_run, settings, force=False) as staged:
            made.append(staged.version.version)
            golden.append(staged.golden)
            unpacked = tmp_path_factory.mktemp("unpacked") / "archive"
            with zipfile.ZipFile(staged.version.path) as packed:
                packed.extractall(unpacked)
            handler = yaml.safe_load((unpacked / "model-config.yaml").read_bytes())["handler"]
            predictors[staged.version.path.name] = Predictor(unpacked, handler)
    return SimpleNamespace(store=store, versions=made, golden=golden, predictors=predictors)


class Cluster:
    """A running fake, a store of two versions, and a way to roll them out.

    Attributes:
        api: The API server.
        moving: Its controllers.
        services: What answers.
        store: Nothing in it is live yet.
        versions: Those in the store; v1 and v2 in the tests.
    """

    def __init__(self, api, moving, archived, base, tmp_path, settings_of):
        self.api, self.moving, self.services = api, moving, api.proxied
        self.versions, self._golden, self._settings_of = (
            archived.versions, archived.golden, settings_of,
        )  # fmt: skip
        self.kubeconfig = api.kubeconfig(tmp_path / "config")
        self.store = ModelStore(base, "synthetic")

    def settings(self, target="kubernetes", **changes):
        own = {"model_store": str(self.store.path), "kubeconfig": str(self.kubeconfig)}
        return dataclasses.replace(self._settings_of(f"deploy={target}"), **{**own, **changes})

    def roll(self, number, target="kubernetes", **changes):
        """Release version 1 or 2 as `deploy.py` does; returns the exit code."""

        def work():
            settings = self.settings(target, **changes)
            with self.store.locked():
                publish(self.store, self.versions[number - 1], self._golden[number - 1], settings)
            return 0

        return report_errors(work)

    @property
    def live(self):
        """The number of the version that is live in the store; 0 for none."""
        live = self.store.live()
        return self.versions.index(live.version) + 1 if live else 0

    @property
    def serving(self):
        """The numbers of the versions of all pods."""
        labels = [pod["metadata"]["labels"] for pod in self.api.all("Pod")]
        return {self.versions.index(each["app.kubernetes.io/version"]) + 1 for each in labels}

    @property
    def applied(self):
        """Kinds that were changed for good, in order."""
        return [plural for verb, plural, dry in self.api.requests if verb == "patch" and not dry]


@pytest.fixture
def quick(monkeypatch):
    """Short pauses, since the clock of the fake cluster is a hundred times as fast."""
    monkeypatch.setattr(deploy, "PARITY_PAUSE_S", 0.01)
    monkeypatch.setattr(rollout, "MAX_OUTAGE_S", 2.0)
    monkeypatch.setattr(rollout, "RETRY_S", 0.02)
    monkeypatch.setattr(rollout, "POLL_S", 0.02)


def role():
    """Return the rights of the Role in the docs; the user of every test has these."""
    docs = (Path(__file__).parents[3] / "docs/kubernetes.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", docs, flags=re.DOTALL)
    rules = yaml.safe_load(text)["rules"]
    return {(verb, each) for rule in rules for each in rule["resources"] for verb in rule["verbs"]}


@pytest.fixture
def cluster(archived, settings_of, tmp_path, quick):
    base = shutil.copytree(archived.store, tmp_path / "store")
    with ApiServer(role()) as api:
        api.proxied = Services(api, archived.predictors)
        with controllers.Controllers(api, fate) as moving:
            yield Cluster(api, moving, archived, base, tmp_path, settings_of)
