"""Sweeps of verbs that start from a finished run: a folder for each job, lineage, continuation."""

import shutil
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import JOB_LOG
from arcloop.cli.main import main
from arcloop.pipeline.lineage import trace
from arcloop.pipeline.sweeps.record import RECORD, JobRecord, run_of_job

RUN = Path("runs/synthetic")


def written(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("manifest.json"))}


def test_each_index_is_in_the_folder_of_its_job_with_an_evaluation(work, capfd):
    sweep, before = Path("runs/sweeps/synthetic-index"), written(RUN)
    command = ["index", "-m", f"run_dir={RUN}", "index=flat,hnsw"]
    assert main(command) == 0
    assert written(RUN) == before
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("job ")]
    assert [line.partition("  top1 ")[0] for line in lines] == [
        "job 1 of 2  index=flat", "job 2 of 2  index=hnsw"
    ]  # fmt: skip
    jobs = [sweep / "index-flat", sweep / "index-hnsw"]
    for job in jobs:
        index, record = artifacts.load(job / "index", "index"), JobRecord.read(job / RECORD)
        assert artifacts.load(job / "evaluation", "evaluation").parents["index"] == index.sha256
        assert list(trace(job / "evaluation").faults()) == []
        assert record.metrics["index_bytes"] == (job / "index/faiss_index.bin").stat().st_size
        assert record.run_sha256 == artifacts.read(RUN, "run").sha256
        assert run_of_job(job).resolve() == RUN.resolve()
        assert not (job / "model.pt").exists()
        assert "build index: 90 vectors" in (job / JOB_LOG).read_text()
    assert len({artifacts.read(job / "index", "index").sha256 for job in jobs}) == 2

    after, records = written(sweep), [(job / RECORD).read_text() for job in jobs]
    assert main(command) == 0
    assert capfd.readouterr().err.count("finished before") == 2
    assert written(sweep) == after
    assert [(job / RECORD).read_text() for job in jobs] == records

    shutil.copytree(RUN, "other/synthetic")
    assert main(["index", "-m", "run_dir=other/synthetic", "index=flat,hnsw"]) == 2
    assert "this folder contains a job on another run" in capfd.readouterr().err
    assert written(sweep) == after


def test_jobs_that_differ_in_their_runs_write_into_the_runs(work, capfd):
    odd = Path("runs/head.margin=0.2,[a] 'b'")
    shutil.copytree(RUN, odd)
    sweep, before = Path("runs/sweeps/mine"), written(RUN)
    gate = [f"hydra.sweep.dir={sweep}", "evaluate.gate.min_top1=0.1"]
    assert main(["evaluate", "-m", f"run_dir={odd},{RUN}", *gate]) == 0
    assert "job 1 of 2  run_dir=runs/head.margin=0.2,[a] 'b'  top1" in capfd.readouterr().err
    changed = [path for path, time in written(RUN).items() if time != before[path]]
    assert changed == [RUN / "evaluation/manifest.json"]
    records = [JobRecord.read(file) for file in sweep.glob(f"*/{RECORD}")]
    assert {run_of_job(Path(record.run_dir)) for record in records} == {odd, RUN}
    for record in records:
        assert record.metrics["top1"] == artifacts.read(RUN / "evaluation", "evaluation").info[
            "metrics"
        ]["top1"]  # fmt: skip
    assert list(trace(odd / "evaluation").faults()) == []


def test_other_data_and_settings_are_evaluated_in_the_folder_of_the_job(work):
    sweep = Path("runs/sweeps/synthetic-evaluate")
    assert main(["evaluate", "-m", f"run_dir={RUN}", "data.query=choice(50)"]) == 0
    (evaluation,) = sweep.glob("data.query-50/other_data/*/evaluation")
    assert artifacts.load(evaluation, "evaluation").info["metrics"]["num_queries"] == 50
    for kind in ("evaluation", "gallery"):
        assert list(trace(evaluation.with_name(kind)).faults()) == []
    assert not (RUN / "other_data").exists()
