"""Entry point of the command line: `arcloop VERB [hydra overrides] [-m]`."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from arcloop.config.files import choices_of, config_groups
from arcloop.config.paths import name_run, quote_paths
from arcloop.config.project import project_of
from arcloop.config.targets import require_extra
from arcloop.errors import ConfigError, report_errors

EXTRA_PACKAGES = {"serving": ("fastapi", "model_archiver", "yaml"), "kubeflow": ("kfp",)}
"""Optional extra -> packages that its verbs import."""


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        summary: One-line description for the overview.
        examples: Commands for the help of the verb; empty if `function` prints the help.
        function: Dotted path of the function that takes the arguments and returns the exit code.
            Empty for a verb that runs a chain of steps on a composed config, or in a sweep on one
            config per job.
        extra: Optional extra that the verb needs.
    """

    summary: str
    examples: tuple[str, ...] = ()
    function: str = ""
    extra: str = ""


VERBS = {
    "init": Verb(
        "a new project: own configs and classes, with a test and a workflow",
        function="arcloop.cli.init.init",
    ),
    "schema": Verb(
        "JSON schemas of conf/, with which an editor completes and checks YAML",
        function="arcloop.cli.schema.schema",
    ),
    "completion": Verb(
        "completion of verbs, groups, choices and keys in bash, zsh or fish",
        function="arcloop.cli.completion.completion",
    ),
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
        ("arcloop evaluate runs/mnist evaluate.gate.min_top1=0.99",),
    ),
    "export": Verb(
        "run -> model.onnx and model.pt2, checked against model.pt, without training",
        ("arcloop export run_dir=runs/mnist export=onnx",),
    ),
    "push": Verb(
        "run -> a folder in the layout of the Hugging Face Hub, with a model card",
        function="arcloop.pipeline.push.push",
    ),
    "lineage": Verb(
        "model, index, run or archive -> everything it was made from, verified",
        function="arcloop.pipeline.lineage.lineage",
    ),
    "reproduce": Verb(
        "run -> a second run with the same config: equal, or the first difference",
        function="arcloop.pipeline.reproduce.reproduce",
    ),
    "leaderboard": Verb(
        "folder of a sweep -> ranking of its runs: table, CSV, page and plots",
        function="arcloop.pipeline.leaderboard.command.leaderboard",
    ),
    "clean": Verb(
        "folder of a sweep -> removes models and checkpoints of all but the best settings",
        function="arcloop.pipeline.leaderboard.clean.clean",
    ),
    "check-labels": Verb(
        "run -> page of the images whose nearest images have another label",
        function="arcloop.pipeline.check_labels.check_labels",
    ),
    "compare": Verb(
        "two runs -> metrics with paired intervals on the same queries, flips, size, speed",
        function="arcloop.pipeline.compare_command.compare",
    ),
    "diff": Verb(
        "two runs -> differences of config, data, code and metrics; one run -> its command",
        function="arcloop.pipeline.diff.diff",
    ),
    "serve": Verb(
        "run -> a server on this machine, whose answers are compared with the run",
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
        "run -> replaces the model of a running TorchServe; no request fails",
        ("arcloop roll run_dir=runs/mnist",),
        "arcloop.serving.roll.main",
        extra="serving",
    ),
    "pipeline": Verb(
        "the run as a Kubeflow pipeline, on this machine or on a cluster",
        function="arcloop.kfp.submission.main",
        extra="kubeflow",
    ),
    "trigger": Verb(
        "start a pipeline whenever the data change",
        function="arcloop.kfp.trigger.trigger",
        extra="kubeflow",
    ),
    "query": Verb(
        "an image -> its nearest neighbours: arcloop query IMAGE --run RUN_DIR",
        function="arcloop.cli.query.query",
    ),
}
ON_RUNS = ("embed", "index", "evaluate", "export", "serve", "deploy", "versions", "roll")
"""Verbs that take the folder of a run as `run_dir=FOLDER`, or as FOLDER alone."""
_ENDING = """\
  -m            one job for every combination of comma-separated values; sweep=optuna searches
  --cfg job     print the composed config and stop
Exit codes: 0 success; 1 error of data or machine; 2 error of the config; 3 the gate did not pass.
ARCLOOP_TRACEBACK=1 shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program name; `sys.argv` by default.

    Returns:
        Exit code: 0 success; 1 error of the data or machine; 2 error of the config; 3 the gate did
        not pass; 130 interrupted; 143 terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        with project_of(arguments) as rest:
            return _dispatch(rest)

    return report_errors(work)


def _dispatch(arguments: list[str]) -> int:
    """Print help, or run the verb and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        summaries = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
        print(_help("arcloop VERB [GROUP=CHOICE] [KEY=VALUE] [-m]", summaries))
        return 0
    name, *rest = arguments
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        raise ConfigError(
            f"there is no verb {name!r}",
            remedy=f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}",
        )
    verb = VERBS[name]
    wants_help = bool({"-h", "--help"} & set(rest))
    rest = quote_paths(name_run(rest) if name in ON_RUNS and not wants_help else rest)
    actions = {word for example in verb.examples for word in example.split() if "=" not in word}
    topics = [word for word in rest if not word.startswith("-") and word not in actions]
    if wants_help and topics and (verb.examples or verb.extra == "kubeflow"):
        from arcloop.cli.topics import print_topics

        print_topics(topics)
        return 0
    if wants_help and verb.examples:
        print(_help(f"arcloop {name}: {verb.summary}", [f"  {line}" for line in verb.examples]))
        return 0
    if not verb.function:
        from arcloop.cli.launch import launch

        return launch(name, rest)
    if verb.extra and not wants_help:
        require_extra(verb.extra, *EXTRA_PACKAGES[verb.extra], where=f"arcloop {name}")
        # SIGTERM, which Kubernetes and systemd send, ends the work in the same way as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    module, _, function = verb.function.rpartition(".")
    code: int = getattr(importlib.import_module(module), function)(rest)
    return code


def _help(title: str, lines: Sequence[str]) -> str:
    """Return a help text with these lines, the config groups and the flags."""
    choices = [f"  {group:<13} {', '.join(sorted(choices_of(group)))}" for group in config_groups()]
    heading = "Groups and their choices (GROUP=CHOICE; values inside: GROUP.KEY=VALUE):"
    topics = "VERB --help GROUP, GROUP=CHOICE or KEY explains each, e.g. --help head=arcface seed"
    return "\n".join([title, "", *lines, "", heading, *choices, "", topics, _ENDING])
