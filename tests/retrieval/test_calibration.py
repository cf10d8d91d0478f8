import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.data.conftest import synthetic_source
from tests.evaluation.conftest import CORNERS, cut, labelled_corners
from tests.retrieval.conftest import pixel_model

from arcloop.config.schema import CalibrationSettings
from arcloop.data import Store, prepare
from arcloop.errors import ConfigError, DataError
from arcloop.retrieval.calibration import (
    HELD_OUT,
    TRAINED,
    UNKNOWN,
    UNSEEN,
    Calibration,
    calibrate,
    calibrate_threshold,
    describe_calibration,
    find_warnings,
    smallest_threshold,
)
from arcloop.retrieval.unknown_images import UnknownImages
from arcloop.runtime.images import decode

fars = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.99, 1.0])
sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def accepted(best, threshold):
    return sum(value >= threshold for value in best) / len(best)


@given(
    val=labelled_corners(3, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 15)),
    far=fars,
    val_sizes=sizes,
    gallery_sizes=sizes,
)
def test_the_smallest_threshold_that_lets_no_more_than_far_pass(
    val, gallery, far, val_sizes, gallery_sizes
):
    threshold = calibrate_threshold(
        cut(*val, val_sizes), lambda: cut(*gallery, gallery_sizes), far, TRAINED
    ).threshold
    best = [
        max(
            (float(row @ other) for other, theirs in zip(*gallery, strict=True) if theirs != label),
            default=-np.inf,
        )
        for row, label in zip(*val, strict=True)
    ]
    assert threshold >= -1
    assert accepted(best, threshold) <= far
    if threshold > -1:
        just_under = float(np.nextafter(np.float32(threshold), np.float32(-2)))
        assert accepted(best, just_under) > far


def test_a_gallery_of_one_class_accepts_every_query():
    rows, labels = CORNERS, np.zeros(16, np.int64)
    found = calibrate_threshold([(rows, labels)], lambda: [(rows, labels)], 0.01, TRAINED)
    assert (found.threshold, found.measured_far) == (-1, 1)
    assert found.class_far["median"] == 1
    warnings = list(find_warnings(found))
    assert "accepts every image" in warnings[0]
    assert not any("accepts none" in warning for warning in warnings)


def test_far_zero_accepts_no_val_image():
    assert smallest_threshold(np.array([0.25, 1.0], np.float32), 0) > 1


def test_embeddings_that_are_not_finite_are_refused():
    rows = np.full_like(CORNERS, np.nan)
    labels = np.zeros(16, np.int64)
    with pytest.raises(DataError, match="not finite"):
        calibrate_threshold([(rows, labels)], lambda: [(CORNERS, labels)], 0.01, TRAINED)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixel_model(tmp_path_factory.mktemp("model") / "model.pt", 8, 8)


def make_store(folder, **changed):
    rows = {"train": 80, "val": 40, "gallery": 48, "query": 16}
    prepare(synthetic_source(num_classes=8, noise=1.0, **(rows | changed)), folder)
    return Store.open(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("shared") / "store")


@pytest.fixture(scope="module")
def disjoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disjoint") / "store"
    return make_store(folder, split="disjoint")


def settings(**changed):
    values = {"far": 0.1, "max_queries": 1000, "held_out_classes": "auto", "unknown": None}
    return CalibrationSettings(**(values | changed))


def unit(images):
    rows = images.reshape(len(images), -1).astype(np.float64) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(store, split):
    images, labels = store.gather(split, np.arange(store.rows(split)))
    return unit(images), labels


def gallery_of(store):
    rows, labels = rows_of(store, "gallery")
    return SimpleNamespace(chunks=lambda: [(rows.astype(np.float32), labels)])


def best_matches(rows, labels, store):
    """The definition, in float64."""
    gallery, gallery_labels = rows_of(store, "gallery")
    similarities = rows @ gallery.T
    similarities[labels[:, None] == gallery_labels] = -np.inf
    return similarities.max(axis=1)


def assert_accepts(calibration, best, far):
    """The threshold accepts as many of these as it may, and the record says how many."""
    assert calibration.num_queries == len(best)
    assert calibration.far == far
    accepted = np.sort(best)[::-1][: int(far * len(best))]
    np.testing.assert_allclose(calibration.threshold, np.sort(best)[::-1][len(accepted)], atol=1e-6)
    assert calibration.measured_far == pytest.approx(len(accepted) / len(best))


def test_images_of_held_out_classes_in_train_and_val_are_the_queries(model, store):
    found = calibrate(model, store, gallery_of(store), settings(), 7, ["class-2", "class-5"])
    parts = [rows_of(store, split) for split in ("train", "val")]
    rows, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    held_out = np.isin(labels, [2, 5])
    best = best_matches(rows[held_out], labels[held_out], store)
    assert found.protocol == HELD_OUT
    assert_accepts(found, best, 0.1)
    accepted = best > found.threshold + 1e-6  # the threshold is next to the best refused match
    rates = [np.mean(accepted[labels[held_out] == label]) for label in (2, 5)]
    assert found.num_classes == 2
    assert found.class_far["min"] == pytest.approx(min(rates))
    assert found.class_far["max"] == pytest.approx(max(rates))
    assert found.class_far["median"] == pytest.approx(np.mean(rates))


