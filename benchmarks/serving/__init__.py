"""Servers of one archive, one after another on the same cores, asked from another process.

Images a second and latency, with 1, 8 and 32 clients. LitServe and KServe's server need packages of
other versions than ours: ARCLOOP_SERVING_PEERS names a Python that has them, else they are left
out. "QPS / bound" is to a plain call in the process.
"""

from __future__ import annotations

import os
import shutil

from benchmarks.measure import Section, in_process

TITLE = "Serving"


def measure(*, quick: bool) -> Section:
    options = ["--rows", "10000", "--seconds", "0.5" if quick else "3"]
    if peers := os.environ.get("ARCLOOP_SERVING_PEERS"):
        options += ["--peers", peers]
    elif shutil.which("java") is None:
        options += ["--only", "fastapi"]
    told = in_process("benchmarks.serving", *options)
    bound = {r["rows"]: r["qps"] for r in told if not r["clients"]}
    rows = [
        {
            "rows": r["rows"], "server": r["server"], "clients": r["clients"], "QPS": r["qps"],
            "p50 ms": r["p50_ms"], "p99 ms": r["p99_ms"], "CPU ms an image": r["cpu_ms"],
            "QPS / bound": r["qps"] / bound[r["rows"]],
        }
        for r in told
        if r["clients"]
    ]  # fmt: skip
    notes = [] if peers else ["LitServe and KServe's server were not at hand."]
    return Section([], {"images a second": rows}, notes)
