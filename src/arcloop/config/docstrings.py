"""Descriptions in the docstrings of classes and functions."""

from __future__ import annotations

import re

from arcloop.config.signatures import read_docstrings


def described(docstring: str) -> dict[str, str]:
    """Return the description of each argument or attribute in a docstring in Google's style.

    Returns:
        Name -> description, on one line.
    """
    pattern = r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)"
    section = re.search(pattern, docstring, flags=re.DOTALL | re.M)
    if not section:
        return {}
    entries = re.findall(
        r"^ {4}(\w+)[^:\n]*: (.*?)(?=^ {4}[\w*]|\Z)", section.group(1), flags=re.DOTALL | re.M
    )
    return {name: " ".join(words.split()) for name, words in entries}


def summary_of(target: str) -> str:
    """Return the first paragraph of the docstring of a class, on one line; "" if there is none."""
    try:
        texts = read_docstrings(target) if target else []
    except LookupError:
        return ""
    return " ".join(texts[-1].partition("\n\n")[0].split()) if texts else ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a description.

    >>> first_sentence("Angle in radians, e.g. 0.5. Larger is harder.")
    'Angle in radians, e.g. 0.5.'
    """
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!al)\.(?=\s+[A-Z`\"])", text)
    return text[: end.end()] if end else text
