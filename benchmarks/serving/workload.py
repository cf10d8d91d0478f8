"""The workload of all servers: one small model, an index of any size, and query images."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import socket
import zipfile
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from arcloop.cli.main import main as arcloop
from arcloop.serving.archive import collect, write_archive
from arcloop.serving.deploy import parse_arguments
from arcloop.serving.settings import PORTS, DeploySettings

DIMENSION = 128
_IMAGES = 64
_RUN = [
    "run", "data=synthetic", "data.train=2000", "data.val=500", "data.gallery=500",
    "data.query=500", "data.num_classes=10", "data.image_size=32", "trainer.max_epochs=1",
    f"embedder.embedding_dim={DIMENSION}", "evaluate.gate.min_top1=0.0",
]  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """An archive and the requests to send to its servers.

    Attributes:
        archive: The .mar.
        unpacked: Folder with the unpacked archive.
        settings: Settings of the servers.
        images: Encoded query images: smooth colour JPEGs of about 7 KB each.
    """

    archive: Path
    unpacked: Path
    settings: DeploySettings
    images: list[bytes]

    def write_bodies(self, file: Path, form: str) -> Path:
        """Write the requests of load.py: "raw" bodies, or JSON in the form "one" or "instances"."""
        bodies = self.images
        if form != "raw":
            ones = [{"b64": base64.b64encode(image).decode()} for image in self.images]
            several = form == "instances"
            bodies = [json.dumps({"instances": [o]} if several else o).encode() for o in ones]
        kind = "application/octet-stream" if form == "raw" else "application/json"
        content = {
            "headers": {"Content-Type": kind},
            "bodies": [base64.b64encode(body).decode() for body in bodies],
        }
        file.write_text(json.dumps(content))
        return file


def make(folder: Path, rows: int, *, workers: int) -> Workload:
    """Make a workload with a flat index of `rows` random unit vectors."""
    run = folder / "run"
    if not run.exists():
        before = Path.cwd()
        os.chdir(folder)
        try:
            if arcloop([*_RUN, f"run_dir={run}"]):
                raise RuntimeError("the run failed")
        finally:
            os.chdir(before)
    settings = parse_arguments([f"run_dir={run}"]).settings
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    settings = dataclasses.replace(settings, workers=workers, **ports)
    made = folder / f"{rows}"
    made.mkdir()
    contents = collect(run, settings, force=True)
    small = write_archive(contents, made, contents.new_version())
    unpacked = made / "unpacked"
    with zipfile.ZipFile(small) as packed:
        packed.extractall(unpacked)
    _enlarge(unpacked, rows)
    with zipfile.ZipFile(small, "w") as packed:
        for file in sorted(unpacked.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(unpacked))
    random = np.random.default_rng(0)
    return Workload(small, unpacked, settings, [_photograph(random) for _ in range(_IMAGES)])


def _enlarge(unpacked: Path, rows: int) -> None:
    """Replace the run's index by a larger one, and update the hashes."""
    random = np.random.default_rng(1)
    index = faiss.IndexFlatIP(DIMENSION)
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        vectors = random.standard_normal((count, DIMENSION), dtype=np.float32)
        index.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    faiss.write_index(index, str(unpacked / "faiss_index.bin"))
    labels = json.loads((unpacked / "faiss_label.json").read_text())
    labels_N = random.integers(0, len(labels["classes"]), rows)
    np.save(unpacked / "faiss_label.npy", labels_N)
    manifest = json.loads((unpacked / "manifest.json").read_text())
    for name in ("faiss_index.bin", "faiss_label.npy"):
        sha256 = hashlib.sha256((unpacked / name).read_bytes()).hexdigest()
        manifest["files"][name]["sha256"] = sha256
    (unpacked / "manifest.json").write_text(json.dumps(manifest))


def _photograph(random: np.random.Generator) -> bytes:
    coarse = random.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
