"""The study of a search: it proposes the combinations of a run, and stores their results.

The tasks `suggest` and `report` of each trial open the same study, in a database that all of them
can reach. Both can be retried: a trial has a number in the run, under which the study stores its
values.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from arcloop.config.composition import build_node, compose_unchecked, to_plain
from arcloop.config.targets import require_extra
from arcloop.errors import ConfigError, ResourceError
from arcloop.kfp.config import ClusterSettings
from arcloop.kfp.parameters import COMBINATION, OVERRIDES, SWEPT, divide_overrides
from arcloop.pipeline.sweeps.record import folder_name
from arcloop.pipeline.sweeps.space import SEED, Space

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

_PLACE, _RETRY = "arcloop:place", "arcloop:retry"
"""_PLACE: attribute of a trial with its number in the run and the ID of its first run. _RETRY:
prefix of an attribute of the study with the ID of the second run of a trial."""
_MAX_ATTEMPTS, _WAIT_S = 10, 0.5


def has_password(study: str | None) -> bool:
    """Return whether `cluster.study` is a URL that may contain a password."""
    address = (study or "").partition("://")[2]
    return ":" in address.rpartition("@")[0] or "password" in address.lower()


def read_search(
    words: Sequence[str], space: Space, config: Mapping[str, Any], cluster: ClusterSettings
) -> dict[str, Any]:
    """Check the settings of a search before anything starts.

    Args:
        words: The overrides of `sweep`.
        space: The overrides of the sweep.
        config: The config of a trial, which has the monitor and its mode.
        cluster: The cluster.

    Returns:
        `trials`, their number, and what `suggest` needs, apart from the fixed overrides.

    Raises:
        ConfigError: A setting is invalid, the database cannot be used, or optuna is not installed.
    """
    require_extra("sweeps", "optuna", where=" ".join(words))
    from arcloop.pipeline.sweeps.search import Search

    node = to_plain(compose_unchecked(words))["sweep"]
    _require_supported(node, space)
    arguments = {key: node[key] for key in ("trials", "seed", "objective", "objectives", "zip")}
    monitor, mode = config["monitor"], config["monitor_mode"]
    sampler = build_node(node["sampler"])
    Search(sampler, **arguments, monitor=monitor, direction=mode, at_once=1).check(space)
    _check_storage(cluster)
    direction = "maximize" if mode == "max" else "minimize"
    varied = sorted(word for word in space.given if word not in space.fixed)
    kept = {key: node[key] for key in ("trials", "seed", "sampler", "zip")}
    return {**kept, "direction": direction, "storage": cluster.study, "space": varied}


def _require_supported(node: Mapping[str, Any], space: Space) -> None:
    """Check that a pipeline can run a search.

    Raises:
        ConfigError: The search needs a sweep on this machine.
    """
    fault = None
    if node.get("sampler") is None:
        fault = "sweep=grid has no effect in a pipeline: omit sweep=, to run every combination"
    elif SEED in space.keys:
        fault = "a trial of a pipeline is a single run: seed cannot vary in a search"
    elif node.get("objectives"):
        fault = "sweep.objectives is not supported: a pipeline compares its trials by monitor alone"
    elif node.get("pruner"):
        fault = "a pipeline cannot prune its trials, because their steps run on the cluster"
    if fault:
        raise ConfigError(fault, remedy="use `arcloop train -m` for it; nothing was submitted")


def _check_storage(cluster: ClusterSettings) -> None:
    """Check where the study is stored.

    Raises:
        ConfigError: The steps cannot open it.
    """
    study, fault = cluster.study, None
    secrets = [variable for keys in cluster.secrets.values() for variable in keys.values()]
    if study is None:
        fault = "sweep= needs cluster.study: an environment variable with the URL of a database"
    elif "://" not in study and not cluster.is_local:
        if study not in secrets:
            fault = (
                f"cluster.study={study} is not among the environment variables of cluster.secrets"
            )
    elif _url(study).startswith("sqlite") and not cluster.is_local:
        fault = "cluster.study=sqlite is a file, which the steps do not share; use PostgreSQL"
    if fault:
        raise ConfigError(fault, remedy="see the section Search of docs/kubeflow.md")


def _url(study: str) -> str:
    """Return the URL of the database. No error contains it, because it may contain a password.

    Raises:
        ConfigError: There is no URL, or it is invalid.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    url = study if "://" in study else os.environ.get(study, "")
    try:
        make_url(url).get_dialect()
    except (ArgumentError, ValueError):
        name = "cluster.study" if "://" in study else f"the environment variable {study}"
        raise ConfigError(
            f"{name} contains no valid URL of a database",
            remedy="e.g. postgresql://host/database, or for cluster=local sqlite:///study.db",
        ) from None
    return url


