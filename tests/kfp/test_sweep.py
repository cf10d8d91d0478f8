"""Sweeps: their command line, the pipeline of all combinations, and the runs on a fake server."""

import json

import pytest
from google.protobuf import json_format

from arcloop.kfp.parameters import POINTS
from arcloop.kfp.submission import main as submit
from arcloop.kfp.sweep import read_sweep
from arcloop.kfp.sweep_results import rank
from arcloop.kfp.trigger import trigger

from .api_server import parsed
from .argo import workflow

SWEPT = ["-m", "head.margin=0.2,0.4", "seed=0,1"]
TASKS = ("prepare", "validate", "train", "embed", "index", "evaluate")


@pytest.fixture
def arguments(recorder, image, in_folder):
    return [
        "cluster=onprem", f"cluster.host={recorder.url}", "cluster.namespace=team",
        f"cluster.image={image}", "data=synthetic", "cluster.poll_s=0.001",
    ]  # fmt: skip


@pytest.fixture
def compiled(arguments, in_folder):
    """A function: arguments of a sweep -> PipelineSpec."""

    def compile_sweep(*more):
        assert submit([*arguments, "mode=compile", *more]) == 0
        return parsed((in_folder / "runs/pipelines/arcloop-cluster.yaml").read_bytes())

    return compile_sweep


