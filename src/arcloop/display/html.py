"""Rendering of Jinja templates, and images embedded in HTML as data URIs."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def render_template(
    template: Path, *, filters: Mapping[str, Callable[..., Any]] | None = None, **values: object
) -> str:
    """Render a Jinja template.

    In templates named `*.html.j2`, values are escaped, because users choose class names and config.

    Args:
        template: The file of the template.
        filters: Additional filters, name -> function.
        **values: Variables of the template.

    Returns:
        The rendered text.

    Raises:
        jinja2.UndefinedError: The template uses a variable that is not in `values`.
    """
    environment = _environment(template.parent, tuple((filters or {}).items()))
    page: str = environment.get_template(template.name).render(values)
    # Names of files that are not UTF-8 contain surrogates, which cannot be written to a page.
    return page.encode("utf-8", "backslashreplace").decode()


@functools.cache
def _environment(folder: Path, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Any:
    """Return a Jinja environment, which keeps the templates that it has compiled."""
    import jinja2  # imported here because most commands render no page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= dict(filters)
    return environment


def data_uri(content: bytes, kind: str) -> str:
    """Return an encoded image as a data URI.

    Args:
        content: The encoded image.
        kind: Format of the image: "png", "jpeg" or "webp".

    >>> data_uri(b"abc", "png")
    'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
