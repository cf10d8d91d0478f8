"""The DAG: prepare, validate, train, embed, index, evaluate, and deploy if the gate passed."""

import contextlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl

from arcloop.artifacts.atomic import write_bytes
from arcloop.kfp import components
from arcloop.kfp.cluster_settings import ClusterSettings, NotifySettings
from arcloop.kfp.parameters import parameter_names
from arcloop.kfp.placing import place_notice, place_step, trainjob_settings
from arcloop.pipeline.steps import STEPS

NAME = "arcloop"
FINGERPRINT = "fingerprint"


def compile_pipeline(settings: ClusterSettings, notify: NotifySettings, path: Path) -> None:
    """Write the pipeline's IR YAML; the same settings give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")  # kfp knows the format by the suffix
    compiler.Compiler().compile(make_pipeline(settings, notify), str(draft))
    write_bytes(path, draft.read_bytes())
    draft.unlink()


def make_pipeline(settings: ClusterSettings, notify: NotifySettings) -> Any:
    """Return the pipeline, its parameters one list of overrides for every group that is read."""

    def arcloop(*values: Any) -> Any:
        return _Graph(settings, notify, dict(zip(names, values, strict=True))).build()

    names = [*([FINGERPRINT] if settings.fingerprint == "client" else []), *parameter_names()]
    kinds: Mapping[str, Any] = {FINGERPRINT: str}
    arcloop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=kinds.get(name, list[str]),
                default=inspect.Parameter.empty if name in kinds else [],
            )
            for name in names
        ],
        # kfp lets nothing out of an exit handler.
        return_annotation=inspect.Signature.empty if notify.webhook_env else Outputs,
    )
    return dsl.pipeline(name=NAME, description=__doc__)(arcloop)


class Outputs(NamedTuple):
    """What the pipeline returns: the gate's verdict, and what it is decided on."""

    passed: bool
    evaluation: dsl.Artifact


class _Graph:
    """The tasks, made in order; each takes the groups its row reads and the artifacts it names."""

    def __init__(
        self, settings: ClusterSettings, notify: NotifySettings, values: Mapping[str, Any]
    ) -> None:
        self._settings, self._notify, self._values = settings, notify, values
        self._made: dict[str, Any] = {}
        self._image = settings.image or ""

    def build(self) -> Outputs | None:
        with self._telling_failures():
            self._step("prepare", fingerprint=self._fingerprint())
            validated = self._step("validate")
            self._train().after(validated)
            self._step("embed")
            self._step("index")
            evaluated = self._step("evaluate")
            passed = evaluated.outputs["Output"]
            with dsl.If(passed == True, name="gate"):  # noqa: E712 - kfp compares, not Python
                deployed = self._deploy()
                if self._notify.webhook_env:
                    self._tell("the gate passed; deployed").after(deployed)
            if self._notify.webhook_env:
                with dsl.Else(name="gate-not-passed"):
                    self._tell("the gate did not pass; not deployed")
        return None if self._notify.webhook_env else Outputs(passed, self._made["evaluation"])

    def _fingerprint(self) -> Any:
        if FINGERPRINT in self._values:
            return self._values[FINGERPRINT]
        look = components.look_component(self._image)
        task = look(**self._overrides(STEPS["prepare"].reads))
        return place_step(task, "look", self._settings).output

    def _step(self, name: str, **more: Any) -> Any:
        step = STEPS[name]
        component = components.step_component(name, self._image)
        task = component(**self._overrides(step.reads), **self._artifacts(step.inputs), **more)
        self._made[step.output] = task.outputs[f"{step.output}_out"]
        return place_step(task, name, self._settings)

    def _train(self) -> Any:
        if self._settings.train == "step":
            return self._step("train")
        step = STEPS["train"]
        component = components.trainjob_component(self._image)
        task = component(
            **self._overrides(step.reads),
            **self._artifacts(step.inputs),
            settings=json.dumps(trainjob_settings(self._settings)),
        )
        self._made[step.output] = task.outputs["run_out"]
        return place_step(task, "trainjob", self._settings)

    def _deploy(self) -> Any:
        step = components.DEPLOY
        component = components.deploy_component(self._image)
        task = component(**self._overrides(step.reads), **self._artifacts(step.inputs))
        return place_step(task, "deploy", self._settings)

    def _tell(self, verdict: str) -> Any:
        task = components.tell_component(self._image)(
            **self._webhook(), verdict=verdict, evaluation=self._made["evaluation"]
        )
        return place_notice(task, self._settings, self._notify)

    def _telling_failures(self) -> Any:
        if not self._notify.webhook_env:
            return contextlib.nullcontext()
        task = components.tell_failure_component(self._image)(**self._webhook())
        return dsl.ExitHandler(place_notice(task, self._settings, self._notify), name="run")

    def _webhook(self) -> dict[str, Any]:
        return {
            "webhook_env": self._notify.webhook_env,
            "timeout_s": float(self._notify.timeout_s),
            "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        }

    def _overrides(self, groups: tuple[str, ...]) -> dict[str, Any]:
        return {f"{group}_overrides": self._values[group] for group in groups}

    def _artifacts(self, roles: tuple[str, ...]) -> dict[str, Any]:
        return {role: self._made[role] for role in roles}
