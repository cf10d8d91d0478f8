"""Runs the commands and snippets of docs/export.md and docs/tracking.md."""

import re
import shlex
from pathlib import Path

import pytest

from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.config.files import bundled

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_commands_and_snippets_of_the_export_page(work):
    (work / "runs/synthetic").rename(work / "runs/mnist")
    lines = "".join(blocks("export.md", "console")).splitlines()
    verbs = ("arcloop export", "arcloop lineage", "arcloop deploy", "arcloop push")
    of_a_run = [line for line in lines if line.startswith(verbs)]
    assert len(of_a_run) == 6
    for command in sorted(of_a_run, key=lambda line: "int8" not in line):
        assert main(shlex.split(command)[1:]) == 0, command
    names = {}
    for snippet in blocks("export.md", "python"):
        exec(snippet, names)
    assert names["embeddings"].shape == (32, 16)


@pytest.mark.parametrize(("page", "group"), [("export.md", "export"), ("tracking.md", "logger")])
def test_page_lists_every_choice(page, group):
    named = set(re.findall(rf"^\| `{group}=(\w+)`", (DOCS / page).read_text(), flags=re.MULTILINE))
    choices = {file.stem for file in (bundled("conf") / group).glob("*.yaml")}
    assert named == choices - {"csv"}


def test_commands_of_the_tracking_page_compose():
    lines = "".join(blocks("tracking.md", "console")).splitlines()
    commands = [line for line in lines if line.startswith("arcloop train ")]
    assert len(commands) == 2
    for command in commands:
        compose_config(shlex.split(command)[2:])
