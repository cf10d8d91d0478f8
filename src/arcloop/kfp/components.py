"""The components of the pipeline: one function for each task.

KFP copies the source of the function of each component into the compiled pipeline. Such a function
therefore only declares the inputs and outputs of its task and calls `arcloop.kfp.pod.steps`, which
the image contains. The parameters `*_overrides` are the config groups that the step reads (see
`STEPS`), so the cache key of a step contains exactly the groups that determine its result.
"""

from kfp import dsl


def compute_fingerprint(data_overrides: list[str]) -> str:
    """Return a hash of the content and the settings of the data source."""
    from arcloop.kfp.pod import steps

    return str(steps.call("compute_fingerprint", steps.compute_fingerprint, data_overrides))


def prepare(
    data_overrides: list[str],
    fingerprint: str,
    cache_version: int,
    store_out: dsl.Output[dsl.Dataset],
) -> None:
    """Convert the images of the data source to a store.

    The fingerprint and the version only have to be in the cache key. The cache keys of later steps
    contain the artifacts of earlier steps, so another version makes all steps run.
    """
    from arcloop.kfp.pod import steps

    steps.run_step("prepare", locals())


def validate(
    validation_overrides: list[str],
    store: dsl.Input[dsl.Dataset],
    validation_out: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Check the images and labels of the store."""
    from arcloop.kfp.pod import steps

    steps.run_step("validate", locals())


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
    from arcloop.kfp.pod import steps

    steps.run_step("train", locals())


def embed(
    embed_overrides: list[str],
    run: dsl.Input[dsl.Model],
    store: dsl.Input[dsl.Dataset],
    gallery_out: dsl.Output[dsl.Dataset],
) -> None:
    """Compute the embeddings of the gallery."""
    from arcloop.kfp.pod import steps

    steps.run_step("embed", locals())


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
    from arcloop.kfp.pod import steps

    steps.run_step("index", locals())


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
    result: dsl.OutputPath(str),  # type: ignore[valid-type]
) -> bool:
    """Compute the metrics of the query split and return whether the gate passed."""
    from pathlib import Path

    from arcloop.kfp.pod import steps, storage
    from arcloop.kfp.sweeps import ranking

    steps.run_step("evaluate", locals())
    folders = storage.input_folder(run, "run"), storage.output_folder(evaluation_out)
    ranking.write_result(*folders, Path(result))
    return steps.show_evaluation(evaluation_out, metrics, confusion, roc, summary)


def suggest(search: str, trial: str, fingerprint: str, run_id: str) -> str:
    """Return a combination that the study of a search proposes, as JSON."""
    from arcloop.kfp.pod import steps
    from arcloop.kfp.sweeps import study

    return str(steps.call("suggest", study.suggest, search, trial, fingerprint, run_id))


def report(search: str, point: str, result: str) -> None:
    """Record the result of a combination in the study that proposed it."""
    from arcloop.kfp.pod import steps
    from arcloop.kfp.sweeps import study

    steps.call("report", study.report, search, point, result)


def leaderboard(
    points: list[dict],  # type: ignore[type-arg]
    results: list[str],
    page: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Markdown],
) -> str:
    """Rank the combinations of a sweep and return the best one as JSON."""
    from arcloop.kfp.pod import steps
    from arcloop.kfp.sweeps import ranking

    arguments = (points, results, page.path, table.path)
    return str(steps.call("leaderboard", ranking.rank, *arguments))


def choose(best: str, parameter: str) -> list[str]:
    """Return the value of a parameter in the best combination of a sweep."""
    import json

    return list(json.loads(best)[parameter])


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
    from arcloop.kfp.pod import steps

    steps.deploy(locals())


def register(
    name_overrides: list[str],
    deploy_overrides: list[str],
    url: str,
    root: str,
    run_id: str,
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Register the deployed version in the Model Registry."""
    from arcloop.kfp.pod import registry, steps, storage

    overrides = [*name_overrides, *deploy_overrides]
    source = storage.input_folder(evaluation, "evaluation"), evaluation.metadata
    steps.call("register", registry.register, url, root, run_id, overrides, *source)


def notify(
    webhook_env: str,
    timeout_s: float,
    run_name: str,
    outcome: str,
    evaluation: dsl.Input[dsl.Artifact],
) -> None:
    """Post the metrics and the gate decision of a run to the webhook."""
    from arcloop.kfp.pod import notification, steps, storage

    text = f"{run_name}: {outcome}"
    folder = str(storage.input_folder(evaluation, "evaluation"))
    steps.call("notify", notification.post_result, webhook_env, timeout_s, text, folder)


def notify_failure(
    webhook_env: str, timeout_s: float, run_name: str, status: dsl.PipelineTaskFinalStatus
) -> None:
    """Post the errors of a failed run to the webhook."""
    from arcloop.kfp.pod import notification, steps

    if status.state not in notification.SUCCEEDED:
        run = (run_name, status.state, status.pipeline_job_resource_name)
        steps.call("notify_failure", notification.post_failure, webhook_env, timeout_s, *run)


def clean(keep_days: float, dry_run: bool) -> int:
    """Remove old runs from the shared volume and return the number of bytes."""
    import os
    from pathlib import Path

    from arcloop.kfp.pod import retention, storage

    volume = Path(os.environ[storage.VOLUME])
    return retention.remove_old_runs(volume, keep_days, dry_run=dry_run)
