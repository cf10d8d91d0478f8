"""Every command in docs/kubeflow.md is accepted by its verb."""

import re
import shlex
from pathlib import Path

import pytest

from arcloop.kfp.submission import read_submission
from arcloop.kfp.sweeps.combinations import read_sweep
from arcloop.pipeline.steps import STEPS

PAGE = (Path(__file__).parents[2] / "docs/kubeflow.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_scripts_accept_the_commands(command, image, monkeypatch):
    monkeypatch.setenv("ARCLOOP_IMAGE", image)
    program, verb, *arguments = shlex.split(command)
    assert program == "arcloop"
    assert verb in ("pipeline", "trigger")
    read = read_sweep if "-m" in arguments else read_submission
    read([word for word in arguments if not word.startswith("every=")])


def test_the_table_lists_every_step_and_the_page_states_the_limits():
    rows = re.findall(r"^\| (\w+) \| (\d_\w+) \|", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [*STEPS, "deploy"]
    titles = {name: s.title for name, s in read_submission([]).cluster.steps.items()}
    assert dict(rows) == titles
    assert "is wire-format tested, but was never\nrun on a KFP server" in PAGE


def test_documented_scripts_exist():
    for script in re.findall(r"`(kubeflow/\w+\.\w+)`", PAGE):
        assert (Path(__file__).parents[2] / script).is_file()
