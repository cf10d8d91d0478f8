"""The components of the pipeline: one Python function for each task.

KFP copies the source of each function into the compiled pipeline. A function therefore only
declares the inputs and outputs of its task and calls `arcloop.kfp.pod`, which the image contains.
The parameters `*_overrides` are the config groups that the step reads (see `STEPS`), so the cache
key of a step contains exactly the groups that determine its result.
"""

# ruff: noqa: ARG001 - `prepare` takes the fingerprint so that it becomes part of the cache key.

from collections.abc import Callable
from typing import Any

from kfp import dsl


def make_component(function: Callable[..., Any], image: str) -> Any:
    """Return the KFP component of a function of this module.

    Args:
        function: Declares the inputs and outputs of the task.
        image: Container image, with arcloop installed.
    """
    return dsl.component(function, base_image=image, install_kfp_package=False)


def compute_fingerprint(data_overrides: list[str]) -> str:
    """Return a hash of the content and the settings of the data source."""
    from arcloop.kfp import pod

    return pod.read_fingerprint([data_overrides])


def prepare(
    data_overrides: list[str], fingerprint: str, store_out: dsl.Output[dsl.Dataset]
) -> None:
    """Convert the images of the data source to a store."""
    from arcloop.kfp import pod

    pod.run_step("prepare", [data_overrides], {}, store_out)


def validate(
    validation_overrides: list[str],
    store: dsl.Input[dsl.Dataset],
    validation_out: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Check the images and labels of the store."""
    from arcloop.kfp import pod

    pod.run_step("validate", [validation_overrides], {"store": store}, validation_out)
    pod.show_page(validation_out, report)


def train(
    seed_overrides: list[str],
    monitor_overrides: list[str],
    monitor_mode_overrides: list[str],
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
    store: dsl.Input[dsl.Dataset],
    run_out: dsl.Output[dsl.Model],
    trainjob: str = "",
) -> None:
    """Train in this pod, or on the nodes of a TrainJob if its settings are given as JSON."""
    from arcloop.kfp import pod

    overrides = [
        seed_overrides, monitor_overrides, monitor_mode_overrides, compile_overrides,
        loader_overrides, sampler_overrides, augmentation_overrides, backbone_overrides,
        backbone_weights_overrides, embedder_overrides, head_overrides, optimizer_overrides,
        scheduler_overrides, trainer_overrides, logger_overrides, callbacks_overrides,
        export_overrides,
    ]  # fmt: skip
    if trainjob:
        pod.train_on_nodes(overrides, store, run_out, trainjob)
    else:
        pod.run_step("train", overrides, {"store": store}, run_out)


def embed(
    embed_overrides: list[str],
    run: dsl.Input[dsl.Model],
    store: dsl.Input[dsl.Dataset],
    gallery_out: dsl.Output[dsl.Dataset],
) -> None:
    """Compute the embeddings of the gallery."""
    from arcloop.kfp import pod

    pod.run_step("embed", [embed_overrides], {"run": run, "store": store}, gallery_out)


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

    overrides = [index_overrides, calibration_overrides, embed_overrides]
    pod.run_step("index", overrides, {"run": run, "store": store, "gallery": gallery}, index_out)


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

    inputs = {"run": run, "store": store, "gallery": gallery, "index": index}
    pod.run_step("evaluate", [evaluate_overrides, embed_overrides], inputs, evaluation_out)
    pod.show_page(evaluation_out, report)
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

    inputs = {"run": run, "gallery": gallery, "index": index, "evaluation": evaluation}
    pod.deploy([name_overrides, force_overrides, deploy_overrides], inputs)


def notify(
    webhook_env: str,
    timeout_s: float,
    outcome: str,
    run_name: str,
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Post the metrics and the gate decision of a run to the webhook."""
    from arcloop.kfp import pod

    pod.notify_result(webhook_env, timeout_s, run_name, outcome, evaluation)


def notify_failure(
    webhook_env: str, timeout_s: float, run_name: str, status: dsl.PipelineTaskFinalStatus
) -> None:
    """Post the error message of a failed run to the webhook."""
    from arcloop.kfp import pod

    if status.state != "SUCCEEDED":
        pod.notify_failure(webhook_env, timeout_s, run_name, status.error_message)
