"""The pipeline: prepare, validate, train, embed, index, evaluate, and deploy if the gate passed."""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl, kubernetes

from arcloop.artifacts.atomic import write_bytes
from arcloop.kfp import components
from arcloop.kfp.parameters import DEPLOY_READS, parameter_names
from arcloop.kfp.pod import VOLUME
from arcloop.kfp.settings import ClusterSettings, NotifySettings, StepSettings
from arcloop.pipeline.steps import STEPS

NAME = "arcloop"
FINGERPRINT = "fingerprint"
_SMALL = StepSettings(title="", cpu="500m", memory="1Gi")


def compile_pipeline(settings: ClusterSettings, notify: NotifySettings, path: Path) -> None:
    """Write the pipeline's IR YAML; the same settings give the same bytes.

    Args:
        settings: The cluster.
        notify: The webhook.
        path: The YAML file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # kfp infers the format from the suffix
    compiler.Compiler().compile(make_pipeline(settings, notify), str(temporary))
    write_bytes(path, temporary.read_bytes())
    temporary.unlink()


def make_pipeline(settings: ClusterSettings, notify: NotifySettings) -> Any:
    """Return the pipeline. Its parameters are lists of overrides, one for each config group."""

    def arcloop(*values: Any) -> Any:
        return _Graph(settings, notify, dict(zip(names, values, strict=True))).build()

    names = [*([FINGERPRINT] if settings.fingerprint == "client" else []), *parameter_names()]
    types: Mapping[str, Any] = {FINGERPRINT: str}
    arcloop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=types.get(name, list[str]),
                default=inspect.Parameter.empty if name in types else [],
            )
            for name in names
        ],
        # kfp does not support outputs of an exit handler.
        return_annotation=inspect.Signature.empty if notify.webhook_env else Outputs,
    )
    return dsl.pipeline(name=NAME, description=__doc__)(arcloop)


class Outputs(NamedTuple):
    """Outputs of the pipeline: whether the gate passed, and the evaluation."""

    passed: bool
    evaluation: dsl.Artifact


class _Graph:
    """Creates the tasks in order, each with the groups and the artifacts that its step reads."""

    def __init__(
        self, settings: ClusterSettings, notify: NotifySettings, values: Mapping[str, Any]
    ) -> None:
        self._settings, self._notify, self._values = settings, notify, values
        self._artifacts: dict[str, Any] = {}

    def build(self) -> Outputs | None:
        with self._exit_handler():
            self._add_step("prepare", fingerprint=self._fingerprint())
            validated = self._add_step("validate")
            trainjob = self._settings.train == "trainjob"
            more = {"trainjob": json.dumps(trainjob_settings(self._settings))} if trainjob else {}
            self._add_step("train", **more).after(validated)
            self._add_step("embed")
            self._add_step("index")
            passed = self._add_step("evaluate").outputs["Output"]
            with dsl.If(passed == True, name="gate"):  # noqa: E712 - kfp overloads ==
                deployed = self._deploy()
                if self._notify.webhook_env:
                    self._add_notify("the gate passed; deployed").after(deployed)
            if self._notify.webhook_env:
                with dsl.Else(name="gate-not-passed"):
                    self._add_notify("the gate did not pass; not deployed")
        if self._notify.webhook_env:
            return None
        return Outputs(passed, self._artifacts["evaluation"])

    def _fingerprint(self) -> Any:
        if FINGERPRINT in self._values:
            return self._values[FINGERPRINT]
        task = self._task("compute_fingerprint", **self._overrides(STEPS["prepare"].reads))
        return configure_step(task, "compute_fingerprint", self._settings).output

    def _add_step(self, name: str, **more: Any) -> Any:
        step = STEPS[name]
        inputs = {role: self._artifacts[role] for role in step.inputs}
        task = self._task(name, **self._overrides(step.reads), **inputs, **more)
        self._artifacts[step.output] = task.outputs[f"{step.output}_out"]
        return configure_step(task, name, self._settings)

    def _deploy(self) -> Any:
        inputs = {r: self._artifacts[r] for r in ("run", "gallery", "index", "evaluation")}
        task = self._task("deploy", **self._overrides(DEPLOY_READS), **inputs)
        return configure_step(task, "deploy", self._settings)

    def _add_notify(self, outcome: str) -> Any:
        evaluation = self._artifacts["evaluation"]
        task = self._task("notify", **self._webhook(), outcome=outcome, evaluation=evaluation)
        return configure_notify(task, self._settings, self._notify)

    def _exit_handler(self) -> Any:
        if not self._notify.webhook_env:
            return contextlib.nullcontext()
        task = self._task("notify_failure", **self._webhook())
        return dsl.ExitHandler(configure_notify(task, self._settings, self._notify), name="run")

    def _webhook(self) -> dict[str, Any]:
        return {
            "webhook_env": self._notify.webhook_env,
            "timeout_s": float(self._notify.timeout_s),
            "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        }

    def _task(self, name: str, **arguments: Any) -> Any:
        function = getattr(components, name)
        return components.make_component(function, self._settings.image or "")(**arguments)

    def _overrides(self, groups: tuple[str, ...]) -> dict[str, Any]:
        return {f"{group}_overrides": self._values[group] for group in groups}


def configure_step(task: Any, name: str, settings: ClusterSettings) -> Any:
    """Set resources, volumes, selectors, retries, cache and title of the task of a step."""
    step = settings.steps.get(name, _SMALL)
    if name == "train" and settings.train == "trainjob":  # the nodes get the resources instead
        step = dataclasses.replace(_SMALL, title=step.title)
    task.set_display_name(step.title or name)
    task.set_caching_options(settings.cache and name not in ("deploy", "compute_fingerprint"))
    _set_resources(task, step)
    _set_scheduling(task, settings, step)
    _mount_volumes(task, name, settings)
    for variable, value in settings.env.items():
        task.set_env_variable(variable, str(value))
    for secret, keys in settings.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {str(k): str(v) for k, v in keys.items()})
    if settings.retries.count:
        task.set_retry(
            settings.retries.count,
            backoff_duration=f"{settings.retries.wait_s}s",
            backoff_factor=settings.retries.factor,
            backoff_max_duration=f"{settings.retries.longest_s}s",
        )
    return task


def configure_notify(task: Any, settings: ClusterSettings, notify: NotifySettings) -> Any:
    """Configure a task that posts a message: small, never cached, with the webhook's secret."""
    task.set_display_name("notify")
    task.set_caching_options(False)
    _set_resources(task, _SMALL)
    _set_scheduling(task, settings, _SMALL)
    _mount_volumes(task, "notify", settings)
    if notify.secret:
        assert notify.webhook_env
        kubernetes.use_secret_as_env(task, notify.secret, {notify.key: notify.webhook_env})
    return task


