"""Recurring runs on a fake KFP server: replaced, listed, moved to a new version, and removed."""

import re

import pytest

from arcloop.config.composition import compose_config
from arcloop.errors import ArcloopError
from arcloop.kfp.config import ClusterSettings, NotifySettings, read_settings
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.server.client import KfpClient
from arcloop.kfp.server.origin import describe_origin, version_name
from arcloop.kfp.server.schedules import (
    list_schedules,
    refresh_schedules,
    remove_schedule,
    start_schedule,
)
from arcloop.kfp.submission import main as submit

MONDAYS, TUESDAYS = "0 0 0 * * MON", "0 0 0 * * TUE"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, cluster_settings):
    """Two pipelines, which differ in their image."""
    paths = [tmp_path_factory.mktemp("compiled") / f"{name}.yaml" for name in ("old", "new")]
    for path in paths:
        settings = cluster_settings.model_copy(update={"image": f"registry.example/{path.stem}"})
        compile_pipeline(settings, NotifySettings(webhook_env=None), path, {})
    return paths


@pytest.fixture
def client(recorder, cluster_settings):
    settings = {"host": recorder.url, "timeout_s": 5}
    return KfpClient(cluster_settings.model_copy(update=settings))


@pytest.fixture
def schedule(client, compiled):
    """A function that creates a schedule of the first pipeline."""

    def create(name="nightly", cron=MONDAYS, **parameters):
        parameters = parameters or {"head": []}
        version = client.upload(compiled[0], "")
        description = describe_origin("registry.example/old", ["arcloop", "pipeline"])
        start_schedule(client, client.run_fields(version, parameters, name, description), cron)

    return create


