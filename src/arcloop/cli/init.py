"""Create a project: own configs and classes, a test and a workflow.

See `arcloop.config.project` for how commands find it.
"""

from __future__ import annotations

import argparse
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from arcloop.artifacts.atomic import is_empty, replace_folder, write_json
from arcloop.cli.schema import FOLDER, editor_settings, write_schemas
from arcloop.config.project import project_of
from arcloop.errors import ConfigError

_TAKEN = {"arcloop", "torch", "hydra", "numpy", "faiss", "conf", "tests", *sys.stdlib_module_names}
"""Names that a package of the user would hide, or that would hide it."""
_FILES = {
    "pyproject.toml": """\
[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["arcloop[cpu,serving]"]

[project.optional-dependencies]
dev = ["pytest"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["src/NAME"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]

# This table marks the folder as a project: commands in it read conf/ and src/.
[tool.arcloop]
""",
    "README.md": """\
# NAME

    pip install -e '.[dev]'
    arcloop validate experiment=NAME data.root=my/pictures
    arcloop run experiment=NAME data.root=my/pictures
    arcloop train -m experiment=NAME data.root=my/pictures head=arcface,NAME_head seed=0,1,2
    arcloop serve run_dir=runs/NAME

`my/pictures` has one folder of images for each class. `arcloop --help` lists all choices.
""",
    ".gitignore": "/runs/\n/stores/\n/model_store/\n__pycache__/\n",
    "Dockerfile": """\
# The image of the steps of `arcloop pipeline` on a cluster: arcloop, the configs and the classes.
#   docker build -t registry.example/NAME --build-arg REVISION=$(git rev-parse HEAD) .
#   docker push registry.example/NAME, and export ARCLOOP_IMAGE=registry.example/NAME@sha256:...
FROM python:3.11-slim
RUN pip install --no-cache-dir "arcloop[cpu,kubeflow,serving]"
COPY conf /opt/NAME/conf
COPY src /opt/NAME/src
RUN useradd --create-home --uid 1000 arcloop
USER 1000:1000
WORKDIR /home/arcloop
ARG REVISION=""
ENV HOME=/home/arcloop OMP_WAIT_POLICY=PASSIVE ARCLOOP_REVISION=$REVISION \\
    ARCLOOP_PROJECT=/opt/NAME PYTHONPATH=/opt/NAME/src
ENTRYPOINT ["arcloop"]
""",
    ".dockerignore": "*\n!conf\n!src\n**/__pycache__\n",
    "conf/experiment/NAME.yaml": """\
# @package _global_
# Starts from experiment=images, which is for many classes with few images each.
defaults:
  - images
  - override /data: NAME
# - override /head: NAME_head      # a head of this project, see conf/head/NAME_head.yaml
name: NAME
# What your application needs; the gate of experiment=images is a start.
# evaluate: {gate: {min_top1: 0.9}}
""",
    "conf/data/NAME.yaml": """\
# The images of this project. The other keys are those of data=image_folder.
defaults: [image_folder]
name: NAME
root: ???     # a folder with a folder of images for each class; here, or data.root=my/pictures
""",
    "conf/head/NAME_head.yaml": """\
# A head of this project: head=NAME_head. The other keys are those of head=arcface.
defaults: [arcface]
_target_: NAME.heads.RampedArcFace
ramp_from: 0.5
""",
    "conf/augmentation/NAME.yaml": """\
# augmentation=NAME: two of arcloop; a class of this project is named in the same way.
_target_: arcloop.training.augmentation.Chain
shift:
  _target_: arcloop.training.augmentation.RandomAffine
  shift: 0.08
  scale: 0.1
  rotate_degrees: 0
  outside: border
color:
  _target_: arcloop.training.augmentation.ColorJitter
  brightness: 0.2
  contrast: 0.2
  saturation: 0.2
  hue: 0.0
""",
    "src/NAME/__init__.py": '"""Classes of the project NAME."""\n',
    "src/NAME/heads.py": '''\
"""Heads of this project."""

from typing import Any

from arcloop.models import ArcFace
from torch import Tensor


class RampedArcFace(ArcFace):
    """ArcFace with a smaller margin for images that are far from their class.

    Args:
        ramp_from: Share of the margin for an image at a right angle to its class, in [0, 1].
        **shared: The arguments of ArcFace.
    """

    def __init__(self, *, ramp_from: float, **shared: Any) -> None:
        super().__init__(**shared)
        self.ramp_from = ramp_from

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        """Change the cosines of the targets."""
        share_M = self.ramp_from + (1 - self.ramp_from) * cos_M.detach().clamp(min=0)
        return cos_M + share_M * (super().with_margin(cos_M, labels_M) - cos_M)
''',
    "tests/test_heads.py": '''\
"""The head of this project lies between no margin and the full margin."""

import torch
from arcloop.models import ArcFace

from NAME.heads import RampedArcFace

VALUES = {"embedding_dim": 8, "num_classes": 3, "scale": 16.0, "margin": 0.3,
          "easy_margin": False, "size_margin": 0.0, "size_power": 0.25}


def test_the_margin_is_ramped():
    cos_M, labels_M = torch.tensor([0.9, 0.1, -0.5]), torch.tensor([0, 1, 2])
    full_M = ArcFace(**VALUES).with_margin(cos_M, labels_M)
    ramped_M = RampedArcFace(ramp_from=0.5, **VALUES).with_margin(cos_M, labels_M)
    assert ((full_M < ramped_M) & (ramped_M < cos_M)).all()
''',
    ".github/workflows/test.yml": """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.11"}
      - run: pip install -e '.[dev]'
      - run: pytest
""",
}


def init(arguments: Sequence[str]) -> int:
    """Write the files of a new project.

    Raises:
        ConfigError: The name is not that of a Python package, or the folder is not empty.
    """
    parser = argparse.ArgumentParser("arcloop init", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="its last part is the name of the project")
    folder = Path(parser.parse_args(arguments).folder).absolute()
    name = folder.name.replace("-", "_")
    if not name.isidentifier() or keyword.iskeyword(name) or name in _TAKEN:
        raise ConfigError(
            f"{folder.name!r} cannot be the name of a Python package of its own",
            where=folder,
            remedy="use a name of letters, digits and _ that no other package has, such as shop",
        )
    if folder.exists() and not (folder.is_dir() and is_empty(folder)):
        raise ConfigError("it exists and is not empty", where=folder, remedy="name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "project"
        for path, content in _FILES.items():
            file = made / path.replace("NAME", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content.replace("NAME", name), encoding="utf-8")
        with project_of(["--config-dir", str(made / "conf")]):
            write_schemas(made / FOLDER)
            (made / ".vscode").mkdir()
            write_json(made / ".vscode/settings.json", editor_settings())
        replace_folder(made, folder)
    print(f"created {folder}\nnext: cd {folder}, and see README.md there")
    return 0
