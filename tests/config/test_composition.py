import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from arcloop.config.composition import (
    compose_choice,
    compose_config,
    parse_overrides,
    quote_override,
)
from arcloop.config.files import bundled
from arcloop.errors import ConfigError

REQUIRED = {
    "backbone=timm": ["backbone.model=resnet18"],
    "data=idx": ["data.root=x"],
    "data=csv": ["data.file=x"],
    "data=image_folder": ["data.root=x"],
    "data=recordio": ["data.root=x"],
    "experiment=images": ["data.root=x"],
    "index=factory": ["index.factory=Flat"],
    "trainer=default": ["trainer.accelerator=cpu"],
}


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1))
def test_a_quoted_override_is_one_word_with_the_text(text):
    (word,) = shlex.split(quote_override("name", text))
    (parsed,) = parse_overrides([word])
    assert (parsed.key_or_group, parsed.value()) == ("name", text)


@pytest.mark.parametrize(
    "value",
    [";", "|", r"\t", r"\;", "/tmp/bücher", "/tmp/a,b", "/tmp/a=b", "a#b", "it's [1]", "~/x y"],
)
def test_the_remedy_of_an_unreadable_override_can_be_pasted_into_a_shell(value):
    try:
        config = compose_config([f"run_dir={value}"])
    except ConfigError as error:
        word = re.search(r"(?:write|as) (.*)$", error.remedy)[1]
        argument = subprocess.check_output(["bash", "-c", f"printf %s {word}"], text=True)
        config = compose_config([argument])
    assert config.run_dir == value


def test_a_callback_of_the_user_may_log_other_metrics():
    assert compose_config(["monitor=theirs", "+callbacks.own._target_=logging.NullHandler"])


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("head.margn=0.3", ["no key head.margn", "did you mean head.margin"]),
        ("+head.margn=0.3", ["head.margn is unknown; did you mean margin"]),
        ("head.margin=abc", ["head.margin='abc' must be a number"]),
        ("head.margin=7", ["head.margin=7 must be less than 3.14159"]),
        ("monitor=val_top", ["monitor=val_top: training logs only val_map_at_r", "mean val_top1?"]),
        ("monitor=val_eer", ["monitor_mode=max: a smaller val_eer", "set monitor_mode=min"]),
        ("callbacks.checkpoint.mode=min", ["set callbacks.checkpoint.mode=max"]),
        ("head=arcfac", ["no head=arcfac", "did you mean arcface"]),
        ("hed=arcface", ["no key hed", "did you mean head"]),
        ("loader.batch_size=abc", ["loader.batch_size=abc must be an int"]),
        ("loader.batch_size=0", ["loader.batch_size=0 must be greater than or equal to 1"]),
        ("data=idx", ["data.root is required"]),
        ("a=[", ["cannot read the override"]),
        ("+foo=1", ["foo is not a key"]),
        ("data.name=a/b", ["name='a/b' must be a folder name", "data.name='a/b' must be a folder"]),
        ("name=..", ["name='..' must be a folder name", "not beginning with '.'"]),
        (f"name={'x' * 101}", ["must be a folder name: 1 to 100 bytes"]),
        ("seed=-1", ["seed=-1 must be greater than or equal to 0"]),
        ("seed=x", ["seed=x must be an int"]),
        ("resume=maybe", ["resume='maybe' must be one of auto, true, false"]),
        (
            "evaluate.gate.min_top1=2",
            ["evaluate.gate.min_top1=2.0 must be less than or equal to 1"],
        ),
        ("optimizer.factory.momentm=1", ["did you mean optimizer.factory.momentum"]),
        ("head._target_=arcloop.models.Nope", ["is not installed"]),
        ("run_dir=${nope}", ["nope"]),
        ("head.margin=1,2", ["head.margin=1,2 has several values", "-m runs one job"]),
        ("loader=3", ["loader=3 must be a mapping", "loader.batch_size"]),
        ("seed=null", ["seed=null must be an int"]),
        ("callbacks=[nope]", ["no callbacks=nope", "choices: default"]),
        ("backbone.widths=[8,x]", ["backbone.widths=[8, 'x'] item 1 must be an int"]),
    ],
)
def test_a_wrong_override_is_one_clear_error(override, messages):
    with pytest.raises(ConfigError) as caught:
        compose_config([override])
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("order", [["ema", "export_only"], ["export_only", "default", "ema"]])
def test_choices_of_callbacks_are_combined_in_any_order(order):
    every = list(compose_config().callbacks)
    callbacks = compose_config([f"callbacks=[{','.join(order)}]"]).callbacks
    assert list(callbacks) == [*every, "ema"]
    assert [name for name in every if callbacks[name] is None] == [
        "build_index", "evaluate", "tensorboard",
    ]  # fmt: skip


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        compose_config(["loader.batch_size=0", "head.margin=7", "trainer.max_epochs=x", "seed=-1"])
    for key in ("loader.batch_size", "head.margin", "trainer.max_epochs", "seed"):
        assert key in str(caught.value)


def test_checking_the_config_imports_nothing_heavy():
    code = (
        "import sys; from arcloop.config.composition import compose_config; compose_config();"
        "import arcloop.cli.launch, arcloop.cli.query;"
        "assert not {'torch', 'faiss', 'pytorch_lightning', 'matplotlib', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_value_lives_in_one_place():
    """What YAML sets has no default in Python."""
    from arcloop.config.signatures import read_signature

    groups = (
        "data",
        "sampler",
        "head",
        "backbone",
        "augmentation",
        "index",
        "optimizer",
        "scheduler",
    )
    for group in groups:
        for file in (bundled("conf") / group).glob("*.yaml"):
            node = OmegaConf.to_container(compose_choice(group, file.stem))[group]
            parameters = read_signature(node["_target_"]).parameters
            given = [parameters[name] for name in node if name in parameters]
            assert [p.name for p in given if p.default is not p.empty] == []


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (["backbone=timm", "backbone.model=test_resnet.r160_in1k"], 160),
        (["backbone=timm", "backbone.model=test_resnet.r160_in1k", "data.image_size=64"], 64),
        (["backbone=timm", "backbone.model=none"], 112),
        (["backbone=iresnet18"], 112),
    ],
)
def test_the_size_of_the_images_is_that_of_the_weights_unless_it_is_set(backbone, size):
    config = compose_config(["data=image_folder", "data.root=x", *backbone])
    assert config.data.image_size == size
