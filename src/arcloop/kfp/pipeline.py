"""The pipeline: prepare, validate, train, embed, index, evaluate, and deploy if the gate passed."""

import contextlib
import inspect
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl

from arcloop.artifacts.atomic import write_bytes
from arcloop.kfp import components
from arcloop.kfp.config import ClusterSettings, NotifySettings
from arcloop.kfp.parameters import (
    DEPLOY,
    FINGERPRINT,
    PARAMETERS,
    POINTS,
    REGISTER,
    SEARCH,
    varied_steps,
)
from arcloop.kfp.placement.placement import configure
from arcloop.pipeline.steps import STEPS, Step

_TYPES = {FINGERPRINT: str, POINTS: list[dict], SEARCH: str}  # type: ignore[type-arg]


def compile_pipeline(
    settings: ClusterSettings,
    notify: NotifySettings,
    path: Path,
    defaults: Mapping[str, Any] | None = None,
    *,
    deploys: bool = True,
) -> None:
    """Write the pipeline's IR YAML; the same arguments give the same bytes.

    Its parameters are lists of overrides, one for each config group.

    Args:
        settings: The cluster.
        notify: The webhook.
        path: The YAML file.
        defaults: Parameter -> default value, so that a run without parameters, e.g. one that is
            started in KFP's UI, has this config. By default, no overrides. With `POINTS`, the
            combinations of a sweep, the pipeline runs and ranks all of them. With `SEARCH` as well,
            a study proposes the combinations.
        deploys: Whether the model is deployed if the gate passed.
    """
    defaults = defaults or {}
    names = [name for name in (FINGERPRINT, POINTS, SEARCH) if name in defaults]
    if settings.fingerprint == "client" and FINGERPRINT not in names:
        names.append(FINGERPRINT)
    names += PARAMETERS
    graph = _Graph(settings, notify, deploys)

    def arcloop(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        if POINTS not in defaults:
            return graph.build(given, None)
        keys = json.loads(defaults[SEARCH])["varied"] if SEARCH in defaults else defaults[POINTS][0]
        return graph.build(given, {key for key in keys if key in given})

    has_output = not notify.webhook_env and POINTS not in defaults
    arcloop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=_TYPES.get(name, list[str]),
                default=defaults.get(name, inspect.Parameter.empty if name == FINGERPRINT else []),
            )
            for name in names
        ],
        # kfp does not support outputs of an exit handler.
        return_annotation=dsl.Artifact if has_output else inspect.Signature.empty,
    )
    decorate = dsl.pipeline(name="arcloop", description=__doc__.partition("\n")[0])
    content = _compile(decorate(arcloop))
    if settings.is_local and POINTS in defaults:
        content = _merge_components(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.encode())


