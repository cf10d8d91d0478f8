"""MkDocs hook that makes a page of the notebook in examples/, with the outputs stored in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_STYLE = re.compile(r"\x1b\[[\d;]*m")
NOTEBOOK = Path(__file__).parents[1] / "examples/search.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "notebook.md", content=page()))
    return files


def page() -> str:
    """Return the page as Markdown."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parts = [part for cell in notebook.cells for part in _cell(cell)]
    return "\n\n".join([*parts, "*This page is the notebook `examples/search.ipynb`.*\n"])


def _cell(cell: Any) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![Output](data:image/png;base64,{data['image/png'].strip()})"
        elif text := output.get("text") or data.get("text/plain"):
            yield f"```text\n{_STYLE.sub('', text).rstrip()}\n```"
