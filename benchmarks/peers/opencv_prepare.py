"""OpenCV on all cores, class folders to uint8 shards: `IMAGES WORK`; prints seconds."""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

INTERVAL = 5000


def shard(task):
    paths, labels, target, number = task
    cv2.setNumThreads(1)
    images = np.stack([cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths])
    np.save(target / f"images-{number:03d}.npy", images[..., None])
    np.save(target / f"labels-{number:03d}.npy", np.array(labels))


def main():
    source, work, tasks = Path(sys.argv[1]), Path(sys.argv[2]), []
    start = time.perf_counter()
    for split in sorted(source.iterdir()):
        target = work / split.name
        target.mkdir(parents=True)
        found = [(str(p), int(p.parent.name)) for p in sorted(split.glob("*/*.png"))]
        for number, first in enumerate(range(0, len(found), INTERVAL)):
            paths, labels = zip(*found[first : first + INTERVAL], strict=True)
            tasks.append((paths, labels, target, number))
    with get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(shard, tasks, chunksize=1)
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
