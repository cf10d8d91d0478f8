"""What the components share: kfp copies the source of these functions into every component.

So each imports what it needs inside, and is annotated with builtins and the names of kfp.dsl.
"""

# ruff: noqa: UP006, UP035 - kfp reads the annotations as objects, at compile and run time.
from typing import Dict, List

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Markdown, Metrics


def place(artifact: Artifact) -> str:
    """Return where to write an output: below the shared volume where there is one.

    A URI that names no object store is neither uploaded nor downloaded by KFP.
    """
    import os

    volume = os.environ.get("ARCLOOP_VOLUME")
    if volume:
        inside = artifact.uri.partition("://")[2] or artifact.uri.strip("/")
        artifact.uri = f"{volume}/{inside}"
    return str(artifact.path)


def run_on(
    name: str, overrides: List[List[str]], inputs: Dict[str, Artifact], output: Artifact
) -> None:
    """Run a step of arcloop on KFP's artifacts."""
    from pathlib import Path

    from arcloop.pipeline.steps import run_step

    places = {role: Path(artifact.path) for role, artifact in inputs.items()}
    made = run_step(name, [o for group in overrides for o in group], places, Path(place(output)))
    output.metadata["sha256"] = made.sha256


def deploy_on(overrides: List[List[str]], parts: Dict[str, Artifact]) -> None:
    """Call serving/deploy.py with a run that has its gallery, index and evaluation inside."""
    import os
    import tempfile
    from pathlib import Path

    os.environ["ARCLOOP_TRACEBACK"] = "1"  # its errors are KFP's to show
    from arcloop.serving.deploy import main

    with tempfile.TemporaryDirectory() as run:
        for role in ("gallery", "index", "evaluation"):
            Path(run, role).symlink_to(parts[role].path)
        for entry in Path(parts["run"].path).iterdir():
            if entry.name not in parts:
                Path(run, entry.name).symlink_to(entry)
        code = main([f"run_dir={run}", *(o for group in overrides for o in group)])
    if code:
        raise SystemExit(code)


def train_on_nodes(
    overrides: List[List[str]], store: Artifact, run: Artifact, settings: str
) -> None:
    """Have a TrainJob train on nodes of its own, which see the shared volume as this pod does."""
    from pathlib import Path

    from arcloop.kfp.trainjob import train_on

    flat = [o for group in overrides for o in group]
    made = train_on(flat, Path(store.path), Path(place(run)), settings)
    run.metadata["sha256"] = made.sha256


def show_page(folder: Artifact, report: HTML) -> None:
    """Hand the report page to KFP's UI."""
    import shutil

    shutil.copyfile(folder.path + "/report.html", report.path)


def show_evaluation(
    evaluation: Artifact,
    metrics: Metrics,
    confusion: ClassificationMetrics,
    roc: ClassificationMetrics,
    summary: Markdown,
) -> None:
    """Hand metrics, confusion matrix, ROC and a summary to KFP's UI."""
    import csv
    import json
    from pathlib import Path

    folder = Path(evaluation.path)
    values = json.loads((folder / "metrics.json").read_bytes())
    gate = json.loads((folder / "gate.json").read_bytes())
    for name, value in values.items():
        metrics.log_metric(name, value)
    with open(folder / "confusion_matrix.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    confusion.log_confusion_matrix(header[1:], [[int(cell) for cell in row[1:]] for row in rows])
    if (folder / "roc.csv").exists():
        with open(folder / "roc.csv", newline="", encoding="utf-8") as file:
            points = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
        far, tar, threshold = map(list, zip(*points, strict=True))
        roc.log_roc_curve(far, tar, threshold)
    lines = [f"# The gate {'passed' if gate['passed'] else 'did not pass'}", ""]
    lines += [f"- {reason}" for reason in gate["reasons"]]
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.6g} |" for name, value in values.items()]
    Path(summary.path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    # kfp's local cache takes an output for lost whose file is not there.
    for artifact in (metrics, confusion, roc):
        Path(artifact.path).write_text(json.dumps(artifact.metadata), encoding="utf-8")


def post(webhook_env: str, timeout_s: float, text: str) -> None:
    """Post a message; a webhook that fails is told in the log and stops nothing."""
    import json
    import os
    import urllib.request

    try:
        request = urllib.request.Request(  # noqa: S310 - the URL is the administrator's
            os.environ[webhook_env],
            json.dumps({"text": text}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
    except Exception as cause:  # noqa: BLE001 - and the URL is a secret, which some errors quote
        print(f"the notification was not delivered: {type(cause).__name__}")


def passed(evaluation: Artifact) -> bool:
    """Whether the gate let the model through."""
    import json
    from pathlib import Path

    return json.loads((Path(evaluation.path) / "gate.json").read_bytes())["passed"] is True


def fingerprint_of(overrides: List[List[str]]) -> str:
    """Look at the source of the images: the same content and settings give the same text."""
    from arcloop.config.composition import compose_config
    from arcloop.data import store_key
    from arcloop.pipeline.steps import build

    return store_key(build(compose_config([o for group in overrides for o in group]), "data"))


def result_text(run_name: str, verdict: str, evaluation: Artifact) -> str:
    """What is told of a run that came to its end."""
    import json
    from pathlib import Path

    folder = Path(evaluation.path)
    metrics = json.loads((folder / "metrics.json").read_bytes())
    reasons = json.loads((folder / "gate.json").read_bytes())["reasons"]
    shown = [
        f"{name} {metrics[name]:.4f}" for name in ("top1", "map_at_r", "eer") if name in metrics
    ]
    return "\n".join([f"{run_name}: {verdict}", ", ".join(shown), *reasons])


def failure_text(run_name: str, cause: str) -> str:
    """What is told of a run that did not."""
    return f"{run_name}: failed, nothing was deployed\n{cause or 'see its log'}"
