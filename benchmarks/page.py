"""Write docs/performance.md from benchmarks/results/*.json: `python -m benchmarks.page`.

Every section states its own date and machine, so sections can be measured separately.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import in_words
from benchmarks.measure import Row, Section, compared_row, number
from benchmarks.plots import frontier, lines, ratios

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
SECTIONS = ("chain", "training", "accuracy", "libraries", "index", "memory", "startup", "heads",
            "classes", "augmentation", "serving", "export", "pipeline", "sweeps", "pruning",
            "gpu")  # fmt: skip
_HEADING = """# Performance

`python -m benchmarks.page` writes this page from benchmarks/results/; `make bench` repeats the
measurements. Both sides of a ratio were measured in turn on one machine; each section states the
machine and the date. Absolute times depend on the machine. A ratio above 1 means that arcloop did
more work in the same time. "target" is the ratio that arcloop is designed to reach. By default,
arcloop lets idle threads spin briefly and then sleep, which suits machines that are shared; on a
machine that runs nothing else, `OMP_WAIT_POLICY=ACTIVE` is faster.
"""
_UNMEASURED = "Not measured yet: run `python -m benchmarks {}`."


def write(results: Path = RESULTS, page: Path = PAGE, pictures: Path = PICTURES) -> None:
    """Write the page and its plots."""
    taken = {
        name: json.loads((results / f"{name}.json").read_bytes())
        for name in SECTIONS
        if (results / f"{name}.json").is_file()
    }
    pictures.mkdir(parents=True, exist_ok=True)
    sections = {name: Section.from_dict(value["found"]) for name, value in taken.items()}
    parts = [_HEADING]
    if compared := [c for s in sections.values() for c in s.comparisons if c.target]:
        ratios(compared, pictures / "ratios.png")
        parts.append(
            _picture(
                "every ratio that has a target, divided by its target", page, pictures, "ratios"
            )
        )
    for name in SECTIONS:
        module = importlib.import_module(f"benchmarks.{name}")
        parts.append(f"## {module.TITLE}\n\n{_about(module)}\n")
        if name not in taken:
            parts.append(_UNMEASURED.format(name) + "\n")
            continue
        parts.append(_body(sections[name]))
        drawn = _pictures(name, sections[name], pictures)
        parts += [_picture(module.TITLE, page, pictures, picture) for picture in drawn]
        parts.append(f"Measured {in_words(taken[name]['machine'])}; {taken[name]['size']} size.\n")
    page.write_text("\n".join(parts))


def _about(module: Any) -> str:
    """Return the docstring of a section, which describes it on the page."""
    return str(module.__doc__).strip()


def _body(section: Section) -> str:
    parts = []
    if section.comparisons:
        parts.append(_table([compared_row(one) for one in section.comparisons]))
    for caption, rows in section.tables.items():
        parts.append(f"{caption[:1].upper()}{caption[1:]}:\n\n{_table(rows)}")
    return "\n".join([*parts, *(f"{note}\n" for note in section.notes)])


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    sides = ["---" if isinstance(rows[0][name], str) else "---:" for name in names]
    cells = [names, sides, *([number(row[name]) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _picture(title: str, page: Path, pictures: Path, name: str) -> str:
    return f"![{title}]({pictures.relative_to(page.parent)}/{name}.png)\n"


def _pictures(name: str, section: Section, pictures: Path) -> list[str]:
    """Draw the plots of a section; return the names of the files."""
    tables: Mapping[str, Any] = section.tables
    if name == "index":
        (points,) = tables.values()
        sizes = sorted({p["rows"] for p in points})
        for rows in sizes:
            frontier([p for p in points if p["rows"] == rows], pictures / f"index-{rows}.png")
        return [f"index-{rows}" for rows in sizes]
    if name == "accuracy" and "by epochs" in tables:
        lines(tables["by epochs"], "fit, s", "query top-1", pictures / "accuracy.png")
        return ["accuracy"]
    return []


if __name__ == "__main__":
    write()
