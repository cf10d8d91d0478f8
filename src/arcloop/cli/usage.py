"""What `arcloop --help` says: verbs, and the choices that conf/ holds."""

from __future__ import annotations

from pathlib import Path

from arcloop.config.composition import bundled

VERBS = {
    "run": "prepare, validate, train, embed, index, evaluate and gate: the whole chain",
    "prepare": "images -> sharded store",
    "validate": "store -> report of every fault (prepares first)",
    "train": "store -> run: checkpoints, model.pt, index, evaluation (validates first)",
    "embed": "run -> embeddings of the gallery",
    "index": "run -> faiss index, with its open-set threshold",
    "evaluate": "run -> metrics, gate and report, without training",
    "export": "run -> model.onnx, model.pt2, proven equal to model.pt, without training",
    "lineage": "model, index, run or archive -> the chain back to its images, verified",
    "reproduce": "run -> the same again: equal, or the first difference",
    "leaderboard": "folder of a sweep -> its runs ranked: table, CSV, page and plots",
    "serve": "run -> a server on this machine, proven to answer as the run does",
    "deploy": "run -> a version of its model store, live here or on Kubernetes",
    "versions": "list, roll back and prune the versions of a model store",
    "roll": "run -> the model of a running TorchServe, without losing a request",
    "pipeline": "the run as a Kubeflow pipeline, on this machine or a cluster",
    "trigger": "a pipeline whenever the data change",
    "query": "an image -> its nearest neighbours: arcloop query IMAGE --run RUN_DIR",
}
_EXAMPLES = {
    "run": ["arcloop run experiment=mnist", "arcloop run data=image_folder data.root=/my/pictures"],
    "prepare": ["arcloop prepare data=image_folder data.root=/my/pictures data.image_size=64"],
    "validate": ["arcloop validate data=idx data.root=/my/idx"],
    "train": ["arcloop train head.margin=0.4", "arcloop train -m head.margin=0.2,0.3,0.5"],
    "embed": ["arcloop embed run_dir=runs/mnist"],
    "index": ["arcloop index run_dir=runs/mnist index=hnsw"],
    "evaluate": ["arcloop evaluate run_dir=runs/mnist evaluate.gate.min_top1=0.99"],
    "export": ["arcloop export run_dir=runs/mnist export=onnx"],
    "serve": ["arcloop serve run_dir=runs/mnist"],
    "deploy": ["arcloop deploy run_dir=runs/mnist", "arcloop deploy run_dir=R deploy=kubernetes"],
    "versions": ["arcloop versions list run_dir=runs/mnist"],
    "roll": ["arcloop roll run_dir=runs/mnist"],
    "trigger": ["arcloop trigger data.root=/my/pictures every=600"],
}
DEPLOYING = {
    "serve": ("serving", "arcloop.serving.serve"),
    "deploy": ("serving", "arcloop.serving.deploy"),
    "versions": ("serving", "arcloop.serving.versions"),
    "roll": ("serving", "arcloop.serving.roll"),
    "pipeline": ("kubeflow", "arcloop.kfp.submission"),
    "trigger": ("kubeflow", "arcloop.kfp.trigger"),
}
"""Verb of an optional extra -> the extra, and the module whose `main` runs it."""
PACKAGES = {"serving": ("fastapi", "model_archiver", "yaml"), "kubeflow": ("kfp",)}
"""Extra -> packages that its verbs import."""
_ENDING = """\
  -m            one job for every combination of comma-separated values; sweep=optuna chooses
  --cfg job     print the composed config and stop
Exit codes: 0 done, 1 data or machine at fault, 2 config at fault, 3 the gate did not pass.
ARCLOOP_TRACEBACK=1 shows where an error came from."""


def overview() -> str:
    """Text of `arcloop --help`."""
    width = max(map(len, VERBS))
    verbs = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        ["arcloop VERB [GROUP=CHOICE] [KEY=VALUE] [-m]", "", *verbs, "", *_choices(), "", _ENDING]
    )


def of_verb(verb: str) -> str:
    """Text of `arcloop VERB --help`."""
    examples = [f"  {line}" for line in _EXAMPLES[verb]]
    return "\n".join(
        [f"arcloop {verb}: {VERBS[verb]}", "", *examples, "", *_choices(), "", _ENDING]
    )


def _choices() -> list[str]:
    groups = sorted(p for p in Path(bundled("conf")).iterdir() if p.is_dir())
    lines = [
        f"  {group.name:<13} {', '.join(sorted(file.stem for file in group.glob('*.yaml')))}"
        for group in groups
    ]
    return ["Groups and their choices (GROUP=CHOICE; values inside: GROUP.KEY=VALUE):", *lines]
