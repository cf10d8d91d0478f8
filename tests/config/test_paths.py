"""Existing paths are given as they are, whatever characters they contain."""

from pathlib import Path

import pytest

from arcloop.config.composition import parse_overrides
from arcloop.config.paths import quote_paths

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
