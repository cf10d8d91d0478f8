"""The figure that selects a checkpoint: nearest neighbours within val, on embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def leave_one_out_top1(embeddings_ND: Tensor, labels_N: Tensor, chunk: int = 1024) -> float:
    """Share of rows whose most similar other row has their label.

    Rows whose class has no other row cannot be right and are not counted.

    Args:
        embeddings_ND: Rows of norm 1, any floating type.
        labels_N: int64, not negative.
        chunk: Rows compared with all others at a time; bounds memory at chunk x N.

    Returns:
        A share in [0, 1]; 0 if no class has two rows.

    >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    >>> leave_one_out_top1(rows, torch.tensor([0, 0, 1, 1]))
    0.75
    """
    embeddings_ND = embeddings_ND.float()
    right = torch.zeros((), dtype=torch.int64, device=labels_N.device)
    countable_N = torch.bincount(labels_N)[labels_N] > 1
    for start in range(0, len(labels_N), chunk):
        cos_BN = embeddings_ND[start : start + chunk] @ embeddings_ND.T
        cos_BN.diagonal(start).fill_(-2.0)
        labels_B = labels_N[start : start + chunk]
        hits_B = labels_N[cos_BN.argmax(1)] == labels_B
        right += (hits_B & countable_N[start : start + chunk]).sum()
    return int(right) / max(int(countable_N.sum()), 1)
