"""`python -m benchmarks [--quick | --full] [SECTION ...]`: measure, and write results and the page.

Each section is measured in a separate process and written to benchmarks/results/SECTION.json; the
results of sections that are not named do not change. Without an option, it takes a quarter of an
hour on two cores. `--full` includes the largest sizes and takes an hour. `--quick` measures the
comparisons on small sizes in two minutes and prints the results without writing them. Nothing else
should run on the machine. The other libraries are installed by an extra
(`pip install -c constraints.txt -e '.[cpu,bench]'`); without them their rows are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import page
from benchmarks.machine import describe
from benchmarks.measure import Section, Size, console, show

_QUICK = ("chain", "training", "libraries", "index", "memory", "startup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    for size, text in ((Size.QUICK, "small sizes; not written"), (Size.FULL, "all sizes")):
        sizes.add_argument(f"--{size.value}", dest="size", action="store_const", const=size,
                           default=Size.USUAL, help=text)  # fmt: skip
    parser.add_argument("--one", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("sections", nargs="*", choices=[[], *page.SECTIONS], metavar="SECTION")
    given = parser.parse_args()
    names = given.sections or given.size.of(_QUICK, page.SECTIONS, page.SECTIONS)
    if given.one:
        _measure(names[0], given.one, given.size)
        return
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.size is not Size.QUICK
        results = page.RESULTS if kept else Path(scratch)
        failed = [name for name in names if not _in_process(name, results, given.size)]
    if kept:
        page.write()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _in_process(name: str, results: Path, size: Size) -> bool:
    start = time.perf_counter()
    file = results / f"{name}.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", name, "--one", str(file)]
    command += [] if size is Size.USUAL else [f"--{size.value}"]
    done = subprocess.run(command, check=False)
    if done.returncode == 0:
        show(name, Section.from_dict(json.loads(file.read_bytes())["found"]))
    console.print(f"{name}: {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


def _measure(name: str, file: Path, size: Size) -> None:
    os.environ.setdefault("ARCLOOP_BENCHMARKS", name)
    machine = describe()  # before the measurement, so that the load is that of other programs
    found = importlib.import_module(f"benchmarks.{name}").measure(size)
    value = {"section": name, "size": size.value, "machine": machine, "found": found.as_dict()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")


main()
