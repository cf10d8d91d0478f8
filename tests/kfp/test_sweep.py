"""Sweeps: their command line, the pipeline of all combinations, and the runs on a fake server."""

import json

import pytest
from google.protobuf import json_format

from arcloop.kfp.parameters import POINTS
from arcloop.kfp.submission import main as submit
from arcloop.kfp.sweeps.combinations import read_sweep
from arcloop.kfp.sweeps.ranking import rank
from arcloop.kfp.trigger import trigger

from .api_server import parsed
from .argo import workflow

CHOSEN = ["-m", "head.margin=0.2,0.4"]
SWEPT = [*CHOSEN, "seed=0,1"]
SEARCHED = [
    "-m", "head.margin=interval(0.2,0.4)", "sweep=optuna", "sweep.trials=3", "cluster.study=STUDY",
    "+cluster.secrets.study={url:STUDY}",
]  # fmt: skip
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
    "a search without -m": (["sweep=optuna"], "sweep=optuna needs -m"),
    "a search without a study": ([*CHOSEN, "sweep=optuna"], "sweep= needs cluster.study"),
    "a study that is no secret": (
        [*CHOSEN, "sweep=optuna", "cluster.study=STUDY"],
        "cluster.study=STUDY is not among the environment variables of cluster.secrets",
    ),
    "a password": (["cluster.study=postgresql://me:hunter2@db/s"], "contains a password"),
    "a password of a search": (
        [*CHOSEN, "sweep=random", "cluster.study=postgresql://me:hunter2@db/s"],
        "contains a password",
    ),
    "another database": (
        [*CHOSEN, "sweep=random", "cluster.study=postgres://db/s"], "contains no valid URL",
    ),
    "a file on a server": (
        [*CHOSEN, "sweep=random", "cluster.study=sqlite:///s.db"], "which the steps do not share",
    ),
    "an interval without a width": (
        ["-m", *SEARCHED[2:], "head.margin=interval(0.4,0.2)"], "cannot choose from head.margin",
    ),
    "a wrong bound": (["-m", *SEARCHED[2:], "head.margin=interval(0.1,9)"], "head.margin=9"),
    "no trials": ([*SEARCHED, "sweep.trials=0"], "sweep.trials=0 must be greater"),
    "a search of what is not trained": (
        ["-m", *SEARCHED[2:], "index=flat,hnsw"], "depends only on the training",
    ),
    "a search with several objectives": (
        [*SEARCHED, "monitor=val_map_at_r,val_top1"], "monitor cannot vary",
    ),
    "seeds of a search": ([*SEARCHED, "seed=0,1"], "seed cannot vary in a search"),
    "several objectives": (
        [*SEARCHED, "sweep.objectives=[val_top1,model_bytes]"], "compares its trials by monitor",
    ),
    "a grid as a search": ([*SWEPT, "sweep=grid"], "omit sweep=, to run every combination"),
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
    assert "hunter2" not in error
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


def test_conditional_and_zipped_keys_are_not_in_every_combination(arguments):
    words = [*arguments, "-m", "head=arcface,softmax", "head.margin=0.2,0.4", "head.scale=8,16"]
    sweep = read_sweep([*words, "sweep.zip=[head.margin,head.scale]"])
    assert [dict(one.point)["head"] for one in sweep.combinations] == [
        ["head.margin=0.2", "head.scale=8"], ["head.margin=0.4", "head.scale=16"],
        ["head=softmax", "head.scale=8"], ["head=softmax", "head.scale=16"],
    ]  # fmt: skip
    assert [one.name for one in sweep.combinations][2] == "head-softmax_head.scale-8"


def test_a_sweep_of_the_index_trains_once(compiled):
    spec = compiled("-m", "index=flat,hnsw")
    root = spec.root.dag.tasks
    (loop,) = [task for task in root.values() if task.HasField("parameter_iterator")]
    assert sorted(spec.components[loop.component_ref.name].dag.tasks) == ["evaluate", "index"]
    assert {"train", "embed", "index-2", "evaluate-2"} <= set(root)
    assert "train-2" not in root


