"""The options of `arcloop pipeline` that are not overrides of the config."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arcloop.errors import ConfigError

MULTIRUN = frozenset(("-m", "--multirun"))
_KEYS = ("mode", "schedule", "wait", "run", "keep_days", "dry_run")
_SERVER_MODES = ("status", "terminate", "schedules", "unschedule")
_MODES = ("run", "compile", *_SERVER_MODES, "refresh", "clean")


@dataclass(frozen=True)
class Options:
    """The options of a command.

    Attributes:
        mode: What to do, see `arcloop pipeline --help`.
        schedule: Cron schedule of a recurring run, as the user writes it.
        wait: Follow the run to its end.
        run: ID of a run on the server.
        keep_days, dry_run: Which runs `mode=clean` removes, see `arcloop.kfp.pod.retention`.
    """

    mode: str = "run"
    schedule: str | None = None
    wait: bool = False
    run: str | None = None
    keep_days: float = 30
    dry_run: bool = False

    @property
    def needs_pipeline(self) -> bool:
        """Whether the steps are compiled; the other modes read or change the server or a volume."""
        return self.mode not in (*_SERVER_MODES, "clean")


def split_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Separate the options from the overrides of the config.

    Raises:
        ConfigError: An option has an unknown value, or does not belong to the mode.
    """
    pairs = [argument.partition("=") for argument in argv]
    values = {key: value for key, _, value in pairs if key in _KEYS}
    overrides = ["".join(pair) for pair in pairs if pair[0] not in (*_KEYS, *MULTIRUN)]
    mode = values.get("mode", "run")
    if mode not in _MODES:
        raise ConfigError(f"mode={mode} must be one of {', '.join(_MODES)}", remedy="see --help")
    wait, dry_run = (_read_flag(key, values.get(key, "false")) for key in ("wait", "dry_run"))
    keep_days = _read_days(values.get("keep_days", "30"))
    if mode != "clean" and (unused := values.keys() & {"keep_days", "dry_run"}):
        raise ConfigError(f"{', '.join(sorted(unused))} needs mode=clean", remedy="see --help")
    options = Options(mode, values.get("schedule"), wait, values.get("run"), keep_days, dry_run)
    names = [override for override in overrides if override.startswith("name=")]
    sweeps = not MULTIRUN.isdisjoint(argv)
    if faults := list(_faults(options, bool(names), sweeps)):
        raise ConfigError("\n".join(faults), remedy="see --help; nothing was started")
    return options, overrides


def _read_flag(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"{key}={text} must be true or false", remedy="see --help")
    return text.lower() == "true"


def _read_days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 1 <= days < math.inf:
        raise ConfigError(
            f"keep_days={text} must be a number of days, at least 1", remedy="e.g. keep_days=30"
        )
    return days


def _faults(options: Options, has_name: bool, sweeps: bool) -> Iterator[str]:
    if sweeps and options.mode not in ("run", "compile"):
        yield f"-m has no effect with mode={options.mode}"
    of_run = options.mode in ("status", "terminate")
    if of_run and not options.run:
        yield f"mode={options.mode} needs run=ID, which is printed when a run starts"
    if options.run is not None and not of_run:
        yield "run= needs mode=status or mode=terminate"
    if options.schedule is not None and options.mode not in ("run", "compile", "clean"):
        yield f"schedule= has no effect with mode={options.mode}"
    if options.wait and (options.schedule or options.mode not in ("run", "status", "clean")):
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
