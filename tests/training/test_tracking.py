"""Local MLflow and W&B: each run has one run in each service, and every row is sent once."""

import contextlib
import importlib.util
import json
import shlex
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util.tensor_util import make_ndarray
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_file
from arcloop.artifacts.writer import git_revision
from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.config.files import bundled
from arcloop.errors import ConfigError, DivergedError, ResourceError, TrainingPruned
from arcloop.training import MlflowLogger, WandbLogger

RUN = "runs/synthetic"
ALL_EPOCHS = [5, 11, 17, 23]  # the last steps of four epochs


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Create one MLflow database for all tests; each test has its own experiment."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlruns/mlflow.db"
    first = mlflow_logger(folder, uri, "first")
    first.begin({}, 0)
    first.finalize("success")
    return uri


class OfMlflow:
    """The content of an experiment in a database."""

    def __init__(self, uri, experiment):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        found = self.client.get_experiment_by_name(experiment)
        self.runs = self.client.search_runs([found.experiment_id])

    def history(self, run, metric):
        return [(m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, metric)]

    def artifacts(self, run, folder=None):
        return {f.path for f in self.client.list_artifacts(run.info.run_id, folder)}


def records(run_dir):
    """Read the records of W&B's files (LevelDB log format with protocol buffers), in order."""
    from wandb.proto import wandb_internal_pb2 as pb

    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            part = content[at + 7 : at + 7 + length]
            whole = part if kind in (1, 2) else whole + part
            if kind in (1, 4):
                record = pb.Record()
                record.ParseFromString(whole)
                found.append(record)
            at += 7 + length
    return found


def rows_of(run_dir, metric):
    """Return (step, value) of a metric in W&B's files."""
    rows = []
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "history":
            values = {i.nested_key[0] or i.key: json.loads(i.value_json)
                      for i in record.history.item}  # fmt: skip
            if metric in values:
                rows.append((values["_step"], values[metric]))
    return rows


def in_csv(run_dir, metric):
    header, *rows = [r.split(",") for r in (run_dir / "metrics.csv").read_text().splitlines()]
    at = header.index(metric)
    return [(int(row[0]), float(row[at])) for row in rows if row[at]]


def both(uri):
    """Return overrides for a run that logs to MLflow and W&B."""
    node = OmegaConf.load(bundled("conf") / "logger/wandb.yaml").wandb
    values = OmegaConf.to_container(node, resolve=False)
    return ["logger=mlflow", f"logger.mlflow.tracking_uri={uri}",
            *(f"+logger.wandb.{key}={value}" for key, value in values.items())]  # fmt: skip


def test_resumed_run_is_one_run_with_metrics_config_and_files(in_tmp, database):
    command = ["train", *SMALL, *both(database), "name=resumed", f"run_dir={RUN}"]
    assert main([*command, "trainer.max_epochs=2", "callbacks=export_only"]) == 0
    assert main([*command, "trainer.max_epochs=4", "resume=true", "head.margin=0.4"]) == 0

    expected = in_csv(in_tmp / RUN, "val_top1")
    assert [step for step, _ in expected] == ALL_EPOCHS
    metrics = json.loads((in_tmp / RUN / "evaluation/metrics.json").read_bytes())

    mlflow = OfMlflow(database, "resumed")
    (run,) = mlflow.runs
    assert run.info.run_name == "synthetic"
    assert run.info.status == "FINISHED"
    assert mlflow.history(run, "val_top1") == expected
    assert run.data.metrics["evaluation/top1"] == metrics["top1"]
    assert (
        run.data.params["head.margin"] == "0.3"
    )  # of the first start; config.yaml has the new value
    assert run.data.params["backbone.widths"] == "[8, 8]"
    assert mlflow.artifacts(run) == {
        "model.pt",
        "config.yaml",
        "metrics.csv",
        "index",
        "evaluation",
    }
    assert "index/faiss_index.bin" in mlflow.artifacts(run, "index")
    local = mlflow.client.download_artifacts(run.info.run_id, "model.pt", str(in_tmp))
    assert sha256_file(in_tmp / RUN / "model.pt") == sha256_file(local)

    assert rows_of(in_tmp / RUN, "val_top1") == expected
    found = records(in_tmp / RUN)
    assert {r.run.run_id for r in found if r.HasField("run")} == {
        json.loads((in_tmp / RUN / ".wandb.json").read_bytes())["id"]
    }
    sent = [r.artifact for r in found if r.HasField("artifact")][-1]
    names = {content.path for content in sent.manifest.contents}
    assert {"model.pt", "config.yaml", "index/faiss_label.json", "evaluation/metrics.json"} < names
    assert not any(name.rpartition("/")[2].startswith(".") for name in names)

    listed = artifacts.load(in_tmp / RUN, "run").files
    assert not [name for name in listed if name.startswith(("wandb", "tensorboard", ".", "mlruns"))]
    again = ["trainer.max_epochs=1", "callbacks=export_only", "overwrite=true", "resume=false"]
    assert main([*command, *again]) == 0
    assert (
        len(OfMlflow(database, "resumed").runs) == 2
    )  # an overwritten run is a new run of the service


