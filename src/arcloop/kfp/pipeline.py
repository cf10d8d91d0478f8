"""The pipeline: prepare, validate, train, embed, index, evaluate, and deploy if the gate passed.

KFP copies the source of the function of each component into the compiled pipeline. Such a function
therefore only declares the inputs and outputs of its task and calls `arcloop.kfp.pod`, which the
image contains. The parameters `*_overrides` are the config groups that the step reads (see
`STEPS`), so the cache key of a step contains exactly the groups that determine its result.
"""

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from arcloop.kfp.config import DEPLOY, PARAMETERS, ClusterSettings, NotifySettings, StepSettings
from arcloop.kfp.pod import VOLUME
from arcloop.pipeline.steps import STEPS, Step

FINGERPRINT = "fingerprint"
_SMALL = StepSettings(title="", cpu="500m", memory="1Gi")


def compute_fingerprint(data_overrides: list[str]) -> str:
    """Return a hash of the content and the settings of the data source."""
    from arcloop.kfp import pod

    return str(pod.call("compute_fingerprint", pod.compute_fingerprint, data_overrides))


def prepare(
    data_overrides: list[str], fingerprint: str, store_out: dsl.Output[dsl.Dataset]
) -> None:
    """Convert the images of the data source to a store; the fingerprint is in the cache key."""
    from arcloop.kfp import pod

    pod.run_step("prepare", locals())


