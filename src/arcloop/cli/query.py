"""`arcloop query IMAGE... --run RUN_DIR`: find the nearest gallery images of the given images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from arcloop import artifacts
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, DataError
from arcloop.pipeline.chains import find_store

if TYPE_CHECKING:
    from arcloop.runtime.searcher import Prediction, Searcher


def query(arguments: Sequence[str]) -> int:
    """Print the nearest gallery images of each image, and its class or "unknown".

    Raises:
        ArtifactError: The run or its index is missing or damaged.
        DataError: A file is not an image.
    """
    parser = argparse.ArgumentParser("arcloop query", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, WebP or BMP file")
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="a finished run")
    parser.add_argument("-k", type=_positive, default=5, help="neighbours to show (default 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    run_dir = Path(options.run)
    artifacts.load(run_dir, "run")
    artifacts.load(run_dir / "index", "index")
    # These imports load torch, which `arcloop query --help` does not need.
    from arcloop.retrieval import load_model, open_index
    from arcloop.runtime.searcher import Searcher

    model = load_model(run_dir / "model.pt", options.device)
    _, index, labels = open_index(run_dir / "index", model.sha256)
    searcher = Searcher(model, index, labels)
    for name in options.images:
        answer = _predict(searcher, Path(name), options.k)
        thumbnails = _write_thumbnails(run_dir, answer)
        if options.json:
            print(json.dumps({"image": name, **answer.as_dict(), "thumbnails": thumbnails}))
        else:
            _print_table(name, answer, thumbnails, searcher.threshold)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _predict(searcher: Searcher, image: Path, k: int) -> Prediction:
    from arcloop.runtime.images import ImageError

    try:
        pixels_HWC = searcher.model.decode(image)
    except ImageError as cause:
        raise DataError(str(cause), where=image, remedy="pass an image file") from None
    return searcher.predict(pixels_HWC[None], k)[0]


def _write_thumbnails(run_dir: Path, answer: Prediction) -> list[str]:
    """Write the images of the neighbours to a folder next to the run.

    Returns:
        Paths of the images; empty if the store is missing.
    """
    from arcloop.data import Store
    from arcloop.runtime.images import encode_png

    try:
        store = Store.open(find_store(run_dir))
    except ArcloopError as error:
        print_line(f"no thumbnails: {error.what}")
        return []
    folder = run_dir.parent / f"{run_dir.name}-thumbnails"
    folder.mkdir(exist_ok=True)
    paths = []
    for neighbour in answer.neighbours:
        images_NHWC, _ = store.gather("gallery", np.asarray([neighbour.row]))
        path = folder / f"gallery-{neighbour.row:07d}.png"
        path.write_bytes(encode_png(images_NHWC[0]))
        paths.append(str(path))
    return paths


def _print_table(
    name: str, answer: Prediction, thumbnails: Sequence[str], threshold: float
) -> None:
    decision = "unknown" if answer.unknown else answer.class_name
    sign = "<" if answer.unknown else ">="
    similarity = f"{answer.similarity:.3f} {sign} {threshold:.3f}"
    table = Table(
        title=f"{name}: {decision}  (similarity {similarity})",
        title_justify="left",
    )
    for column in ("label", "similarity", "gallery row", "thumbnail"):
        table.add_column(column, justify="left" if column in ("label", "thumbnail") else "right")
    for number, neighbour in enumerate(answer.neighbours):
        table.add_row(
            neighbour.class_name,
            f"{neighbour.similarity:.3f}",
            str(neighbour.row),
            thumbnails[number] if thumbnails else "",
        )
    Console(file=sys.stdout, soft_wrap=True).print(table)