def trainjob_settings(settings: ClusterSettings) -> dict[str, Any]:
    """Return the settings of the TrainJob; every node gets the resources of the train step."""
    step = settings.steps["train"]
    return {
        **dataclasses.asdict(settings.trainjob),
        "image": settings.image,
        "namespace": settings.namespace,
        "volume": dataclasses.asdict(settings.volume),
        "env": {name: str(value) for name, value in settings.env.items()},
        "secrets": settings.secrets,
        "cpu": step.cpu,
        "memory": step.memory,
        "gpus": step.gpus,
        "gpu_type": step.gpu_type,
        "shm": step.shm,
        "node_selector": {**settings.node_selector, **step.node_selector},
        "tolerations": [t.fields() for t in [*settings.tolerations, *step.tolerations]],
        "pull_secrets": settings.pull_secrets,
    }


def _set_resources(task: Any, step: StepSettings) -> None:
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    if step.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=step.shm)  # noqa: S108


def _set_scheduling(task: Any, settings: ClusterSettings, step: StepSettings) -> None:
    for label, value in {**settings.node_selector, **step.node_selector}.items():
        kubernetes.add_node_selector(task, label, str(value))
    for toleration in [*settings.tolerations, *step.tolerations]:
        kubernetes.add_toleration(task, **toleration.fields())
    kubernetes.set_image_pull_policy(task, settings.pull_policy)
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.pull_secrets))


def _mount_volumes(task: Any, name: str, settings: ClusterSettings) -> None:
    if settings.storage == "pvc":
        task.set_env_variable(VOLUME, settings.volume.mount)
    # The model store, which deploy writes, outlives the pod.
    if settings.storage == "pvc" or (name == "deploy" and not settings.is_local):
        kubernetes.mount_pvc(task, settings.volume.claim, settings.volume.mount)
    if name in ("compute_fingerprint", "prepare"):
        for claim, path in settings.data_volumes.items():
            kubernetes.mount_pvc(task, claim, str(path))
