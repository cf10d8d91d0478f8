"""The verbs of the command line: their descriptions, functions and help texts."""

from __future__ import annotations

from dataclasses import dataclass

from arcloop.config.composition import bundled

EXTRA_PACKAGES = {"serving": ("fastapi", "model_archiver", "yaml"), "kubeflow": ("kfp",)}
"""Optional extra -> packages that its verbs import."""


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        summary: One-line description for the overview.
        examples: Commands for the help of the verb.
        function: Dotted path of the function that takes the arguments and returns the exit code.
            Empty for a verb that runs a chain of steps on a composed config, or in a sweep on one
            config per job.
        own_help: Whether `function` prints the help of the verb.
        extra: Optional extra that the verb needs.
    """

    summary: str
    examples: tuple[str, ...] = ()
    function: str = ""
    own_help: bool = False
    extra: str = ""


VERBS = {
    "run": Verb(
        "prepare, validate, train, embed, index, evaluate and gate: the whole chain",
        ("arcloop run experiment=mnist", "arcloop run data=image_folder data.root=/my/pictures"),
    ),
    "prepare": Verb(
        "images -> sharded store",
        ("arcloop prepare data=image_folder data.root=/my/pictures data.image_size=64",),
    ),
    "validate": Verb(
        "store -> report of all findings (prepares first)",
        ("arcloop validate data=idx data.root=/my/idx",),
    ),
    "train": Verb(
        "store -> run: checkpoints, model.pt, index, evaluation (validates first)",
        ("arcloop train head.margin=0.4", "arcloop train -m head.margin=0.2,0.3,0.5"),
    ),
    "embed": Verb("run -> embeddings of the gallery", ("arcloop embed run_dir=runs/mnist",)),
    "index": Verb(
        "run -> faiss index with its open-set threshold",
        ("arcloop index run_dir=runs/mnist index=hnsw",),
    ),
    "evaluate": Verb(
        "run -> metrics, gate and report, without training",
        ("arcloop evaluate run_dir=runs/mnist evaluate.gate.min_top1=0.99",),
    ),
    "export": Verb(
        "run -> model.onnx and model.pt2, checked against model.pt, without training",
        ("arcloop export run_dir=runs/mnist export=onnx",),
    ),
    "lineage": Verb(
        "model, index, run or archive -> its verified origins down to the images",
        function="arcloop.pipeline.lineage.lineage",
        own_help=True,
    ),
    "reproduce": Verb(
        "run -> a second run with the same config: equal, or the first difference",
        function="arcloop.pipeline.reproduce.reproduce",
        own_help=True,
    ),
    "leaderboard": Verb(
        "folder of a sweep -> ranking of its runs: table, CSV, page and plots",
        function="arcloop.pipeline.leaderboard.page.leaderboard",
        own_help=True,
    ),
    "serve": Verb(
        "run -> a server on this machine, checked to answer as the run does",
        ("arcloop serve run_dir=runs/mnist",),
        "arcloop.serving.serve.main",
        extra="serving",
    ),
    "deploy": Verb(
        "run -> a version in its model store, live on this machine or on Kubernetes",
        ("arcloop deploy run_dir=runs/mnist", "arcloop deploy run_dir=R deploy=kubernetes"),
        "arcloop.serving.deploy.main",
        extra="serving",
    ),
    "versions": Verb(
        "list, roll back and prune the versions of a model store",
        (
            "arcloop versions list run_dir=runs/mnist",
            "arcloop versions rollback run_dir=runs/mnist",
            "arcloop versions prune run_dir=runs/mnist",
        ),
        "arcloop.serving.versions.main",
        extra="serving",
    ),
    "roll": Verb(
        "run -> the model of a running TorchServe, without losing a request",
        ("arcloop roll run_dir=runs/mnist",),
        "arcloop.serving.roll.main",
        extra="serving",
    ),
    "pipeline": Verb(
        "the run as a Kubeflow pipeline, on this machine or on a cluster",
        function="arcloop.kfp.submission.main",
        own_help=True,
        extra="kubeflow",
    ),
    "trigger": Verb(
        "start a pipeline whenever the data change",
        function="arcloop.kfp.trigger.main",
        own_help=True,
        extra="kubeflow",
    ),
    "query": Verb(
        "an image -> its nearest neighbours: arcloop query IMAGE --run RUN_DIR",
        function="arcloop.cli.query.query",
        own_help=True,
    ),
}
_ENDING = """\
  -m            one job for every combination of comma-separated values; sweep=optuna searches
  --cfg job     print the composed config and stop
Exit codes: 0 success; 1 fault of data or machine; 2 fault of the config; 3 the gate did not pass.
ARCLOOP_TRACEBACK=1 shows the traceback of an error."""


def overview() -> str:
    """Return the text of `arcloop --help`."""
    width = max(map(len, VERBS))
    verbs = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    title = "arcloop VERB [GROUP=CHOICE] [KEY=VALUE] [-m]"
    return "\n".join([title, "", *verbs, "", *_groups(), "", _ENDING])


def describe(name: str) -> str:
    """Return the text of `arcloop VERB --help`."""
    verb = VERBS[name]
    examples = [f"  {line}" for line in verb.examples]
    title = f"arcloop {name}: {verb.summary}"
    return "\n".join([title, "", *examples, "", *_groups(), "", _ENDING])


def _groups() -> list[str]:
    groups = sorted(path for path in bundled("conf").iterdir() if path.is_dir())
    lines = [
        f"  {group.name:<13} {', '.join(sorted(file.stem for file in group.glob('*.yaml')))}"
        for group in groups
    ]
    return ["Groups and their choices (GROUP=CHOICE; values inside: GROUP.KEY=VALUE):", *lines]