def test_the_finished_model_is_a_version_in_the_registry(in_tmp, database, monkeypatch):
    command = ["train", *SMALL, "trainer.max_epochs=1", "logger=mlflow", "name=registered",
               f"logger.mlflow.tracking_uri={database}", "evaluate.gate.min_top1=1",
               f"run_dir={RUN}", "logger.mlflow.register_model=shop"]  # fmt: skip
    assert main(command) == 0
    service = OfMlflow(database, "registered")
    (run,) = service.runs
    version = service.client.get_model_version("shop", "1")
    assert version.run_id == run.info.run_id
    assert version.tags["arcloop.gate"] == "not passed"
    stored = service.artifacts(run, "mlflow_model") | service.artifacts(run, "mlflow_model/data")
    assert "mlflow_model/data/model.pt" in stored
    assert not [name for name in stored if name.endswith((".pkl", ".pickle"))]
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    loaded = mlflow.pyfunc.load_model("models:/shop/1")
    inputs, outputs = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert (inputs.inputs[0].type, inputs.inputs[0].shape) == (np.uint8, (-1, 16, 16, 1))
    assert (outputs.inputs[0].type, outputs.inputs[0].shape) == (np.float32, (-1, 16))
    with np.load(in_tmp / RUN / "golden.npz") as golden:
        found = loaded.predict(golden["images"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, golden["embeddings"], atol=1e-6)
        for wrong in (golden["images"][:, :8], golden["images"].astype(np.float64)):
            with pytest.raises(MlflowException):
                loaded.predict(wrong)


def test_two_processes_log_one_run(in_tmp, database):
    arguments = ["trainer=ddp_cpu", "loader.batch_size=25", "export=onnx", "name=ddp"]
    assert main(["train", *SMALL, *both(database), *arguments, f"run_dir={RUN}"]) == 0
    mlflow = OfMlflow(database, "ddp")
    (run,) = mlflow.runs
    assert mlflow.history(run, "val_top1") == in_csv(in_tmp / RUN, "val_top1")
    assert rows_of(in_tmp / RUN, "val_top1") == in_csv(in_tmp / RUN, "val_top1")
    for kind in ("export", "evaluation"):
        artifacts.load(in_tmp / RUN / kind, kind)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, database):
    """Return the folder of a sweep that was stopped in its first job and continued.

    Its second job diverges.
    """
    work = tmp_path_factory.mktemp("swept")
    quick = ["callbacks=export_only", "name=swept", "head=cosface", "optimizer.lr=0.1,1e30"]
    command = ["train", "-m", *SMALL, *both(database), *quick]
    stop = ["callbacks.last.every_n_steps=2", "+callbacks.last.stop_at_step=4"]
    with contextlib.chdir(work):
        assert main([*command, *stop]) == 143
        ids = [json.loads(file.read_bytes())["id"] for file in work.rglob(".mlflow.json")
               if "sent" in file.read_text()]  # fmt: skip
        assert {run.info.status for run in OfMlflow(database, "swept").runs} == {"KILLED"}
        assert main(command) == 1
    return work / "runs/sweeps/swept", ids


