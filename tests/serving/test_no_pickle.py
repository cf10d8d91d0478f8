"""Serving unpickles nothing, so a malicious pickle in an archive is not executed."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import ArchiveError, verify_hashes
from arcloop.serving.archive import collect, write_archive

# Both unpicklers, in C and in Python, raise this audit event before they look up a name.
SERVE = """
import json, pickle, sys, yaml
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from arcloop_runtime.predictor import PredictRequest, Predictor
unpickled = []
def refuse(event, arguments):
    if event == "pickle.find_class":
        unpickled.append(list(arguments))
        raise RuntimeError("unpickling is forbidden")
sys.addaudithook(refuse)
def outcome(folder):
    settings = yaml.safe_load((Path(folder) / "model-config.yaml").read_bytes())["handler"]
    try:
        request = PredictRequest(Path(image).read_bytes())
        (response,) = Predictor(Path(folder), settings).predict([request])
    except Exception as cause:
        return repr(cause)
    return response.status
image, *folders = sys.argv[1:][1:]
found = {folder: outcome(folder) for folder in folders}
while_serving = list(unpickled)
try:
    pickle.loads(pickle.dumps(print))
except RuntimeError:
    pass
print(json.dumps({"found": found, "unpickled": while_serving, "control": unpickled}))
"""


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def as_npz(file, payload):
    np.savez(file, images=np.array([payload], object), embeddings=np.zeros((1, 16)))


def as_pickle(file, payload):
    file.write_bytes(pickle.dumps(payload))


def as_torch(file, payload):
    torch.save({"state": payload}, file)


DAMAGED = [
    ("golden.npz", as_npz), ("golden.npz", as_pickle), ("model.pt", as_torch),
    ("model.pt", as_pickle), ("faiss_index.bin", as_pickle), ("faiss_label.json", as_pickle),
    ("faiss_label.npy", as_pickle),
]  # fmt: skip


def forge_hash(folder, name):
    """Write the hash of the current file to the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_nothing_is_unpickled_even_with_forged_hashes(small_run, settings, tmp_path):
    contents = collect(small_run, settings, force=False)
    archive = write_archive(contents, tmp_path, contents.new_version())
    whole, harm, image = tmp_path / "whole", tmp_path / "harm", tmp_path / "image.png"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(whole)
    image.write_bytes(encode_png(np.load(small_run / "golden.npz")["images"][0]))
    damaged = []
    for number, (name, write) in enumerate(DAMAGED):
        folder = shutil.copytree(whole, tmp_path / str(number))
        write(folder / name, Malicious(harm))
        with pytest.raises(ArchiveError, match=f"{name} has changed"):
            verify_hashes(folder)
        forge_hash(folder, name)
        verify_hashes(folder)
        damaged.append(str(folder))

    command = [sys.executable, "-W", "ignore", "-c", SERVE, str(whole), str(image)]
    done = subprocess.run([*command, str(whole), *damaged], capture_output=True, check=True)
    result = json.loads(done.stdout)
    assert result["found"][str(whole)] == 200
    for folder in damaged:
        assert "Error" in result["found"][folder]
    assert result["unpickled"] == []
    assert result["control"] == [["builtins", "print"]]  # the control pickle was detected
    assert not harm.exists()
