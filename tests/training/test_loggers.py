import csv

from arcloop.training.loggers import CsvLogger


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_step_with_all_metrics(tmp_path):
    logger = CsvLogger(path=str(tmp_path / "m.csv"))
    logger.log_metrics({"loss": 0.5}, 0)
    logger.log_metrics({"loss": 0.25, "lr": 0.1}, 1)
    logger.log_metrics({"top1": 0.9}, 1)
    logger.finalize("success")
    assert rows(tmp_path / "m.csv") == [
        {"step": "0", "loss": "0.5", "lr": "", "top1": ""},
        {"step": "1", "loss": "0.25", "lr": "0.1", "top1": "0.9"},
    ]


def test_resumed_run_keeps_the_rows_of_completed_steps(tmp_path):
    first = CsvLogger(path=str(tmp_path / "m.csv"))
    for step in range(10):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("killed later")
    second = CsvLogger(path=str(tmp_path / "m.csv"))
    second.begin({}, 5)
    second.log_metrics({"loss": 50.0}, 5)
    second.finalize("success")
    assert [row["loss"] for row in rows(tmp_path / "m.csv")] == [
        "0.0",
        "1.0",
        "2.0",
        "3.0",
        "4.0",
        "50.0",
    ]
