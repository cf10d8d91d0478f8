"""Fake controllers of a cluster: those of a Deployment and of its pods.

Each step of the clock, at most one pod is made or removed per Deployment and every pod moves one
state on, by the rules that RollingUpdate names: never more than replicas + maxSurge pods, never
fewer than replicas - maxUnavailable ready ones.
"""

import copy
import hashlib
import json
import threading

STEP_S = 0.01


def ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


class Controllers:
    """The clock and all that it moves.

    Args:
        api: The API server.
        fates: Tells from a pod's spec and its age in steps -> (ready, container status).
        deadline_steps: Steps without progress until ProgressDeadlineExceeded.
    """

    def __init__(self, api, fate, deadline_steps=60):
        self.api, self.fate, self.deadline_steps = api, fate, deadline_steps
        self.ages, self.progress, self.least_ready = {}, {}, {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._count = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(STEP_S):
            with self.api.lock:
                for deployment in self.api.all("Deployment"):
                    self._reconcile(deployment)
                for service in self.api.all("InferenceService"):
                    self._reconcile_inference(service)
                for pod in self.api.all("Pod"):
                    self._age(pod)
                self._collect_garbage()

    def pods(self, owner):
        return [p for p in self.api.all("Pod") if p["metadata"]["ownerReferences"] == [owner]]

    def _reconcile(self, deployment):
        spec, name = deployment["spec"], deployment["metadata"]["name"]
        template, namespace = spec["template"], deployment["metadata"]["namespace"]
        mark = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        self._keep_revision(name, namespace, mark, template)
        pods = self.pods(name)
        new = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == mark]
        old = [p for p in pods if p not in new]
        rolling = spec["strategy"]["rollingUpdate"]
        wanted = spec["replicas"]
        able = sum(map(ready, pods))
        if len(new) < wanted and len(pods) < wanted + rolling["maxSurge"]:
            self._create(name, namespace, mark, template)
        elif old and (idle := [p for p in old if not ready(p)]):
            self._delete(idle[0])
        elif (old or len(new) > wanted) and able > wanted - rolling["maxUnavailable"]:
            self._delete((old or new)[0])
        if able >= wanted or name in self.least_ready:
            self.least_ready[name] = min(able, self.least_ready.get(name, able))
        self._report(deployment, mark)

    def _report(self, deployment, mark):
        name, wanted = deployment["metadata"]["name"], deployment["spec"]["replicas"]
        pods = self.pods(name)
        new = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == mark]
        able = sum(map(ready, pods))
        state = (mark, len(new), sum(map(ready, new)), len(pods))
        known, waited = self.progress.get(name, (None, 0))
        self.progress[name] = (state, waited + 1 if known == state else 0)
        whole = len(new) == len(pods) == able == wanted
        reason = "NewReplicaSetAvailable" if whole else "ReplicaSetUpdated"
        stuck = not whole and self.progress[name][1] > self.deadline_steps
        condition = {"type": "Progressing", "status": "False" if stuck else "True",
                     "reason": "ProgressDeadlineExceeded" if stuck else reason}  # fmt: skip
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods), "updatedReplicas": len(new),
            "readyReplicas": able, "availableReplicas": able, "conditions": [condition],
        }  # fmt: skip
        self.api.store("deployments", deployment)

    def _reconcile_inference(self, service):
        """KServe makes a Deployment and a Service of the predictor, and reports how they are."""
        predictor = copy.deepcopy(service["spec"]["predictor"])
        name = f"{service['metadata']['name']}-predictor"
        labels = {**predictor.pop("labels"), "serving.kserve.io/inferenceservice": name}
        strategy, replicas = predictor.pop("deploymentStrategy"), predictor.pop("minReplicas")
        annotations = predictor.pop("annotations")
        for key in ("maxReplicas", "scaleMetric", "scaleTarget"):
            predictor.pop(key)
        template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": predictor}
        self._made("deployments", "apps/v1", "Deployment", name, {
            "replicas": replicas, "strategy": strategy, "template": template,
            "selector": {"matchLabels": {"serving.kserve.io/inferenceservice": name}},
        })  # fmt: skip
        port = {"name": "http", "port": 80,
                "targetPort": predictor["containers"][0]["ports"][0]["containerPort"]}  # fmt: skip
        self._made("services", "v1", "Service", name, {
            "ports": [port], "selector": {"serving.kserve.io/inferenceservice": name}})  # fmt: skip
        able = [p for p in self.pods(name) if ready(p)]
        service["status"] = {"conditions": [{"type": "Ready", "status": str(bool(able))}]}
        self.api.store("inferenceservices", service)

    def _made(self, plural, api, kind, name, spec):
        made = self.api.find(kind, name) or {
            "apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "team"},
        }  # fmt: skip
        made["spec"] = spec
        self.api.store(plural, made)

    def _keep_revision(self, name, namespace, mark, template):
        labels = {**template["metadata"]["labels"], "pod-template-hash": mark}
        revision = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": f"{name}-{mark}", "namespace": namespace, "labels": labels},
            "spec": {"template": template},
        }  # fmt: skip
        if self.api.find("ReplicaSet", f"{name}-{mark}", namespace) is None:
            self.api.store("replicasets", revision)

    def _create(self, name, namespace, mark, template):
        self._count += 1
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": f"{name}-{mark}-{self._count}", "namespace": namespace,
                "labels": {**template["metadata"]["labels"], "pod-template-hash": mark},
                "ownerReferences": [name],
            },
            "spec": template["spec"],
            "status": {"conditions": []},
        }  # fmt: skip
        self.api.store("pods", pod)

    def _delete(self, pod):
        self.api.remove("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _age(self, pod):
        name = pod["metadata"]["name"]
        self.ages[name] = self.ages.get(name, 0) + 1
        able, container = self.fate(pod, self.ages[name])
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(able)}],
            "containerStatuses": [
                {"name": "server", "ready": able, "restartCount": 0, **container}
            ],
        }
        self.api.store("pods", pod)

    def _collect_garbage(self):
        """Pods go with their Deployment, and KServe's Deployment with its InferenceService."""
        services = {s["metadata"]["name"] for s in self.api.all("InferenceService")}
        for one in self.api.all("Deployment"):
            name = one["metadata"]["name"]
            if name.endswith("-predictor") and name.removesuffix("-predictor") not in services:
                self.api.remove("deployments", one["metadata"]["namespace"], name)
        owners = {d["metadata"]["name"] for d in self.api.all("Deployment")}
        for pod in self.api.all("Pod"):
            if pod["metadata"]["ownerReferences"][0] not in owners:
                self._delete(pod)


def starts(pod, age):
    """A pod of a sound image: ready after three steps."""
    return age >= 3, {"state": {"running": {}}}


def is_slow(pod, age):
    return age >= 25, {"state": {"running": {}}}


def is_never_ready(pod, age):
    return False, {"state": {"running": {}}}


def has_no_image(pod, age):
    reason = "ErrImagePull" if age < 6 else "ImagePullBackOff"
    message = f'Back-off pulling image "{pod["spec"]["containers"][0]["image"]}"'
    return False, {"state": {"waiting": {"reason": reason, "message": message}}}


def crashes(pod, age):
    said = "Loading\nerror: cannot serve: FileNotFoundError(2, 'no archive')\n"
    ended = {"exitCode": 1, "reason": "Error", "message": said}
    if age % 6 < 3:
        return False, {"restartCount": age // 6, "state": {"running": {}},
                       "lastState": {"terminated": ended} if age >= 6 else {}}  # fmt: skip
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
    return False, {"restartCount": age // 6, "state": {"waiting": waiting},
                   "lastState": {"terminated": ended}}  # fmt: skip
