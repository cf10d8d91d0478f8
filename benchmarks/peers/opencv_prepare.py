"""OpenCV on all cores, class folders to uint8 shards.

Arguments: IMAGES WORK SIZE CHANNELS CORES. Prints the seconds.
"""

from __future__ import annotations

import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

INTERVAL = 5000


def read(path, size, channels):
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image.reshape(size, size, channels)


def shard(task):
    paths, labels, target, number, size, channels = task
    cv2.setNumThreads(1)
    images = np.stack([read(path, size, channels) for path in paths])
    np.save(target / f"images-{number:03d}.npy", images)
    np.save(target / f"labels-{number:03d}.npy", np.array(labels))


def main():
    source, work, tasks = Path(sys.argv[1]), Path(sys.argv[2]), []
    size, channels = int(sys.argv[3]), int(sys.argv[4])
    start, cores = time.perf_counter(), int(sys.argv[5])
    for split in sorted(source.iterdir()):
        target = work / split.name
        target.mkdir(parents=True)
        found = [(str(p), int(p.parent.name)) for p in sorted(split.glob("*/*.*"))]
        interval = min(INTERVAL, -(-len(found) // cores))  # use all cores also for few images
        for number, first in enumerate(range(0, len(found), interval)):
            paths, labels = zip(*found[first : first + interval], strict=True)
            tasks.append((paths, labels, target, number, size, channels))
    with get_context("spawn").Pool(cores) as pool:
        pool.map(shard, tasks, chunksize=1)
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
