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
from arcloop.pipeline.chains import find_store

if TYPE_CHECKING:
    from arcloop.data import Store
    from arcloop.runtime.prediction import Prediction


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
    run_dir = artifacts.without_link(Path(options.run))
    artifacts.load(run_dir, "run")
    artifacts.load(run_dir / "index", "index")
    # These imports load torch, which `arcloop query --help` does not need.
    from arcloop.retrieval import load_model, open_index
    from arcloop.retrieval.calibration import describe_calibration
    from arcloop.runtime.images import ImageError
    from arcloop.runtime.searcher import Searcher

    model = load_model(run_dir / "model.pt", options.device)
    _, index, labels = open_index(run_dir / "index", model.sha256)
    searcher = Searcher(model, index, labels)
    folder = Path(options.thumbnails or run_dir.parent / f"{run_dir.name}-thumbnails")
    store, faults = _open_store(run_dir), []
    for name in options.images:
        try:
            pixels_HWC = searcher.model.decode(Path(name))
        except ImageError as cause:
            faults.append(f"{name}: {cause}")
            continue
        answer = searcher.predict(pixels_HWC[None], options.k)[0]
        thumbnails = []
        try:
            if store is not None:
                thumbnails = _write_thumbnails(store, answer, folder)
        except OSError as cause:
            store = None
            reason = f"{folder} cannot be written: {cause.strerror}"
            print_line(f"no thumbnails: {reason}; choose a folder with --thumbnails")
        places = [neighbour.row for neighbour in answer.neighbours]
        sources = [store.describe("gallery", row) if store else {} for row in places]
        if options.json:
            answered = answer.as_dict()
            for neighbour, source in zip(answered["neighbours"], sources, strict=True):
                neighbour |= source
            facts = {"threshold": searcher.threshold_facts, "thumbnails": thumbnails}
            print(json.dumps({"image": name, **answered, **facts}))
        else:
            files = [source["file"] for source in sources if "file" in source]
            print_table(name, answer, thumbnails, searcher.threshold, files)
    print_line(f"threshold: {describe_calibration(labels.get('calibration', {}))}")
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


def _open_store(run_dir: Path) -> Store | None:
    """Open the store of a run, or print that there are no thumbnails without it."""
    from arcloop.data import Store

    try:
        return Store.open(find_store(run_dir))
    except ArcloopError as error:
        print_line(f"no thumbnails: {error.what}")
        return None


def _write_thumbnails(store: Store, answer: Prediction, folder: Path) -> list[str]:
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


def print_table(
    name: str,
    answer: Prediction,
    thumbnails: Sequence[str],
    threshold: float,
    files: Sequence[str] = (),
) -> None:
    """Print an answer, its neighbours and files, with the decimals that the decision needs."""
    decision = "unknown" if answer.unknown else answer.class_name
    sign = "<" if answer.unknown else ">="
    digits = decimals(answer.similarity, threshold)
    similarity = f"{answer.similarity:.{digits}f} {sign} {threshold:.{digits}f}"
    quality = "" if answer.quality is None else f", quality {answer.quality:.2f}"
    table = Table(
        title=f"{name}: {decision}  (similarity {similarity}{quality})",
        title_justify="left",
    )
    table.add_column("label", overflow="fold")
    for column in ("similarity", "gallery row"):
        table.add_column(column, justify="right")
    table.add_column("thumbnail", overflow="fold")
    if files:
        table.add_column("file", overflow="fold")
    for number, neighbour in enumerate(answer.neighbours):
        table.add_row(
            neighbour.class_name,
            f"{neighbour.similarity:.{digits}f}",
            str(neighbour.row),
            thumbnails[number] if thumbnails else "",
            *files[number : number + 1],
        )
    result_console().print(table, soft_wrap=True)
