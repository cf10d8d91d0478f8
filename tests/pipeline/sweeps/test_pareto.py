"""Pareto-optimal settings: against a comparison of all pairs, in the page and the plot."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.cli.main import main
from arcloop.pipeline.leaderboard.pareto import Tradeoff, draw_pareto, pareto_optimal

VALUES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)
DIRECTIONS = st.lists(st.sampled_from(["max", "min"]), min_size=3, max_size=3)


@given(VALUES, DIRECTIONS)
def test_no_other_setting_is_better_in_one_objective_and_worse_in_none(values, directions):
    def dominates(one, other):
        gains = [
            a - b if d == "max" else b - a for a, b, d in zip(one, other, directions, strict=True)
        ]
        return min(gains) >= 0 and max(gains) > 0

    expected = [not any(dominates(other, one) for other in values) for one in values]
    assert pareto_optimal(np.array(values, float), directions).tolist() == expected


def test_settings_without_all_objectives_are_left_out():
    job = {"val_top1": ("max", 0.5), "index_bytes": ("min", 9.0)}
    assert Tradeoff.of([[{}], []]) is None
    found = Tradeoff.of([[job], [{}, job], [], [{**job, "val_top1": ("max", 0.7)}]])
    assert found.places == [0, 3]
    assert found.optimal() == [(3, {"val_top1": 0.7, "index_bytes": 9.0})]


def test_the_page_has_the_pareto_optimal_settings(sweep, capsys):
    for dim, score, size in ((8, 0.5, 1000), (16, 0.8, 2000), (32, 0.7, 3000), (64, 0.9, 40000)):
        for seed in (0, 1):
            objectives = {"val_top1": ("max", score + seed / 10), "index_bytes": ("min", size)}
            values = {"embedder.embedding_dim": dim, "seed": seed}
            sweep.job(values, score, objectives=objectives)
    assert main(["leaderboard", str(sweep.path)]) == 0
    page = (sweep.path / "leaderboard.html").read_text()
    table = page.partition("Pareto-optimal settings")[2].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert [cells[i : i + 4] for i in range(0, len(cells), 4)] == [
        ["1", "64", "0.9500", "40,000"], ["2", "16", "0.8500", "2,000"],
        ["4", "8", "0.5500", "1,000"],
    ]  # fmt: skip
    assert (sweep.path / "leaderboard-pareto.png").stat().st_size > 5000


@pytest.mark.parametrize("others", [["index_bytes"], ["images_per_second", "index_bytes"]])
def test_every_other_objective_has_a_panel(others):
    jobs = [
        [{"val_top1": ("max", n / 9), **{o: ("min", float(n % 4)) for o in others}}]
        for n in range(9)
    ]
    drawn = draw_pareto(Tradeoff.of(jobs), list("123456789"))
    labels = [axis.get_xlabel() for axis in drawn.axes]
    assert labels == [f"{name} (smaller is better)" for name in others]
    # The values of the other objectives are 0 to 3 in turn: the last setting of each is optimal.
    assert {text.get_text() for text in drawn.axes[0].texts} == {"9"}
