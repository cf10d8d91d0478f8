"""Groups of similar classes, and the batches that are made of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from arcloop.data.loading import hard_classes
from arcloop.data.loading.hard_classes import HardClassBatches, group_similar
from arcloop.data.loading.sampler import PKBatches


def by_hand(vectors, size, seed):
    """Groups of one block, in the order in which they are formed."""
    order = np.random.default_rng(seed).permutation(len(vectors)).tolist()
    groups = []
    while len(order) >= size:
        anchor = order[0]
        cosines = {
            other: float(vectors[anchor] @ vectors[other])
            / float(np.linalg.norm(vectors[anchor]) * np.linalg.norm(vectors[other]))
            for other in order[1:]
        }
        nearest = sorted(cosines, key=lambda other: -cosines[other])[: size - 1]
        groups.append([anchor, *nearest])
        order = [c for c in order if c not in groups[-1]]
    return groups


@effort(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 99))
def test_a_group_is_a_random_class_and_the_nearest_of_those_that_remain(classes, size, seed):
    vectors = np.random.default_rng(seed).normal(size=(classes, 6)).astype(np.float32)
    found = group_similar(vectors, size, np.random.default_rng(seed)).tolist()
    assert sorted(found) == sorted(by_hand(vectors, size, seed))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_many_classes_are_grouped_in_blocks(monkeypatch, size):
    """No group spans two blocks, and only the last block has classes that are left out."""
    monkeypatch.setattr(hard_classes, "_BLOCK", 16)
    vectors = np.random.default_rng(0).normal(size=(101, 4)).astype(np.float32)
    groups = group_similar(vectors, size, np.random.default_rng(1))
    assert groups.shape == (101 // size, size)
    assert len(np.unique(groups)) == groups.size
    order = np.random.default_rng(1).permutation(101)
    block = 16 // size * size
    block_of = np.argsort(order) // block
    assert (block_of[groups] == block_of[groups[:, :1]]).all()


LABELS = np.random.default_rng(0).permutation(np.repeat(3 * np.arange(14) + 1, 7))
VECTORS = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)


def batches(*, seed=0, epoch=1, vectors=VECTORS, labels=LABELS):
    made = HardClassBatches(
        labels_N=labels, batch_size=12, world_size=1, seed=seed, images_per_class=2,
        classes_per_group=3,
    )  # fmt: skip
    made.set_epoch(epoch)
    made.classes_T = None if vectors is None else made.mine(vectors)
    return made


def labels_of(made):
    return [LABELS[rows].tolist() for rows in made]


def test_a_batch_consists_of_groups_of_similar_classes():
    made = batches()
    assert len(made) == 8
    classes = made.classes_T.reshape(8, 6)
    for rows, drawn in zip(labels_of(made), classes, strict=True):
        assert Counter(rows) == dict.fromkeys((3 * drawn + 1).tolist(), 2)
    # 14 classes are 4 groups, which are 2 batches; the next batch begins another round.
    assert all(len(np.unique(two)) == 12 for two in classes.reshape(4, 12))
    vectors = VECTORS[3 * np.arange(14) + 1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    of_groups = [similarity[a][[b, c]].mean() for a, b, c in made.classes_T.reshape(-1, 3)]
    assert np.mean(of_groups) > similarity.mean() + 0.3


def test_an_epoch_with_the_same_vectors_has_other_groups():
    one, two = (batches(epoch=epoch).classes_T.reshape(-1, 3) for epoch in (1, 2))
    assert set(map(frozenset, one.tolist())) != set(map(frozenset, two.tolist()))


def test_every_class_is_drawn_in_some_round():
    drawn = Counter(c for epoch in range(1, 9) for c in batches(epoch=epoch).classes_T.tolist())
    assert len(drawn) == 14


def test_batches_depend_on_seed_epoch_and_vectors_only():
    whole = labels_of(batches())
    assert whole == labels_of(batches())
    for other in ({"seed": 1}, {"epoch": 2}, {"vectors": VECTORS[::-1].copy()}):
        assert whole != labels_of(batches(**other))


def test_without_vectors_the_batches_are_those_of_pk():
    plain = PKBatches(labels_N=LABELS, batch_size=12, world_size=1, seed=0, images_per_class=2)
    plain.set_epoch(1)
    assert labels_of(batches(vectors=None)) == labels_of(plain)
