"""Labels of a split that are read when they are needed, which most samplers never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.data.store.store import Store


class SplitLabels:
    """Stands for int64 [N] labels: eight bytes a row that only who asks for them holds.

    `len` does not read them; `numpy.asarray`, what numpy does to them, and an index do.

    Args:
        store: The store.
        split: One of `SPLITS`.
    """

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._split = store, split

    def __len__(self) -> int:
        return self._store.rows(self._split)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.asarray(self._store.labels(self._split), dtype)

    def __getitem__(self, rows: Any) -> Any:
        return np.asarray(self)[rows]
