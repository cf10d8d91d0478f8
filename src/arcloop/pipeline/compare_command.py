"""`arcloop compare RUN_A RUN_B`: metrics, flipped queries, config, size and speed of two runs.

Both runs must have an evaluation on the same queries; intervals are paired. `arcloop diff` compares
the settings, data and code of any two runs.
"""

from __future__ import annotations

import argparse
import json
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from arcloop.artifacts.atomic import write_bytes
from arcloop.display.html import render_template
from arcloop.display.terminal import format_similarity, print_line, result_console
from arcloop.errors import write_error
from arcloop.evaluation.report import page
from arcloop.pipeline.compare_runs import RunComparison, compare_runs
from arcloop.pipeline.diff import table_of_runs

_LISTED = 5  # flips in each direction in the terminal
_MISSING = "-"
_MEASURES = {
    "model_bytes": ("model.pt, MiB", 2**-20, ",.2f"),
    "index_bytes": ("index, MiB", 2**-20, ",.2f"),
    "embedding_dim": ("coordinates of an embedding", 1, ",.0f"),
    "images_per_second": ("embedding, images/s", 1, ",.0f"),
    "search_p50_ms": ("search of one query, ms (median)", 1, ".3f"),
    "search_p99_ms": ("search of one query, ms (p99)", 1, ".3f"),
}
"""Name -> title, factor of the unit, and format."""


def compare(arguments: Sequence[str]) -> int:
    """Print the comparison of two runs as tables or JSON, and write it as a page; return 0.

    Raises:
        ArtifactError: A run or its evaluation is missing, or the runs have different queries.
        ResourceError: The page cannot be written.
    """
    parser = argparse.ArgumentParser("arcloop compare", description=__doc__)
    parser.add_argument("run_a", metavar="RUN_A", help="a finished run, e.g. the current one")
    parser.add_argument("run_b", metavar="RUN_B", help="the run to compare with it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--html", metavar="FILE", nargs="?", const="",
        help="write a page with pictures of the flipped queries (default RUN_B-vs-RUN_A.html)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="write the page and open it")
    parser.add_argument(
        "--flips", metavar="N", type=int, default=24,
        help="flipped queries to show in each direction (default 24)",
    )  # fmt: skip
    parser.add_argument(
        "--measure", action="store_true",
        help="measure how fast both models embed here, instead of reading what was recorded",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    options = parser.parse_args(arguments)
    found = compare_runs(
        Path(options.run_a), Path(options.run_b), num_flips=max(options.flips, 0),
        measure=options.measure, device=options.device,
    )  # fmt: skip
    if found.pictures_b is None:
        print_line("no files and pictures of the queries: the store of a run was not found")
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_comparison(found)
    if options.html is not None or options.open:
        default = found.run_b.with_name(f"{found.run_b.name}-vs-{found.run_a.name}.html")
        file = Path(options.html or default)
        try:
            write_bytes(file, render_page(found).encode())
        except OSError as cause:
            raise write_error(file, cause) from None
        print_line(f"page: {file}")
        if options.open:
            webbrowser.open(file.resolve().as_uri())
    elif not options.json and found.comparison.flips + found.comparison.gains:
        print_line("--html writes a page with the pictures of these queries")
    return 0


def print_comparison(found: RunComparison) -> None:
    """Print the tables of metrics, flipped queries, sizes and config."""
    console = result_console()
    compared, worst = found.comparison, found.comparison.worst_class
    console.print(f"A: {found.run_a}\nB: {found.run_b}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in (f"{compared.queries:,} queries", "A", "B", "B - A", "95% interval", ""):
        table.add_column(title, overflow="fold")
    for name, change in compared.metrics.items():
        low, high = change.interval or (0.0, 0.0)
        ends = f"{low:+.4f} to {high:+.4f}" if change.interval else ""
        values = f"{change.incumbent:.4f}", f"{change.candidate:.4f}", f"{change.difference:+.4f}"
        table.add_row(name, *values, ends, "*" if low > 0 or high < 0 else "")
    console.print(table)
    console.print(
        f"* the interval does not contain 0; it is paired and resamples {compared.resampled}\n"
        f"only A is right: {compared.negative_flips:,} queries; only B: {compared.positive_flips:,}"
        f" (McNemar's exact test: p = {compared.p_value:.2g})\n"
        f"worst change of a class: {worst.name}, {worst.incumbent:.4f} -> {worst.candidate:.4f}"
        f" of {worst.queries:,} queries",
        soft_wrap=True,
    )
    for title, flips in (("only A is right", compared.flips), ("only B is right", compared.gains)):
        for flip in flips[:_LISTED]:
            row = found.describe(flip)
            console.print(f"{title}: {row['class']}  {row['file']}", soft_wrap=True)
            for side in "ab":
                if answer := row[side]:
                    similarity = format_similarity(answer["similarity"])
                    line = f"  {side.upper()}: {answer['class']} {similarity}  {answer['file']}"
                    console.print(line, soft_wrap=True)
    for title, rows in (("size and speed", _measures(found)), ("config", _config(found))):
        pairs = list(rows)
        columns = [{name: both[side] for name, *both in pairs} for side in (0, 1)]
        console.print(table_of_runs(title, [name for name, *_ in pairs], columns))


def render_page(found: RunComparison) -> str:
    """Return the self-contained HTML page of a comparison."""
    compared, b = found.comparison, found.pictures_b
    a = found.pictures_a
    first = next(iter(compared.flips + compared.gains), None)
    how = "measured now, in turn" if found.is_measured else "recorded when each run was made"
    return render_template(
        Path(page.__file__).with_name("compare.html.j2"),
        run_a=str(found.run_a),
        run_b=str(found.run_b),
        comparison=compared,
        changes=page.describe_changes(compared),
        classes=found.classes,
        before="A",
        now="B",
        thumbnail=b and b.thumbnail,
        source=b and b.source,
        incumbent_thumbnail=a and a.thumbnail,
        incumbent_source=a and a.source,
        format_similarity=format_similarity,
        pixelated=first is not None
        and b is not None
        and max(b.image("query", first.query_row).shape) <= page.PIXELATED,
        tables=[
            ("Size and speed", f"The speed of embedding was {how}.", list(_measures(found))),
            ("Config", "The settings that differ.", list(_config(found))),
        ],
    )


def _measures(found: RunComparison) -> Iterator[tuple[str, str, str]]:
    """Yield title and both values of sizes and speeds."""
    for name, (title, unit, style) in _MEASURES.items():
        if name in found.measures:
            a, b = (
                _MISSING if value is None else format(value * unit, style)
                for value in found.measures[name]
            )
            yield title, a, b


def _config(found: RunComparison) -> Iterator[tuple[str, str, str]]:
    """Yield key and both values of the settings that differ."""
    for key, (a, b) in found.config.items():
        yield key, _MISSING if a is None else a, _MISSING if b is None else b
