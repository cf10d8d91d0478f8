"""Names and descriptions that say which code and command a pipeline version comes from."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from arcloop.artifacts.writer import git_revision


def version_name(pipeline: str, sha256: str, revision: str | None) -> str:
    """Return the name of a pipeline version: the commit of the code and the hash of the IR YAML.

    >>> version_name("arcloop", "0123456789abcdef", "89abcdef01234567-dirty")
    'arcloop-89abcdef0123-dirty-0123456789ab'
    >>> version_name("arcloop", "0123456789abcdef", None)
    'arcloop-0123456789ab'
    """
    commit, _, dirty = (revision or "").partition("-")
    return "-".join(filter(None, [pipeline, commit[:12], dirty, sha256[:12]]))


def describe_origin(image: str | None, command: Sequence[str]) -> str:
    """Return the description of a version or run: repository, commit, image and command."""
    revision = git_revision()
    commit, _, dirty = (revision or "unknown").partition("-")
    lines = [f"commit: {commit}{' with uncommitted changes' if dirty else ''}"]
    if revision and (repository := _repository()):
        lines.insert(0, f"repository: {repository}")
    return "\n".join([*lines, f"image: {image}", f"command: {shlex.join(command)}"])


def _repository() -> str | None:
    """Return the address of the repository of the code, without the user name and password."""
    try:
        found = subprocess.run(
            ["git", "config", "--get", "remote.origin.url"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    url = urlsplit(found.stdout.strip())
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
