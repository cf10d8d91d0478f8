"""Decoding of image files into a store, in this process or in several."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data.store.shards import SplitWriter
from arcloop.errors import ResourceError
from arcloop.runtime.images import ImageError, decode

_IN_FLIGHT = 2  # blocks per process, so that no process waits for its next block


@dataclass(frozen=True)
class Block:
    """Image files to decode into consecutive rows of a split.

    Attributes:
        split: The split.
        writer: Its writer.
        first_row: Row of the first image.
        paths: The files.
        labels: Their labels.
    """

    split: str
    writer: SplitWriter
    first_row: int
    paths: list[str]
    labels: list[int]


@dataclass(frozen=True)
class UnreadableImage:
    """An image file that cannot be decoded, the row that is reserved for it, and the reason."""

    split: str
    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class DecodedBlock:
    """Result of decoding a `Block`.

    Attributes:
        split: The split.
        first_row: Row of the first image.
        versions: [rows, 2] size (bytes) and modification time (ns) of each file when it was read.
        unreadable: The files that could not be decoded.
    """

    split: str
    first_row: int
    versions: npt.NDArray[np.int64]
    unreadable: list[UnreadableImage]


def decode_block(block: Block) -> DecodedBlock:
    """Decode image files and write them to their rows. Rows of unreadable images stay black."""
    height, width, channels = block.writer.image_shape
    images = np.zeros((len(block.paths), height, width, channels), np.uint8)
    versions = np.zeros((len(block.paths), 2), np.int64)
    unreadable = []
    for number, path in enumerate(block.paths):
        try:
            with open(path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                versions[number] = stat.st_size, stat.st_mtime_ns
                encoded = file.read()
            images[number] = decode(encoded, height=height, width=width, channels=channels)
        except (ImageError, OSError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            row = block.first_row + number
            unreadable.append(UnreadableImage(block.split, row, path, str(reason)))
    block.writer.write(block.first_row, images, np.array(block.labels, np.int64))
    return DecodedBlock(block.split, block.first_row, versions, unreadable)


def decode_blocks(blocks: Iterable[Block], workers: int) -> Iterator[DecodedBlock]:
    """Decode blocks and yield the results in any order.

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
    if (
        workers == 1 or multiprocessing.current_process().daemon
    ):  # a daemonic process cannot have children
        yield from map(decode_block, blocks)
        return
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    remaining = iter(blocks)
    pool = ProcessPoolExecutor(workers, context, initializer=_initialize_worker)
    try:
        pending = _submit(pool, itertools.islice(remaining, workers * _IN_FLIGHT))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            pending |= _submit(pool, itertools.islice(remaining, len(done)))
            for future in done:
                yield future.result()
    except BrokenProcessPool as cause:
        raise ResourceError(
            "a process that decodes images died",
            remedy="free memory, since the system may have killed it for lack of memory, and run"
            " the same command again",
        ) from cause
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, blocks: Iterable[Block]) -> set[Future[DecodedBlock]]:
    with _hidden_main_module():
        try:
            return {pool.submit(decode_block, block) for block in blocks}
        except (EOFError, OSError) as cause:
            raise ResourceError(
                f"a process that decodes images cannot be started: {cause or 'no answer'}",
                remedy="raise the limit of processes of this user, or free memory",
            ) from cause


@contextlib.contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Hide the user's script while workers are started.

    multiprocessing imports the main module of the parent in every process that it starts. A script
    without `if __name__ == "__main__":` would then prepare the same store in every worker, which
    would wait forever for the lock of its parent. The workers do not need the main module.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
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
