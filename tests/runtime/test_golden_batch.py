from types import SimpleNamespace

import numpy as np

from arcloop.runtime.equal_rows import EqualRows
from arcloop.runtime.golden_batch import GoldenBatch


def test_an_index_may_find_only_the_higher_of_equal_rows(tmp_path):
    np.savez(
        tmp_path / "golden.npz",
        images=np.zeros((1, 2, 2, 1), np.uint8),
        embeddings=np.ones((1, 4), np.float32),
    )
    found = np.array([[0.9, 0.5]], np.float32), np.array([[3, 1]])
    index = SimpleNamespace(ntotal=4, d=4, search=lambda *_: found)
    equal = EqualRows.from_groups([[0, 3]])
    golden = GoldenBatch(tmp_path / "golden.npz", index, tolerance=1e-4, equal_rows=equal)
    neighbours = [{"row": 0, "similarity": 0.9}, {"row": 1, "similarity": 0.5}]
    assert golden.find_mismatch([{"neighbours": neighbours}]) is None
    neighbours[0]["similarity"] = 0.8
    assert "row 0" in golden.find_mismatch([{"neighbours": neighbours}])
