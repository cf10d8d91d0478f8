"""Overrides that name a run."""

import pytest

from arcloop.config.recorded import READ_ON_RUNS, compose_for_run, find_run_dir
from arcloop.errors import ArtifactError, ConfigError
from arcloop.pipeline.chains import FROM_RUN
from arcloop.pipeline.steps import ALL_STEPS

NAMES = {
    "a literal": (["run_dir=runs/a"], "runs/a"),
    "quotes": (["run_dir='sw/head.margin=0.2,seed=0'"], "sw/head.margin=0.2,seed=0"),
    "an escaped character": ([r"run_dir=sw/head.margin\=0.2"], "sw/head.margin=0.2"),
    "a space and a bracket": (["run_dir='a b/[8,8]'"], "a b/[8,8]"),
    "a prefix": (["++run_dir=a"], "a"),
    "the last of two": (["run_dir=a", "run_dir=b"], "b"),
    "the name": (["name=foo"], "runs/foo"),
    "the data": (["data=synthetic"], "runs/synthetic"),
    "nothing": ([], "runs/mnist"),
    "an interpolation": (["run_dir=x/${name}-${seed}", "name=foo", "seed=3"], "x/foo-3"),
    "keys of the run's own choices": (["run_dir=a", "index.nprobe=4", "data.root=/x"], "a"),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_run_is_found_in_every_notation(case):
    overrides, expected = NAMES[case]
    assert str(find_run_dir(overrides)) == expected


def test_an_interpolation_without_a_value_is_an_error():
    with pytest.raises(ConfigError, match="nope"):
        find_run_dir(["run_dir=${nope}"])


def test_only_a_run_that_is_named_by_default_may_be_missing(in_tmp):
    assert compose_for_run(["name=foo"], required=False).run_dir == "runs/foo"
    for arguments in ({"given": ["run_dir=runs/foo"], "required": False}, {"given": ["name=foo"]}):
        with pytest.raises(ArtifactError, match="there is no run here"):
            compose_for_run(**arguments)


def test_all_groups_that_the_verbs_on_a_run_read_are_restored():
    assert {key for verb in FROM_RUN for key in ALL_STEPS[verb].reads} == {*READ_ON_RUNS}
