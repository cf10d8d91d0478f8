"""Packages that an optional extra brings: asked for before work starts, imported when used."""

from __future__ import annotations

import importlib.util

from arcloop.errors import ConfigError


def require_extra(extra: str, *packages: str, where: str) -> None:
    """Refuse to go on without packages, none of which is imported.

    Args:
        extra: The extra of arcloop that brings them.
        *packages: Names of top-level modules.
        where: What of the config needs them, for the message.

    Raises:
        ConfigError: One of them is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not installed",
            where=where,
            remedy=f"pip install 'arcloop[{extra}]', with the constraints that arcloop comes with",
        )