def test_a_search_proposes_each_combination_in_the_loop(compiled, in_folder):
    spec = compiled(*SEARCHED, "optimizer=sgd,adamw")
    root = spec.root.dag.tasks
    (name,) = [name for name, task in root.items() if task.HasField("parameter_iterator")]
    # Trials that start together are proposed without the results of each other.
    assert root[name].iterator_policy.parallelism_limit == 1
    inner = spec.components[root[name].component_ref.name].dag.tasks
    assert {"suggest", "report", "train", "evaluate"} <= set(inner)
    assert not {"prepare", "validate", "compute-fingerprint"} & set(inner)
    for task in ("suggest", "report"):
        assert not inner[task].caching_options.enable_cache
    suggest, report = inner["suggest"].inputs.parameters, inner["report"].inputs.parameters
    default = spec.root.input_definitions.parameters[POINTS].default_value
    selector = suggest["trial"].parameter_expression_selector
    trials = [selected(item, selector) for item in json_format.MessageToDict(default)]
    assert trials == ["0", "1", "2"]
    # driver/resolve.go, resolveInputParameter: the placeholder is the ID of the run.
    assert suggest["run_id"].runtime_value.constant.string_value == "{{$.pipeline_job_uuid}}"
    for group in ("head", "optimizer"):
        producer = inner["train"].inputs.parameters[f"{group}_overrides"].task_output_parameter
        source = inner[producer.producer_task].inputs.parameters["best"].task_output_parameter
        assert source.producer_task == "suggest"
    assert report["point"].task_output_parameter.producer_task == "suggest"
    assert report["result"].task_output_parameter.producer_task == "evaluate"
    board = root["leaderboard"].inputs.parameters
    # driver/resolve.go, CollectInputs: both lists are in the order of the iterations.
    assert board["points"].task_output_parameter.producer_task == name
    assert board["results"].task_output_parameter.producer_task == name
    search = json.loads(spec.root.input_definitions.parameters["search"].default_value.string_value)
    assert search["storage"] == "STUDY"
    assert search["varied"] == ["head", "optimizer"]
    assert not any(word.startswith(("cluster", "sweep")) for word in search["overrides"])
    assert "trainer=gpu" in search["derived"]


def test_a_search_is_one_run(arguments, recorder):
    for margins in ("0.2,0.4", "0.2,0.5"):
        words = [*SEARCHED[2:], "-m", f"head.margin=interval({margins})"]
        assert submit([*arguments, *words, "sweep.trials=2"]) == 0
    searches = [json.loads(r["runtime_config"]["parameters"]["search"]) for r in recorder.runs]
    assert len({search["study"] for search in searches}) == 2
    points = recorder.runs[0]["runtime_config"]["parameters"][POINTS]
    assert points == [{"trial": "0"}, {"trial": "1"}]


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


def test_equal_proposals_of_a_search_are_ranked_once(tmp_path):
    points = [
        json.dumps({"combination": margin, "overrides": [f"head.margin={margin}"],
                    "swept": ["head.margin"], "head": [f"head.margin={margin}"]})
        for margin in ("0.2", "0.4", "0.2")
    ]  # fmt: skip
    files = [str(tmp_path / "page.html"), str(tmp_path / "table.md")]
    found = json.loads(rank(points, [result(v) for v in (0.5, 0.4, 0.5)], *files))
    assert (found["combination"], found["objective"]) == ("0.2", 0.5)
    rows = [row.split("|")[2:5] for row in (tmp_path / "table.md").read_text().splitlines()
            if row.startswith(("| 1", "| 2"))]  # fmt: skip
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["0.2", "1", "0.5000"], ["0.4", "1", "0.4000"],
    ]  # fmt: skip
