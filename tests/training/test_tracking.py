"""Local MLflow and W&B: each run has one run in each service, and every row is sent once."""

import json
import struct

import pytest
from omegaconf import OmegaConf
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_file
from arcloop.cli.main import main
from arcloop.config.composition import bundled, compose_config
from arcloop.errors import ConfigError, ResourceError
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
    assert main([*command, "trainer.max_epochs=1", "overwrite=true", "resume=false"]) == 0
    assert (
        len(OfMlflow(database, "resumed").runs) == 2
    )  # an overwritten run is a new run of the service


def test_two_processes_log_one_run(in_tmp, database):
    arguments = ["trainer=ddp_cpu", "loader.batch_size=25", "export=onnx", "name=ddp"]
    assert main(["train", *SMALL, *both(database), *arguments, f"run_dir={RUN}"]) == 0
    mlflow = OfMlflow(database, "ddp")
    (run,) = mlflow.runs
    assert mlflow.history(run, "val_top1") == in_csv(in_tmp / RUN, "val_top1")
    assert rows_of(in_tmp / RUN, "val_top1") == in_csv(in_tmp / RUN, "val_top1")
    artifacts.load(in_tmp / RUN / "export", "export")


def test_each_job_of_a_sweep_is_one_run(in_tmp, database):
    quick = ["trainer.max_epochs=1", "callbacks=export_only", "name=sweep"]
    assert main(["train", "-m", *SMALL, *both(database), *quick, "head.margin=0.2,0.4"]) == 0
    runs = OfMlflow(database, "sweep").runs
    assert {run.data.params["head.margin"] for run in runs} == {"0.2", "0.4"}
    folders = [p.parent for p in in_tmp.glob("runs/sweeps/sweep/*/manifest.json")]
    assert {run.info.run_name for run in runs} == {folder.name for folder in folders}
    ids = {r.run.run_id for folder in folders for r in records(folder) if r.HasField("run")}
    assert len(folders) == len(ids) == 2


def mlflow_logger(tmp_path, database, name):
    return MlflowLogger(run_dir=str(tmp_path), tracking_uri=database, experiment=name)


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


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "wandb" else find_spec(name, *a),
    )
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
