"""Batches of classes that the current model confuses.

Suh et al., Stochastic Class-based Hard Example Mining for Deep Metric Learning, CVPR 2019: the
similarity of classes is that of their vectors in a classifier that is trained together with the
embedding. Smirnov et al., Doppelganger Mining for Face Representation Learning, ICCV Workshops
2017, draw a class together with the class that is most similar to it.

Shapes: C classes, D embedding, b classes of a block, g groups, G classes of a group, T draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import PositiveInt, checked
from arcloop.data.loading.sampler import PKBatches, Rows
from arcloop.errors import ConfigError

Vectors = npt.NDArray[np.float32]
_BLOCK = 2048


class HardClassBatches(PKBatches):
    """Draws K images of each of P classes per global batch, where the classes come in groups.

    A group consists of a random class and the classes that are most similar to it. The groups of
    an epoch are formed from the class vectors of the head at its start, see `mine`; the classes of
    the first epoch are drawn as in `PKBatches`, because these vectors are random then. A class is
    drawn at most once in a round over all classes. A round ends with its last complete batch, so
    some random groups are left out.

    Args:
        classes_per_group: G, a divisor of P.
        **shared: labels_N, batch_size, world_size, seed and images_per_class, see `PKBatches`.

    Attributes:
        classes_T: Classes of the epoch in the order of their draws; None draws them at random.

    Raises:
        ConfigError: G does not divide P, see also `PKBatches`.
    """

    @checked("sampler")
    def __init__(self, *, classes_per_group: PositiveInt, **shared: Any) -> None:
        super().__init__(**shared)
        if self._classes_per_batch % classes_per_group:
            raise ConfigError(
                f"the {self._classes_per_batch} classes of a global batch cannot be divided into"
                f" groups of {classes_per_group}",
                where="sampler.classes_per_group",
                remedy="set it to a divisor of loader.batch_size x processes /"
                " sampler.images_per_class",
            )
        self._classes_per_group = classes_per_group
        self._labels_C = np.unique(shared["labels_N"])
        self.classes_T: Rows | None = None

    @property
    def num_draws(self) -> int:
        """T, number of draws of a class in an epoch."""
        return len(self) * self._classes_per_batch

    def mine(self, vectors_CD: Vectors) -> Rows:
        """Choose the classes of the epoch, a function of the vectors, the seed and the epoch.

        Args:
            vectors_CD: One vector per label, also for labels without rows.

        Returns:
            Classes [T] for `classes_T`.
        """
        random = np.random.default_rng([self._seed, self.epoch, 1])
        groups_per_batch = self._classes_per_batch // self._classes_per_group
        rounds, draws = [], 0
        while draws < self.num_draws:
            groups = group_similar(vectors_CD[self._labels_C], self._classes_per_group, random)
            complete = groups[: len(groups) // groups_per_batch * groups_per_batch]
            rounds.append(complete.ravel())
            draws += complete.size
        return np.concatenate(rounds)[: self.num_draws]

    def order(self, random: np.random.Generator) -> Rows:
        if self.classes_T is None:
            return super().order(random)
        return self._class_rows.draw(self.classes_T, self._images_per_class, random)


def group_similar(vectors_CD: Vectors, size: int, random: np.random.Generator) -> Rows:
    """Divide classes into groups of similar classes.

    The classes are divided at random into blocks of about 2,048, so time and memory grow with C and
    not with its square. In a block, a random class and its most similar remaining classes form a
    group, until too few remain.

    Args:
        vectors_CD: Vectors of any norm; the similarity is the cosine.
        size: G.
        random: Source of the random numbers.

    Returns:
        Indices of the classes, [g, G] with g = floor(C / G), in random order of the groups.

    >>> vectors = np.float32([[1, 0], [0, 1], [-1, 0], [1, 0.1], [0.1, 1], [-1, 0.1]])
    >>> groups = group_similar(vectors, 2, np.random.default_rng(0))
    >>> sorted(sorted(group) for group in groups.tolist())
    [[0, 3], [1, 4], [2, 5]]
    """
    order_C = random.permutation(len(vectors_CD))
    step = max(_BLOCK // size, 1) * size
    groups = []
    for start in range(0, len(order_C), step):
        block_b = order_C[start : start + step]
        unit_bD = vectors_CD[block_b]
        unit_bD = unit_bD / np.linalg.norm(unit_bD, axis=1, keepdims=True).clip(1e-12)
        similarity_bb = unit_bD @ unit_bD.T
        np.fill_diagonal(similarity_bb, np.inf)
        is_left_b = np.ones(len(block_b), bool)
        for anchor in range(len(block_b)):
            left = np.flatnonzero(is_left_b)
            if is_left_b[anchor] and len(left) >= size:
                nearest = np.argsort(-similarity_bb[anchor, left], kind="stable")[:size]
                is_left_b[left[nearest]] = False
                groups.append(block_b[left[nearest]])
    groups_gG = np.array(groups, np.int64).reshape(-1, size)
    random.shuffle(groups_gG)
    return groups_gG