def suggest(search: str, trial: str, fingerprint: str, run_id: str) -> str:
    """Propose the values of a trial.

    If the trial was proposed before, also by an earlier run, the same values are returned, so that
    its steps are read from the cache. If two runs ended without a result of the trial, it is
    recorded as failed, and another one is proposed in its place.

    Args:
        search: JSON of the settings, see `read_search`, with `study`, `overrides` and `varied`.
        trial: Number of the trial in the run.
        fingerprint: Hash of the data; other data have another study.
        run_id: ID of the run.

    Returns:
        JSON of the combination, see `read_sweep`, with the study and the number of the trial in it.

    Raises:
        ConfigError: The config with these values is invalid, so the trial is recorded as failed.
        ResourceError: The database cannot be used.
    """
    from optuna.trial import TrialState

    from arcloop.pipeline.sweeps.proposals import Proposals, make_sampler

    settings = json.loads(search)
    space = Space.of([*settings["overrides"], *settings["space"]]).zipped(settings["zip"])
    proposals = Proposals(space)
    name = "-".join(filter(None, [settings["study"], fingerprint[:12]]))
    with _opened(settings, name) as study:
        mine = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.user_attrs.get(_PLACE, "")[:1] == [trial]
        ]
        found = next((t for t in mine if t.state != TrialState.FAIL), None)
        if found and found.state == TrialState.RUNNING:
            retry = f"{_RETRY}:{found.number}"
            runs = [found.user_attrs[_PLACE][1], study.user_attrs.get(retry)]
            if run_id not in runs and None in runs:
                study.set_user_attr(retry, run_id)
            elif run_id not in runs:
                study.tell(found.number, state=TrialState.FAIL, skip_if_finished=True)
                found = None
        if found:
            number, values = found.number, found.params
        else:
            # Trials that start together, and those that replace a failed one, must differ.
            seed = crc32(f"{settings['seed']} {trial} {len(mine)}".encode())
            study.sampler = make_sampler(build_node(settings["sampler"]), seed)
            asked = proposals.ask(study)
            asked.set_user_attr(_PLACE, [trial, run_id])
            number, values = asked.number, asked.params
        (overrides,) = proposals.jobs(values)
        try:
            _, parameters = divide_overrides([*overrides, *settings["derived"]])
        except ConfigError:
            study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            raise
    shown = {
        key.lstrip("+~"): value
        for key, _, value in (word.partition("=") for word in overrides)
        if key.lstrip("+~") in space.keys
    }
    point = {COMBINATION: folder_name(shown), OVERRIDES: overrides, SWEPT: list(shown)}
    place = {"study": name, "number": number}
    return json.dumps({**point, **place, **{key: parameters[key] for key in settings["varied"]}})


def report(search: str, point: str, result: str) -> None:
    """Record the result of a trial in its study, unless it has one.

    Args:
        search: JSON of the settings.
        point: JSON of the combination, as returned by `suggest`.
        result: JSON of its result, see `arcloop.kfp.sweeps.ranking.write_result`.

    Raises:
        ResourceError: The database cannot be used.
    """
    from optuna.trial import TrialState

    place, objective = json.loads(point), json.loads(result)["objective"]
    failed = objective is None or not math.isfinite(objective)
    state, value = (TrialState.FAIL, None) if failed else (TrialState.COMPLETE, objective)
    with _opened(json.loads(search), place["study"]) as study:
        study.tell(place["number"], value, state, skip_if_finished=True)


@contextlib.contextmanager
def _opened(settings: Mapping[str, Any], name: str) -> Iterator[Study]:
    """Open a study; it is created if it does not exist."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _connect(_url(settings["storage"]))
        try:
            direction = settings["direction"]
            yield optuna.create_study(
                storage=storage, study_name=name, direction=direction, load_if_exists=True
            )
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as cause:
        reason = str(cause.__cause__ or cause).partition("\n")[0]
        raise ResourceError(
            f"cannot use the study {name}: {reason}",
            where="cluster.study",
            remedy="check the URL, the server of the database, and that the image has its driver",
        ) from cause


def _connect(url: str) -> RDBStorage:
    """Connect, and create missing tables; retry, because concurrent creation fails."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for _ in range(_MAX_ATTEMPTS):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return RDBStorage(url)
        time.sleep(_WAIT_S)
    return RDBStorage(url)
