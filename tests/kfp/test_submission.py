"""Submissions to a fake KFP server, which accepts only valid requests of the v2beta1 API."""

import json
import socket

import pytest
from google.protobuf import json_format

from arcloop.kfp.submission import main as submit
from arcloop.kfp.trigger import trigger

from .api_server import parsed


@pytest.fixture
def arguments(recorder, image, in_folder):
    return [
        "cluster=onprem", f"cluster.host={recorder.url}", "cluster.namespace=team",
        f"cluster.image={image}", "data=synthetic",
    ]  # fmt: skip


def test_the_first_submission_uploads_and_starts_a_run(arguments, recorder, capsys):
    assert submit([*arguments, "head.margin=0.4", "index=hnsw"]) == 0
    (run,), (version,) = recorder.runs, recorder.versions
    assert run["display_name"] == "synthetic"
    values = run["runtime_config"]["parameters"]
    assert values["head"] == ["head.margin=0.4"]
    assert values["index"] == ["index=hnsw"]
    assert values["data"] == ["data=synthetic"]
    assert values["callbacks"] == ["callbacks=export_only"]
    assert values["backbone"] == []
    assert "fingerprint" not in values
    (experiment,) = recorder.experiments
    assert (experiment["display_name"], experiment["namespace"]) == ("arcloop", "team")
    assert run["experiment_id"] == experiment["experiment_id"]
    assert f"{recorder.url}/#/runs/details/{run['run_id']}" in capsys.readouterr().err
    assert on_the_server(version["spec"], {}) == values  # a run from the UI is the same run


def test_a_version_is_an_experiment(arguments, recorder):
    """Another config or another cluster setting is a new version, the same command is not."""
    for more in ([], ["head.margin=0.30"], ["head.margin=0.4"], ["cluster.retries.count=1"]):
        assert submit([*arguments, *more]) == 0
    assert recorder.count("POST", "pipelines") == 1
    assert recorder.count("POST", "pipelines/upload_version") == 3
    named = [run["pipeline_version_reference"]["pipeline_version_id"] for run in recorder.runs]
    assert named[0] == named[1]
    assert len(set(named)) == 3
    assert recorder.runs[2]["runtime_config"]["parameters"]["head"] == ["head.margin=0.4"]
    assert len(recorder.experiments) == 1


def on_the_server(spec, given):
    """apiserver: backend/src/v2/compiler/argocompiler/argo.go, Compile: the root's parameters.

    The cache key of a task has the resolved values of its inputs only (cacheutils/cache.go,
    GenerateCacheKey), so equal parameters give equal keys.
    """
    values = dict(given)
    for name, parameter in spec.root.input_definitions.parameters.items():
        if name not in values:
            assert parameter.HasField("default_value")  # else null, which a task refuses
            values[name] = json_format.MessageToDict(parameter.default_value)
    return values


def test_the_compiled_file_is_the_experiment(arguments, recorder, in_folder, capsys):
    path, specs = in_folder / "runs/pipelines/arcloop-cluster.yaml", []
    for margin in ("0.1", "0.7"):
        assert submit([*arguments, f"head.margin={margin}", "mode=compile"]) == 0
        specs.append(parsed(path.read_bytes()))
        values = json.loads(path.with_suffix(".params.json").read_text())
        assert values["head"] == [f"head.margin={margin}"]
        assert on_the_server(specs[-1], {}) == values
    assert specs[0] != specs[1]
    assert recorder.calls == []
    assert "compiled: runs/pipelines/arcloop-cluster.yaml" in capsys.readouterr().err
    assert submit([*arguments, "head.margin=0.7"]) == 0
    assert recorder.versions[0]["spec"] == specs[1]


def test_a_recurring_run_replaces_the_one_of_its_name(arguments, recorder, capsys):
    assert submit([*arguments, "schedule=0 0 * * 2"]) == 0
    assert submit([*arguments, "schedule=30 6 * * MON-FRI"]) == 0
    (recurring,) = recorder.recurring
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 30 6 * * MON,TUE,WED,THU,FRI"
    assert recurring["mode"] == "ENABLE"
    assert recurring["max_concurrency"] == "1" or recurring["max_concurrency"] == 1
    assert not recorder.runs
    assert "replaces the recurring run recurring_run_id-1" in capsys.readouterr().err


def test_without_a_namespace_none_is_sent(arguments, recorder):
    assert submit([*arguments, "cluster.namespace=null"]) == 0
    assert "namespace" not in recorder.pipelines[0]
    assert recorder.experiments[0].get("namespace") is None


