"""A submission: what the command line asks for, checked, compiled, and carried out."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.display.terminal import say
from arcloop.errors import ConfigError
from arcloop.kfp.cluster_settings import (
    ClusterSettings,
    NotifySettings,
    cluster_settings,
    notify_settings,
)
from arcloop.kfp.code_version import source_hash
from arcloop.kfp.cron import six_fields
from arcloop.kfp.parameters import Request, read_request

_WORDS = {"mode": ("run", "compile"), "schedule": None}
_COMPILED = Path("runs/pipelines")


@dataclass(frozen=True)
class Submission:
    """All that is known before kfp is loaded.

    Attributes:
        request: Config and parameters.
        cluster: Where to run.
        notify: Whom to tell.
        compile_only: Write the IR YAML and stop.
        cron: Six fields, where it is to recur.
    """

    request: Request
    cluster: ClusterSettings
    notify: NotifySettings
    compile_only: bool
    cron: str | None

    @property
    def name(self) -> str:
        """Of the run in the UI."""
        return str(self.request.plain["name"])

    @property
    def path(self) -> Path:
        """Where the IR YAML is written."""
        choice = "local" if self.cluster.is_local else "cluster"
        return Path(self.cluster.folder or _COMPILED) / f"{self.cluster.pipeline}-{choice}.yaml"


@dataclass(frozen=True)
class Ended:
    """What a submission came to: the verdict of the gate, where the pipeline ran here."""

    gate_passed: bool | None = None


def read_submission(argv: Sequence[str]) -> Submission:
    """Read and check the command line.

    Raises:
        ConfigError: Anything about it is wrong.
    """
    words, overrides = _divide(argv)
    try:
        request = read_request(overrides)
    except ConfigError as wrong:
        raise _with_our_words(wrong, overrides) from None
    cluster = cluster_settings(request.plain["cluster"])
    if cluster.is_local:
        # The image of a local step is only the code's name in the cache.
        cluster = dataclasses.replace(cluster, image=f"{cluster.image}-{source_hash()}")
    notify = notify_settings(request.plain["notify"])
    cron = six_fields(words["schedule"]) if "schedule" in words else None
    compile_only = words.get("mode") == "compile"
    submission = Submission(request, cluster, notify, compile_only, cron)
    faults = list(_faults(submission))
    if faults:
        raise ConfigError("\n".join(faults), remedy="nothing was submitted")
    return submission


def _divide(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the words that are not of the config out of the overrides."""
    words, overrides = {}, []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key in _WORDS:
            choices = _WORDS[key]
            if not equals or (choices and value not in choices):
                allowed = f" must be one of {', '.join(choices)}" if choices else " needs a value"
                raise ConfigError(f"{argument}{allowed}", remedy="see --help")
            words[key] = value
        elif not equals and not argument.startswith("~"):
            raise ConfigError(f"{argument!r} is no override", remedy="an override is KEY=VALUE")
        else:
            overrides.append(argument)
    return words, overrides


def _with_our_words(wrong: ConfigError, overrides: Sequence[str]) -> ConfigError:
    """Name mode and schedule too, where a misspelt one of them is no key of the config."""
    for override in overrides:
        key = override.partition("=")[0]
        near = difflib.get_close_matches(key, _WORDS, n=1)
        if near and wrong.what == f"there is no key {key}":
            return ConfigError(wrong.what, where=wrong.where, remedy=f"did you mean {near[0]}?")
    return wrong


def _faults(submission: Submission) -> Sequence[str]:
    cluster, plain = submission.cluster, submission.request.plain
    faults = []
    if submission.cron and cluster.is_local:
        faults.append("schedule= needs a cluster that outlives this command; try cluster=onprem")
    variable = submission.notify.webhook_env
    runs_here = cluster.is_local and not submission.compile_only
    if variable and runs_here and not os.environ.get(variable):
        faults.append(f"notify needs the webhook's URL in the environment variable {variable}")
    for key in ("root", "file"):
        place = plain["data"].get(key)
        bundled = place and "bundled" in str(submission.request.written["data"][key])
        if place and not cluster.is_local and not bundled and not place.startswith("/"):
            faults.append(f"data.{key}={place} must be a path in the steps' pods, so begin with /")
    if cluster.train == "trainjob":
        asked = (plain["trainer"]["num_nodes"], plain["trainer"]["devices"])
        given = (cluster.trainjob.nodes, cluster.trainjob.processes)
        if asked != given:
            faults.append(
                f"trainer.num_nodes, trainer.devices are {asked[0]}, {asked[1]}, but "
                f"cluster.trainjob.nodes, processes are {given[0]}, {given[1]}: make them agree"
            )
    return faults


def submit(submission: Submission, started: Callable[[], None] = lambda: None) -> Ended:
    """Compile and, unless that is all, run.

    Args:
        submission: What to do.
        started: Called once a run is on its way.

    Raises:
        StepError: A step of a local run did.
        SubmissionError: The server did not take it.
    """
    if submission.compile_only:
        _compile(submission)
        say(f"compiled: {submission.path}")
        return Ended()
    if submission.cluster.is_local:
        return _here(submission, started)
    return _there(submission, started)


def _compile(submission: Submission) -> dict[str, Any]:
    """Write the IR YAML; returns the parameters, checked against it."""
    from arcloop.kfp.compiled import check_parameters
    from arcloop.kfp.pipeline import FINGERPRINT, compile_pipeline

    compile_pipeline(submission.cluster, submission.notify, submission.path)
    parameters: dict[str, Any] = dict(submission.request.parameters)
    if submission.cluster.fingerprint == "client" and not submission.compile_only:
        parameters[FINGERPRINT] = fingerprint(submission.request)
    if not submission.compile_only:
        check_parameters(submission.path, parameters)
    return parameters


def fingerprint(request: Request) -> str:
    """Return what names the source's content and settings, as `prepare` names its store.

    Raises:
        DataError: The source is not there.
    """
    from arcloop.data import store_key
    from arcloop.pipeline.steps import build

    return store_key(build(request.config, "data"))


def _here(submission: Submission, started: Callable[[], None]) -> Ended:
    from arcloop.kfp.warm_python import warm_python

    with warm_python() as python:  # imports what the steps need while kfp compiles
        from arcloop.kfp.local_run import run_here

        parameters = _compile(submission)
        started()
        cluster = submission.cluster
        assert cluster.folder
        done = run_here(
            submission.path, parameters, Path(cluster.folder), python, cache=cluster.cache
        )
    for line in done.report():
        say(line)
    return Ended(done.gate_passed)


def _there(submission: Submission, started: Callable[[], None]) -> Ended:
    from arcloop.kfp.kfp_api import KfpApi

    server = KfpApi(submission.cluster)
    parameters = _compile(submission)
    uploaded = server.upload(submission.path)
    say(f"pipeline version: {uploaded.name}")
    if submission.cron:
        made, replaced = server.schedule(uploaded, parameters, submission.name, submission.cron)
        say(f"recurring run: {made}, {submission.cron}")
        for run_id in replaced:
            say(f"replaces the recurring run {run_id}")
    else:
        run_id = server.start(uploaded, parameters, submission.name)
        say(f"run: {submission.cluster.host}/#/runs/details/{run_id}")
    started()
    return Ended()
