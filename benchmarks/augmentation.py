"""`augmentation=photo` against the same steps in kornia and in transforms.v2 of torchvision.

Batches of 64 random images on the CPU; each image has parameters of its own. arcloop resamples an
image once for crop, flip and rotation together, the others once for the crop and once for the
rotation.
"""

from __future__ import annotations

import os
import sys

from benchmarks.measure import Comparison, Section, Size, in_process

TITLE = "Augmentation of photographs"
_SIZES = (48, 112, 224)


def measure(size: Size) -> Section:
    """Measure; ARCLOOP_PEERS names a Python interpreter that has kornia and torchvision."""
    peers = os.environ.get("ARCLOOP_PEERS")
    if peers is None:
        return Section(notes=["ARCLOOP_PEERS is not set; nothing was measured."])
    section = Section()
    table = []
    for side in _SIZES:
        batches = size.of(5, 20, 50) * (1 if side > 100 else 5)
        rates: dict[str, list[float]] = {"arcloop": [], "kornia": [], "torchvision": []}
        for _ in range(size.of(1, 3, 5)):
            for who, found in rates.items():
                python = sys.executable if who == "arcloop" else peers
                arguments = (who, str(side), str(batches))
                one = in_process("benchmarks.peers.augmentation", *arguments, python=python)
                found.append(one["images_per_second"])
        for who in ("kornia", "torchvision"):
            name = f"augment {side} pixels, against {who}"
            section.comparisons.append(
                Comparison(name, rates["arcloop"], rates[who], "images/s", 1.0)
            )
        table.append({"pixels": side, **{who: max(found) for who, found in rates.items()}})
    section.tables["images/s, the best of the rounds"] = table
    return section