def test_a_sweep_is_one_run_of_mlflow_with_a_child_for_each_job(swept, database):
    sweep, (first_id,) = swept
    record = json.loads((sweep / "sweep.json").read_bytes())
    runs = {run.info.run_name: run for run in OfMlflow(database, "swept").runs}
    assert runs.keys() == {record["id"], "optimizer.lr-0.1", "optimizer.lr-1e+30"}
    parent = runs.pop(record["id"])
    assert "mlflow.parentRunId" not in parent.data.tags
    assert parent.data.tags["arcloop.command"].startswith("arcloop train -m data=synthetic ")
    assert parent.info.status == "FINISHED"
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["arcloop.sweep"] == record["id"]
        assert run.data.tags["arcloop.swept"] == "optimizer.lr"
        assert run.data.tags["arcloop.git"] == git_revision()
    done, diverged = runs["optimizer.lr-0.1"], runs["optimizer.lr-1e+30"]
    assert done.info.run_id == first_id
    assert (done.info.status, diverged.info.status) == ("FINISHED", "FAILED")
    history = OfMlflow(database, "swept").history(done, "val_top1")
    assert history == in_csv(sweep / "optimizer.lr-0.1", "val_top1")
    assert len(history) == 2
    words = shlex.split(done.data.tags["arcloop.command"])
    assert words[:2] == ["arcloop", "train"]
    with contextlib.chdir(sweep.parents[2]):
        before = (sweep / "optimizer.lr-0.1/model.pt").stat().st_mtime_ns
        assert main(words[1:]) == 0
        assert (sweep / "optimizer.lr-0.1/model.pt").stat().st_mtime_ns == before


def test_a_sweep_is_a_group_of_runs_in_wandb(swept):
    sweep, _ = swept
    record = json.loads((sweep / "sweep.json").read_bytes())
    for value, code in (("0.1", 0), ("1e+30", 1)):
        found = records(sweep / f"optimizer.lr-{value}")
        runs = [r.run for r in found if r.HasField("run")]
        assert {run.run_group for run in runs} == {record["id"]}
        assert {run.job_type for run in runs} == {"train"}
        assert {tuple(run.tags) for run in runs} == {(f"optimizer.lr={float(value)}",)}
        assert len({run.run_id for run in runs}) == 1
        assert [r.exit.exit_code for r in found if r.HasField("exit")][-1] == code


def test_tensorboard_compares_the_jobs_of_a_sweep(swept):
    """Read all jobs together, as `tensorboard --logdir SWEEP` does."""
    sweep, _ = swept
    jobs = EventMultiplexer().AddRunsFromDirectory(str(sweep)).Reload()
    runs = {run for run in jobs.Runs() if not run.startswith("best/")}  # a link to a job
    assert runs == {"optimizer.lr-0.1/tensorboard", "optimizer.lr-1e+30/tensorboard"}
    success, failure = api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE
    for value, status in (("0.1", success), ("1e+30", failure)):
        run = f"optimizer.lr-{value}/tensorboard"
        content = jobs.PluginRunToTagToContent("hparams")[run]
        start = metadata.parse_session_start_info_plugin_data(
            content[metadata.SESSION_START_INFO_TAG]
        )
        assert {k: v.number_value for k, v in start.hparams.items()} == {
            "optimizer.lr": float(value)
        }
        end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
        assert end.status == status
    last = jobs.Tensors("optimizer.lr-0.1/tensorboard", "val_top1")[-1].tensor_proto
    assert make_ndarray(last).item() == pytest.approx(
        in_csv(sweep / "optimizer.lr-0.1", "val_top1")[-1][1]
    )


def of_sweep(folder):
    folder.mkdir(exist_ok=True)
    sweep = {"id": "s-1", "folder": str(folder), "command": "arcloop train -m"}
    return {"origin": {"command": "arcloop train", "values": {"seed": 0}, "sweep": sweep}}


def test_jobs_that_start_together_create_one_run_of_the_sweep(tmp_path, database):
    config = of_sweep(tmp_path / "sweep")
    loggers = [mlflow_logger(tmp_path / str(n), database, "together") for n in range(4)]
    for n in range(4):
        (tmp_path / str(n)).mkdir()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda logger: logger.begin(config, 0), loggers))
    for logger in loggers[:3]:
        logger.finalize("success")
    runs = OfMlflow(database, "together").runs
    (parent,) = [run for run in runs if run.info.run_name == "s-1"]
    assert len(runs) == 5
    assert parent.info.status == "RUNNING"
    loggers[3].finalize("success")
    assert (
        OfMlflow(database, "together").client.get_run(parent.info.run_id).info.status == "FINISHED"
    )


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (TrainingPruned(1, 0.5), "pruned", "KILLED"),
        (KeyboardInterrupt(), "interrupted", "KILLED"),
        (DivergedError("diverged"), "failed", "FAILED"),
    ],
)
def test_outcome_of_a_run_that_did_not_finish(tmp_path, database, error, outcome, status):
    logger = mlflow_logger(tmp_path, database, outcome)
    logger.begin({}, 0)
    try:
        raise error
    except BaseException:  # noqa: BLE001
        logger.finalize("failed")  # as Lightning does
    (run,) = OfMlflow(database, outcome).runs
    assert (run.data.tags["arcloop.outcome"], run.info.status) == (outcome, status)