def validate(
    validation_overrides: list[str],
    store: dsl.Input[dsl.Dataset],
    validation_out: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Check the images and labels of the store."""
    from arcloop.kfp import pod

    pod.run_step("validate", locals())


def train(
    seed_overrides: list[str],
    threads_overrides: list[str],
    monitor_overrides: list[str],
    monitor_mode_overrides: list[str],
    head_scale_overrides: list[str],
    compile_overrides: list[str],
    loader_overrides: list[str],
    sampler_overrides: list[str],
    augmentation_overrides: list[str],
    backbone_overrides: list[str],
    backbone_weights_overrides: list[str],
    embedder_overrides: list[str],
    head_overrides: list[str],
    optimizer_overrides: list[str],
    scheduler_overrides: list[str],
    trainer_overrides: list[str],
    logger_overrides: list[str],
    callbacks_overrides: list[str],
    export_overrides: list[str],
    calibration_overrides: list[str],
    store: dsl.Input[dsl.Dataset],
    run_out: dsl.Output[dsl.Model],
    trainjob: str = "",
) -> None:
    """Train in this pod, or on the nodes of a TrainJob if one is given as JSON."""
    from arcloop.kfp import pod

    pod.run_step("train", locals())


def embed(
    embed_overrides: list[str],
    run: dsl.Input[dsl.Model],
    store: dsl.Input[dsl.Dataset],
    gallery_out: dsl.Output[dsl.Dataset],
) -> None:
    """Compute the embeddings of the gallery."""
    from arcloop.kfp import pod

    pod.run_step("embed", locals())


def index(
    index_overrides: list[str],
    calibration_overrides: list[str],
    embed_overrides: list[str],
    run: dsl.Input[dsl.Model],
    store: dsl.Input[dsl.Dataset],
    gallery: dsl.Input[dsl.Dataset],
    index_out: dsl.Output[dsl.Model],
) -> None:
    """Build the faiss index of the gallery and calibrate its threshold."""
    from arcloop.kfp import pod

    pod.run_step("index", locals())


def evaluate(
    evaluate_overrides: list[str],
    embed_overrides: list[str],
    run: dsl.Input[dsl.Model],
    store: dsl.Input[dsl.Dataset],
    gallery: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Model],
    evaluation_out: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    summary: dsl.Output[dsl.Markdown],
) -> bool:
    """Compute the metrics of the query split and return whether the gate passed."""
    from arcloop.kfp import pod

    pod.run_step("evaluate", locals())
    return pod.show_evaluation(evaluation_out, metrics, confusion, roc, summary)


def deploy(
    name_overrides: list[str],
    force_overrides: list[str],
    deploy_overrides: list[str],
    run: dsl.Input[dsl.Model],
    gallery: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Deploy the run as the live version of its model store."""
    from arcloop.kfp import pod

    pod.deploy(locals())


def notify(
    webhook_env: str,
    timeout_s: float,
    run_name: str,
    outcome: str,
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Post the metrics and the gate decision of a run to the webhook."""
    from arcloop.kfp import pod

    text = f"{run_name}: {outcome}"
    pod.call("notify", pod.post_result, webhook_env, timeout_s, text, evaluation.path)


def notify_failure(
    webhook_env: str, timeout_s: float, run_name: str, status: dsl.PipelineTaskFinalStatus
) -> None:
    """Post the error message of a failed run to the webhook."""
    from arcloop.kfp import pod

    if status.state != "SUCCEEDED":
        cause = status.error_message or "see its log"
        text = f"{run_name}: failed, nothing was deployed\n{cause}"
        pod.call("notify_failure", pod.post, webhook_env, timeout_s, text)


def compile_pipeline(settings: ClusterSettings, notify: NotifySettings, path: Path) -> None:
    """Write the pipeline's IR YAML; the same settings give the same bytes.

    Its parameters are lists of overrides, one for each config group.

    Args:
        settings: The cluster.
        notify: The webhook.
        path: The YAML file.
    """
    names = [*([FINGERPRINT] if settings.fingerprint == "client" else []), *PARAMETERS]

    def arcloop(*values: Any) -> Any:
        return _add_tasks(settings, notify, dict(zip(names, values, strict=True)))

    arcloop.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=str if name == FINGERPRINT else list[str],
                default=inspect.Parameter.empty if name == FINGERPRINT else [],
            )
            for name in names
        ],
        # kfp does not support outputs of an exit handler.
        return_annotation=inspect.Signature.empty if notify.webhook_env else dsl.Artifact,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    decorate = dsl.pipeline(name="arcloop", description=__doc__.partition("\n")[0])
    compiler.Compiler().compile(decorate(arcloop), str(path))


def _add_tasks(settings: ClusterSettings, notify: NotifySettings, values: Mapping[str, Any]) -> Any:
    """Create the tasks; return the evaluation, unless there is an exit handler."""
    artifacts: dict[str, Any] = {}

    def add(step: Step, **more: Any) -> Any:
        image = settings.image or ""
        component = dsl.component(globals()[step.name], base_image=image, install_kfp_package=False)
        overrides = {f"{group}_overrides": values[group] for group in step.reads}
        task = component(**overrides, **{role: artifacts[role] for role in step.inputs}, **more)
        _configure(task, step.name, settings, notify)
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


def _configure(task: Any, name: str, settings: ClusterSettings, notify: NotifySettings) -> None:
    """Set resources, volumes, selectors, retries, cache and title of a task."""
    step = settings.steps.get(name, _SMALL)
    if name == "train" and settings.train == "trainjob":  # the nodes get the resources instead
        step = _SMALL.model_copy(update={"title": step.title})
    task.set_display_name(step.title or name)
    task.set_caching_options(settings.cache and name in STEPS)
    _set_resources(task, step)
    for label, value in {**settings.node_selector, **step.node_selector}.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in [*settings.tolerations, *step.tolerations]:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    kubernetes.set_image_pull_policy(task, settings.pull_policy)
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.pull_secrets)
    _mount_volumes(task, name, settings)
    for variable, setting in settings.env.items():
        task.set_env_variable(variable, str(setting))
    webhook = {notify.secret: {notify.key: notify.webhook_env}} if notify.secret else {}
    secrets: Mapping[str, Any] = webhook if name.startswith("notify") else settings.secrets
    for secret, keys in secrets.items():
        kubernetes.use_secret_as_env(task, secret, keys)
    if settings.retries.count:
        task.set_retry(
            settings.retries.count,
            backoff_duration=f"{settings.retries.wait_s}s",
            backoff_factor=settings.retries.factor,
            backoff_max_duration=f"{settings.retries.longest_s}s",
        )


def _set_resources(task: Any, step: StepSettings) -> None:
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    if step.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=step.shm)  # noqa: S108


def _mount_volumes(task: Any, name: str, settings: ClusterSettings) -> None:
    if settings.storage == "pvc":
        task.set_env_variable(VOLUME, settings.volume.mount)
    # The model store, which deploy writes, outlives the pod. `evaluate` can compare with it.
    uses_store = name in ("evaluate", "deploy") and not settings.is_local
    if settings.storage == "pvc" or uses_store:
        kubernetes.mount_pvc(task, settings.volume.claim, settings.volume.mount)
    if name in ("compute_fingerprint", "prepare"):
        for claim, path in settings.data_volumes.items():
            kubernetes.mount_pvc(task, claim, path)
