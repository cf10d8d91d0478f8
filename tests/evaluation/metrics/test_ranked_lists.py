"""Rankings with junk compared with the authors' compute_map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.errors import DataError
from arcloop.evaluation import evaluate_ranked_lists


def compute_map(ranks, gnd, kappas):
    """compute_map and compute_ap of revisitop (Radenović et al.); ranks are [G, Q]."""

    def compute_ap(ranks, nres):
        ap = 0
        for j in range(len(ranks)):
            rank = ranks[j]
            precision_0 = 1.0 if rank == 0 else float(j) / rank
            ap += (precision_0 + float(j + 1) / (rank + 1)) * (1.0 / nres) / 2.0
        return ap

    total, nempty, pr = 0.0, 0, np.zeros(len(kappas))
    for i in range(len(gnd)):
        qgnd = np.array(gnd[i]["ok"])
        if qgnd.shape[0] == 0:
            nempty += 1
            continue
        pos = np.arange(ranks.shape[0])[np.isin(ranks[:, i], qgnd)]
        junk = np.arange(ranks.shape[0])[np.isin(ranks[:, i], np.array(gnd[i]["junk"]))]
        k = ij = 0
        if len(junk):
            for ip in range(len(pos)):
                while ij < len(junk) and pos[ip] > junk[ij]:
                    k, ij = k + 1, ij + 1
                pos[ip] = pos[ip] - k
        total += compute_ap(pos, len(qgnd))
        pos += 1
        for j in range(len(kappas)):
            kq = min(max(pos), kappas[j])
            pr[j] += (pos <= kq).sum() / kq
    if nempty == len(gnd):
        return None
    return total / (len(gnd) - nempty), pr / (len(gnd) - nempty)


@given(st.data(), st.integers(1, 5), st.integers(1, 25))
def test_all_protocols_equal_the_code_of_the_authors(data, queries, rows):
    ranks, gnd = [], []
    for _ in range(queries):
        ranks.append(data.draw(st.permutations(range(rows))))
        kind = data.draw(st.lists(st.sampled_from("ehj--"), min_size=rows, max_size=rows))
        gnd.append({name: [row for row in range(rows) if kind[row] == name[0]]
                    for name in ("easy", "hard", "junk")})  # fmt: skip
    found = evaluate_ranked_lists(iter(ranks), gnd)
    protocols = {
        "easy": [{"ok": g["easy"], "junk": g["junk"] + g["hard"]} for g in gnd],
        "medium": [{"ok": g["easy"] + g["hard"], "junk": g["junk"]} for g in gnd],
        "hard": [{"ok": g["hard"], "junk": g["junk"] + g["easy"]} for g in gnd],
    }
    names = set()
    for protocol, truth in protocols.items():
        names.add(f"num_queries_{protocol}")
        assert found[f"num_queries_{protocol}"] == sum(len(g["ok"]) > 0 for g in truth)
        if (expected := compute_map(np.array(ranks).T, truth, (1, 5, 10))) is None:
            continue
        names |= {f"map_{protocol}", *(f"mp_at_{k}_{protocol}" for k in (1, 5, 10))}
        assert found[f"map_{protocol}"] == pytest.approx(expected[0], abs=1e-12)
        for k, precision in zip((1, 5, 10), expected[1], strict=True):
            assert found[f"mp_at_{k}_{protocol}"] == pytest.approx(precision, abs=1e-12)
    assert found.keys() == names


@pytest.mark.parametrize(
    ("rankings", "truth", "message"),
    [
        ([[0, 1]], [{"easy": [2]}], r"0 of 1 relevant rows(.|\n)*query 0, protocol easy"),
        ([[0, 1, 1]], [{"hard": [1]}], "1 of 1 relevant rows, in 2 places"),
        ([[0, 1, 1]], [{"hard": [1, 2]}], "1 of 2 relevant rows, in 2 places"),
        ([[0, 1]], [{"easy": [1]}, {"easy": [0]}], "1 rankings for 2 queries"),
        ([[0, 1], [1, 0]], [{"easy": [1]}], "2 rankings for 1 queries"),
    ],
)
def test_incomplete_rankings_are_refused(rankings, truth, message):
    with pytest.raises(DataError, match=message):
        evaluate_ranked_lists(rankings, truth)
