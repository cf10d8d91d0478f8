"""`python -m benchmarks [--quick] [SECTION ...]`: measure, write results, and the page from them.

Each section is measured in a process of its own and written to benchmarks/results/SECTION.json;
sections that are not named keep what they have. `--quick` takes small sizes, prints, and writes
nothing that is kept. Nothing else should be running. The peers' packages are an extra of their own
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
from benchmarks.measure import Section, console, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; results are not kept")
    parser.add_argument("--one", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("sections", nargs="*", choices=[[], *page.SECTIONS], metavar="SECTION")
    given = parser.parse_args()
    names = given.sections or list(page.SECTIONS)
    if given.one:
        _measure(names[0], given.one, quick=given.quick)
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) if given.quick else page.RESULTS
        failed = [name for name in names if not _in_process(name, results, quick=given.quick)]
    if not given.quick:
        page.write()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _in_process(name: str, results: Path, *, quick: bool) -> bool:
    start = time.perf_counter()
    file = results / f"{name}.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", name, "--one", str(file)]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False)
    if done.returncode == 0:
        show(name, Section.from_dict(json.loads(file.read_bytes())["found"]))
    console.print(f"{name}: {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


def _measure(name: str, file: Path, *, quick: bool) -> None:
    os.environ.setdefault("ARCLOOP_BENCHMARKS", name)
    machine = describe()  # before it: with the load of the others
    found = importlib.import_module(f"benchmarks.{name}").measure(quick=quick)
    value = {"section": name, "quick": quick, "machine": machine, "found": found.as_dict()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")


main()
