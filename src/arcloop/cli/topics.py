"""Help on parts of the config: `arcloop VERB --help head=arcface`, `head` or `head.margin`."""

from __future__ import annotations

import difflib
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

import yaml

from arcloop.config.descriptions import (
    Key,
    default_choices,
    find_in_choices,
    keys_of_choice,
    keys_of_config,
    summary_of_choice,
)
from arcloop.config.docstrings import first_sentence
from arcloop.config.files import choices_of, config_groups
from arcloop.config.type_names import describe_type
from arcloop.config.yaml_files import read_choice
from arcloop.errors import ConfigError

_INDENT = "    "


def print_topics(words: Sequence[str]) -> None:
    """Print the help on each word.

    Lines are wrapped to the width of a terminal. In a pipe or file, each key has one line, followed
    by one line with its description.

    Args:
        words: Groups, choices such as "head=arcface", and keys such as "head.margin". A choice is
            also the one that the keys of its group are described for.

    Raises:
        ConfigError: A word is none of these; the message has similar ones.
    """
    named = [word.lstrip("+~").partition("=") for word in words]
    chosen = {key: tuple(value.strip("[]").split(",")) for key, _, value in named if value}
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    blocks = [list(_topic(key, value, chosen)) for key, _, value in named]
    for number, block in enumerate(blocks):
        if number:
            print()
        for line in block:
            print(_wrap(line, width))


def _topic(key: str, value: str, chosen: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if key in config_groups():
        if not value:
            yield from _group(key)
        for number, choice in enumerate(chosen[key] if value else ()):
            yield from [""] * bool(number)
            yield from _choice(key, choice.strip())
        return
    found = list(find_in_choices(key, chosen))
    if not found:
        raise _unknown(key)
    choice, first = found[0]
    if first.is_section:
        yield f"{key}: {first.description}".removesuffix(": ")
        yield from _facts(first)
        yield ""
        group = key.partition(".")[0]
        for child in keys_of_choice(group, choice) if choice else keys_of_config():
            if child.name.startswith(f"{key}."):
                yield from _key(child)
        return
    yield from _key(first, full=True)
    if choice:
        values = [f"{name} {_text(one.default)}" for name, one in found]
        yield f"{_INDENT}in {key.partition('.')[0]}: {', '.join(values)}"


def _group(group: str) -> Iterator[str]:
    """Yield the choices of a group, with the first sentence on each."""
    default = default_choices().get(group, ())
    yield f"{group}: its choices; GROUP=CHOICE after --help explains the keys of one"
    for choice in sorted(choices_of(group)):
        mark = " (default)" if choice in default else ""
        text = first_sentence(summary_of_choice(group, choice))
        yield f"  {group}={choice}{mark}" + (f"\n{_INDENT}{text}" if text else "")
    if not default:
        yield "  by default, none of them"


def _choice(group: str, choice: str) -> Iterator[str]:
    """Yield the summary of a choice and its keys."""
    options = choices_of(group)
    if choice not in options:
        near = difflib.get_close_matches(choice, options, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"there is no {group}={choice}", remedy=f"{hint}choices: {', '.join(sorted(options))}"
        )
    file = read_choice(group, choice)
    yield f"{group}={choice}: {summary_of_choice(group, choice)}".removesuffix(": ")
    if target := file.node.get("_target_"):
        yield f"class: {target}"
    yield f"file: {file.path}"
    for default in file.defaults:
        if default.is_override and default.choices:
            yield f"chooses: {default.group}={','.join(default.choices)}"
    keys = keys_of_choice(group, choice)
    yield ""
    for key in keys:
        if key.is_set:
            yield from _key(key)
    more = [key for key in keys if not key.is_set]
    if more:
        yield "\nThe class also takes these keys, which are added with +:"
        for key in more:
            yield from _key(key)


def _key(key: Key, *, full: bool = False) -> Iterator[str]:
    """Yield a key with default, type, range and unit, and its description."""
    if key.is_section and not full:
        yield f"{key.name}{'' if not key.target else f': {key.target}'}"
    else:
        kind = ", ".join(filter(None, (describe_type(key.schema), key.unit)))
        name = key.name if key.is_set else f"+{key.name}"
        yield f"{name}={_text(key.default)}" + (f"  ({kind})" if kind else "")
    description = key.description if full else first_sentence(key.description)
    if description:
        yield f"{_INDENT}{description}"


def _facts(key: Key) -> Iterator[str]:
    if key.target:
        yield f"class: {key.target}"


def _text(value: Any) -> str:
    """Return a value in the notation of an override."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000).strip()
    return text.removesuffix("...").strip()


def _unknown(key: str) -> ConfigError:
    group = key.partition(".")[0]
    known = {one.name for one in keys_of_config()}.union(config_groups())
    for choice in choices_of(group) if "." in key else ():
        known |= {one.name for one in keys_of_choice(group, choice)}
    near = difflib.get_close_matches(key, sorted(known), n=2)
    return ConfigError(
        f"there is no group or key {key}",
        remedy=f"did you mean {' or '.join(near)}?" if near else "see `arcloop --help`",
    )


def _wrap(text: str, width: int | None) -> str:
    """Wrap lines to a width; a line keeps its indentation."""
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent + ("" if len(indent) > 2 else _INDENT),
            break_on_hyphens=False, break_long_words=False,
        ) or [""]  # fmt: skip
    return "\n".join(lines)
