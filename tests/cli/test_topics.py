"""`arcloop VERB --help head=arcface`, `head`, `head.margin`: help on parts of the config."""

import inspect
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml

from arcloop.cli.main import main
from arcloop.config.descriptions import keys_of_choice
from arcloop.config.files import bundled, choices_of, config_groups
from arcloop.models import ArcFace


def shown(capsys, *topics, verb="train"):
    assert main([verb, "--help", *topics]) == 0
    return capsys.readouterr().out


def test_a_choice_shows_each_key_of_its_file_with_its_value(capsys):
    text = shown(capsys, "head=arcface")
    node = yaml.safe_load((bundled("conf") / "head/arcface.yaml").read_text())
    for name in node.keys() - {"_target_", "_partial_"}:
        value = str(node[name]).lower() if isinstance(node[name], bool) else node[name]
        assert f"\nhead.{name}={value}  (" in text
    assert "head.margin=0.3  (float in [0, 3.14159), radians)\n    m, additive angle" in text
    assert "Additive angular margin" in text
    assert "class: arcloop.models.ArcFace\n" in text
    (line,) = re.findall(r"margin: (m, additive.*)", inspect.getdoc(ArcFace))
    assert line in text


def test_several_topics_of_any_verb(capsys):
    text = shown(capsys, "head=cosface", "loader", "head.margin", verb="evaluate")
    assert "head=cosface: " in text
    assert "loader.batch_size=256  (int >= 1)\n" in text
    assert "head.margin=0.2  (float in [0, 1])" in text.partition("loader:")[2]  # of cosface
    assert "arcface 0.3" in text
    assert "cluster=gke: " in shown(capsys, "cluster=gke", verb="pipeline")


def test_a_group_lists_its_choices_and_marks_the_default(capsys):
    text = shown(capsys, "head")
    for choice in choices_of("head"):
        assert f"  head={choice}" in text
    assert "head=arcface (default)\n    Additive angular margin" in text


def test_an_experiment_shows_what_it_sets_and_chooses(capsys):
    text = shown(capsys, "experiment=images")
    assert "chooses: data=image_folder\n" in text
    assert "loader.batch_size=64  (int >= 1)\n    Images per training batch" in text
    assert "data.image_size=48  (int >= 1, or list of int >= 1, pixels)" in text


def test_further_keys_of_a_class_are_listed_with_a_plus(capsys):
    text = shown(capsys, "trainer=cpu")
    assert "\ntrainer.max_epochs=10  (int, or null)\n    Stop training" in text
    assert "\n+trainer.limit_train_batches=null  (" in text


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("hed", "did you mean head"),
        ("head=arcfac", "did you mean arcface"),
        ("head.margn", "did you mean head.margin"),
        ("hed=arcface", "did you mean head"),
        ("loader.batchsize", "did you mean loader.batch_size"),
    ],
)
def test_an_unknown_topic_is_one_error_with_a_near_match(capsys, topic, message):
    assert main(["train", "--help", topic]) == 2
    assert message in capsys.readouterr().err


def test_choices_and_classes_of_a_project(shop, capsys):
    text = shown(capsys, "head=shop_head")
    assert "class: shop.heads.RampedArcFace\n" in text
    assert "head.ramp_from=0.5  (float)\n    Share of the margin" in text
    assert "head.margin=0.3  (float in [0, 3.14159), radians)" in text  # of its base class
    assert "head=shop_head\n    A head of this project: head=shop_head." in shown(capsys, "head")


@pytest.mark.parametrize("group", config_groups())
def test_each_choice_of_a_class_has_descriptions(group):
    """All keys of arcloop's own classes and settings have a description."""
    for choice in choices_of(group):
        for key in keys_of_choice(group, choice):
            ours = (
                key.default is not None
                and key.is_set
                and group not in ("optimizer", "sweep/pruner")
            )
            if ours and not key.name.startswith(("experiment", "launcher", "sweep", "cluster")):
                assert key.description or "loss." in key.name or "miner." in key.name, key.name


def test_lines_are_wrapped_in_a_terminal_only(tmp_path):
    command = [sys.executable, "-m", "arcloop", "train", "--help", "evaluate.gate.use"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    reader, writer = pty.openpty()
    env = {**os.environ, "COLUMNS": "50"}
    subprocess.run(command, stdout=writer, env=env, check=True)
    os.close(writer)
    text = b""
    while chunk := _read(reader):
        text += chunk
    lines = text.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 50
    assert " ".join(" ".join(lines).split()) == " ".join(piped.split())
    assert len(piped.splitlines()) == 2


def _read(reader):
    try:
        return os.read(reader, 65536)
    except OSError:  # the end of a pseudo-terminal
        return b""
