"""A project of the user: own configs and classes in every verb, in sweeps, and from any folder."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.composition import compose_config, to_plain
from arcloop.config.project import VARIABLE, find_project, project_of, use_project_of_run
from arcloop.config.recorded import compose_for_run, recorded_overrides

SMALL = {
    "data": {
        "train": 60, "val": 20, "gallery": 20, "query": 20, "num_classes": 3, "image_size": 16,
        "shard_rows": 64, "noise": 0.5,
    },
    "loader": {"batch_size": 20},
    "backbone": {"widths": [8, 8]},
    "embedder": {"embedding_dim": 8},
    "trainer": {"max_epochs": 1},
    "evaluate": {"num_projected": 0, "gate": {"min_top1": 0.0}},
}  # fmt: skip
DEFAULTS = [{"override /data": "synthetic"}, {"override /head": "wide"}]
HEAD = """from arcloop.models import ArcFace


class WideMargin(ArcFace):
    \"\"\"ArcFace with twice the margin.\"\"\"

    def __init__(self, *, margin, **shared):
        super().__init__(margin=2 * margin, **shared)
"""


@pytest.fixture
def shop(in_tmp, monkeypatch):
    """An empty folder with a project next to it; the current directory is the project."""
    project = in_tmp / "my shop"
    for group, name, content in (
        ("experiment", "shop", {"defaults": DEFAULTS, "name": "shop", **SMALL}),
        ("head", "wide", {"defaults": ["arcface"], "_target_": "shop.heads.WideMargin"}),
        ("augmentation", "light", {"_target_": "arcloop.training.augmentation.NoAugmentation"}),
    ):  # fmt: skip
        file = project / "conf" / group / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        header = "# @package _global_\n" if group == "experiment" else ""
        file.write_text(header + yaml.safe_dump(content, sort_keys=False))
    package = project / "src/shop"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "heads.py").write_text(HEAD)
    (project / "pyproject.toml").write_text('[project]\nname = "shop"\n[tool.arcloop]\n')
    monkeypatch.chdir(project)
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_configs_of_the_project_come_first(shop):
    (shop / "runs").mkdir()
    os.chdir(shop / "runs")  # a folder below it
    assert find_project() == shop
    light = compose_config(["augmentation=light"]).augmentation
    assert light == {"_target_": "arcloop.training.augmentation.NoAugmentation"}
    assert "shift" in compose_config(["augmentation=drawing"]).augmentation  # one of arcloop


def test_a_folder_with_conf_that_is_not_marked_is_no_project(shop):
    (shop / "pyproject.toml").write_text('[project]\nname = "shop"\n')
    assert find_project() is None
    assert main(["train", "experiment=shop", "--cfg", "job"]) == 2


def test_every_verb_reads_the_project_from_any_folder(shop, in_tmp, monkeypatch, capsys):
    path = [*sys.path]
    assert main(["run", "experiment=shop"]) == 0
    manifest = json.loads((shop / "runs/shop/manifest.json").read_bytes())
    assert manifest["info"]["project"] == str(shop)
    (in_tmp / "elsewhere").mkdir()
    monkeypatch.chdir(in_tmp / "elsewhere")
    run = f"run_dir={shop}/runs/shop"
    assert main(["evaluate", run, "evaluate.batch_size=7"]) == 0
    assert main(["reproduce", f"{shop}/runs/shop"]) == 0
    assert VARIABLE not in os.environ
    assert sys.path == path

    shop.rename(in_tmp / "moved")
    run = f"run_dir={in_tmp}/moved/runs/shop"
    capsys.readouterr()
    assert main(["index", run, "index=hnsw"]) == 2
    assert f"the project of this run, {shop}, does not exist" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(in_tmp / "moved"))
    assert main(["index", run, "index=hnsw"]) == 0


def test_a_verb_on_a_run_uses_its_recorded_config_when_files_change(shop):
    assert main(["run", "experiment=shop", "index=hnsw"]) == 0
    file, run = shop / "conf/experiment/shop.yaml", "run_dir=runs/shop"
    file.write_text(file.read_text().replace("min_top1: 0.0", "min_top1: 1.1"))
    with project_of([]):
        overrides = recorded_overrides(shop / "runs/shop", ["evaluate.memory_mb=32"])
    assert overrides == ["experiment=shop", "index=hnsw", "++evaluate.gate.min_top1=0.0"]
    assert main(["evaluate", run, "evaluate.memory_mb=32"]) == 0
    assert main(["evaluate", run, "evaluate.gate.min_top1=1.0"]) == 3

    shutil.rmtree(shop / "conf")
    (shop / "conf").mkdir()
    recorded = artifacts.read(Path("runs/shop"), "run").config
    with project_of([]):
        config = compose_for_run([run, "evaluate.memory_mb=32"])
    assert to_plain(config.index) == recorded["index"]
    assert to_plain(config.data) == recorded["data"]
    assert config.evaluate.gate.min_top1 == 0.0
    assert main(["evaluate", run]) == 0
    assert main(["index", run, "index=flat"]) == 0
    assert artifacts.read(Path("runs/shop/index"), "index").config["index"]["factory"] == "Flat"


def test_all_ranks_train_the_head_of_the_project(shop, in_tmp):
    command = ["train", "experiment=shop", "trainer=ddp_cpu", "callbacks=export_only"]
    assert main([*command, "trainer.devices=2"]) == 0
    recorded = artifacts.read(Path("runs/shop"), "run").config
    assert recorded["head"]["_target_"] == "shop.heads.WideMargin"


def test_a_sweep_by_other_processes_trains_the_head_of_the_project(shop, in_tmp, monkeypatch):
    monkeypatch.chdir(in_tmp)
    swept = ["head=arcface,wide", "launcher=joblib", "launcher.jobs=2", "callbacks=export_only"]
    command = ["train", "-m", "--config-dir", str(shop / "conf"), "experiment=shop", *swept]
    assert main([*command, f"hydra.sweep.dir={in_tmp}/sweep"]) == 0
    targets = {
        json.loads(file.read_bytes())["config"]["head"]["_target_"]
        for file in (in_tmp / "sweep").glob("*/manifest.json")
    }
    assert targets == {"arcloop.models.ArcFace", "shop.heads.WideMargin"}
    assert VARIABLE not in os.environ


def test_each_run_of_a_sweep_uses_its_own_project(in_tmp):
    for name in ("one", "two"):
        (in_tmp / name / "conf").mkdir(parents=True)
    with project_of([]):
        for name in ("one", "two"):
            use_project_of_run({"project": str(in_tmp / name)}, in_tmp)
            assert find_project() == in_tmp / name
        use_project_of_run({}, in_tmp)
        assert find_project() is None
    with project_of(["--config-dir", "one/conf"]):
        use_project_of_run({"project": str(in_tmp / "two")}, in_tmp)
        assert find_project() == in_tmp / "one"
    assert find_project() is None


def test_a_choice_that_does_not_exist_is_named_with_those_of_the_project(shop, capsys):
    assert main(["train", "experiment=shop", "head=wid"]) == 2
    assert "did you mean wide" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["seed=1"], ["-m", "seed=1,2"]])
def test_a_file_that_is_not_yaml_is_named_with_its_line(shop, capsys, flags):
    (shop / "conf/head/wide.yaml").write_text("margin: 0.1\nscale: [\n")
    assert main(["train", "experiment=shop", *flags]) == 2
    error = capsys.readouterr().err
    assert "this is not valid YAML" in error
    assert "conf/head/wide.yaml, line 3" in error


def test_a_class_that_cannot_be_imported_is_named_with_its_key(shop, capsys):
    (shop / "conf/backbone").mkdir()
    (shop / "conf/backbone/own.yaml").write_text(
        "_target_: shop.none.Network\n_partial_: true\nmodel: large\n"
    )
    assert main(["train", "data=csv", "data.file=x", "backbone=own"]) == 2
    assert "shop.none" in (error := capsys.readouterr().err)
    assert "backbone" in error


@pytest.mark.parametrize("given", ["variable", "option"])
def test_a_project_that_does_not_exist_is_one_error(in_tmp, monkeypatch, capsys, given):
    arguments = ["train", "data=synthetic"]
    if given == "variable":
        monkeypatch.setenv(VARIABLE, "none")
    else:
        arguments.append("--config-dir=none")
    assert main(arguments) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not list(in_tmp.iterdir())
