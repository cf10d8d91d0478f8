"""`python -m benchmarks.sets.icons FOLDER`: icons of Debian, each drawn for several themes.

A class is the name of an icon in the freedesktop.org naming scheme, e.g. `folder-music`, and its
images are its drawings in the themes below. Links to other icons are left out. The images are PNG
files of 48 pixels with transparency, in FOLDER/NAME/THEME.png. It needs `apt-get` and `dpkg-deb`,
downloads 150 MB, and needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.sets.svg import write_png

PACKAGES = (
    "adwaita-icon-theme-full",  # CC BY-SA 3.0 or LGPL 3
    "deepin-icon-theme",  # LGPL 3
    "elementary-xfce-icon-theme",  # GPL 2 or later
    "faenza-icon-theme",  # GPL 3
    "gnome-icon-theme",  # LGPL 3 or CC BY-SA 3.0
    "mate-icon-theme",  # LGPL 3 or CC BY-SA 3.0
    "moka-icon-theme",  # CC BY-SA 4.0, GPL 3
    "numix-icon-theme-circle",  # GPL 3
    "obsidian-icon-theme",  # GPL 3
    "oxygen-icon-theme",  # LGPL 3
    "paper-icon-theme",  # CC BY-SA 4.0, GPL 3
    "papirus-icon-theme",  # GPL 3
    "suru-icon-theme",  # CC BY-SA 4.0, GPL 3
)
MIN_IMAGES = 4
SIDE = 48


def make(folder: Path) -> None:
    """Download the packages and write the images of all names that `MIN_IMAGES` themes contain."""
    with tempfile.TemporaryDirectory() as scratch:
        drawings = {package: _unpack(package, Path(scratch)) for package in PACKAGES}
        counts = Counter(name for files in drawings.values() for name in files)
        names = sorted(name for name, count in counts.items() if count >= MIN_IMAGES)
        jobs = [
            (files[name], folder / name / f"{package.removesuffix('-icon-theme')}.png")
            for package, files in drawings.items()
            for name in names
            if name in files
        ]
        with ProcessPoolExecutor() as pool:
            written = sum(pool.map(_write, *zip(*jobs, strict=True), chunksize=64))
    print(f"{len(names)} classes, {written} images in {folder}; {len(jobs) - written} are invalid")


def _write(source: Path, target: Path) -> bool:
    """Write an icon as PNG, and return whether it could be drawn."""
    if source.suffix == ".svg":
        try:
            write_png(source.read_text(encoding="utf-8"), target, side=SIDE)
        except ValueError:  # e.g. a namespace that the file does not declare
            return False
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return True


def _unpack(package: str, scratch: Path) -> dict[str, Path]:
    """Return name -> file of the icons of 48 pixels of a package; empty if Debian lacks it."""
    folder = scratch / package
    folder.mkdir()
    if subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=False).returncode:
        print(f"{package}: not in this release of Debian")
        return {}
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder / "all"], check=True)
    found: dict[str, Path] = {}
    for file in sorted((folder / "all/usr/share/icons").rglob("*")):
        parts = file.relative_to(folder).parts
        is_48 = "48" in parts or "48x48" in parts
        if is_48 and file.suffix in (".png", ".svg") and file.is_file() and not file.is_symlink():
            found.setdefault(file.stem, file)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