def test_a_schedule_is_replaced_and_the_changes_are_printed(schedule, recorder, capsys):
    schedule(head=["head.margin=0.4"])
    schedule(name="weekly")
    capsys.readouterr()
    schedule(cron=TUESDAYS, head=["head.margin=0.5"], index=["index=hnsw"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-4:] == [
        "replaces the recurring run recurring_run_id-1",
        f"  schedule: {MONDAYS} -> {TUESDAYS}",
        "  head: ['head.margin=0.4'] -> ['head.margin=0.5']",
        "  index: None -> ['index=hnsw']",
    ]
    assert [run["display_name"] for run in recorder.recurring] == ["weekly", "nightly"]


def test_deleting_a_schedule_keeps_its_active_run(schedule, client, recorder):
    """resource_manager.go, CreateRun, makes the schedule the owner of the workflow of a run
    (SetOwnerReferences), and DeleteJob deletes with the propagation of the request, from 2.16 on.
    Without ORPHAN, Kubernetes deletes the workflow."""
    schedule()
    schedule(cron=TUESDAYS)
    remove_schedule(client, "nightly")
    assert recorder.deleted == [("recurring_run_id-1", "ORPHAN"), ("recurring_run_id-2", "ORPHAN")]
    assert recorder.recurring == []


def test_the_list(schedule, client, recorder, capsys):
    recorder.page_size = 1  # the list has several pages
    schedule()
    schedule(name="weekly", cron=TUESDAYS)
    recorder.recurring[1]["mode"] = "DISABLE"
    capsys.readouterr()
    list_schedules(client)
    printed = capsys.readouterr().out
    name = recorder.versions[0]["display_name"]
    assert re.fullmatch(
        rf"nightly: {re.escape(MONDAYS)} UTC, enabled, next run \d{{4}}-\d\d-\d\d 00:00\n"
        rf"  version: {name}\n  image: registry.example/old\n"
        rf"weekly: {re.escape(TUESDAYS)} UTC, disabled\n"
        rf"  version: {name}\n  image: registry.example/old\n",
        printed,
    )


def test_the_list_of_what_the_ui_made(schedule, client, recorder, capsys):
    schedule()
    (run,) = recorder.recurring
    run["trigger"] = {"periodic_schedule": {"interval_second": "3600"}}
    del run["description"], run["runtime_config"]
    reference = run["pipeline_version_reference"]
    reference["pipeline_version_id"] = "deleted"
    recorder.recurring.append({**run, "pipeline_version_reference": {"pipeline_id": "another"}})
    list_schedules(client)
    assert capsys.readouterr().out == (
        "nightly: every 3600 s UTC, enabled\n  version: deleted\n  image: unknown\n"
    )


def test_a_refresh_moves_every_schedule_to_the_new_version(
    schedule, client, compiled, recorder, capsys
):
    """resource_manager.go, CreateJob: the workflow of a pinned version is stored with the schedule,
    so a new image needs a new recurring run."""
    schedule(head=["head.margin=0.4"])
    schedule(name="weekly", cron=TUESDAYS)
    recorder.recurring[1]["mode"] = "DISABLE"
    version = client.upload(compiled[1], "")
    refresh_schedules(client, version, "image: new")
    nightly, weekly = recorder.recurring
    assert nightly["runtime_config"]["parameters"] == {"head": ["head.margin=0.4"]}
    assert [nightly["mode"], weekly["mode"]] == ["ENABLE", "DISABLE"]
    assert weekly["trigger"]["cron_schedule"]["cron"] == TUESDAYS
    assert {run["description"] for run in recorder.recurring} == {"image: new"}
    versions = [
        run["pipeline_version_reference"]["pipeline_version_id"] for run in recorder.recurring
    ]
    assert versions == [version.pipeline_version_id] * 2
    assert [name for name, _ in recorder.deleted] == ["recurring_run_id-1", "recurring_run_id-2"]
    old, new = (version["display_name"] for version in recorder.versions)
    assert f"  version: {old} -> {new}" in capsys.readouterr().err
    del nightly["runtime_config"]["parameters"]  # e.g. made in the UI
    weekly["pipeline_version_reference"]["pipeline_version_id"] = "older"
    nightly["pipeline_version_reference"]["pipeline_version_id"] = "older"
    refresh_schedules(client, version, "image: new")
    printed = capsys.readouterr().err
    assert "nightly: kept, because it has no parameters of its own" in printed
    assert [run["display_name"] for run in recorder.recurring] == ["nightly", "weekly"]
    refresh_schedules(client, version, "image: new")
    assert "weekly: up to date" in capsys.readouterr().err


def test_a_schedule_that_the_server_refuses_does_not_stop_the_others(
    schedule, client, compiled, recorder
):
    schedule()
    schedule(name="weekly")
    recorder.recurring[0]["runtime_config"]["parameters"] = {"unknown": ["x"]}
    with pytest.raises(ArcloopError, match="the schedule nightly was not replaced") as error:
        refresh_schedules(client, client.upload(compiled[1], ""), "")
    assert "weekly" not in str(error.value)
    assert [name for name, _ in recorder.deleted] == ["recurring_run_id-2"]


def test_a_schedule_that_does_not_exist(schedule, client):
    with pytest.raises(ArcloopError, match=r"there is no schedule nightly\n  .*: none"):
        remove_schedule(client, "nightly")
    schedule(name="weekly")
    with pytest.raises(ArcloopError, match="choose one of: weekly"):
        remove_schedule(client, "nightly")


def test_the_command_refreshes_lists_and_removes(recorder, image, in_folder, capsys):
    server = ["cluster=onprem", f"cluster.host={recorder.url}", "data=synthetic"]
    submitted = [*server, f"cluster.image={image}"]
    assert submit([*submitted, "schedule=0 0 * * 1", "name=nightly"]) == 0
    assert submit([*submitted, "mode=refresh", "cluster.cache=false"]) == 0
    assert len(recorder.versions) == 2
    assert recorder.deleted == [("recurring_run_id-1", "ORPHAN")]
    assert not recorder.runs
    capsys.readouterr()
    assert submit([*server, "cluster.image=null", "mode=schedules"]) == 0
    assert f"  image: {image}\n" in capsys.readouterr().out
    assert submit([*server, "cluster.image=null", "mode=unschedule", "name=nightly"]) == 0
    assert recorder.recurring == []
    description = recorder.versions[0]["description"].splitlines()
    assert description[-2:] == [
        f"image: {image}",
        f"command: arcloop pipeline {' '.join(submitted)} 'schedule=0 0 * * 1' name=nightly",
    ]
    assert any(line.startswith("commit: ") for line in description)


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("0123456789abcdef" * 2, "arcloop-0123456789ab-89abcdef0123"),
        ("0123456789abcdef-dirty", "arcloop-0123456789ab-dirty-89abcdef0123"),
        (None, "arcloop-89abcdef0123"),
    ],
)
def test_a_version_is_named_by_commit_and_content(revision, expected):
    name = version_name("arcloop", "89abcdef01234567", revision)
    assert name == expected
    assert len(name) <= 127  # apiserver/model/pipeline_version.go, Name


def test_the_description_names_the_repository_without_credentials(monkeypatch):
    monkeypatch.setattr("arcloop.kfp.server.origin.git_revision", lambda: "0123-dirty")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "remote.origin.url")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://user:s3cret@git.example/team/arcloop.git")
    assert describe_origin("i@sha256:1", ["arcloop", "pipeline", "name=a b"]).splitlines() == [
        "repository: https://git.example/team/arcloop.git",
        "commit: 0123 with uncommitted changes",
        "image: i@sha256:1",
        "command: arcloop pipeline 'name=a b'",
    ]


def test_a_time_zone_that_does_not_exist():
    node = {**compose_config(["cluster=onprem"])["cluster"], "timezone": "Europe/Berlni"}
    with pytest.raises(ArcloopError, match=r"cluster.timezone='Europe/Berlni' must be a time zone"):
        read_settings(ClusterSettings, node, "cluster")
