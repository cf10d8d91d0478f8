import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.data.conftest import synthetic_source

from arcloop.data import SPLITS, Store, prepare
from arcloop.errors import ArtifactError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """50 rows of train in shards of 16."""
    path = tmp_path_factory.mktemp("data") / "store"
    prepare(synthetic_source(channels=3), path)
    return Store.open(path)


@pytest.fixture(scope="module")
def whole():
    """Return the images and labels that the source generates, by split."""
    return {split: synthetic_source(channels=3).open().generate(split, 0, 50) for split in SPLITS}


def test_attributes(store):
    assert store.classes == ["class-0", "class-1", "class-2"]
    assert store.image_shape == (8, 8, 3)
    assert store.rows("train") == 50
    assert store.labels("train").tolist() == [row % 3 for row in range(50)]
    assert store.groups("train") is None


@pytest.mark.parametrize("batch_rows", [1, 7, 16, 40, 50, 1000])
@pytest.mark.parametrize("split", ["train", "query"])
def test_batches_return_the_split_in_order(store, whole, split, batch_rows):
    batches = list(store.batches(split, batch_rows))
    rows = store.rows(split)
    sizes = [len(labels) for _, labels in batches]
    assert sizes == [batch_rows] * (rows // batch_rows) + (
        [rows % batch_rows] if rows % batch_rows else []
    )
    assert (np.concatenate([images for images, _ in batches]) == whole[split][0][:rows]).all()
    assert (np.concatenate([labels for _, labels in batches]) == whole[split][1][:rows]).all()
    assert all(images.flags.writeable and images.flags.c_contiguous for images, _ in batches)


@given(rows=st.lists(st.integers(0, 49), max_size=70))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gather_returns_rows_in_the_requested_order(store, whole, rows):
    images, labels = store.gather("train", np.array(rows, np.int64))
    assert images.shape == (len(rows), 8, 8, 3)
    assert images.flags.c_contiguous
    assert labels.dtype == np.int64
    for number, row in enumerate(rows):
        assert (images[number] == whole["train"][0][row]).all()
        assert labels[number] == whole["train"][1][row]


@pytest.mark.parametrize("rows", [[50], [-1], [0, 1, 50], [3, -1]])
def test_row_out_of_range_is_refused(store, rows):
    with pytest.raises(IndexError, match="rows of train are 0 to 49"):
        store.gather("train", np.array(rows))


def test_a_pickled_store_opens_its_own_maps(store, whole):
    store.gather("train", np.arange(3))
    sent = pickle.dumps(store)
    assert len(sent) < 10_000
    images, _ = pickle.loads(sent).gather("train", np.array([49]))
    assert (images[0] == whole["train"][0][49]).all()


def test_damaged_store_is_not_opened(tmp_path):
    prepare(synthetic_source(), tmp_path / "store")
    file = tmp_path / "store/val/labels-00001.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"labels-00001\.npy was changed after"):
        Store.open(tmp_path / "store")
