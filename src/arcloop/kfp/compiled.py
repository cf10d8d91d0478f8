"""The compiled pipeline's own word on its parameters, which neither kfp nor its client heeds."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from arcloop.errors import ConfigError

_KINDS = {"LIST": list, "STRING": str, "BOOLEAN": bool, "NUMBER_INTEGER": int,
          "NUMBER_DOUBLE": float, "STRUCT": dict}  # fmt: skip


def check_parameters(compiled: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the compiled pipeline does not have, or of another type.

    Raises:
        ConfigError: Names all that is wrong.
    """
    spec = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    faults = list(
        _faults(spec["root"].get("inputDefinitions", {}).get("parameters", {}), parameters)
    )
    if faults:
        raise ConfigError("\n".join(faults), where=compiled, remedy="nothing was submitted")


def _faults(known: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"the pipeline has no parameter {name}{hint}"
        elif not isinstance(value, kind := _KINDS[known[name]["parameterType"]]):
            yield f"the parameter {name} must be a {kind.__name__}, not {value!r}"
        elif "{{$" in str(value):
            yield f"the parameter {name} holds '{{{{$', which KFP takes for a placeholder"
    for name, definition in known.items():
        if name not in parameters and not definition.get("isOptional"):
            yield f"the pipeline needs the parameter {name}"
