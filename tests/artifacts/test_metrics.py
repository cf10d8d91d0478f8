import json

import pytest

from arcloop.artifacts.metrics import read_intervals, read_metrics


def test_numbers_are_separated_from_objects(tmp_path):
    content = {
        "top1": 0.5, "num_queries": 4, "intervals": {"top1": [0.25, 0.75]},
        "not_measurable": {"tar_at_far_1e-6": "needs more pairs"},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path) == {"top1": 0.5, "num_queries": 4}
    assert read_intervals(tmp_path) == {"top1": (0.25, 0.75)}
    (tmp_path / "metrics.json").write_text('{"top1": 0.5}')  # of an older version
    assert read_intervals(tmp_path) == {}
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError):
        read_metrics(tmp_path)
