"""MkDocs hook that generates the page of all config groups from conf/ and the docstrings.

The choices and their values are read from the YAML files. The description of each value is read
from the docstring of the constructor or settings class that takes it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from arcloop.config.files import bundled
from arcloop.config.schema import Config

PAGE = "configuration.md"
_INTRODUCTION = """\
# Every config group

*Generated from `conf/` and the docstrings.* `GROUP=CHOICE` selects a choice of a group, and
`GROUP.KEY=VALUE` sets a value. `arcloop VERB --cfg job` prints the composed config. Each choice
shows its YAML file, which contains the default values.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page as Markdown."""
    conf = bundled("conf")
    groups = sorted(folder for folder in conf.iterdir() if folder.is_dir())
    parts = [_INTRODUCTION, "## Top-level values\n", *_top_level(conf / "config.yaml")]
    for group in groups:
        parts += [f"## {group.name}\n", *_group(group)]
    return "\n".join(parts)


def _top_level(file: Path) -> Iterator[str]:
    values = yaml.safe_load(file.read_bytes())
    descriptions = described(Config)
    rows = [
        (name, value, descriptions[name])
        for name, value in values.items()
        if name in descriptions and not isinstance(value, dict)
    ]
    yield from _table(rows)
    for name, annotation in inspect.get_annotations(Config, eval_str=True).items():
        if is_dataclass(annotation):
            yield f"### {name}\n\n{_first_line(annotation)}\n"
            yield from _table(_rows(annotation, values[name]))


def _group(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.yaml")):
        node = yaml.safe_load(file.read_bytes()) or {}
        target = _target(node)
        yield f"### {folder.name}={file.stem}\n\n{_comment(file) or _first_line(target)}\n"
        if target is not None:
            yield from _table(_rows(target, node))
        body = "\n".join(f"    {line}" for line in file.read_text().splitlines())
        yield f'??? abstract "conf/{folder.name}/{file.name}"\n\n    ```yaml\n{body}\n    ```\n'


def _rows(target: Any, node: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    # A constructor may pass **shared arguments to its base class, which describes them.
    descriptions: dict[str, str] = {}
    for cls in reversed(inspect.getmro(target) if inspect.isclass(target) else [target]):
        descriptions |= described(cls)
    return [
        (name, value, descriptions[name]) for name, value in node.items() if name in descriptions
    ]


def _table(rows: list[tuple[str, Any, str]]) -> Iterator[str]:
    if rows:
        yield "| key | value | meaning |\n|---|---|---|"
        for name, value, description in rows:
            shown = "" if isinstance(value, dict) else f"`{_scalar(value)}`"
            yield f"| `{name}` | {shown} | {description.replace('|', chr(92) + '|')} |"
        yield ""


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip()


def _target(node: Mapping[str, Any]) -> Any:
    if "_target_" not in node:
        return None
    module, _, name = str(node["_target_"]).rpartition(".")
    return getattr(importlib.import_module(module), name)


def _comment(file: Path) -> str:
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(line for line in lines if not line.startswith("@package"))


def _first_line(target: Any) -> str:
    return (inspect.getdoc(target) or "").partition("\n\n")[0].replace("\n", " ")


def described(target: Any) -> dict[str, str]:
    """Return the description of each argument or attribute in a docstring.

    Args:
        target: A class or function with a docstring in Google's style.

    Returns:
        Name -> description, on one line.
    """
    text = inspect.getdoc(target) or ""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text, flags=re.DOTALL | re.M)
    if not section:
        return {}
    entries = re.findall(
        r"^ {4}(\w+)[^:\n]*: (.*?)(?=^ {4}[\w*]|\Z)", section.group(1), flags=re.DOTALL | re.M
    )
    return {name: " ".join(words.split()) for name, words in entries}