@pytest.mark.parametrize(("name", "protocol"), [("store", TRAINED), ("disjoint", UNSEEN)])
def test_without_held_out_classes_val_images_are_the_queries(
    model, name, protocol, request, capsys
):
    opened = request.getfixturevalue(name)
    found = calibrate(model, opened, gallery_of(opened), settings(), 7)
    assert found.protocol == protocol
    assert_accepts(found, best_matches(*rows_of(opened, "val"), opened), 0.1)
    assert ("calibrated on trained classes" in capsys.readouterr().err) == (protocol == TRAINED)


def test_the_drawn_queries_are_the_same_every_time_and_from_train_and_val(model, store):
    names = ["class-2", "class-5"]
    one, two = (
        calibrate(model, store, gallery_of(store), settings(max_queries=15), 7, names)
        for _ in range(2)
    )
    assert one == two
    assert one.num_queries == 15
    # An even stride of the 30 rows would take every second one, which here is a single class.
    assert one.num_classes == 2


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures in folders in folders, and a file of each kind that is not read."""
    random = np.random.default_rng(0)
    folder = tmp_path / "unknown"
    for number in range(12):
        path = folder / ("a" if number % 2 else "b/c") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    (folder / "a/broken.png").write_bytes(b"no image")
    (folder / "a/.hidden.png").write_bytes(b"not looked at")
    (folder / "notes.txt").write_text("not looked at")
    for name in (".thumbnails", "__MACOSX"):
        (folder / name).mkdir()
        (folder / name / "copy.png").write_bytes(b"not looked at")
    return folder


def test_images_of_unknown_things_are_the_queries(model, store, pictures, capsys):
    found = calibrate(model, store, gallery_of(store), settings(unknown=str(pictures)), 5)
    files = sorted(
        {*pictures.glob("a/*.png"), *pictures.glob("b/c/*.png")} - {*pictures.glob("a/*en.png")}
    )
    rows = unit(np.stack([decode(f, height=8, width=8, channels=1) for f in files]))
    assert found.protocol == UNKNOWN
    assert_accepts(found, best_matches(rows, np.full(12, -1), store), 0.1)
    assert found.num_classes is found.class_far is None
    text = " ".join(capsys.readouterr().err.split())
    assert "1 files in calibration.unknown are not readable" in text
    assert "broken.png: not an image" in text


def test_the_hash_of_unknown_images_depends_on_names_and_contents_only(pictures, tmp_path):
    def sha256(folder):
        return UnknownImages(settings(unknown=str(folder))).sha256()

    before = sha256(pictures)
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert sha256(copy) == before
    (copy / "a/1.png").rename(copy / "a/1x.png")
    assert sha256(copy) != before
    (copy / "a/1x.png").rename(copy / "a/1.png")
    shutil.copyfile(copy / "a/3.png", copy / "a/1.png")
    assert sha256(copy) != before


def test_too_few_unknown_images_for_the_rate_are_refused(pictures):
    UnknownImages(settings(unknown=str(pictures), far=1 / 12)).check()
    with pytest.raises(ConfigError, match=r"12 images .* at least 20; not readable: .*broken\.png"):
        UnknownImages(settings(unknown=str(pictures), far=0.05)).check()
    with pytest.raises(ConfigError, match="no such folder"):
        UnknownImages(settings(unknown=str(pictures / "nowhere")))


def test_fewer_queries_than_the_rate_needs_are_refused():
    with pytest.raises(ConfigError, match="max_queries=1000 images cannot measure"):
        settings(far=0.0009)
    settings(far=0.001)
    settings(far=0.0)


@pytest.mark.parametrize(
    ("count", "protocol", "expected"),
    [
        (99, HELD_OUT, ["99 unknown queries cannot measure a false accept rate of 0.01"]),
        (100, HELD_OUT, ["calibrated on 100 unknown queries; 3,000 are needed"]),
        (2999, UNSEEN, ["calibrated on 2,999 unknown queries; 3,000 are needed"]),
        (3000, UNSEEN, []),
        (3000, TRAINED, ["calibrated on trained classes"]),
    ],
)
def test_warnings(count, protocol, expected):
    found = Calibration(
        threshold=0.5, protocol=protocol, far=0.01, measured_far=0.01, num_queries=count
    )
    warnings = list(find_warnings(found))
    assert len(warnings) == len(expected)
    assert all(text in warning for text, warning in zip(expected, warnings, strict=True))


def test_too_few_queries_accept_none_and_the_bound_is_that_of_a_binomial(model, store, capsys):
    found = calibrate(model, store, gallery_of(store), settings(far=0.02), 7)
    assert found.num_queries == 40
    assert found.measured_far == 0
    # (1 - 0.072)^40 = 0.05: this rate has no error in 40 trials with a probability of 5%.
    assert "at most 0.072 with 95% confidence" in " ".join(capsys.readouterr().err.split())


def test_the_description_states_protocol_and_spread(model, store):
    record = calibrate(model, store, gallery_of(store), settings(), 7, ["class-2"]).record()
    text = describe_calibration(record)
    assert text.startswith("false accept rate 0.1 on 15 images of 1 held-out classes (per class: ")
    assert "median 6.67%" in text
    assert describe_calibration({}) == "not recorded"
