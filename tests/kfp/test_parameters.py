"""Overrides divided by group compose to the same config as one list."""

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from arcloop.config.composition import compose_config, to_plain
from arcloop.config.files import bundled
from arcloop.config.overrides import format_value
from arcloop.errors import ConfigError
from arcloop.kfp.parameters import divide_overrides
from arcloop.pipeline.steps import STEPS

CASES = {
    "nothing": [],
    "an experiment, which reaches into several groups": ["experiment=mnist", "head.margin=0.4"],
    "a required value": [
        "data=image_folder", r"data.root='/my data/it\'s'", "data.image_size=[32,16]",
    ],
    "a network that determines the size of the images": [
        "data=image_folder", "data.root=x", "backbone=timm",
        "backbone.model=test_resnet.r160_in1k",
    ],
    "choices, and another network": [
        "index=hnsw", "optimizer=adamw", "backbone=iresnet18", "trainer=gpu",
        "loader.num_workers=2",
    ],
    "values: lists, nulls, numbers, truths, what is added, an interpolation, where to deploy": [
        "backbone.widths=[8,8]", "embedder.mean=[0.1]", "trainer.gradient_clip_val=0.5",
        "evaluate.gate.min_top1=null", "force=true", "trainer.max_epochs=3",
        "trainer.deterministic=false", "+trainer.fast_dev_run=true",
        "embed.batch_size=${loader.batch_size}", "loader.batch_size=7", "deploy.name=other",
        "deploy.model_store=/mnt/store",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_parameters_of_a_step_compose_to_the_same_groups(case):
    overrides = CASES[case]
    _, parameters = divide_overrides(overrides)
    whole = to_plain(compose_config(["callbacks=export_only", "run_dir=x", *overrides]))
    for step in STEPS.values():
        own = [value for name in step.reads for value in parameters[name]]
        alone = to_plain(compose_config(["run_dir=x", *own]))
        assert {g: alone[g] for g in step.reads} == {g: whole[g] for g in step.reads}, step.name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["head.margin=0.4"], ["head.margin=0.40", "seed=0"]),
        (["index=flat"], []),
    ],
)
def test_the_same_config_is_the_same_parameters(one, other):
    assert divide_overrides(one)[1] == divide_overrides(other)[1]


def test_an_experiment_becomes_the_values_that_it_sets():
    values = yaml.safe_load((bundled("conf") / "experiment/mnist.yaml").read_text())
    parameters = divide_overrides(["experiment=mnist"])[1]
    assert parameters["trainer"] == [f"trainer.max_epochs={values['trainer']['max_epochs']}"]
    assert parameters["embedder"] == [
        f"embedder.{key}=[{values['embedder'][key][0]}]" for key in ("mean", "std")
    ]
    assert divide_overrides(["experiment=mnist", "trainer.max_epochs=10"])[1]["trainer"] == []


def test_a_placeholder_of_kfp_is_refused():
    with pytest.raises(ConfigError, match=r"name='x\{\{\$' contains"):
        divide_overrides(["name='x{{$'"])


def test_an_unchanged_group_has_no_overrides():
    parameters = divide_overrides(["index=hnsw"])[1]
    touched = {name for name, values in parameters.items() if values}
    assert touched == {"index", "callbacks", "name"}


@given(st.text(st.characters(codec="ascii", exclude_characters="\n\r"), min_size=1))
def test_hydra_parses_every_formatted_text(text):
    override = OverridesParser.create().parse_override(f"name={format_value(text)}")
    assert override.value() == text
