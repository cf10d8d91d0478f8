"""The order of classes and their most frequent mistakes, against slow definitions."""

import base64
import csv
import gzip
import json
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arcloop.evaluation.report.class_table import (
    class_rows,
    frequent_mistakes,
    pack_rows,
    worst_classes,
    write_rows,
)


def unpack(packed):
    return [tuple(row) for row in json.loads(gzip.decompress(base64.b64decode(packed)))]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), max_size=30))
def test_order_and_mistakes_by_definition(answers):
    labels, predicted = np.array(answers, np.int64).reshape(-1, 2).T
    total = np.bincount(labels, minlength=5)
    right = np.bincount(labels[labels == predicted], minlength=5)
    order = sorted(
        (label for label in range(5) if total[label]),
        key=lambda label: (right[label] / total[label], -total[label], label),
    )
    assert worst_classes(right, total).tolist() == order
    mistaken = frequent_mistakes(labels.astype(np.int32), predicted.astype(np.int32), 5)
    for label in range(5):
        wrong = Counter(p for actual, p in answers if actual == label and p not in (label, -1))
        expected = min(wrong, key=lambda p: (-wrong[p], p), default=-1)
        assert mistaken[label] == expected
    rows = class_rows(right, total, mistaken, list("abcde"))
    assert [row[0] for row in rows] == ["abcde"[label] for label in order]
    assert [row[1] for row in rows] == [int(total[n] - right[n]) for n in order]
    assert {row[3] for row in rows} <= {*"abcde", ""}


def test_rows_are_packed_and_written_with_any_name(tmp_path):
    rows = [('a, "b"\n', 2, 3, "\udce9"), ("</script>", 0, 1, "")]
    assert unpack(pack_rows(rows)[0]) == rows
    write_rows(tmp_path / "classes.csv", rows)
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["class", "wrong", "queries", "most_frequent_mistake"]
    assert lines == [['a, "b"\n', "2", "3", "\\udce9"], ["</script>", "0", "1", ""]]


def test_too_many_rows_are_cut_at_the_end():
    random = np.random.default_rng(0)
    names = ["".join(letters) for letters in random.choice(list("abcdefghij"), (3000, 20))]
    rows = [(name, 1, 2, "") for name in names]
    packed, count = pack_rows(rows, max_bytes=20_000)
    assert 10_000 < len(packed) <= 20_000
    assert unpack(packed) == rows[:count]
    assert pack_rows(rows, max_bytes=0)[1] == 0
