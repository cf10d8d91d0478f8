"""Runs the commands of docs/serving.md in order, except those that start a server."""

import re
import shlex
from pathlib import Path

import pytest

from arcloop.config.composition import compose_config
from arcloop.serving.deploy import main as deploy
from arcloop.serving.deploy import parse_arguments
from arcloop.serving.model_store import ModelStore
from arcloop.serving.versions import main as versions

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "serving.md").read_text()
LINES = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_documented_commands_run(small_run, tmp_path):
    mains = {"deploy": deploy, "versions": versions}
    store = [f"deploy.model_store={tmp_path / 'store'}"]
    ran = []
    for program, *rest in LINES:
        if program == "arcloop":
            verb, *given = rest
            arguments = [a.replace("runs/mnist", str(small_run)) for a in given] + store
            if verb == "export":  # tests/serving/test_runtimes.py deploys exported runs
                compose_config(given)
            elif verb in mains:
                assert mains[verb](arguments) == 0
            else:
                assert verb in ("serve", "roll")
                parse_arguments(arguments)
            ran.append(verb)
        else:
            assert program == "curl"
            assert rest[-1] == "http://127.0.0.1:8082/predictions/mnist"
    assert len(ran) >= 9
    states = [v.state for v in ModelStore(tmp_path / "store", "synthetic").versions()]
    assert sorted(states) == ["live", "previous"]


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`deploy\.(?!py)([a-z_]+)", TEXT))))
def test_documented_settings_exist(key, settings):
    assert hasattr(settings, key)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT))
def test_links_point_to_existing_files(link):
    assert (DOCS / link).exists()


def test_documented_scripts_exist():
    for script in re.findall(r"`(serving/\w+\.py)`", TEXT):
        assert (DOCS.parent / script).is_file()