WRONG = {
    "nothing swept": (["-m", "seed=0"], "no key has several values"),
    "several values without -m": (["head.margin=0.2,0.3"], "-m runs one job for each"),
    "an interval": (["-m", "head.margin=interval(0.1,0.5)"], "cannot be enumerated"),
    "a search": (["sweep=optuna"], "sweep=optuna is not supported by a pipeline"),
    "a search of several values": ([*SWEPT, "sweep=random"], "sweep=random is not supported"),
    "a launcher": ([*SWEPT, "launcher=joblib"], "launcher=joblib has no effect in a pipeline"),
    "a setting of the cluster": (
        ["-m", "cluster.retries.count=1,2"], "cluster.retries.count cannot have several values",
    ),
    "nothing that is measured": (
        ["-m", "validation.min_std=1.0,2.0"], "validation.min_std: no metric depends",
    ),
    "no cache": ([*SWEPT, "cluster.cache=false"], "-m needs cluster.cache=true"),
    "a schedule of several runs": (
        [*SWEPT, "schedule=0 0 * * 2"], "schedule= with -m needs cluster.sweep=pipeline",
    ),
    "one wrong value": (["-m", "head.margin=0.2,9"], "head.margin"),
    "another mode": ([*SWEPT, "mode=schedules"], "-m has no effect with mode=schedules"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_sweep_is_rejected_before_a_request(arguments, recorder, capsys, case):
    more, message = WRONG[case]
    assert submit([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1
    assert recorder.calls == []


def test_a_trigger_starts_no_sweep(arguments, recorder, capsys):
    assert trigger([*arguments, *SWEPT]) == 2
    assert "does not support -m" in capsys.readouterr().err


def selected(item, selector):
    """v2/expression/expression.go, Select and celParseJson: the item as JSON, and one key of it."""
    prefix, key, suffix = selector.split('"')
    assert (prefix, suffix) == ("parseJson(string_value)[", "]")
    return item[key]


def test_only_the_steps_that_differ_are_in_the_loop(compiled):
    spec = compiled(*SWEPT, "cluster.parallelism=2")
    root = spec.root.dag.tasks
    (loop,) = [task for task in root.values() if task.HasField("parameter_iterator")]
    # v2/compiler/argocompiler/dag.go, iteratorTask: the limit of the loop's template
    assert loop.iterator_policy.parallelism_limit == 2
    inner = spec.components[loop.component_ref.name].dag.tasks
    assert sorted(inner) == sorted(["train", "embed", "index", "evaluate"])
    assert {"prepare", "validate"} <= set(root)
    # v2/compiler/argocompiler/dag.go: `depends` has the tasks of dependentTasks only.
    assert "validate" in loop.dependent_tasks
    default = spec.root.input_definitions.parameters[POINTS].default_value
    items, values = json_format.MessageToDict(default), []
    for item in items:
        parameters = inner["train"].inputs.parameters
        values.append([
            selected(item, parameters[f"{name}_overrides"].parameter_expression_selector)
            for name in ("head", "seed")
        ])  # fmt: skip
    assert values == [
        [["head.margin=0.2"], []], [["head.margin=0.2"], ["seed=1"]],
        [["head.margin=0.4"], []], [["head.margin=0.4"], ["seed=1"]],
    ]  # fmt: skip


def test_the_best_combination_runs_again_from_the_cache_and_is_deployed(compiled):
    spec = compiled(*SWEPT)
    root = spec.root.dag.tasks
    board = root["leaderboard"].inputs.parameters
    # v2/driver/resolve.go, CollectInputs: an output of a loop is the list over its iterations.
    collected = board["results"].task_output_parameter
    assert root[collected.producer_task].HasField("parameter_iterator")
    assert board["points"].component_input_parameter == POINTS
    again = root["train-2"].inputs.parameters
    chosen = {}
    for name in ("head", "seed"):
        producer = root[again[f"{name}_overrides"].task_output_parameter.producer_task]
        assert producer.inputs.parameters["best"].task_output_parameter.producer_task == (
            "leaderboard"
        )
        chosen[name] = producer.inputs.parameters["parameter"].runtime_value.constant.string_value
    assert chosen == {"head": "head", "seed": "seed"}
    # cacheutils/cache.go, GenerateCacheKey: equal inputs, command and image give equal keys.
    assert root["train-2"].caching_options.enable_cache
    assert again["trainer_overrides"].component_input_parameter == "trainer"
    (gate,) = [task for task in root.values() if task.trigger_policy.condition]
    assert "evaluate-2-Output" in gate.trigger_policy.condition


def test_a_sweep_of_the_index_trains_once(compiled):
    spec = compiled("-m", "index=flat,hnsw")
    root = spec.root.dag.tasks
    (loop,) = [task for task in root.values() if task.HasField("parameter_iterator")]
    assert sorted(spec.components[loop.component_ref.name].dag.tasks) == ["evaluate", "index"]
    assert {"train", "embed", "index-2", "evaluate-2"} <= set(root)
    assert "train-2" not in root


def test_one_pipeline_is_one_run(arguments, recorder):
    assert submit([*arguments, *SWEPT, "cluster.sweep=pipeline", "notify=slack"]) == 0
    (run,) = recorder.runs
    points = run["runtime_config"]["parameters"][POINTS]
    assert [point["seed"] for point in points] == [[], ["seed=1"], [], ["seed=1"]]
    (version,) = recorder.versions
    assert "notify-failure" in version["spec"].root.dag.tasks


def test_each_combination_is_a_run_of_one_version_that_deploys_nothing(arguments, recorder, capsys):
    assert submit([*arguments, *SWEPT, "notify=slack"]) == 0
    sweep = read_sweep([*arguments, *SWEPT]).id
    assert [run["display_name"] for run in recorder.runs] == [
        f"{sweep}-head.margin-{margin}_seed-{seed}" for margin in ("0.2", "0.4") for seed in "01"
    ]
    assert len({run["experiment_id"] for run in recorder.runs}) == 1
    (version,) = recorder.versions
    assert sorted(version["spec"].root.dag.tasks) == sorted(["compute-fingerprint", *TASKS])
    values = [run["runtime_config"]["parameters"] for run in recorder.runs]
    assert [v["head"] + v["seed"] for v in values] == [
        ["head.margin=0.2"], ["head.margin=0.2", "seed=1"],
        ["head.margin=0.4"], ["head.margin=0.4", "seed=1"],
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.count("started: ") == 4
    assert "wait=true" in printed.err


def test_a_repeated_command_starts_only_what_is_missing(arguments, recorder):
    """storage/run_store.go, ListRuns: a run has the state that was reported last, first none."""
    recorder.page_size = 2
    swept = [*arguments, "-m", "seed=0,1,2"]
    assert submit(swept) == 0
    for run, state in zip(recorder.runs, ("SUCCEEDED", None, "FAILED"), strict=True):
        run["state"] = state
    assert submit(swept) == 0
    started = [run["display_name"].partition("seed-")[2] for run in recorder.runs]
    assert started == ["0", "1", "2", "2"]
    assert submit([*arguments, "-m", "seed=0,3"]) == 0
    assert len(recorder.runs) == 5
    assert submit([*arguments, "-m", "seed=0,1", "optimizer=adamw"]) == 0  # another sweep
    assert len(recorder.runs) == 7


DONE = workflow("Succeeded", **dict.fromkeys(TASKS, "Succeeded"))


def test_the_finished_runs_are_ranked(arguments, recorder, capsys):
    recorder.workflows = {f"run_id-{number}": [DONE] for number in (1, 2, 4)}
    recorder.workflows["run_id-3"] = [
        workflow("Failed", prepare="Succeeded", train="Failed", failed_message="OOMKilled")
    ]
    recorder.workflows["run_id-5"] = [
        workflow("Succeeded", **dict.fromkeys([*TASKS, "deploy"], "Succeeded"))
    ]
    assert submit([*arguments, *SWEPT, "wait=true"]) == 1
    *_, last = recorder.runs
    assert len(recorder.runs) == 5
    points = last["runtime_config"]["parameters"][POINTS]
    assert [point["head"] + point["seed"] for point in points] == [
        ["head.margin=0.2"], ["head.margin=0.2", "seed=1"], ["head.margin=0.4", "seed=1"],
    ]  # fmt: skip
    error = capsys.readouterr().err
    assert "1 of 4 combinations failed" in error
    assert "head.margin-0.4_seed-0 failed: " in error


def result(objective, *, passed=True, mode="max"):
    trainer = {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true"}
    return json.dumps({
        "objective": objective, "metrics": {"top1": objective / 2}, "passed": passed,
        "config": {"monitor": "val_map_at_r", "monitor_mode": mode, "trainer": trainer},
        "code": {"git": "0" * 40, "packages": {"torch": "2.13"}},
    })  # fmt: skip


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 0)])
def test_the_best_mean_over_seeds_wins(tmp_path, mode, best):
    """The largest value of a single seed belongs to the other margin."""
    points = [
        {"combination": f"{margin}-{seed}",
         "overrides": ["data=synthetic", f"head.margin={margin}", f"seed={seed}"],
         "swept": ["head.margin", "seed"], "head": [f"head.margin={margin}"]}
        for margin in ("0.2", "0.4") for seed in (0, 1)
    ]  # fmt: skip
    files = [tmp_path / "page.html", tmp_path / "table.md"]
    results = [result(v, mode=mode, passed=v > 0.5) for v in (0.1, 0.9, 0.6, 0.7)]
    found = json.loads(rank(points, results, *map(str, files)))
    assert {key: found[key] for key in points[best]} == points[best]
    assert found["passed"] == (mode == "max")
    assert "0.6500" in files[0].read_text()
    command = "arcloop pipeline -m data=synthetic 'head.margin=choice(0.4)' seed=0,1"
    assert command in files[1].read_text()
