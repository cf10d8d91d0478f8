"""Throughput and latency of the servers of one archive, with 1, 8 and 32 clients.

The servers run one after another on the same cores; the clients are in another process. LitServe
and KServe's server need other package versions than arcloop: ARCLOOP_SERVING_PEERS names a Python
interpreter that has them; without it they are not measured. "QPS / bound" is relative to calls of
the predictor without a server, measured in a separate process before and after each server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import Comparison, Section, Size, in_process

TITLE = "Serving"
OURS = "fastapi"


def measure(size: Size) -> Section:
    rows = size.of("10000", "10000", "10000,1000000")
    options = ["--rows", rows, "--seconds", size.of("0.5", "2", "3")]
    if peers := os.environ.get("ARCLOOP_SERVING_PEERS"):
        options += ["--peers", peers]
    elif shutil.which("java") is None:
        options += ["--only", "fastapi"]
    results = in_process("benchmarks.serving", *options)
    table = [
        {
            "rows": r["rows"], "server": r["server"], "clients": r["clients"], "QPS": r["qps"],
            "p50 ms": r["p50_ms"], "p99 ms": r["p99_ms"], "CPU ms per image": r["cpu_ms"],
            "QPS / bound": r["qps"] / r["bound"],
        }
        for r in results
    ]  # fmt: skip
    notes = (
        []
        if peers
        else ["LitServe and KServe's server were not measured: ARCLOOP_SERVING_PEERS is not set."]
    )
    return Section(_compared(results), {"throughput and latency": table}, notes)


def _compared(results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compare the FastAPI server, which is recommended, with the best of the others."""
    found = []
    for ours in (r for r in results if r["server"] == OURS):
        others = [
            r for r in results
            if r["server"] != OURS and all(r[n] == ours[n] for n in ("rows", "clients"))
        ]  # fmt: skip
        setting = f"{ours['rows']:,} rows, {ours['clients']} clients"
        if others:
            best = max(others, key=lambda r: r["qps"])
            soonest = min(others, key=lambda r: r["p99_ms"])
            found += [
                _ratio(f"QPS, {setting}, against {best['server']}", ours["qps"], best["qps"], 1.0),
                _ratio(f"1 / p99, {setting}, against {soonest['server']}",
                       1000 / ours["p99_ms"], 1000 / soonest["p99_ms"], 1.0),
            ]  # fmt: skip
        if ours["clients"] == max(r["clients"] for r in results):
            found.append(
                _ratio(f"QPS, {setting}, against a plain call", ours["qps"], ours["bound"], 0.7)
            )
    return found


def _ratio(name: str, ours: float, other: float, target: float) -> Comparison:
    return Comparison(name, [ours], [other], "per second", target)
