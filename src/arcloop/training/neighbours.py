"""The figure that selects a checkpoint: nearest neighbours within val, on embeddings.

Each process keeps the embeddings of its own rows. They meet in tiles of rows counted over all
processes, one tile at a time: what a process holds beside its own does not grow with val, and every
product has the shape that it has in one process, hence the same last bits.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def leave_one_out_top1(embeddings_nD: Tensor, labels_n: Tensor, tile: int = 1024) -> float:
    """Share of rows whose most similar other row has their label.

    Rows whose class has no other row cannot be right and are not counted. Of equally similar rows
    the first counts. A collective where training is distributed, with one value on all processes.

    Args:
        embeddings_nD: This process's rows, of norm 1, any floating type; the rows of all processes
            are in the order of their ranks.
        labels_n: int64, not negative.
        tile: Rows compared at a time.

    Returns:
        A share in [0, 1]; 0 if no class has two rows.

    >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    >>> leave_one_out_top1(rows, torch.tensor([0, 0, 1, 1]))
    0.75
    """
    rows = _Rows(embeddings_nD.float(), labels_n)
    tiles = range(0, rows.total, tile)
    own = tiles[len(tiles) * rows.rank // rows.world : len(tiles) * (rows.rank + 1) // rows.world]
    compared = {}
    for start in tiles:
        gathered = rows.gather(start, start + tile)
        if start in own:
            compared[start] = _Best(*gathered)
    for start in tiles:
        embeddings_ND, labels_N = rows.gather(start, start + tile)
        for first, best in compared.items():
            best.meet(embeddings_ND, labels_N, itself=first == start)
    right = torch.zeros(2, dtype=torch.int64, device=labels_n.device)
    count_C = rows.count_classes()
    for best in compared.values():
        countable_B = count_C[best.labels_B] > 1
        hits_B = best.found_B == best.labels_B
        right += torch.stack([(hits_B & countable_B).sum(), countable_B.sum()])
    hits, counted = rows.sum(right).tolist()
    return float(hits / max(counted, 1))


class _Best:
    """The label of the most similar row so far, for the rows of one tile."""

    def __init__(self, embeddings_BD: Tensor, labels_B: Tensor) -> None:
        self._embeddings_BD, self.labels_B = embeddings_BD, labels_B
        self._cos_B = torch.full_like(embeddings_BD[:, 0], -2.0)
        self.found_B = torch.full_like(labels_B, -1)

    def meet(self, embeddings_ND: Tensor, labels_N: Tensor, *, itself: bool) -> None:
        cos_BN = self._embeddings_BD @ embeddings_ND.T
        if itself:
            cos_BN.diagonal().fill_(-2.0)
        column_B = cos_BN.argmax(dim=1)
        cos_B = cos_BN.gather(1, column_B[:, None])[:, 0]
        better_B = cos_B > self._cos_B
        self._cos_B = torch.where(better_B, cos_B, self._cos_B)
        self.found_B = torch.where(better_B, labels_N[column_B], self.found_B)


class _Rows:
    """Rows of which each process has some, in the order of ranks."""

    def __init__(self, embeddings_nD: Tensor, labels_n: Tensor) -> None:
        self._embeddings_nD, self._labels_n = embeddings_nD, labels_n
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        counts = torch.zeros(self.world, dtype=torch.int64, device=labels_n.device)
        counts[self.rank] = len(labels_n)
        ends = self.sum(counts).cumsum(0).tolist()
        self.total = int(ends[-1])
        self._stop = int(ends[self.rank])
        self._start = self._stop - len(labels_n)

    def gather(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return some rows of all, on every process: each adds its own to zeros, which is exact."""
        stop = min(stop, self.total)
        own = slice(*(min(max(row, self._start), self._stop) for row in (start, stop)))
        here = slice(own.start - self._start, own.stop - self._start)
        parts = self._embeddings_nD[here], self._labels_n[here]
        if self.world == 1:
            return parts
        gathered = []
        for part in parts:
            whole = part.new_zeros(stop - start, *part.shape[1:])
            whole[own.start - start : own.stop - start] = part
            gathered.append(self.sum(whole))
        return gathered[0], gathered[1]

    def count_classes(self) -> Tensor:
        """Return how many rows of all are of each class."""
        highest = self._labels_n.max() if len(self._labels_n) else self._labels_n.new_tensor(0)
        if self.world > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return self.sum(torch.bincount(self._labels_n, minlength=int(highest) + 1))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor
