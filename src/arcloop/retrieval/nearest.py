"""The most similar gallery rows of each query, whatever the blocks they come in.

Shapes: B queries and N gallery rows of a block, K ranks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Similarities = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_FIRST_OFFERED, _MANY = 256, 4
_FEW = 3  # one in so many: picking them costs less than keys for all
_STEP = 2.0**-30
_LOW_32 = np.int64(2**32 - 1)
_NONE = np.iinfo(np.int64).max


class Nearest:
    """The k most similar gallery rows of each query.

    Of equally similar rows the lower comes first: each candidate is one integer, the similarity
    negated, in steps of 2**-30 (finer than the rounding of a float32 dot product), over the row.

    Args:
        queries: B.
        k: Rows kept for each query, at most the number of gallery rows, under 2**32.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._keys = np.empty((queries, 0), np.int64)
        self._seen = 0
        self._in_order = False

    def add(self, first_row: int, sim_BN: Similarities) -> None:
        """Offer gallery rows from `first_row` on."""
        sure = max(_FIRST_OFFERED, _MANY * self._k)
        start = 0
        while start < sim_BN.shape[1]:
            # When many times k were seen, few of three times as many can be better.
            more = 3 * self._seen if self._seen >= sure else sure - self._seen
            part = slice(start, min(start + more, sim_BN.shape[1]))
            if self._seen < sure or not self._offer_better(first_row, sim_BN, part):
                self._offer_all(first_row, sim_BN, part)
            self._seen += part.stop - part.start
            start = part.stop

    def _offer_all(self, first_row: int, sim_BN: Similarities, part: slice) -> None:
        held = self._keys.shape[1]
        keys = np.empty((len(sim_BN), held + part.stop - part.start), np.int64)
        keys[:, :held] = self._keys
        rows = np.arange(first_row + part.start, first_row + part.stop)
        keys_of(sim_BN[:, part], rows, out=keys[:, held:])
        self._select(keys)

    def _offer_better(self, first_row: int, sim_BN: Similarities, part: slice) -> bool:
        """Offer only what can be among the k, of which the last is now known; False: too many."""
        better_Bn = sim_BN[:, part] >= _limit(self._keys[:, -1])[:, None]
        places = np.flatnonzero(better_Bn)  # row by row
        if len(places) * _FEW > better_Bn.size:
            return False
        if len(places):
            queries, width = better_Bn.shape
            row_B = np.arange(queries)
            counts_B = np.diff(np.searchsorted(places, np.arange(queries + 1) * width))
            columns = places - np.repeat(row_B * width - part.start, counts_B)
            similarities = sim_BN.reshape(-1)[
                columns + np.repeat(row_B * sim_BN.shape[1], counts_B)
            ]
            keys = np.full((queries, self._k + counts_B.max()), _NONE)
            keys[:, : self._k] = self._keys
            # The first places of a row take what was found in it.
            keys[:, self._k :][np.arange(counts_B.max()) < counts_B[:, None]] = keys_of(
                similarities, first_row + columns
            )
            self._select(keys)
        return True

    def _select(self, keys: Labels) -> None:
        """Keep the k best, the last of them in the last place."""
        if keys.shape[1] > self._k:
            keys.partition(self._k - 1, axis=1)
            keys = keys[:, : self._k].copy()
        elif keys.shape[1] == self._k:
            keys.partition(self._k - 1, axis=1)
        self._keys = keys
        self._in_order = False

    def rows(self) -> Labels:
        """Return the rows kept, int64 [B, k], most similar first."""
        self._sort()
        return self._keys & _LOW_32

    def similarities(self) -> npt.NDArray[np.float64]:
        """Return their similarities, float64 [B, k], in steps of 2**-30."""
        self._sort()
        return np.asarray((self._keys >> 32) * -_STEP)

    def _sort(self) -> None:
        if not self._in_order:
            self._keys.sort(axis=1)
            self._in_order = True


def at_least(
    sim_BN: Similarities, keys_B: Labels
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Find what can have no larger a key than a given one: all of that, and a little more.

    Args:
        sim_BN: Cosines.
        keys_B: A key for each query, see `keys_of`.

    Returns:
        The queries, rising, and the columns of what was found.
    """
    places = np.flatnonzero(sim_BN >= _limit(keys_B)[:, None])
    queries, columns = np.divmod(places, sim_BN.shape[1])
    return queries, columns


def _limit(keys_B: Labels) -> Similarities:
    """Return a similarity under which every key is larger than a given one."""
    last_B = (keys_B >> 32) + 1  # a step more: keys are cut towards zero
    return np.nextafter((last_B * -_STEP).astype(np.float32), np.float32(-2))


def keys_of(similarities: Similarities, rows: Labels, out: Labels | None = None) -> Labels:
    """Return the keys by which rows are ranked, lowest first, see `Nearest`.

    Args:
        similarities: Cosines, any shape.
        rows: int64, gallery row of each, of a shape that broadcasts to it.
        out: int64 of the shape of the similarities, to write them to; None: a new array.
    """
    keys = np.empty(np.shape(similarities), np.int64) if out is None else out
    np.multiply(similarities, np.float32(-1 / _STEP), out=keys, casting="unsafe")
    keys <<= 32
    keys |= rows
    return keys
