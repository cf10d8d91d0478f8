"""From the archive to an answer, nothing is ever unpickled; what is hostile is not executed."""

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
from arcloop.runtime.responder import ResponderError, verify
from arcloop.serving.archive import collect, write_archive

# Every unpickler, in C or in Python, raises this event before it looks up what a pickle names.
SERVE = """
import json, pickle, sys, yaml
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from arcloop_runtime.responder import Question, Responder
unpickled = []
def refuse(event, arguments):
    if event == "pickle.find_class":
        unpickled.append(list(arguments))
        raise RuntimeError("nothing may be unpickled")
sys.addaudithook(refuse)
def outcome(folder):
    settings = yaml.safe_load((Path(folder) / "model-config.yaml").read_bytes())["handler"]
    try:
        (reply,) = Responder(Path(folder), settings).reply([Question(Path(image).read_bytes())])
    except Exception as cause:
        return repr(cause)
    return reply.status
image, *folders = sys.argv[1:][1:]
found = {folder: outcome(folder) for folder in folders}
while_serving = list(unpickled)
try:
    pickle.loads(pickle.dumps(print))
except RuntimeError:
    pass
print(json.dumps({"found": found, "unpickled": while_serving, "control": unpickled}))
"""


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def as_npz(file, hostile):
    np.savez(file, images=np.array([hostile], object), embeddings=np.zeros((1, 16)))


def as_pickle(file, hostile):
    file.write_bytes(pickle.dumps(hostile))


def as_torch(file, hostile):
    torch.save({"state": hostile}, file)


SPOILED = [
    ("golden.npz", as_npz), ("golden.npz", as_pickle), ("model.pt", as_torch),
    ("model.pt", as_pickle), ("faiss_index.bin", as_pickle), ("faiss_label.json", as_pickle),
]  # fmt: skip


def forge(folder, name):
    """Make the manifest agree with what is there now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_nothing_is_unpickled_not_even_where_hashes_are_forged(small_run, settings, tmp_path):
    archive = write_archive(collect(small_run, settings, force=False), tmp_path)
    whole, harm, image = tmp_path / "whole", tmp_path / "harm", tmp_path / "image.png"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(whole)
    image.write_bytes(encode_png(np.load(small_run / "golden.npz")["images"][0]))
    spoiled = []
    for number, (name, write) in enumerate(SPOILED):
        folder = shutil.copytree(whole, tmp_path / str(number))
        write(folder / name, Hostile(harm))
        with pytest.raises(ResponderError, match=f"{name} has other contents"):
            verify(folder)
        forge(folder, name)
        verify(folder)
        spoiled.append(str(folder))

    command = [sys.executable, "-W", "ignore", "-c", SERVE, str(whole), str(image)]
    done = subprocess.run([*command, str(whole), *spoiled], capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["found"][str(whole)] == 200
    for folder in spoiled:
        assert "Error" in told["found"][folder]
    assert told["unpickled"] == []
    assert told["control"] == [["builtins", "print"]]  # it would have been seen
    assert not harm.exists()
