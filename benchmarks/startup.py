"""Time to an answer of the command line, against a bare Hydra app with as many config groups."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from arcloop.compose import bundled
from benchmarks.measure import Comparison, alternate

_APP = """
import hydra
@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config):
    pass
main()
"""


def compare(*, rounds: int = 7) -> list[Comparison]:
    """Answers per second: --help, VERB --help, and config errors that each check would find."""
    with tempfile.TemporaryDirectory() as name:
        bare = _bare_app(Path(name))
        arcloop = [sys.executable, "-m", "arcloop"]
        return [
            alternate(
                "start-up: " + " ".join(arguments),
                lambda arguments=arguments: _rate([*arcloop, *arguments]),
                lambda arguments=arguments: _rate([*bare, *(arguments[2:] and ["no.such=1"])]),
                unit="a second",
                target=1 / 1.5,
                rounds=rounds,
            )
            for arguments in (
                ["--help"],
                ["train", "--help"],
                ["train", "head=arcface", "head.margn=1"],
                ["train", "head=arcface", "+head.margn=1"],
                ["train", "head=arcface", "loader.batch_size=x"],
            )
        ]


def _bare_app(folder: Path) -> list[str]:
    groups = sorted(p.name for p in bundled("conf").iterdir() if p.is_dir())
    conf = folder / "conf"
    for group in groups:
        (conf / group).mkdir(parents=True)
        (conf / group / "a.yaml").write_text("x: 1\ny: 2\n")
    defaults = "\n".join(f"  - {group}: a" for group in groups)
    (conf / "config.yaml").write_text(f"defaults:\n{defaults}\n  - _self_\n")
    (folder / "app.py").write_text(_APP)
    return [sys.executable, str(folder / "app.py")]


def _rate(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False, cwd=tempfile.gettempdir())
    return 1 / (time.perf_counter() - start)
