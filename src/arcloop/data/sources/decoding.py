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
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import Encode, RowBlock
from arcloop.data.store.shards import FileTable
from arcloop.data.store.source_files import hash_content, make_table
from arcloop.errors import ResourceError
from arcloop.runtime.images import Conversion, ImageError, decode_with_transparency
from arcloop.runtime.regions import Region

Ints = npt.NDArray[np.int64]

_IN_FLIGHT = 2  # blocks per process, so that no process waits for its next block
_NOT_A_FILE = "a pipe, socket or device instead of a file"


@dataclass(frozen=True, kw_only=True)
class ImageBlock(ABC):
    """Encoded images to decode into consecutive rows of a split.

    Attributes:
        split: The split.
        labels: Labels of the images.
        image_shape: (H, W, C) of the result.
        conversion: How images are converted to this shape.
        encode: Converts the images to the form in which the store contains them.
        groups: Groups of the images, if the source has groups.
        metadata: JSON object of each image, if the source has metadata.
    """

    split: str
    labels: list[int]
    image_shape: tuple[int, int, int]
    conversion: Conversion
    encode: Encode
    groups: list[int] | None = None
    metadata: list[bytes] | None = None

    @abstractmethod
    def name(self, number: int) -> str:
        """Return the path of an image, or a description of its location."""

    @abstractmethod
    def read(self, number: int) -> tuple[bytes, tuple[int, int]]:
        """Return the encoded image, and the size and modification time of its file.

        Raises:
            ImageError, OSError: It cannot be read.
        """

    def region(self, number: int) -> Region | None:
        """Return the part of an encoded image that is decoded; None for all of it."""
        return None

    def make_table(
        self, kept: Sequence[int], versions: Ints, hashes: Sequence[int]
    ) -> FileTable | None:
        """Return the table of the files of these images; None if they are not separate files."""
        return None

    def decode(self) -> RowBlock:
        """Decode the images; those that cannot be decoded are left out and listed."""
        height, width, channels = self.image_shape
        images = np.empty((len(self.labels), *self.image_shape), np.uint8)
        versions = np.empty((len(self.labels), 2), np.int64)
        kept, hashes, unreadable, transparent = [], [], [], 0
        for number in range(len(self.labels)):
            try:
                encoded, versions[number] = self.read(number)
                images[number], is_transparent = decode_with_transparency(
                    encoded, height=height, width=width, channels=channels,
                    conversion=self.conversion, region=self.region(number),
                )  # fmt: skip
                transparent += is_transparent
                kept.append(number)
                hashes.append(hash_content(encoded))
            except (ImageError, OSError) as cause:
                reason = cause.strerror if isinstance(cause, OSError) else cause
                if isinstance(cause, OSError) and cause.errno == errno.ENXIO:  # a socket
                    reason = _NOT_A_FILE
                unreadable.append((self.name(number), str(reason)))
        return RowBlock(
            self.split,
            self.encode(images[kept]),
            np.array(self.labels, np.int64)[kept],
            self.make_table(kept, versions[kept], hashes),
            unreadable,
            None if self.groups is None else np.array(self.groups, np.int64)[kept],
            transparent,
            None if self.metadata is None else [self.metadata[number] for number in kept],
        )


@dataclass(frozen=True, kw_only=True)
class FileBlock(ImageBlock):
    """Image files to decode.

    Attributes:
        root: Folder to which the paths are relative.
        paths: The files.
        regions: Part of each file to decode; None for all of it.
        lines: Line of each image in the list of the source, for messages, if there are regions.
    """

    root: str
    paths: list[bytes]
    regions: list[Region | None] | None = None
    lines: list[int] | None = None

    def _path(self, number: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[number]))  # noqa: PTH118 - speed

    def name(self, number: int) -> str:
        line = "" if self.lines is None else f" (line {self.lines[number]} of the list)"
        return self._path(number) + line

    def region(self, number: int) -> Region | None:
        return None if self.regions is None else self.regions[number]

    def read(self, number: int) -> tuple[bytes, tuple[int, int]]:
        with open(self._path(number), "rb", buffering=0, opener=_open_at_once) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(_NOT_A_FILE)
            return file.read(), (info.st_size, info.st_mtime_ns)

    def make_table(self, kept: Sequence[int], versions: Ints, hashes: Sequence[int]) -> FileTable:
        names = [image_name(self.paths[number], self.region(number)) for number in kept]
        return make_table(names, versions, hashes)


def image_name(path: bytes, region: Region | None) -> bytes:
    """Return the name of an image in a store: the path, and the region if there is one."""
    return path if region is None else path + f"#{region}".encode()


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a process that writes to a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def decode_blocks(blocks: Iterable[ImageBlock], workers: int) -> Iterator[RowBlock]:
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
        yield from map(ImageBlock.decode, blocks)
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


def _submit(pool: ProcessPoolExecutor, block: ImageBlock) -> Future[RowBlock]:
    """Submit a block; this may start a worker.

    multiprocessing imports the main module of the parent in every process that it starts. A script
    without `if __name__ == "__main__":` would then prepare the same store in every worker, which
    would wait forever for the lock of its parent. The workers do not need the main module, so it is
    replaced by an empty module while they are started.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        return pool.submit(block.decode)
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
