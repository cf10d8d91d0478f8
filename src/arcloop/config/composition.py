"""Compose the config from conf/ and overrides, and check it before any work starts.

Imports Hydra and pydantic but not torch. All faults of a config are reported in one error.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from arcloop.config import targets
from arcloop.config.files import bundled, choices_of, config_groups
from arcloop.config.input_size import register_input_size
from arcloop.config.monitors import find_monitor_faults
from arcloop.config.project import register_search_path
from arcloop.config.schema import Config
from arcloop.config.value_types import describe_mismatch, field_types, find_mismatches
from arcloop.errors import ArcloopError, ConfigError

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""Exceptions of a composition, for `as_config_error`."""


def register_schema() -> None:
    """Register the schema and the project with Hydra, and the resolvers with OmegaConf."""
    register_search_path()
    register_input_size()
    ConfigStore.instance().store(name="schema", node=Config, provider="arcloop")
    if not OmegaConf.has_resolver("bundled"):
        OmegaConf.register_new_resolver("bundled", lambda name: str(bundled(name)))


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/config.yaml with overrides, as the command line does, and check it.

    Raises:
        ConfigError: The config is invalid; the message lists every fault.
    """
    config = compose_unchecked(overrides, hydra=False)
    check_config(config)
    return config


def compose_unchecked(overrides: Sequence[str], *, hydra: bool = True) -> DictConfig:
    """Compose the config without checking it.

    Args:
        overrides: Hydra overrides.
        hydra: Include Hydra's own settings under the key `hydra`.

    Raises:
        ConfigError: An override has an unknown key or choice, or a value of the wrong type.
    """
    register_schema()
    require_single_values(overrides)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=hydra)
    except CONFIG_ERRORS as cause:
        raise as_config_error(cause) from None


def compose_choice(group: str, choice: str, search_path: Sequence[str] = ()) -> DictConfig:
    """Compose one choice of a config group alone, which is much faster than the whole config.

    Args:
        group: E.g. "head".
        choice: E.g. "arcface".
        search_path: Overrides of `hydra.searchpath`, if there are any.

    Raises:
        ConfigError: There is no such choice.
    """
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            return compose(None, [*search_path, f"+{group}={choice}"])
    except CONFIG_ERRORS as cause:
        raise as_config_error(cause) from None


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises:
        ConfigError: A string is not a valid override.
    """
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as cause:
        raise as_config_error(cause) from None


def quote_override(key: str, value: str) -> str:
    """Return the override of a text as a word for a shell, quoted where Hydra or the shell need it.

    >>> quote_override("run_dir", "runs/mnist")
    'run_dir=runs/mnist'
    >>> print(quote_override("data.delimiter", ";"))
    'data.delimiter=";"'
    """
    word = f"{key}={value}"
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
        is_read = not parsed.is_sweep_override() and parsed.value() == value
    except HydraException:
        is_read = False
    if not is_read:
        word = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    return shlex.quote(word)


def require_single_values(overrides: Sequence[str]) -> None:
    """Check that no override has several values, which are allowed only in a sweep.

    Raises:
        ConfigError: An override has several values.
    """
    for text, override in zip(overrides, parse_overrides(overrides), strict=True):
        if override.is_sweep_override():
            raise ConfigError(
                f"{text} has several values",
                remedy="-m runs one job for each; a list is written in brackets, a text with a"
                f" comma as {quote_override(*_split(text))}",
            )


def check_config(config: DictConfig) -> None:
    """Check a composed config for missing, unknown, wrongly typed and out-of-range values.

    Raises:
        ConfigError: A value is invalid; the message lists every fault.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as cause:  # an interpolation that cannot be resolved
        raise as_config_error(cause) from None
    faults = [f"{key} is required; pass {key}=..." for key in missing]
    if not faults:
        plain, known = to_plain(config), field_types(Config)
        faults = [f"{key} is not a key of the config" for key in plain if key not in known]
        faults += find_mismatches(plain, known, "")
        faults += targets.find_faults(plain)
        faults += [] if faults else find_monitor_faults(plain)
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return the resolved config, without Hydra's own settings, as dicts, lists and scalars."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def as_config_error(cause: BaseException) -> ArcloopError:
    """Convert an exception of Hydra, OmegaConf or PyYAML to a `ConfigError`.

    An `ArcloopError` among its causes is returned unchanged.
    """
    chain = list(_causes(cause))
    for link in chain:
        if isinstance(link, ArcloopError):
            return link
    for link in chain:
        if isinstance(link, yaml.MarkedYAMLError):
            mark, message = link.problem_mark, f"this is not valid YAML: {link.problem}"
            place = f"{mark.name}, line {mark.line + 1}" if mark else None
            return ConfigError(message, where=place, remedy="correct the file")
        if isinstance(link, MissingConfigException):
            return _unknown_choice(link)
        if isinstance(link, OverrideParseException):
            remedy = "an override is KEY=VALUE"
            if "=" in link.override:
                remedy = f"if the value is a text, write {quote_override(*_split(link.override))}"
            return ConfigError(f"cannot read the override {link.override!r}", remedy=remedy)
        if isinstance(link, ValidationError) and link.full_key:
            return _wrong_type(link.full_key, link.value)
        if isinstance(link, ConfigKeyError | ConfigAttributeError) and link.full_key:
            return _unknown_key(link.full_key)
    where = str(cause).partition("full_key: ")[2]  # exceptions of `instantiate` lack the attribute
    first_line = str(chain[-1] if where else cause).strip().partition("\n")[0]
    return ConfigError(
        first_line or type(cause).__name__,
        where=where or None,
        remedy="correct the override; see `arcloop --help`",
    )


def build(config: DictConfig, name: str) -> Any:
    """Build the object of a config group: a `_target_` node, or typed settings.

    Raises:
        ConfigError: The constructor rejects the values.
    """
    node = config[name]
    return {} if node is None else build_node(node)


def build_node(node: Any) -> Any:
    """Build the object that a node of a config or a manifest describes.

    Raises:
        ConfigError: The constructor rejects the values.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="object")
    except Exception as cause:  # constructors raise various types on wrong values
        raise as_config_error(cause) from cause


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_choice(error: MissingConfigException) -> ConfigError:
    """Return an error with the choices of the group."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(choices_of(group))
    near = difflib.get_close_matches(choice, options, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(
        f"there is no {group}={choice}", remedy=f"{hint}choices: {', '.join(options)}"
    )


def _wrong_type(key: str, value: object) -> ConfigError:
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


def _unknown_key(key: str) -> ConfigError:
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
