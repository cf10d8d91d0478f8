import numpy as np
import pytest
from tests.data.conftest import synthetic_source

from arcloop.data import SPLITS, Store, prepare, store_key
from arcloop.errors import ConfigError


def test_a_row_is_a_function_of_seed_split_and_number():
    listing = synthetic_source(train=1000).open()
    images, labels = listing.generate("train", 0, 1000)
    for start, stop in ((0, 1), (17, 18), (400, 777), (999, 1000)):
        part, part_labels = listing.generate("train", start, stop)
        assert (part == images[start:stop]).all()
        assert (part_labels == labels[start:stop]).all()
    for other in (
        listing.generate("val", 0, 1000),
        synthetic_source(train=1000, seed=2).open().generate("train", 0, 1000),
    ):
        assert (other[0] != images).mean() > 0.5


def test_rows_differ_and_classes_can_be_told_apart(tmp_path):
    """The nearest class mean of train is right for most of query, though noise is strong."""
    source = synthetic_source(num_classes=10, train=500, query=300, image_size=[14, 21], channels=3)
    prepare(source, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.image_shape == (14, 21, 3)
    train, labels = store.gather("train", np.arange(500))
    assert len({image.tobytes() for image in train}) == 500
    assert np.bincount(labels).tolist() == [50] * 10
    means = np.stack([train[labels == c].mean(0).ravel() for c in range(10)])
    query, truth = store.gather("query", np.arange(300))
    distance = ((query.reshape(300, 1, -1) - means) ** 2).sum(-1)
    assert (distance.argmin(1) == truth).mean() > 0.95


def test_noise_has_the_width_that_was_asked_for():
    calm, noisy = (
        synthetic_source(noise=noise).open().generate("train", 0, 3)[0].astype(int)
        for noise in (0.0, 0.1)
    )
    difference = np.abs(noisy - calm)
    assert 15 < difference.max() <= round(0.1 * 255)


def test_names_and_rows():
    listing = synthetic_source(num_classes=12, val=24).open()
    assert listing.classes[3] == "class-03"
    assert dict(listing.rows) == dict(zip(SPLITS, (50, 24, 20, 20), strict=True))


def test_key_follows_settings():
    assert store_key(synthetic_source()) == store_key(synthetic_source())
    assert store_key(synthetic_source(seed=2)) != store_key(synthetic_source())


def test_wrong_values():
    with pytest.raises(ConfigError, match=r"(?s)data.channels=2 .*data.train=0 .*data.noise=-1"):
        synthetic_source(channels=2, train=0, noise=-1)


def test_too_few_rows_for_the_classes_are_refused_with_their_keys():
    small = synthetic_source(num_classes=26, train=51, val=52, gallery=25, query=5)
    with pytest.raises(ConfigError) as refused:
        small.open()
    assert refused.value.what.splitlines() == [
        "data.train=51 must be at least 52: 2 image(s) of each of 26 classes",
        "data.gallery=25 must be at least 26: 1 image(s) of each of 26 classes",
    ]
    assert "lower data.num_classes" in refused.value.remedy
