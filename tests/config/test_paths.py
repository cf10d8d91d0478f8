"""Existing paths are given as they are, whatever characters they contain."""

from pathlib import Path

import pytest

from arcloop.config.composition import parse_overrides
from arcloop.config.paths import name_run, quote_paths
from arcloop.errors import ConfigError

ODD = [
    "head.margin=0.2", "head.margin=0.2,seed=0", "a [b] {c}", "it's", '"x"', "größe=é", "a,b",
    "x\\y", "end ", "choice(1)",
]  # fmt: skip


def values(override):
    (parsed,) = parse_overrides([override])
    if parsed.is_sweep_override():
        texts = parsed.sweep_string_iterator()
        return [parse_overrides([f"key={text}"])[0].value() for text in texts]
    return [parsed.value()]


@pytest.mark.parametrize("name", ODD)
def test_an_existing_path_is_read_as_it_is(in_tmp, name):
    Path("runs", name).mkdir(parents=True)
    (quoted,) = quote_paths([f"run_dir=runs/{name}"])
    assert values(quoted) == [f"runs/{name}"]
    for other in ODD:
        Path("runs", other).mkdir(exist_ok=True)
        (quoted,) = quote_paths([f"+run_dir=runs/{name},runs/{other}"])
        assert values(quoted) == [f"runs/{name}", f"runs/{other}"]


@pytest.mark.parametrize(
    "argument",
    [
        "seed=0", "seed=0,1", "store_dir=null", "backbone.widths=[8,8]", "run_dir=runs/none=1",
        "run_dir='runs/a,b'", r"run_dir=runs/a\,b", "run_dir=x,y", "--run=runs/a,b", "~seed",
        "runs/a,b", "folder/key=runs/a,b", "head=glob(*)",
    ],
)  # fmt: skip
def test_other_arguments_are_unchanged(in_tmp, argument):
    for name in ("0", "null", "runs/a,b", "x", "y", "folder/key=runs"):
        Path(name).mkdir(parents=True)
    assert quote_paths([argument]) == [argument]


def test_a_run_can_be_named_without_its_key(in_tmp):
    Path("runs/head.margin=0.2").mkdir(parents=True)
    for run in ("runs/head.margin=0.2", "runs", "runs/none"):
        given = ["list", run, f"name={'a' * 5000}", "--cfg", "job", "hydra/launcher=joblib"]
        assert name_run(given) == ["list", f"run_dir={run}", *given[2:]]
    for twice in (["runs/a", "runs/b"], ["runs/a", "run_dir=runs/b"]):
        with pytest.raises(ConfigError, match="more than once"):
            name_run(twice)


def test_the_home_of_the_user_is_expanded(in_tmp, monkeypatch):
    monkeypatch.setenv("HOME", str(in_tmp / "home=1"))
    (in_tmp / "home=1/a,b").mkdir(parents=True)
    home = str(in_tmp / "home=1")
    assert values(quote_paths(["data.root=~/a,b"])[0]) == [f"{home}/a,b"]
    assert values(quote_paths(["run_dir=~/a,b,~/a,b"])[0]) == [f"{home}/a,b"] * 2
    monkeypatch.setenv("HOME", "/nowhere")
    assert quote_paths(["data.root=~/none"]) == ["data.root=/nowhere/none"]
    assert quote_paths(["name=a~/b", "~seed", "--run=~/a"]) == ["name=a~/b", "~seed", "--run=~/a"]
