"""Decoding of image files, in this process or in several."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import stat
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from arcloop.data.sources import Encode, RowBlock
from arcloop.data.store.source_files import hash_content, make_table
from arcloop.errors import ResourceError
from arcloop.runtime.images import Conversion, ImageError, decode_with_transparency

_IN_FLIGHT = 2  # blocks per process, so that no process waits for its next block
_NOT_A_FILE = "a pipe, socket or device instead of a file"


@dataclass(frozen=True)
class FileBlock:
    """Image files to decode into consecutive rows of a split.

    Attributes:
        split: The split.
        root: Folder that relative paths start from.
        paths: The files.
        labels: Their labels.
        image_shape: (H, W, C) of the images.
        conversion: How image files are converted to `image_shape`.
        encode: Converts the images to the form in which the store contains them.
        groups: Their groups, if the source has groups.
    """

    split: str
    root: str
    paths: list[bytes]
    labels: list[int]
    image_shape: tuple[int, int, int]
    conversion: Conversion
    encode: Encode
    groups: list[int] | None = None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a process that writes to a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def decode_block(block: FileBlock) -> RowBlock:
    """Decode image files; files that cannot be decoded are left out and listed."""
    height, width, channels = block.image_shape
    images = np.empty((len(block.paths), *block.image_shape), np.uint8)
    versions = np.empty((len(block.paths), 2), np.int64)
    kept, hashes, unreadable, transparent = [], [], [], 0
    for number, relative in enumerate(block.paths):
        path = os.path.join(block.root, os.fsdecode(relative))  # noqa: PTH118 - speed
        try:
            with open(path, "rb", buffering=0, opener=_open_at_once) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise ImageError(_NOT_A_FILE)
                versions[number] = info.st_size, info.st_mtime_ns
                encoded = file.read()
            images[number], is_transparent = decode_with_transparency(
                encoded, height=height, width=width, channels=channels, conversion=block.conversion
            )
            transparent += is_transparent
            kept.append(number)
            hashes.append(hash_content(encoded))
        except (ImageError, OSError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else cause
            if isinstance(cause, OSError) and cause.errno == errno.ENXIO:  # a socket
                reason = _NOT_A_FILE
            unreadable.append((path, str(reason)))
    files = make_table([block.paths[number] for number in kept], versions[kept], hashes)
    labels = np.array(block.labels, np.int64)[kept]
    groups = None if block.groups is None else np.array(block.groups, np.int64)[kept]
    encoded_images = block.encode(images[kept])
    return RowBlock(block.split, encoded_images, labels, files, unreadable, groups, transparent)


def decode_blocks(blocks: Iterable[FileBlock], workers: int) -> Iterator[RowBlock]:
    """Decode blocks and yield the results in the same order.

    Worker processes are started with the method that Python 3.14 uses by default: "spawn" on macOS,
    "forkserver" elsewhere. Forking this process directly could deadlock, because it may have the
    threads of torch. Only a few blocks are in memory at a time, so `blocks` may be of any length.
    The workers exit when the generator is closed or this process is killed.

    Args:
        blocks: The blocks.
        workers: Number of processes; with 1, this process decodes.

    Raises:
        ResourceError: A worker process died or cannot be started.
    """
    # A daemonic process cannot have children.
    if workers == 1 or multiprocessing.current_process().daemon:
        yield from map(decode_block, blocks)
        return
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    remaining = iter(blocks)
    pool = ProcessPoolExecutor(workers, context, initializer=_initialize_worker)
    try:
        first = itertools.islice(remaining, workers * _IN_FLIGHT)
        pending = deque(_submit(pool, block) for block in first)
        while pending:
            done = pending.popleft().result()
            pending.extend(_submit(pool, block) for block in itertools.islice(remaining, 1))
            yield done
    except BrokenProcessPool as cause:
        raise ResourceError(
            "a process that decodes images died",
            remedy="free memory, since the system may have killed it for lack of memory, and run"
            " the same command again",
        ) from cause
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, block: FileBlock) -> Future[RowBlock]:
    """Submit a block; this may start a worker.

    multiprocessing imports the main module of the parent in every process that it starts. A script
    without `if __name__ == "__main__":` would then prepare the same store in every worker, which
    would wait forever for the lock of its parent. The workers do not need the main module, so it is
    replaced by an empty module while they are started.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        return pool.submit(decode_block, block)
    except (EOFError, OSError) as cause:
        raise ResourceError(
            f"a process that decodes images cannot be started: {cause or 'no answer'}",
            remedy="raise the limit of processes of this user, or free memory",
        ) from cause
    finally:
        sys.modules["__main__"] = main


def _initialize_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent ends the workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
