"""The augmentation of photographs in arcloop, kornia or torchvision: `WHO SIZE BATCHES`, as JSON.

Each receives uint8 images [64, 3, SIZE, SIZE] and returns floats: random resized crop, horizontal
flip, rotation by up to 10 degrees, brightness, contrast, saturation, hue, and random erasing, with
parameters of its own for each image.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

BATCH = 64
_AREA, _RATIO, _DEGREES = (0.4, 1.0), (0.75, 1.33), 10
_COLOR = (0.3, 0.3, 0.3, 0.02)  # brightness, contrast, saturation, hue
_ERASED = {"p": 0.25, "scale": (0.02, 0.2), "ratio": (0.33, 3.0)}


def main() -> None:
    """Print the images/s of the last `BATCHES` batches."""
    who, size, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    images_BCHW = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    augment = _arcloop() if who == "arcloop" else _OTHERS[who](size)
    for _ in range(3):
        made = augment(images_BCHW)
    assert made.shape == images_BCHW.shape
    assert made.is_floating_point()
    start = time.perf_counter()
    for _ in range(batches):
        augment(images_BCHW)
    print(json.dumps({"images_per_second": batches * BATCH / (time.perf_counter() - start)}))


def _arcloop() -> Callable[[Tensor], Tensor]:
    from arcloop.config.composition import build, compose_config

    augmentation = build(compose_config(["augmentation=photo"]), "augmentation")
    return lambda images_BCHW: augmentation(images_BCHW.float(), torch.default_generator)


def _kornia(size: int) -> Callable[[Tensor], Tensor]:
    import kornia.augmentation as K

    chain = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=_AREA, ratio=_RATIO),
        K.RandomHorizontalFlip(),
        K.RandomRotation(_DEGREES, p=1.0),
        K.ColorJitter(*_COLOR, p=1.0),
        K.RandomErasing(p=_ERASED["p"], scale=_ERASED["scale"], ratio=_ERASED["ratio"]),
        data_keys=["input"],
    )
    return lambda images_BCHW: chain(images_BCHW.float() / 255)


def _torchvision(size: int) -> Callable[[Tensor], Tensor]:
    """Transforms of torchvision v2 draw one set of parameters per call, so images are apart."""
    from benchmarks.peers.image_training import define_operators_of_torchvision

    library = define_operators_of_torchvision()
    from torchvision.transforms import v2

    chain = v2.Compose([
        v2.RandomResizedCrop(size, scale=_AREA, ratio=_RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(_DEGREES, interpolation=v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(*_COLOR),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(**_ERASED),
    ])  # fmt: skip

    def augment(images_BCHW: Tensor, _defined: torch.library.Library = library) -> Tensor:
        return torch.stack([chain(image_CHW) for image_CHW in images_BCHW])

    return augment


_OTHERS = {"kornia": _kornia, "torchvision": _torchvision}

if __name__ == "__main__":
    main()