def test_system_metrics(tmp_path, database, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    logger = mlflow_logger(tmp_path, database, "system", system_metrics=True)
    logger.begin({}, 0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not [
        n for n in OfMlflow(database, "system").runs[0].data.metrics if n.startswith("system/cpu")
    ]:
        time.sleep(0.05)
    logger.finalize("success")
    (run,) = OfMlflow(database, "system").runs
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert not [t for t in threading.enumerate() if t.name == "SystemMetricsMonitor"]

    hide(monkeypatch, "psutil")
    logger.begin({}, 0)
    logger.finalize("success")
    assert "psutil is not installed" in capsys.readouterr().err


def mlflow_logger(tmp_path, database, name, **settings):
    return MlflowLogger(run_dir=str(tmp_path), tracking_uri=database, experiment=name, **settings)


def log(logger, steps):
    for step in steps:
        logger.log_metrics({"loss": step / 8, "epoch": 0.0}, step)


def test_rows_are_sent_once_after_a_kill(tmp_path, database):
    first = mlflow_logger(tmp_path, database, "killed")
    first.begin({"seed": 0}, 0)
    log(first, range(6))
    first.flush()  # with the checkpoint of step 6
    log(first, range(6, 9))  # killed
    second = mlflow_logger(tmp_path, database, "killed")
    second.begin({"seed": 0}, 6)
    log(second, range(6, 12))
    second.flush()  # killed before the checkpoint of step 12 was written
    third = mlflow_logger(tmp_path, database, "killed")
    third.begin({"seed": 0}, 6)
    log(third, range(6, 14))
    third.finalize("success")
    mlflow = OfMlflow(database, "killed")
    (run,) = mlflow.runs
    assert mlflow.history(run, "loss") == [(step, step / 8) for step in range(14)]


def test_unreachable_service_stops_a_run_only_at_its_start(tmp_path, database, capsys):
    logger = mlflow_logger(tmp_path, database, "away")
    logger.begin({}, 0)
    log(logger, range(3))
    client, logger._client = logger._client, None
    logger.flush()
    assert "warning: mlflow" in capsys.readouterr().err
    log(logger, range(3, 5))
    logger._client = client
    logger.finalize("failed")
    mlflow = OfMlflow(database, "away")
    (run,) = mlflow.runs
    assert run.info.status == "FAILED"
    assert [step for step, _ in mlflow.history(run, "loss")] == [0, 1, 2, 3, 4]
    wrong = mlflow_logger(tmp_path, "nonsense://x", "away")
    with pytest.raises(ResourceError, match="mlflow cannot be used"):
        wrong.begin({}, 0)


def test_run_deleted_in_the_service_is_created_again(tmp_path, database):
    for _ in range(2):
        logger = mlflow_logger(tmp_path, database, "deleted")
        logger.begin({}, 0)
        run_id = logger.version
        logger.finalize("success")
        OfMlflow(database, "deleted").client.delete_run(run_id)
    logger.begin({}, 0)
    (run,) = OfMlflow(database, "deleted").runs
    assert run.info.run_id == logger.version != run_id


def test_wrong_settings_are_one_message(tmp_path):
    with pytest.raises(ConfigError, match="must be 'offline' or 'online'"):
        WandbLogger(run_dir=str(tmp_path), project="p", mode="sometimes")
    with pytest.raises(ConfigError, match=r"logger\.wandb\.mode"):
        compose_config(["logger=wandb", "logger.wandb.mode=sometimes"])


def hide(monkeypatch, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == package else find_spec(name, *a),
    )


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    hide(monkeypatch, "wandb")
    with pytest.raises(ConfigError) as caught:
        WandbLogger(run_dir=str(tmp_path), project="p", mode="offline")
    assert "wandb is not installed" in str(caught.value)
    assert "arcloop[wandb]" in str(caught.value)


def test_a_service_that_fails_without_a_message_does_not_stop_the_training(tmp_path, capsys):
    def fail():
        raise TimeoutError

    logger = mlflow_logger(tmp_path, "http://localhost", "name")
    assert not logger._try(fail)
    assert ": TimeoutError" in capsys.readouterr().err
