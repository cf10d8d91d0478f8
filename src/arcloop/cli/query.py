"""`arcloop query IMAGE... --run RUN_DIR`: find the nearest gallery images of the given images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from arcloop import artifacts
from arcloop.display.terminal import decimals, print_line, result_console
from arcloop.errors import ArcloopError, DataError

if TYPE_CHECKING:
    from arcloop.api import Answer, Run
    from arcloop.data import Store


def query(arguments: Sequence[str]) -> int:
    """Print the nearest gallery images of each image, and its class or "unknown".

    Raises:
        ArtifactError: The run or its index is missing or damaged.
        DataError: Some files are not images; the others were answered.
    """
    parser = argparse.ArgumentParser("arcloop query", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="a finished run")
    parser.add_argument("-k", type=_positive, default=5, help="neighbours to show (default 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument(
        "--thumbnails",
        metavar="FOLDER",
        help="folder for images of the neighbours (default RUN_DIR-thumbnails)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    # These imports take longer than `arcloop query --help`.
    from arcloop.api import load
    from arcloop.retrieval.calibration import describe_calibration

    run = load(options.run, device=options.device)
    searcher, store = run.searcher, _open_store(run)
    k = min(options.k, len(searcher.labels))
    run_dir = artifacts.without_link(Path(options.run))
    folder = Path(options.thumbnails or run_dir.parent / f"{run_dir.name}-thumbnails")
    faults = []
    for name in options.images:
        try:
            (answer,) = run.search(Path(name), k)
        except DataError as cause:
            faults.append(f"{name}: {cause.what}")
            continue
        thumbnails = []
        try:
            if store is not None:
                thumbnails = _write_thumbnails(store, answer, folder)
        except OSError as cause:
            store = None
            reason = f"{folder} cannot be written: {cause.strerror}"
            print_line(f"no thumbnails: {reason}; choose a folder with --thumbnails")
        if options.json:
            facts = {"threshold": searcher.threshold_facts, "thumbnails": thumbnails}
            print(json.dumps({"image": name, **answer.as_dict(), **facts}))
        else:
            print_table(name, answer, thumbnails)
    print_line(f"threshold: {describe_calibration(searcher.calibration)}")
    if faults:
        count = f"{len(faults)} of {len(options.images)} files"
        raise DataError(
            "\n  ".join([f"{count} could not be read:", *faults]), remedy="pass image files"
        )
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _open_store(run: Run) -> Store | None:
    """Open the store of a run, or print that there are no thumbnails without it."""
    try:
        return run.store
    except ArcloopError as error:
        print_line(f"no thumbnails: {error.what}")
        return None


def _write_thumbnails(store: Store, answer: Answer, folder: Path) -> list[str]:
    """Write the images of the neighbours to a folder, and return their paths."""
    from arcloop.runtime.images import encode_png

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for neighbour in answer.neighbours:
        images_NHWC, _ = store.gather("gallery", np.asarray([neighbour.row]))
        path = folder / f"gallery-{neighbour.row:07d}.png"
        path.write_bytes(encode_png(images_NHWC[0]))
        paths.append(str(path))
    return paths


def print_table(name: str, answer: Answer, thumbnails: Sequence[str]) -> None:
    """Print an answer, its neighbours and files, with the decimals that the decision needs."""
    decision = "unknown" if answer.unknown else answer.class_name
    sign = "<" if answer.unknown else ">="
    digits = decimals(answer.similarity, answer.threshold)
    similarity = f"{answer.similarity:.{digits}f} {sign} {answer.threshold:.{digits}f}"
    quality = "" if answer.quality is None else f", quality {answer.quality:.2f}"
    table = Table(
        title=f"{name}: {decision}  (similarity {similarity}{quality})",
        title_justify="left",
    )
    table.add_column("label", overflow="fold")
    for column in ("similarity", "gallery row"):
        table.add_column(column, justify="right")
    table.add_column("thumbnail", overflow="fold")
    has_files = any(neighbour.file is not None for neighbour in answer.neighbours)
    if has_files:
        table.add_column("file", overflow="fold")
    for number, neighbour in enumerate(answer.neighbours):
        table.add_row(
            neighbour.class_name,
            f"{neighbour.similarity:.{digits}f}",
            str(neighbour.row),
            thumbnails[number] if thumbnails else "",
            *([neighbour.file or ""] if has_files else []),
        )
    result_console().print(table, soft_wrap=True)
