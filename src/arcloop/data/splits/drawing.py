"""Draws the split of each row and of each group of rows, when the rows per split are known.

C: classes, E: pairs of a group and one of its classes, G: groups, N: rows, S: splits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_PASSES = 10


def draw_splits(labels: npt.NDArray[np.integer], table_CS: Ints, seed: int) -> Ints:
    """Draw a split for each row.

    Args:
        labels: [N] class of each row.
        table_CS: [C, S] number of rows of each class for each split.
        seed: Seed of the draw.

    Returns:
        [N] columns of the table.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    num_classes, num_splits = table_CS.shape
    split = np.empty(len(labels), np.int64)
    split[by_class] = np.repeat(np.tile(np.arange(num_splits), num_classes), table_CS.ravel())
    return split


def fill_splits(
    new_C: Ints, now_CS: Ints, wanted_CS: npt.NDArray[np.number], minimum_CS: Ints
) -> Ints:
    """Assign each new row of a class to the split that lacks most rows of it.

    Splits without any row of the class come first, then those with fewer rows than the minimum.

    Args:
        new_C: [C] number of new rows of each class.
        now_CS: [C, S] rows of each class that each split already has.
        wanted_CS: [C, S] rows of each class that each split should have.
        minimum_CS: [C, S] rows of each class that each split must have.

    Returns:
        [C, S] new rows of each class for each split.
    """
    filled_CS, left_C = now_CS.copy(), new_C.copy()
    first = int(new_C.sum() + now_CS.sum())  # more rows than any split lacks
    while len(some := np.flatnonzero(left_C)):
        now, minimum = filled_CS[some], minimum_CS[some]
        lack = wanted_CS[some] - now
        lack = lack + first * (now < minimum) + first * (now < np.minimum(minimum, 1))
        filled_CS[some, lack.argmax(axis=1)] += 1
        left_C[some] -= 1
    return filled_CS - now_CS


def draw_groups(
    labels: Ints,
    groups: Ints,
    now_CS: Ints,
    wanted_CS: npt.NDArray[np.number],
    minimum_CS: Ints,
    *,
    split_G: Ints,
    seed: int,
) -> Ints:
    """Draw a split for each group; all rows of a group have the same split.

    The largest groups are assigned first, each to the best split, see `_choose_split`. At the end,
    the groups of classes that lack rows are drawn again.

    Args:
        labels: [N] class of each row.
        groups: [N] group of each row; a negative number: the row is a group of its own.
        now_CS: [C, S] rows of each class that each split already has.
        wanted_CS: [C, S] rows of each class that each split should have.
        minimum_CS: [C, S] rows of each class that each split must have. It may be missed if the
            groups do not allow it.
        split_G: [G] split of the groups whose split is already known, otherwise -1.
        seed: Seed of the draw; it decides between groups of the same size.

    Returns:
        [N] splits.
    """
    now_CS, split_G, num_classes = now_CS.copy(), split_G.copy(), len(now_CS)
    in_group, alone = groups >= 0, np.flatnonzero(groups < 0)
    pair_E, size_E = np.unique(
        groups[in_group] * num_classes + labels[in_group], return_counts=True
    )
    group_E, class_E = np.divmod(pair_E, num_classes)
    start_G = np.searchsorted(group_E, np.arange(len(split_G) + 1))
    known_E = split_G[group_E] >= 0
    np.add.at(now_CS, (class_E[known_E], split_G[group_E[known_E]]), size_E[known_E])
    left_C = np.bincount(np.append(class_E[~known_E], labels[alone]), minlength=num_classes)
    drawn = np.unique(group_E[~known_E])
    shuffled = np.random.default_rng([seed, 2]).permutation(len(drawn))
    order = drawn[np.lexsort((shuffled, -np.bincount(group_E, size_E)[drawn]))]
    lack_S = (wanted_CS - now_CS).sum(axis=0, dtype=np.float64)
    for _ in range(_PASSES):
        for group in order.tolist():
            part = slice(start_G[group], start_G[group + 1])
            classes, size_n, split = class_E[part], size_E[part], split_G[group]
            if split < 0:
                left_C[classes] -= 1
            else:
                now_CS[classes, split] -= size_n
                lack_S[split] += size_n.sum()
            split = split_G[group] = _choose_split(
                size_n,
                wanted_CS[classes] - now_CS[classes],
                minimum_CS[classes] - now_CS[classes],
                left_C[classes],
                lack_S / num_classes,
            )
            now_CS[classes, split] += size_n
            lack_S[split] -= size_n.sum()
        # Groups of classes that lack rows are drawn again, which may complete these classes.
        lacks_C = np.maximum(minimum_CS - now_CS, 0).sum(axis=1) > left_C
        order = order[np.isin(order, group_E[lacks_C[class_E]])]
    split_N = np.full(len(labels), -1)
    split_N[in_group] = split_G[groups[in_group]]
    new_C = np.bincount(labels[alone], minlength=num_classes)
    table_CS = fill_splits(new_C, now_CS, wanted_CS, minimum_CS)
    split_N[alone] = draw_splits(labels[alone], table_CS, seed)
    return split_N


def _choose_split(
    size_n: Ints,
    lack_nS: npt.NDArray[np.number],
    missing_nS: Ints,
    left_n: Ints,
    mean_lack_S: npt.NDArray[np.float64],
) -> int:
    """Choose the split of a group that has rows of n classes.

    It is the split for which the sum of the squared differences between present and wanted rows
    becomes least, summed over the classes and the mean of all classes. If a class needs all its
    remaining groups for its minimum, only the splits count that miss most rows of the minimum.

    Args:
        size_n: Rows of the group in each class.
        lack_nS: Wanted minus present rows of each class in each split.
        missing_nS: Minimum minus present rows.
        left_n: Groups of each class that are assigned later.
        mean_lack_S: Wanted minus present rows, mean of all classes.
    """
    missing_nS = np.maximum(missing_nS, 0)
    # A product of matrices could round differently on other processors.
    fit_S = (size_n[:, None] * lack_nS).sum(axis=0) + size_n.sum() * mean_lack_S
    if (left_n < missing_nS.sum(axis=1)).any():
        gain_S = np.minimum(size_n[:, None], missing_nS).sum(axis=0)
        fit_S[gain_S < gain_S.max()] = -np.inf
    return int(fit_S.argmax())
