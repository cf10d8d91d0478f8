"""`arcloop completion`: verbs, groups, choices and keys, in bash itself and by line."""

import os
import subprocess
import sys

import pytest

from arcloop.cli.completion import complete
from arcloop.cli.main import VERBS, main
from arcloop.config.files import choices_of
from arcloop.config.project import project_of


def test_verbs():
    assert complete("arcloop ") == [*VERBS]
    assert complete("arcloop tr") == ["train", "trigger"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("arcloop train head_", {"head_scale="}),
        ("arcloop train he", {"head.", "head=", "head_scale="}),
        ("arcloop train head=shop", {"head=shop_head"}),
        ("arcloop train head=shop_head head.ra", {"head.ramp_from="}),
        ("arcloop train experiment=shop data.root=x head=softmax head.sc", {"head.scale="}),
        ("arcloop evaluate evaluate.gate.min_t", {"evaluate.gate.min_top1="}),
        ("arcloop train hed=x head.", set()),
        ("arcloop train sweep/pr", {"sweep/pruner="}),
    ],
)
def test_groups_choices_and_keys_of_the_project(shop, line, found):
    with project_of([]):
        assert {*complete(line)} == found


def test_all_choices_of_a_group(shop):
    expected = {f"head={name}" for name in choices_of("head")}
    with project_of([]):
        assert {*complete("arcloop train -m head=")} == expected


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("arcloop compl", ["completion "]),
        ("arcloop train head=cosface_b", ["cosface_by_size "]),
        ("arcloop train head.marg", ["head.margin="]),
        ("arcloop train data.root=./co", ["./conf/"]),
    ],
)
def test_bash_replaces_the_last_part_of_a_word(shop, in_tmp, line, replies):
    command = in_tmp / "bin/arcloop"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m arcloop "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(arcloop completion bash --print)"; complete -p arcloop >&2; COMP_LINE="$1";'
        " COMP_POINT=${#1}; _arcloop; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    env = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", line], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == replies
    assert "-F _arcloop arcloop" in done.stderr


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", "share/bash-completion/completions/arcloop"),
        ("zsh", "share/zsh/site-functions/_arcloop"),
        ("fish", "config/fish/completions/arcloop.fish"),
    ],
)
def test_one_command_installs_the_script_of_a_shell(in_tmp, monkeypatch, capsys, shell, path):
    monkeypatch.setenv("XDG_DATA_HOME", str(in_tmp / "share"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(in_tmp / "config"))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    assert main(["completion"]) == 0
    assert str(in_tmp / path) in capsys.readouterr().out
    assert main(["completion", shell, "--print"]) == 0
    assert (in_tmp / path).read_text() == capsys.readouterr().out


def test_an_unknown_shell_is_one_error(monkeypatch, capsys):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion"]) == 2
    assert "name bash or zsh or fish" in capsys.readouterr().err
