"""Paths in the arguments of a command: a run without its key, and values that Hydra misreads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException

from arcloop.errors import ConfigError

_HOME = re.compile(r"(?:(?<=,)|^)~(?=/)")
_KEY = re.compile(r"[+~]*[A-Za-z_][\w.@]*")


def name_run(arguments: Sequence[str]) -> list[str]:
    """Replace the folder of a run that is given alone, without the key `run_dir`.

    In `arcloop evaluate runs/shop`, it is the argument that is an existing folder, or a path with a
    separator. Other words, such as "list" of `arcloop versions list`, are not changed.

    Raises:
        ConfigError: There are several folders.
    """
    # Unlike Path.is_dir, this does not raise for a text that is too long for a path.
    is_folder = os.path.isdir
    runs = [a for a in arguments if is_folder(a) or (os.sep in a and "=" not in a)]
    if len(runs) > 1 or (runs and any(a.startswith("run_dir=") for a in arguments)):
        raise ConfigError(
            f"the run is given more than once: {' '.join(runs)}",
            remedy="name one run, or a sweep over runs: -m run_dir=RUN,RUN",
        )
    return [f"run_dir={a}" if a in runs else a for a in arguments]


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Quote the values that are existing paths, so that paths can be given as they are.

    A value is quoted if Hydra would not read it as this string, because it contains "=", ",", a
    bracket or a quote. In a sweep, the value may be a list of such paths, separated by commas. `~/`
    becomes the home of the user.

    Args:
        overrides: Arguments of a command. Flags, and paths that are not values, are not changed.

    Returns:
        The arguments, with these values quoted.
    """
    return [_quote_path(override) for override in overrides]


def _quote_path(override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return override
    if _HOME.search(text):  # a shell expands ~ only at the start of a word
        text = _HOME.sub(lambda _: str(Path.home()), text)
        override = f"{key}={text}"
    if _is_read_as_given(override, text):
        return override
    paths = [text] if os.path.lexists(text) else next(_split(text.split(",")), [])
    if not paths:
        return override
    return f"{key}={','.join(_quote(path) for path in paths)}"


def _quote(path: str) -> str:
    if _is_read_as_given(f"key={path}", path):
        return path
    return QuotedString(path, Quote.double).with_quotes()


def _is_read_as_given(override: str, text: str) -> bool:
    """Return whether Hydra reads the value as this string, or as another valid value."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
        value = parsed.value()
    except HydraException:
        return False
    if isinstance(value, ChoiceSweep) and value.simple_form:
        return all(os.path.lexists(str(element)) for element in value.list)
    if parsed.is_sweep_override():
        return not os.path.lexists(text)
    is_other_text = isinstance(value, str) and (value == text or os.path.lexists(value))
    # A number or null is not quoted, even if there is a file with this name.
    return is_other_text or not isinstance(value, str | list | dict) or not os.path.lexists(text)


def _split(parts: Sequence[str]) -> Iterator[list[str]]:
    """Yield every way to join the parts of a text between commas into existing paths."""
    for end in range(1, len(parts) + 1):
        if os.path.lexists(first := ",".join(parts[:end])):
            if end == len(parts):
                yield [first]
            for others in _split(parts[end:]):
                yield [first, *others]
