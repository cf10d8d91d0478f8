"""`arcloop diff`: two runs side by side, and the command of one."""

import json
import shlex
import shutil

import pytest

from arcloop import artifacts
from arcloop.cli.main import main

RUN = "runs/synthetic"


def change(run, section, **values):
    file = run / "manifest.json"
    content = json.loads(file.read_text())
    content[section] |= values
    file.write_text(json.dumps(content))


@pytest.fixture
def two(work):
    """A run, and a copy of it with another margin, store and version of torch."""
    shutil.copytree(RUN, "runs/other run")
    other = work / "runs/other run"
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace(RUN, "runs/other run"))
    config = artifacts.read(other, "run").config
    change(other, "config", head={**config["head"], "margin": 0.7})
    change(other, "parents", store="f" * 64)
    code = artifacts.read(work / RUN, "run").code
    change(other, "code", packages={**code["packages"], "torch": "1.0"})
    return work


def test_differences_are_printed_by_key(two, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["diff", RUN, "runs/other run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    margin = artifacts.read(two / RUN, "run").config["head"]["margin"]
    assert ["head.margin", str(margin), "0.7"] in lines
    changed = lines[lines.index(["config", "A", "B"]) + 1 : lines.index(["data", "A", "B"])]
    assert changed == [["head.margin", str(margin), "0.7"]]
    store = artifacts.read(two / RUN, "run").parents["store"]
    assert ["store", store[:12], "f" * 12] in lines
    assert lines[lines.index(["code", "A", "B"]) + 1][::2] == ["torch", "1.0"]
    metrics = json.loads((two / RUN / "evaluation/metrics.json").read_text())
    assert ["top1", *[f"{metrics['top1']:.4f}"] * 2] in lines
    objective = artifacts.read(two / RUN, "run").info["objective"]
    assert ["val_map_at_r", *[f"{objective:.4f}"] * 2] in lines


def test_the_command_of_a_run_trains_it_again(work, capsys):
    """The command finds the finished run, so its config is the same."""
    assert main(["diff", RUN]) == 0
    output = capsys.readouterr().out
    assert "images" in output
    command = output.splitlines()[1].strip()
    assert command.startswith("arcloop run data=synthetic ")
    _, *words = shlex.split(command)
    before = artifacts.read(work / RUN, "run").sha256
    assert main(words) == 0
    assert "was already trained with this config" in capsys.readouterr().err
    assert artifacts.read(work / RUN, "run").sha256 == before


def test_a_folder_that_is_no_run_is_one_error(work, capsys):
    assert main(["diff", RUN, "stores"]) == 1
    assert "there is no run here" in capsys.readouterr().err
