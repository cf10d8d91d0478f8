"""The options of `arcloop pipeline` that are no overrides of the config."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arcloop.errors import ConfigError

_KEYS = ("mode", "schedule", "wait", "run")
_SERVER_MODES = ("status", "terminate", "schedules", "unschedule")
_MODES = ("run", "compile", *_SERVER_MODES, "refresh")


@dataclass(frozen=True)
class Options:
    """The options of a command.

    Attributes:
        mode: What to do, see `arcloop pipeline --help`.
        schedule: Cron schedule of a recurring run, as the user writes it.
        wait: Follow the run to its end.
        run: ID of a run on the server.
    """

    mode: str = "run"
    schedule: str | None = None
    wait: bool = False
    run: str | None = None

    @property
    def needs_pipeline(self) -> bool:
        """Whether the pipeline is compiled; the other modes only read or change the server."""
        return self.mode not in _SERVER_MODES


def split_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Separate the options from the overrides of the config.

    Raises:
        ConfigError: An option has an unknown value, or does not belong to the mode.
    """
    pairs = [argument.partition("=") for argument in argv]
    values = {key: value for key, _, value in pairs if key in _KEYS}
    overrides = ["".join(pair) for pair in pairs if pair[0] not in _KEYS]
    mode, wait = values.get("mode", "run"), values.get("wait", "false").lower()
    if mode not in _MODES:
        raise ConfigError(f"mode={mode} must be one of {', '.join(_MODES)}", remedy="see --help")
    if wait not in ("true", "false"):
        raise ConfigError(f"wait={wait} must be true or false", remedy="see --help")
    options = Options(mode, values.get("schedule"), wait == "true", values.get("run"))
    names = [override for override in overrides if override.startswith("name=")]
    if faults := list(_faults(options, bool(names))):
        raise ConfigError("\n".join(faults), remedy="see --help; nothing was started")
    return options, overrides


def _faults(options: Options, has_name: bool) -> Iterator[str]:
    of_run = options.mode in ("status", "terminate")
    if of_run and not options.run:
        yield f"mode={options.mode} needs run=ID, which is printed when a run starts"
    if options.run is not None and not of_run:
        yield "run= needs mode=status or mode=terminate"
    if options.schedule is not None and options.mode not in ("run", "compile"):
        yield f"schedule= has no effect with mode={options.mode}"
    if options.wait and (options.schedule or options.mode not in ("run", "status")):
        yield "wait=true needs a run: it has no effect with schedule= and this mode"
    if options.mode == "unschedule" and not has_name:
        yield "mode=unschedule needs name=, the name of the schedule; mode=schedules lists them"


def suggest_option(cause: ConfigError, overrides: Sequence[str]) -> ConfigError:
    """Suggest an option if the unknown key of the error is similar to one of them."""
    for override in overrides:
        key = override.partition("=")[0]
        near = difflib.get_close_matches(key, _KEYS, n=1)
        if near and cause.what == f"there is no key {key}":
            return ConfigError(cause.what, where=cause.where, remedy=f"did you mean {near[0]}?")
    return cause
