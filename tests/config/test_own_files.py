"""Faults in the files of a project: all of them, each with file and line."""

import pytest

from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.config.project import project_of

EXPERIMENT, HEAD = "conf/experiment/shop.yaml", "conf/head/shop_head.yaml"
LINE = 10
"""The line after the end of the experiment that `arcloop init` writes."""


def append(file, text):
    file.write_text(file.read_text() + text)


def error_of(capsys, *overrides, verb="train"):
    assert main([verb, "experiment=shop", "head=shop_head", "data.root=.", *overrides]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "messages", "line"),
    [
        ("maxepochs: 3\n", ["maxepochs is unknown", "did you mean trainer.max_epochs"], LINE),
        ("trainer:\n  maxepochs: 3\n", ["trainer.maxepochs is unknown"], LINE + 1),
        ("loader: {batchsize: 3}\n", ["did you mean loader.batch_size"], LINE),
        ("loader: {batch_size: abc}\n", ["loader.batch_size='abc' must be an int"], LINE),
        ("deploy: {keepp: 3}\n", ["deploy.keepp is unknown; did you mean deploy.keep"], LINE),
        ("head: {margin: 7}\n", ["head.margin=7 must be less than 3.14159"], LINE),
        ("head: {m1: 1.0}\n", ["head.m1 is unknown"], LINE),
        ("monitor: val_top\n", ["monitor=val_top: training logs only"], LINE),
        ("evaluate:\n\n  gate: {min_top1: 2}\n", ["min_top1=2 must be less than"], LINE + 2),
    ],
)
def test_a_fault_of_an_experiment_has_its_file_and_line(shop, capsys, text, messages, line):
    append(shop / EXPERIMENT, text)
    error = error_of(capsys)
    for message in messages:
        assert message in error
    assert f"where: {EXPERIMENT}, line {line}\n" in error


def test_all_faults_of_all_files_are_reported_at_once(shop, capsys):
    append(shop / EXPERIMENT, "maxepochs: 3\nloader: {batchsize: 3, eval_batch_size: no}\n")
    append(shop / HEAD, "margn: 1\n")
    error = error_of(capsys)
    for message in (
        f"did you mean trainer.max_epochs or trainer.min_epochs? ({EXPERIMENT}, line {LINE})",
        "loader.batchsize is unknown",
        f"loader.eval_batch_size=False must be an int ({EXPERIMENT}, line {LINE + 1})",
        "head.margn is unknown; did you mean head.margin",
        f"({HEAD}, line 5)",
    ):
        assert message in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/data: shop", "/dta: shop", "there is no group dta; did you mean data?"),
        ("/data: shop", "/data: shp", "no data=shp; did you mean shop?"),
        ("override /data", "data", "write `override /data: ...`"),
        ("- images", "- imges", "no experiment=imges; did you mean images?"),
    ],
)
def test_a_wrong_default_has_its_file_and_line(shop, capsys, old, new, message):
    text = (shop / EXPERIMENT).read_text()
    (shop / EXPERIMENT).write_text(text.replace(old, new))
    assert message in (error := error_of(capsys))
    line = 1 + [new in one for one in (shop / EXPERIMENT).read_text().splitlines()].index(True)
    assert f"{EXPERIMENT}, line {line}" in error


def test_a_class_that_does_not_exist_names_the_line_and_the_searched_folder(shop, capsys):
    text = (shop / HEAD).read_text()
    (shop / HEAD).write_text(text.replace("RampedArcFace", "RampdArcFace"))
    error = error_of(capsys)
    assert "head._target_=shop.heads.RampdArcFace" in error
    assert "did you mean shop.heads.RampedArcFace" in error
    assert f"searched: {shop}/src" in error
    assert f"where: {HEAD}, line 3" in error


def test_a_class_with_a_syntax_error_names_the_line(shop, capsys):
    append(shop / "src/shop/heads.py", "def x(:\n")
    assert "heads.py, line 25" in error_of(capsys)


def test_a_value_that_the_command_replaces_is_no_fault(shop, capsys):
    append(shop / EXPERIMENT, "head: {margin: 7}\n")
    error = error_of(capsys, "head.margin=9")
    assert "head.margin=9 must be less" in error
    assert EXPERIMENT not in error


def test_valid_files_have_no_faults(shop):
    append(
        shop / EXPERIMENT,
        "resume: true\n"  # OmegaConf converts it to a text
        "head: {margin: 1e-2}\n"
        "callbacks: {own: {_target_: logging.NullHandler}, evaluate: null}\n"
        "cluster: {steps: {train: {gpus: 1}}}\n"
        "index: {search: {efSearch: 3}}\n",
    )
    (shop / "conf/launcher").mkdir()
    (shop / "conf/launcher/own.yaml").write_text(
        "# @package _global_\ndefaults: [joblib, _self_]\nlauncher: {partition: big}\n"
    )
    with project_of([]):
        config = compose_config(["experiment=shop", "data.root=.", "launcher=own", "index=hnsw"])
    assert config.head.margin == 0.01
    assert config.launcher == {"jobs": 2, "partition": "big"}


def test_a_sweep_reports_faults_of_files_before_its_first_job(shop, capsys):
    append(shop / EXPERIMENT, "maxepochs: 3\n")
    assert main(["train", "-m", "experiment=shop", "data.root=.", "seed=0,1"]) == 2
    assert f"{EXPERIMENT}, line {LINE}" in capsys.readouterr().err
    assert not (shop / "runs").exists()