def _compile(pipeline: Any) -> str:
    """Return the IR YAML of a pipeline; kfp can only write it to a file."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(compiled))
        return compiled.read_text(encoding="utf-8")


def _merge_components(content: str) -> str:
    """Give both tasks of a step in a sweep, in the loop and after it, the same component.

    kfp.local, unlike a server, has the name of the component in the cache key.
    """
    spec, *platform = yaml.safe_load_all(content)
    places = [spec["deploymentSpec"]["executors"]]
    places += [doc["platforms"]["kubernetes"]["deploymentSpec"]["executors"] for doc in platform]
    components_of = spec["components"]
    merged: dict[str, str] = {}
    for name, component in components_of.items():
        first = components_of.get(name.rpartition("-")[0], {})
        labels = [one.get("executorLabel") for one in (first, component)]
        equal = [place.get(labels[0]) == place.get(labels[1]) for place in places]
        if None not in labels and all(equal) and {**component, "executorLabel": labels[0]} == first:
            merged[name] = name.rpartition("-")[0]
    for name in merged:
        label = components_of.pop(name)["executorLabel"]
        for place in places:
            place.pop(label, None)
    for component in (spec["root"], *components_of.values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            name = task["componentRef"]["name"]
            task["componentRef"]["name"] = merged.get(name, name)
    return str(yaml.safe_dump_all([spec, *platform], width=1000))


def compile_cleaning(
    settings: ClusterSettings, path: Path, *, keep_days: float, dry_run: bool
) -> None:
    """Write the IR YAML of the pipeline whose only task removes old runs from the volume.

    Args:
        settings: The cluster.
        path: The YAML file.
        keep_days: Default of a parameter, see `arcloop.kfp.pod.retention.remove_old_runs`.
        dry_run: Default of a parameter.
    """
    component = dsl.component(
        components.clean, base_image=settings.image or "", install_kfp_package=False
    )

    def clean(keep_days: float = keep_days, dry_run: bool = dry_run) -> None:
        task = component(keep_days=keep_days, dry_run=dry_run)
        configure(task, "clean", settings, NotifySettings(webhook_env=None))

    decorate = dsl.pipeline(name="arcloop-clean", description=components.clean.__doc__)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _compile(decorate(clean)).encode())


class _Graph:
    """Creates the tasks of a pipeline.

    Attributes:
        values: Parameter -> value or channel, for the tasks that are created next.
        artifacts: Role -> output of the task that made it.
        tasks: Step -> its latest task.
    """

    def __init__(self, settings: ClusterSettings, notify: NotifySettings, deploys: bool) -> None:
        self._settings, self._notify, self._deploys = settings, notify, deploys
        self.values: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.tasks: dict[str, Any] = {}

    def build(self, values: dict[str, Any], varied: Collection[str] | None) -> Any:
        """Create all tasks; return the evaluation if the pipeline has an output.

        Args:
            values: Parameter -> channel.
            varied: Parameters that differ between the combinations; None: a single run.
        """
        self.values = values
        exit_task = self._add_notify("notify_failure")
        with dsl.ExitHandler(exit_task, name="run") if exit_task else contextlib.nullcontext():
            self._add_steps(list(STEPS) if varied is None else self._add_sweep(varied))
            if self._deploys:
                self._add_gate(notifies=bool(exit_task))
        return self.artifacts["evaluation"] if varied is None and not exit_task else None

    def _add_sweep(self, varied: Collection[str]) -> list[str]:
        """Run and rank all combinations; return the steps that the best one runs again.

        The repeated steps come from the cache. Steps that no combination changes run once, before
        the combinations.
        """
        steps = varied_steps(varied)
        self._add_steps([name for name in STEPS if name not in steps])
        values, artifacts = dict(self.values), dict(self.artifacts)
        # Trials that start together are proposed without the results of each other.
        parallelism = self._settings.parallelism or (1 if SEARCH in values else None)
        points = values[POINTS]
        with dsl.ParallelFor(points, name="sweep", parallelism=parallelism) as point:
            if SEARCH in values:
                proposed = self._add_suggest(point.trial)
                self._choose(proposed, varied)
            else:
                self.values |= {name: getattr(point, name) for name in varied}
            self._add_steps(steps)
            result = self.tasks["evaluate"].outputs["result"]
            if SEARCH in values:
                told = {"search": values[SEARCH], "point": proposed, "result": result}
                self._add(Step("report", (), (), ""), **told)
        self.values, self.artifacts = values, artifacts
        if SEARCH in values:
            points = dsl.Collected(proposed)
        inputs = {"points": points, "results": dsl.Collected(result)}
        self._choose(self._add(Step("leaderboard", (), (), ""), **inputs).outputs["Output"], varied)
        return steps

    def _add_suggest(self, trial: Any) -> Any:
        inputs = {
            "search": self.values[SEARCH],
            "trial": trial,
            "fingerprint": self.values.get(FINGERPRINT, ""),
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        }
        return self._add(Step("suggest", (), (), ""), **inputs).output

    def _choose(self, point: Any, names: Collection[str]) -> None:
        """Take the values of these parameters from a combination, which is JSON."""
        for name in sorted(names):
            chosen = self._add(Step("choose", (), (), ""), best=point, parameter=name)
            self.values[name] = chosen.output

    def _add_steps(self, names: Sequence[str]) -> None:
        for name in names:
            step, more = STEPS[name], {}
            if name == "prepare":
                if FINGERPRINT not in self.values:
                    read_fingerprint = Step("compute_fingerprint", step.reads, (), "")
                    self.values[FINGERPRINT] = self._add(read_fingerprint).output
                version = self._settings.cache_version
                more = {"fingerprint": self.values[FINGERPRINT], "cache_version": version}
            if name == "train" and self._settings.train == "trainjob":
                from arcloop.kfp.pod.trainjob import make_job

                more = {"trainjob": make_job(self._settings)}
            self.tasks[name] = task = self._add(step, **more)
            self.artifacts[step.output] = task.outputs[f"{step.output}_out"]
            if name == "train":
                task.after(self.tasks["validate"])

    def _add_gate(self, *, notifies: bool) -> None:
        passed = self.tasks["evaluate"].outputs["Output"]
        with dsl.If(passed == True, name="gate"):  # noqa: E712 - kfp overloads ==
            deployed = self._add(DEPLOY)
            if url := self._settings.model_registry:
                is_local, claim = self._settings.is_local, self._settings.volume.claim
                root = "" if is_local else f"pvc://{claim}"
                more = {"url": url, "root": root, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
                deployed = self._add(REGISTER, **more).after(deployed)
            outcome = "the gate passed; deployed"
            if sent := self._add_notify("notify", "evaluation", outcome=outcome):
                sent.after(deployed)
        if notifies:
            with dsl.Else(name="gate-not-passed"):
                outcome = "the gate did not pass; not deployed"
                self._add_notify("notify", "evaluation", outcome=outcome)

    def _add(self, step: Step, **more: Any) -> Any:
        component = dsl.component(
            getattr(components, step.name),
            base_image=self._settings.image or "",
            install_kfp_package=False,
        )
        overrides = {f"{group}_overrides": self.values[group] for group in step.reads}
        inputs = {role: self.artifacts[role] for role in step.inputs}
        task = component(**overrides, **inputs, **more)
        configure(task, step.name, self._settings, self._notify)
        return task

    def _add_notify(self, name: str, *inputs: str, **more: Any) -> Any:
        notify = self._notify
        if not notify.webhook_env:
            return None
        more |= {"webhook_env": notify.webhook_env, "timeout_s": float(notify.timeout_s)}
        more |= {"run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
        return self._add(Step(name, (), inputs, ""), **more)
