"""conf/ and overrides -> one checked config. Imports Hydra and nothing heavier.

Every fault that can be seen without torch is found here, all of them at once, before any work.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arcloop.config import targets
from arcloop.config.schema import (
    BackboneWeightsSettings,
    CalibrationSettings,
    Config,
    EmbedSettings,
    EvaluateSettings,
    LoaderSettings,
    ValidationSettings,
    setting_faults,
)
from arcloop.errors import ArcloopError, ConfigError

_SETTINGS = {
    "loader": LoaderSettings,
    "backbone_weights": BackboneWeightsSettings,
    "validation": ValidationSettings,
    "embed": EmbedSettings,
    "calibration": CalibrationSettings,
    "evaluate": EvaluateSettings,
}
_CHOICES = {"resume": ("auto", "true", "false"), "monitor_mode": ("max", "min")}


def bundled(name: str) -> Path:
    """Return the folder of something that comes with arcloop: "conf" or "mnist"."""
    package = Path(__file__).parents[1]
    installed = package / "_bundled" / name
    if installed.is_dir():
        return installed
    checkout = package.parents[1]
    return checkout / {"conf": "conf", "mnist": "data/mnist"}[name]


def register() -> None:
    """Tell Hydra the types of the settings, and OmegaConf the `bundled` resolver."""
    ConfigStore.instance().store(name="schema", node=Config, provider="arcloop")
    if not OmegaConf.has_resolver("bundled"):
        OmegaConf.register_new_resolver("bundled", lambda name: str(bundled(name)))


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/config.yaml with overrides, as the command line does, and check it.

    Raises:
        ConfigError: Anything about it is wrong.
    """
    config = compose_with_hydra(overrides, hydra=False)
    check(config)
    return config


def compose_with_hydra(overrides: Sequence[str], *, hydra: bool = True) -> DictConfig:
    """Compose without checking, with Hydra's own settings if asked for.

    Raises:
        ConfigError: An override names no key or choice, or has the wrong type.
    """
    register()
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException) as cause:
        raise explain(cause) from None


def check(config: DictConfig) -> None:
    """Refuse a composed config in which anything is missing, misspelt, mistyped or out of range.

    Raises:
        ConfigError: Names every fault there is.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as cause:  # an interpolation leads nowhere
        raise explain(cause) from None
    faults = [f"{key} is required; pass {key}=..." for key in missing]
    if not faults:
        plain = to_plain(config)
        faults = _scalar_faults(plain)
        for name, settings in _SETTINGS.items():
            faults += setting_faults(settings, plain[name], name)
        groups = {key: value for key, value in plain.items() if key not in _SETTINGS}
        faults += targets.faults(groups)
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")


def _scalar_faults(plain: Mapping[str, Any]) -> list[str]:
    known = [field.name for field in fields(Config)]
    faults = [f"{key} is no key of the config" for key in plain if key not in known]
    for key, choices in _CHOICES.items():
        if str(plain[key]).lower() not in choices:
            faults.append(f"{key}={plain[key]} must be one of {', '.join(choices)}")
    if plain["seed"] < 0:
        faults.append(f"seed={plain['seed']} must not be negative")
    return faults


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return the resolved config as dicts, lists and scalars."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def explain(cause: BaseException) -> ArcloopError:
    """Turn what Hydra or OmegaConf raised into one clear `ConfigError`; keep our own errors."""
    chain = list(_causes(cause))
    for link in chain:
        if isinstance(link, ArcloopError):
            return link
    for link in chain:
        if isinstance(link, MissingConfigException):
            return _missing_choice(link)
        if isinstance(link, OverrideParseException):
            return ConfigError(
                f"cannot read the override {link.override!r}",
                remedy="an override is KEY=VALUE; quote values with spaces or brackets",
            )
    return _bad_override(cause, chain)


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_choice(error: MissingConfigException) -> ConfigError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or [])
    near = difflib.get_close_matches(choice, options, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(
        f"there is no {group}={choice}", remedy=f"{hint}choices: {', '.join(sorted(options))}"
    )


def _bad_override(cause: BaseException, chain: Sequence[BaseException]) -> ConfigError:
    text = "\n".join(str(link) for link in chain)
    named = re.search(r"(?:Could not override|merging override) '?\+*([\w.@/]+)", text)
    unknown = re.search(r"Key '(\w+)' (?:is )?not in (?:struct|'\w+')", text)
    if unknown:
        key = named.group(1) if named else unknown.group(1)
        return _unknown_key(key)
    wrong_type = re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text)
    if wrong_type:
        where = re.search(r"full_key: (\S+)", text)
        key = where.group(1) if where else named.group(1) if named else "a value"
        kind = {"Integer": "an int", "Float": "a number", "Boolean": "true or false"}
        what = kind.get(wrong_type.group(2), f"a {wrong_type.group(2)}")
        return ConfigError(f"{key}={wrong_type.group(1)} must be {what}", remedy="change the value")
    if isinstance(cause, InstantiationException):
        root = chain[-1]
        where = re.search(r"full_key: (\S+)", text)
        return ConfigError(
            str(root).splitlines()[0],
            where=where.group(1) if where else None,
            remedy="change the value",
        )
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return ConfigError(
            f"{several.group(1)} has several values",
            remedy="-m makes a job for each; a list is written in brackets",
        )
    lines = [line for line in str(cause).splitlines() if line.strip()]
    first = lines[0] if lines else type(cause).__name__
    if isinstance(cause, ConfigCompositionException) and len(chain) > 1:
        first = f"{first} {str(chain[1]).splitlines()[0]}"
    return ConfigError(first, remedy="correct the override; see `arcloop --help`")


def _unknown_key(key: str) -> ConfigError:
    """Say which known key was meant, or of which choice of its group the key is."""
    conf = bundled("conf")
    group = key.partition(".")[0]
    choices = {
        file.stem: set(_keys(_read(file), f"{group}."))
        for file in sorted((conf / group).glob("*.yaml"))
    }
    with_key = [choice for choice, keys in choices.items() if key in keys]
    if with_key:
        return ConfigError(
            f"the chosen {group} has no key {key}", remedy=f"{group}={' or '.join(with_key)} has it"
        )
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir()}
    known = groups.union(_keys(_read(conf / "config.yaml")), *choices.values())
    siblings = {k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]}
    near = difflib.get_close_matches(key, sorted(siblings), n=2, cutoff=0.85)
    near = near or difflib.get_close_matches(key, sorted(siblings), n=2)
    near = near or difflib.get_close_matches(key, sorted(known), n=2)
    remedy = f"did you mean {' or '.join(near)}?" if near else "see `arcloop --help` for the keys"
    return ConfigError(f"there is no key {key}", remedy=remedy)


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_bytes())


def _keys(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _keys(child, f"{prefix}{name}.")
