"""The pipeline: prepare, validate, train, embed, index, evaluate, and deploy if the gate passed."""

import contextlib
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from arcloop.artifacts.atomic import write_bytes
from arcloop.kfp import components
from arcloop.kfp.config import ClusterSettings, NotifySettings
from arcloop.kfp.parameters import DEPLOY, PARAMETERS
from arcloop.kfp.placement import configure
from arcloop.pipeline.steps import STEPS, Step

FINGERPRINT = "fingerprint"


def compile_pipeline(
    settings: ClusterSettings,
    notify: NotifySettings,
    path: Path,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write the pipeline's IR YAML; the same arguments give the same bytes.

    Its parameters are lists of overrides, one for each config group.

    Args:
        settings: The cluster.
        notify: The webhook.
        path: The YAML file.
        defaults: Parameter -> default value, so that a run without parameters, e.g. one that is
            started in KFP's UI, has this config. By default, no overrides.
    """
    defaults = defaults or {}
    names = [*([FINGERPRINT] if settings.fingerprint == "client" else []), *PARAMETERS]

    def arcloop(*values: Any) -> Any:
        return _add_tasks(settings, notify, dict(zip(names, values, strict=True)))

    arcloop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=str if name == FINGERPRINT else list[str],
                default=defaults.get(name, inspect.Parameter.empty if name == FINGERPRINT else []),
            )
            for name in names
        ],
        # kfp does not support outputs of an exit handler.
        return_annotation=inspect.Signature.empty if notify.webhook_env else dsl.Artifact,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    decorate = dsl.pipeline(name="arcloop", description=__doc__.partition("\n")[0])
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(decorate(arcloop), str(compiled))
        write_bytes(path, compiled.read_bytes())


def compile_cleaning(
    settings: ClusterSettings, path: Path, *, keep_days: float, dry_run: bool
) -> None:
    """Write the IR YAML of the pipeline whose only task removes old runs from the volume.

    Args:
        settings: The cluster.
        path: The YAML file.
        keep_days: Default of a parameter, see `arcloop.kfp.retention.remove_old_runs`.
        dry_run: Default of a parameter.
    """
    component = dsl.component(
        components.clean, base_image=settings.image or "", install_kfp_package=False
    )

    def clean(keep_days: float = keep_days, dry_run: bool = dry_run) -> None:
        task = component(keep_days=keep_days, dry_run=dry_run)
        configure(task, "clean", settings, NotifySettings(webhook_env=None))

    path.parent.mkdir(parents=True, exist_ok=True)
    decorate = dsl.pipeline(name="arcloop-clean", description=components.clean.__doc__)
    compiler.Compiler().compile(decorate(clean), str(path))


def _add_tasks(settings: ClusterSettings, notify: NotifySettings, values: Mapping[str, Any]) -> Any:
    """Create the tasks; return the evaluation, unless there is an exit handler."""
    artifacts: dict[str, Any] = {}

    def add(step: Step, **more: Any) -> Any:
        image = settings.image or ""
        component = dsl.component(
            getattr(components, step.name), base_image=image, install_kfp_package=False
        )
        overrides = {f"{group}_overrides": values[group] for group in step.reads}
        task = component(**overrides, **{role: artifacts[role] for role in step.inputs}, **more)
        configure(task, step.name, settings, notify)
        return task

    def add_notify(name: str, *inputs: str, **more: Any) -> Any:
        if not notify.webhook_env:
            return None
        more |= {"webhook_env": notify.webhook_env, "timeout_s": float(notify.timeout_s)}
        return add(Step(name, (), inputs, ""), run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, **more)

    exit_task = add_notify("notify_failure")
    with dsl.ExitHandler(exit_task, name="run") if exit_task else contextlib.nullcontext():
        read_fingerprint = Step("compute_fingerprint", STEPS["prepare"].reads, (), "")
        fingerprint = values.get(FINGERPRINT) or add(read_fingerprint).output
        more: dict[str, Any] = {"prepare": {"fingerprint": fingerprint}}
        if settings.train == "trainjob":
            from arcloop.kfp.trainjob import make_job

            more["train"] = {"trainjob": make_job(settings)}
        tasks = {}
        for name, step in STEPS.items():
            tasks[name] = add(step, **more.get(name, {}))
            artifacts[step.output] = tasks[name].outputs[f"{step.output}_out"]
        tasks["train"].after(tasks["validate"])
        passed = tasks["evaluate"].outputs["Output"]
        with dsl.If(passed == True, name="gate"):  # noqa: E712 - kfp overloads ==
            deployed = add(DEPLOY)
            if sent := add_notify("notify", "evaluation", outcome="the gate passed; deployed"):
                sent.after(deployed)
        if exit_task:
            with dsl.Else(name="gate-not-passed"):
                add_notify("notify", "evaluation", outcome="the gate did not pass; not deployed")
    return None if exit_task else artifacts["evaluation"]
