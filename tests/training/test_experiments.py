"""Every choice of every group composes and dry-starts with every experiment."""

import functools

import pytest
from tests.config.test_composition import REQUIRED

from arcloop.config.composition import build, compose_config, to_plain
from arcloop.config.files import bundled
from arcloop.errors import ConfigError
from arcloop.models import Head
from arcloop.pipeline.steps import STEPS, dry_run

GROUPS = sorted(path for path in bundled("conf").iterdir() if path.is_dir())
EXPERIMENTS = {"mnist": [], "images": ["data.root=x"]}
WITHOUT_PLUGIN = ("launcher=ray",)
CHOICES = [
    choice
    for group in GROUPS
    for file in sorted(group.glob("*.yaml"))
    if (choice := f"{group.name}={file.stem}") not in WITHOUT_PLUGIN
]
NEEDS_GPU = ("trainer=ddp", "trainer=gpu")
WITH_IMAGES = ("data=image_folder", "data=csv", "backbone=", "sampler=", "augmentation=")
"""Choices that values of `experiment=images` could contradict; other sources lack keys it sets.

For heads, `experiment=mnist` sets the same key.
"""
PAIRS = [
    (experiment, choice)
    for experiment in EXPERIMENTS
    for choice in CHOICES
    if experiment != "images" or choice.startswith(WITH_IMAGES)
]


@functools.cache
def composed(*overrides):
    return compose_config(overrides)


def test_all_experiments_are_tested():
    files = (bundled("conf") / "experiment").glob("*.yaml")
    assert {file.stem for file in files} == EXPERIMENTS.keys()


@pytest.mark.parametrize(("experiment", "choice"), PAIRS)
def test_every_choice_starts_with_every_experiment(in_tmp, experiment, choice):
    required = [*EXPERIMENTS[experiment], *REQUIRED.get(choice, [])]
    config = composed(f"experiment={experiment}", choice, *required)
    group = choice.partition("=")[0]
    assert group in to_plain(config)
    if group in STEPS["train"].reads and choice not in NEEDS_GPU:
        dry_run(config, ["train"])
    elif any(group in step.reads for step in STEPS.values()):
        build(config, group)


@pytest.mark.parametrize("choice", WITHOUT_PLUGIN)
def test_a_choice_whose_plug_in_of_hydra_is_not_installed_says_so(choice):
    with pytest.raises(ConfigError, match="needs a plug-in of Hydra") as caught:
        composed(choice)
    assert "pip install hydra-ray-launcher" in caught.value.remedy


@pytest.mark.parametrize("head", [choice for choice in CHOICES if choice.startswith("head=")])
def test_a_head_takes_the_scale_of_an_experiment_unless_it_has_that_of_a_paper(head):
    is_paper = head.endswith("_paper")
    config = composed("experiment=mnist", head)
    built = build(config, "head")(embedding_dim=512 if is_paper else 64, num_classes=10)
    assert isinstance(built, Head)
    assert not built.cautions()
    if "scale" in config.head:
        assert built.full_scale == (64.0 if is_paper else 16.0)


def test_a_scale_given_for_the_head_comes_first():
    assert compose_config(["experiment=mnist", "head.scale=20.0"]).head.scale == 20.0
