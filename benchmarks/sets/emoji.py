"""`python -m benchmarks.sets.emoji FOLDER`: pictures of emoji, each drawn by several artists.

A class is an emoji, e.g. `key`, and its images are the drawings of it in ten free sets. Names with
a skin tone and flags of regions are left out. The images are PNG files of 72 pixels with
transparency, in FOLDER/NAME/SET.png. It needs `npm`, which downloads 28 MB, and the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.sets.svg import write_png

SETS = {
    "emojione": "1.2.3",  # EmojiTwo, CC BY 4.0
    "emojione-v1": "1.2.3",  # EmojiOne, CC BY-SA 4.0
    "fluent-emoji": "1.2.7",  # Microsoft, MIT
    "fluent-emoji-flat": "1.2.6",  # Microsoft, MIT
    "fxemoji": "1.2.2",  # Mozilla, Apache 2.0
    "noto": "1.2.9",  # Google, Apache 2.0
    "noto-v1": "1.2.5",  # Google, Apache 2.0
    "openmoji": "1.2.29",  # OpenMoji, CC BY-SA 4.0
    "streamline-emojis": "1.2.4",  # Streamline, CC BY 4.0
    "twemoji": "1.2.5",  # Twitter, CC BY 4.0
}
"""Package below @iconify-json -> version."""
MIN_IMAGES = 5
SIDE = 72


def make(folder: Path) -> None:
    """Download the sets and write the images of all names that `MIN_IMAGES` sets contain."""
    drawings = {name: _download(name, version) for name, version in SETS.items()}
    counts = Counter(name for names in drawings.values() for name in names if _is_used(name))
    names = sorted(name for name, count in counts.items() if count >= MIN_IMAGES)
    jobs = [
        (svgs[name], folder / name / f"{collection}.png")
        for collection, svgs in drawings.items()
        for name in names
        if name in svgs
    ]
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(write_png, side=SIDE), *zip(*jobs, strict=True), chunksize=64):
            pass
    print(f"{len(names)} classes, {len(jobs)} images in {folder}")


def _is_used(name: str) -> bool:
    return "skin-tone" not in name and not name.startswith("flag-for")


def _download(name: str, version: str) -> dict[str, str]:
    """Return name -> SVG of the drawings of a set."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"]
        file = subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True)
        with tarfile.open(Path(scratch) / file.stdout.strip()) as package:
            content = package.extractfile("package/icons.json")
            assert content is not None
            found = json.load(content)
    return {
        icon: f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0'
        f' {drawing.get("width", found["width"])} {drawing.get("height", found["height"])}">'
        f"{drawing['body']}</svg>"
        for icon, drawing in found["icons"].items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
