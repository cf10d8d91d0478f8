"""Compose the config from conf/ and overrides, and check it before any work starts.

Imports Hydra and pydantic but not torch. All faults of a config are reported in one error.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
from arcloop.config.faults import unknown_choice, unknown_key, wrong_type
from arcloop.config.files import bundled
from arcloop.config.input_size import register_input_size
from arcloop.config.monitors import find_monitor_faults
from arcloop.config.own_files import Fault, find_faults, find_places, find_unread_keys
from arcloop.config.project import own_conf
from arcloop.config.schema import Config
from arcloop.config.search_path import register_search_path
from arcloop.config.value_types import field_types, find_mismatches
from arcloop.config.yaml_files import yaml_error
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
    check_config(config, overrides)
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
        raise as_config_error(cause, overrides) from None


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


def check_config(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Check a composed config for missing, unknown, wrongly typed and out-of-range values.

    Args:
        config: The config.
        overrides: The overrides that it was composed from, to find the files of the project that
            set the values.

    Raises:
        ConfigError: A value is invalid; the message lists every fault.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as cause:  # an interpolation that cannot be resolved
        raise as_config_error(cause, overrides) from None
    found = [f"{key} is required; pass {key}=..." for key in missing]
    if not found:
        plain, known = to_plain(config), field_types(Config)
        found = [f"{key} is not a key of the config" for key in plain if key not in known]
        found += find_mismatches(plain, known, "")
        found += targets.find_faults(plain)
        found += [] if found else find_monitor_faults(plain)
    faults = [Fault(text) for text in found]
    if own_conf() is not None:
        given = _given(overrides)
        faults = _with_places(faults, given) if faults else find_unread_keys(given)
    if faults:
        raise _error(faults)


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """Return group or key -> value of the overrides with one value."""
    parsed = (override for override in parse_overrides(overrides))
    return {o.key_or_group: o.value() for o in parsed if not o.is_sweep_override()}


def _with_places(faults: Sequence[Fault], given: Mapping[str, Any]) -> list[Fault]:
    """Return the faults of the project's files, and the others with the lines that set the keys."""
    in_files, places = find_faults(given), find_places(given)
    reported = {fault.key for fault in in_files}
    others = (fault for fault in faults if fault.key not in reported)
    return [*in_files, *(replace(fault, place=places.get(fault.key)) for fault in others)]


def _error(faults: Sequence[Fault]) -> ConfigError:
    remedy = "correct the config; nothing was started"
    if len(faults) == 1:
        return ConfigError(faults[0].text, where=faults[0].place, remedy=remedy)
    return ConfigError("\n".join(map(str, faults)), remedy=remedy)


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return the resolved config, without Hydra's own settings, as dicts, lists and scalars."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def as_config_error(cause: BaseException, overrides: Sequence[str] | None = None) -> ArcloopError:
    """Convert an exception of Hydra, OmegaConf or PyYAML to a `ConfigError`.

    An `ArcloopError` among its causes is returned unchanged.

    Args:
        cause: The exception.
        overrides: The overrides of a composition that failed. If files of the project have faults,
            all of them are reported instead of the first, which the exception names.
    """
    chain = list(_causes(cause))
    for link in chain:
        if isinstance(link, ArcloopError):
            return link
    if overrides is not None and (found := _error_in_files(chain, overrides)):
        return found
    for link in chain:
        if found := _convert(link):
            return found
    where = str(cause).partition("full_key: ")[2]  # exceptions of `instantiate` lack the attribute
    first_line = str(chain[-1] if where else cause).strip().partition("\n")[0]
    return ConfigError(
        first_line or type(cause).__name__,
        where=where or None,
        remedy="correct the override; see `arcloop --help`",
    )


def _error_in_files(chain: Sequence[BaseException], overrides: Sequence[str]) -> ConfigError | None:
    """Return all faults of the project's files after a composition failed; None without any."""
    if own_conf() is None or any(isinstance(link, OverrideParseException) for link in chain):
        return None
    try:
        faults = find_faults(_given(overrides))
    except ConfigError as error:  # a file is not YAML
        return error
    return _error(faults) if faults else None


def _convert(link: BaseException) -> ConfigError | None:
    """Convert an exception in a chain; None if another one in the chain says more."""
    if isinstance(link, yaml.MarkedYAMLError):
        return yaml_error(link)
    if isinstance(link, MissingConfigException):
        return unknown_choice(link)
    if isinstance(link, OverrideParseException):
        remedy = "an override is KEY=VALUE"
        if "=" in link.override:
            remedy = f"if the value is a text, write {quote_override(*_split(link.override))}"
        return ConfigError(f"cannot read the override {link.override!r}", remedy=remedy)
    if isinstance(link, ValidationError) and link.full_key:
        return wrong_type(link.full_key, link.value)
    if isinstance(link, ConfigKeyError | ConfigAttributeError) and link.full_key:
        return unknown_key(link.full_key)
    return None


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
