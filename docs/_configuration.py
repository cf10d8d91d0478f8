"""MkDocs hook that generates the page of all config groups from conf/ and the docstrings.

See `arcloop.config.descriptions`, which also makes the help of the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from arcloop.config.descriptions import Key, keys_of_choice, keys_of_config, summary_of_choice
from arcloop.config.files import choices_of, config_groups
from arcloop.config.type_names import describe_type

PAGE = "configuration.md"
_INTRODUCTION = """\
# Every config group

*Generated from `conf/` and the docstrings.* `GROUP=CHOICE` selects a choice of a group, and
`GROUP.KEY=VALUE` sets a value. `arcloop VERB --help GROUP=CHOICE` prints a part of this page, and
`arcloop VERB --cfg job` the composed config. Each choice shows its YAML file, which contains the
default values.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page as Markdown."""
    keys = keys_of_config()
    sections = [key for key in keys if key.is_section and "." not in key.name]
    parts = [_INTRODUCTION, "## Top-level values\n"]
    parts += _table(key for key in keys if "." not in key.name and not key.is_section)
    for section in sections:
        inner = [key for key in keys if key.name.startswith(f"{section.name}.")]
        parts += [f"### {section.name}\n\n{section.description}\n", *_table(inner)]
    for group in config_groups():
        parts += [f"## {group}\n", *_group(group)]
    return "\n".join(parts)


def _group(group: str) -> Iterator[str]:
    for choice, file in choices_of(group).items():
        yield f"### {group}={choice}\n\n{summary_of_choice(group, choice)}\n"
        yield from _table(keys_of_choice(group, choice))
        body = "\n".join(f"    {line}" for line in file.read_text().splitlines())
        yield f'??? abstract "conf/{group}/{file.name}"\n\n    ```yaml\n{body}\n    ```\n'


def _table(keys: Iterable[Key]) -> Iterator[str]:
    """Yield a table of the keys that files set."""
    rows = [key for key in keys if key.is_set]
    if rows:
        yield "| key | value | type | meaning |\n|---|---|---|---|"
        for key in rows:
            shown = "" if key.is_section else f"`{_scalar(key.default)}`"
            kind = ", ".join(filter(None, (describe_type(key.schema), key.unit)))
            yield f"| `{key.name}` | {shown} | {_cell(kind)} | {_cell(key.description)} |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip().replace("|", "\\|")
