"""Errors about choices, keys and values that the exceptions of Hydra and OmegaConf name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import MissingConfigException

from arcloop.config.files import bundled, choices_of, config_groups
from arcloop.config.schema import Config
from arcloop.config.value_types import describe_mismatch, field_types
from arcloop.errors import ConfigError


def unknown_choice(error: MissingConfigException) -> ConfigError:
    """Return an error with the choices of the group."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if group == "hydra/launcher":
        needed = "hydra-ray-launcher 'cloudpickle<3'" if choice == "ray" else "'arcloop[sweeps]'"
        return ConfigError(
            f"hydra/launcher={choice} needs a plug-in of Hydra that is not installed",
            remedy=f"pip install {needed}",
        )
    options = sorted(choices_of(group))
    near = difflib.get_close_matches(choice, options, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(
        f"there is no {group}={choice}", remedy=f"{hint}choices: {', '.join(options)}"
    )


def wrong_type(key: str, value: object) -> ConfigError:
    """Return an error with the type that the schema requires."""
    hint: Any = Config
    for name in key.split("."):
        hint = field_types(hint).get(name, Any) if is_dataclass(hint) else Any
    if isinstance(hint, type) and is_dataclass(hint):
        remedy = f"set one of its keys: {', '.join(f'{key}.{name}' for name in field_types(hint))}"
        return ConfigError(f"{key}={value} must be a mapping", remedy=remedy)
    message = describe_mismatch(value, hint) or "has the wrong type"
    shown = "null" if value is None else value
    return ConfigError(f"{key}={shown} {message}", remedy="change the value")


def unknown_key(key: str) -> ConfigError:
    """Return an error with similar keys, or with the choices of the group that have the key."""
    group = key.partition(".")[0]
    choices = {
        name: set(_keys(_read(file), f"{group}.")) for name, file in choices_of(group).items()
    }
    with_key = [choice for choice, keys in choices.items() if key in keys]
    if with_key:
        return ConfigError(
            f"the chosen {group} has no key {key}", remedy=f"{group}={' or '.join(with_key)} has it"
        )
    main = _keys(_read(bundled("conf") / "config.yaml"))
    known = {*config_groups()}.union(main, *choices.values())
    siblings = {k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]}
    near = difflib.get_close_matches(key, sorted(siblings), n=2, cutoff=0.85)
    near = near or difflib.get_close_matches(key, sorted(siblings), n=2)
    near = near or difflib.get_close_matches(key, sorted(known), n=2)
    remedy = f"did you mean {' or '.join(near)}?" if near else "see `arcloop --help` for the keys"
    return ConfigError(f"there is no key {key}", remedy=remedy)


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_bytes())


def _keys(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _keys(child, f"{prefix}{name}.")