def test_the_token_comes_from_the_environment(arguments, recorder, monkeypatch, capsys):
    arguments = [*arguments, "cluster.token_env=KFP_TOKEN"]
    assert submit(arguments) == 2
    assert "KFP_TOKEN contains no token" in capsys.readouterr().err
    monkeypatch.setenv("KFP_TOKEN", "s3cret")
    assert submit(arguments) == 0
    assert {h.get("authorization") or h.get("Authorization") for h in recorder.headers} == {
        "Bearer s3cret"
    }


def test_data_paths_must_be_absolute(arguments, recorder, capsys):
    kept = [a for a in arguments if not a.startswith("data")]
    assert submit([*kept, "data=csv", "data.file=my/list.csv", "data.root=my/images"]) == 2
    error = capsys.readouterr().err
    assert "data.file=my/list.csv must be an absolute path in the pods of the steps" in error
    assert "data.root=my/images must be an absolute path" in error
    assert not recorder.calls


REFUSALS = {
    "401": (
        ("GET", "pipelines"),
        (401, {"message": "no token"}),
        "does not accept the credentials (401)",
    ),
    "403": (("GET", "pipelines"), (403, {"message": "no"}), "forbids this in namespace team"),
    "404": (
        ("GET", "experiments"),
        (404, {"message": "namespace team not found"}),
        "found nothing in namespace team (404): namespace team not found",
    ),
    "409": (
        ("POST", "pipelines/upload_version"),
        (409, {"message": "the version exists"}),
        "has an object of this name already (409): the version exists",
    ),
    "500": (("POST", "runs"), (500, {"message": "broken"}), "answered 500 (500): broken"),
    "503": (("POST", "runs"), (503, "no JSON object"), "answered 503"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_one_message(arguments, recorder, capsys, case):
    call, answer, message = REFUSALS[case]
    recorder.refusals[call] = answer
    assert submit(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1
    assert "remedy:" in error
    assert recorder.url in error
    assert "Traceback" not in error


def test_a_refused_connection(arguments, recorder, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert submit([*arguments, f"cluster.host={host}"]) == 1
    error = capsys.readouterr().err
    assert "the KFP API cannot be reached" in error
    assert "refused" in error
    assert host in error


def test_a_time_out(arguments, recorder, capsys):
    recorder.delay_s = 3
    assert submit([*arguments, "cluster.timeout_s=1"]) == 1
    assert "did not answer within 1 s" in capsys.readouterr().err


def test_a_host_that_is_not_a_kfp_server(arguments, recorder, capsys):
    assert submit([*arguments, f"cluster.host={recorder.url}/elsewhere"]) == 1
    assert "error:" in capsys.readouterr().err


WRONG = {
    "misspelt key": (["head.margn=1"], "did you mean head.margin"),
    "misspelt word": (["mod=compile"], "did you mean mode?"),
    "wrong mode": (["mode=go"], "mode=go must be one of run, compile"),
    "no run": (["mode=terminate"], "mode=terminate needs run=ID"),
    "a run of no mode": (["run=1"], "run= needs mode=status or mode=terminate"),
    "wait for no run": (["wait=true", "schedule=0 0 * * 2"], "wait=true needs a run"),
    "wait for something": (["wait=yes"], "wait=yes must be true or false"),
    "no name": (["mode=unschedule"], "mode=unschedule needs name="),
    "a mode of a server": (["mode=schedules", "cluster=local"], "mode=schedules needs a KFP"),
    "no override": (["compile"], "cannot read the override 'compile'"),
    "a path as the name of a file": (
        ["cluster.pipeline=a/b"], "cluster.pipeline='a/b' must be a folder name",
    ),
    "misspelt cluster key": (["cluster.hots=x"], "there is no key cluster.hots"),
    "unknown step": (
        ["+cluster.steps.trian={title: x}"], "cluster.steps.trian='trian' must be one of prepare",
    ),
    "unknown setting": (["+cluster.steps.train.gpu=1"], "cluster.steps.train.gpu is unknown"),
    "tag, no digest": (["cluster.image=a/b:latest"], "must contain its digest"),
    "memory": (["cluster.steps.train.memory=lots"], "must be a quantity"),
    "toleration": (
        ["cluster.tolerations=[{key: a, operator: Equals}]"],
        "cluster.tolerations.0.operator='Equals' must be 'Equal' or 'Exists'",
    ),
    "toleration key": (
        ["cluster.tolerations=[{key: a, value: b, effekt: NoSchedule}]"],
        "cluster.tolerations.0.effekt is unknown",
    ),
    "missing title": (["+cluster.steps.new={}"], "cluster.steps.new.title is required"),
    "mount path": (["cluster.volume.mount=data"], "must be a path that begins with /"),
    "variable": (["+cluster.secrets.a={key: 1a}"], "must be the name of a variable"),
    "retries": (["cluster.retries.count=-1"], "cluster.retries.count=-1 must be"),
    "storage": (["cluster.storage=disk"], "must be 'artifacts' or 'pvc'"),
    "disk of a node with a volume": (
        ["+cluster.steps.embed.ephemeral=50Gi"], "steps.embed.ephemeral limits artifacts",
    ),
    "trainjob without volume": (
        ["cluster.train=trainjob", "cluster.storage=artifacts"], "needs cluster.storage=pvc",
    ),
    "trainjob of other size": (
        ["cluster.train=trainjob", "trainer=gpu"], "trainer.num_nodes, trainer.devices",
    ),
    "schedule": (["schedule=every tuesday"], "is not a cron schedule"),
    "relative data": (["data=idx", "data.root=my/data"], "must be an absolute path"),
    "folders of its own": (["run_dir=x"], "run_dir has no effect in a pipeline"),
    "no host": (["cluster.host=null"], "cluster.host is required"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_command_is_rejected_before_a_request(arguments, recorder, capsys, case):
    overrides, message = WRONG[case]
    keys = {override.partition("=")[0] for override in overrides}
    kept = [argument for argument in arguments if argument.partition("=")[0] not in keys]
    assert submit([*kept, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert recorder.calls == []


def test_a_schedule_needs_a_cluster(capsys, in_folder):
    assert submit(["schedule=0 0 * * 2"]) == 2
    assert "needs a KFP server" in capsys.readouterr().err


def test_notify_here_needs_the_webhook(capsys, in_folder):
    assert submit(["notify=slack"]) == 2
    assert "ARCLOOP_WEBHOOK" in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, and a function that adds one."""
    from PIL import Image

    def add(name):
        (tmp_path / "pictures/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / "pictures/a" / f"{name}.png")

    add("0")
    return tmp_path / "pictures", add


def test_the_trigger_starts_a_run_when_the_data_are_new(arguments, recorder, pictures, capsys):
    folder, add = pictures
    kept = [a for a in arguments if not a.startswith("data=")]
    looked = [
        *kept, "data=image_folder", f"data.root={folder}", "data.image_size=8",
        f"+cluster.data_volumes.images={folder}",
    ]  # fmt: skip
    assert trigger(looked) == 0
    assert len(recorder.runs) == 1
    assert trigger(looked) == 0
    assert len(recorder.runs) == 1
    assert "no new data" in capsys.readouterr().err
    add("1")
    recorder.refusals[("POST", "runs")] = (503, {"message": "later"})
    assert trigger(looked) == 1
    recorder.refusals.clear()
    assert trigger(looked) == 0
    assert trigger(looked) == 0
    assert len(recorder.runs) == 2


def test_the_trigger_repeats_its_check(arguments, recorder, pictures, capsys, monkeypatch):
    folder, add = pictures
    kept = [a for a in arguments if not a.startswith("data=")]
    looked = [
        *kept, "data=image_folder", f"data.root={folder}", "data.image_size=8",
        f"+cluster.data_volumes.images={folder}",
    ]  # fmt: skip
    sleeps = []

    def then(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 1:  # a bad hour of the server does not end the watch
            add("1")
            recorder.refusals[("POST", "runs")] = (503, {"message": "later"})
        elif len(sleeps) == 2:
            recorder.refusals.clear()
        elif len(sleeps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("arcloop.kfp.trigger.sleep", then)
    assert trigger([*looked, "every=600"]) == 130
    assert sleeps == [600.0] * 4
    assert len(recorder.runs) == 2
    assert "answered 503" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["every=soon", "every=0", "mode=compile", "every=inf"])
def test_an_invalid_trigger_is_rejected(arguments, recorder, wrong, capsys):
    assert trigger([*arguments, wrong]) == 2
    assert recorder.calls == []
    assert "error:" in capsys.readouterr().err


def test_two_triggers_of_one_source_exclude_each_other(arguments, recorder, capsys, monkeypatch):
    codes = []

    def start_another(config):
        codes.append(trigger(arguments))
        return "fingerprint"

    monkeypatch.setattr("arcloop.kfp.trigger.compute_fingerprint", start_another)
    assert trigger(arguments) == 0
    assert codes == [1]
    assert "another trigger is running for this source" in capsys.readouterr().err
    assert len(recorder.runs) == 1
