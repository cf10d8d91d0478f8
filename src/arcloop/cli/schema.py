"""Write JSON schemas of the files of conf/, for editors that complete and check YAML.

See `arcloop.config.json_schemas`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import write_json
from arcloop.config.files import config_groups
from arcloop.config.json_schemas import all_schemas
from arcloop.config.project import find_project

FOLDER = ".arcloop/schemas"
"""Folder of the schemas in a project."""


def schema(arguments: Sequence[str]) -> int:
    """Write the schemas of the current project, or without one those of arcloop."""
    parser = argparse.ArgumentParser("arcloop schema", description=__doc__)
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", help=f"default: {FOLDER} in the project"
    )
    folder = parser.parse_args(arguments).folder
    target = Path(folder) if folder is not None else (find_project() or Path.cwd()) / FOLDER
    write_schemas(target)
    print(f"wrote {len(config_groups()) + 1} schemas to {target}")
    return 0


def write_schemas(folder: Path) -> None:
    """Write one file for config.yaml and one for each group: config.json, head.json, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in all_schemas().items():
        write_json(folder / _file(name), content)


def editor_settings() -> dict[str, Any]:
    """Return the contents of .vscode/settings.json, which assign the schemas to files of conf/."""
    files = {"config": "conf/config.yaml"} | {g: f"conf/{g}/*.yaml" for g in config_groups()}
    schemas = {f"./{FOLDER}/{_file(name)}": pattern for name, pattern in files.items()}
    return {"yaml.schemas": schemas}


def _file(name: str) -> str:
    return f"{name.replace('/', '-')}.json"
