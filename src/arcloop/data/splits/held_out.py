"""Classes that are left out of training, so that the open-set threshold can be calibrated on them.

Training pushes its own classes apart, so an image of a trained class is less similar to the other
classes than an image of a new class is. Images of held-out classes do not have this bias.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from arcloop.config.schema import CalibrationSettings
from arcloop.errors import ConfigError

if TYPE_CHECKING:
    from arcloop.data.store import Store

AUTO_SHARE, AUTO_MIN_CLASSES = 0.1, 100
"""`auto` holds out a tenth, from 100 classes on: the rate on a new class varies so much from class
to class that fewer than 10 held-out classes say little."""
_MIN_TRAINED = 2


def choose_held_out_classes(store: Store, settings: CalibrationSettings, seed: int) -> list[str]:
    """Choose the classes that are held out.

    These are the classes whose names have the lowest hashes, so classes that are added to a store
    change few of them.

    Args:
        store: The store. If val has classes that train does not have, these are not trained on, and
            "auto" holds out no others.
        settings: `held_out_classes` and `unknown`.
        seed: Seed of the hashes.

    Returns:
        Names, in the order of their labels.

    Raises:
        ConfigError: Fewer than 2 classes would remain, or a number is given although val has
            classes that train does not have.
    """
    num_classes = store.num_train_classes
    count = _count(settings, num_classes)
    if (store.labels("val") >= num_classes).any():
        if count and settings.held_out_classes != "auto":
            raise ConfigError(
                f"calibration.held_out_classes={settings.held_out_classes} holds out classes, but"
                " val already has classes that train does not have",
                where=store.artifact.path,
                remedy="set it to auto or 0: the images of val calibrate the threshold",
            )
        return []
    if count and num_classes - count < _MIN_TRAINED:
        raise ConfigError(
            f"calibration.held_out_classes={settings.held_out_classes} leaves"
            f" {num_classes - count} of {num_classes} classes to train on",
            remedy=f"leave at least {_MIN_TRAINED} classes, or set calibration.held_out_classes=0",
        )
    hashes = [
        hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
        for name in store.classes[:num_classes]
    ]
    lowest = sorted(range(num_classes), key=lambda label: (hashes[label], label))[:count]
    return [store.classes[label] for label in sorted(lowest)]


def _count(settings: CalibrationSettings, num_classes: int) -> int:
    chosen = settings.held_out_classes
    if isinstance(chosen, str):  # "auto"
        enough = num_classes >= AUTO_MIN_CLASSES and settings.unknown is None
        chosen = AUTO_SHARE if enough else 0
    if isinstance(chosen, float) and chosen > 0:
        return max(1, round(chosen * num_classes))
    return int(chosen or 0)


def trained_labels(store: Store, held_out: list[str]) -> npt.NDArray[np.int64]:
    """Number the classes that are trained on from 0, in the order of their labels.

    Returns:
        [C] new label of each class of the store; -1 if it is not trained on.
    """
    names = set(held_out)
    is_trained_C = np.array([name not in names for name in store.classes], bool)
    is_trained_C[store.num_train_classes :] = False
    return np.where(is_trained_C, np.cumsum(is_trained_C) - 1, -1)
