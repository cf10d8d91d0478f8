"""One line per job, made from records; the output of a job is in a file."""

import io
import subprocess
import sys
from dataclasses import replace

import pytest

from arcloop.display.redirect import keep_error_stream, redirect_output
from arcloop.pipeline.sweeps.progress import SweepProgress
from arcloop.pipeline.sweeps.record import Failure, JobRecord, Pruned

START = "2026-01-01T00:00:00.000+00:00"


def record(number, seconds=12, objective=None, **values):
    end = f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.000+00:00"
    swept = {"head.margin": f"0.{number}"}
    return JobRecord(
        "", "train", [], swept, START, end, objective, values.pop("failure", None), **values
    )


def lines(folder, records, total=12, at_once=1, mode="max"):
    stream, folder = io.StringIO(), folder / "results"
    folder.mkdir()
    progress = SweepProgress(folder, total, at_once, "val_top1", mode, stream)
    for number, one in records.items():
        one.write(folder / f"{number:09d}.json")
        progress._print_new()
    return stream.getvalue().splitlines()


def test_lines_of_finished_failed_pruned_and_reused_jobs(tmp_path):
    failure = Failure("training diverged\n  remedy: ...", retry=False, exit_code=1)
    found = lines(
        tmp_path,
        {
            6: record(6, 0, objective=0.5, reused=True),
            2: record(2, objective=0.9801),
            7: record(7, 24, failure=failure),
            8: record(8, 36, pruned=Pruned(2, 0.25)),
            3: record(3, 1, failure=failure, reused=True),
            0: record(0, objective=0.9712),
        },
    )
    best = "best 0.9801 (job 3)"
    rest = f"{best}  about 3 min left"
    assert found == [
        "job 7 of 12  head.margin=0.6  val_top1 0.5000  finished before  best 0.5000 (job 7)",
        f"job 3 of 12  head.margin=0.2  val_top1 0.9801  12 s  {best}  about 2 min left",
        f"job 8 of 12  head.margin=0.7  failed: training diverged  24 s  {rest}",
        f"job 9 of 12  head.margin=0.8  pruned after epoch 2 with val_top1 0.2500  36 s  {rest}",
        f"job 4 of 12  head.margin=0.3  failed: training diverged  not repeated  {rest}",
        f"job 1 of 12  head.margin=0.0  val_top1 0.9712  12 s  {best}  about 2 min left",
    ]


@pytest.mark.parametrize(("at_once", "left"), [(1, "36 s"), (2, "24 s"), (4, "12 s")])
def test_the_time_left_is_that_of_the_jobs_that_run_in_parallel(tmp_path, at_once, left):
    (line,) = lines(tmp_path, {0: record(0, objective=0.1)}, total=4, at_once=at_once)
    assert line.endswith(f"about {left} left")


def test_the_smallest_value_can_be_the_best(tmp_path):
    found = lines(
        tmp_path, {n: record(n, objective=v) for n, v in enumerate((0.2, 0.1, 0.3))}, mode="min"
    )
    assert [line.partition("best ")[2][:14] for line in found] == [
        "0.2000 (job 1)", "0.1000 (job 2)", "0.1000 (job 2)"
    ]  # fmt: skip


def test_a_verb_that_trains_nothing_shows_its_measurements(tmp_path):
    metrics = {"index_bytes": 4096, "top1": 0.5, "map_at_r": 0.25, "index_recall_at_10": 1.0}
    found = {
        0: replace(record(0, metrics=metrics), verb="index"),
        1: replace(record(1, metrics=metrics), verb="evaluate"),
        2: replace(record(2, metrics={"model.onnx_bytes": 4096}), verb="export"),
    }
    assert [line.partition("  12 s")[0] for line in lines(tmp_path, found, total=3)] == [
        "job 1 of 3  head.margin=0.0  top1 0.5000 index_recall_at_10 1.0000 index_bytes 4,096",
        "job 2 of 3  head.margin=0.1  top1 0.5000 map_at_r 0.2500",
        "job 3 of 3  head.margin=0.2  model.onnx_bytes 4,096",
    ]


def test_redirected_output_contains_that_of_child_processes(tmp_path, capfd):
    log = tmp_path / "folder/job.log"
    with keep_error_stream() as kept:
        for word in ("first", "second"):
            with redirect_output(log):
                print(word)
                print("error", file=sys.stderr)
                subprocess.run(["sh", "-c", "echo child; echo child >&2"], check=True)
                kept.write("a line\n")
    print("after")
    assert log.read_text() == "first\nerror\nchild\nchild\nsecond\nerror\nchild\nchild\n"
    assert tuple(capfd.readouterr()) == ("after\n", "a line\na line\n")
