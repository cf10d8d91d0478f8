"""`fit`: runs the whole chain from Python."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from arcloop.api.run import Run, load
from arcloop.config.composition import compose_config
from arcloop.config.origin import set_origin
from arcloop.config.paths import quote_paths
from arcloop.config.project import project_of
from arcloop.errors import ConfigError, user_errors
from arcloop.pipeline.chains import run_verb


def fit(overrides: Sequence[str] = (), *, config_dir: str | os.PathLike[str] | None = None) -> Run:
    """Prepare, validate, train, embed, index and evaluate, as `arcloop run` does.

    What exists already with the same settings is not made again. A gate that is not passed is no
    error, see `Run.gate`.

    Args:
        overrides: Overrides of the config, e.g. `["experiment=shop", "head.margin=0.4"]`. Relative
            paths start from the current directory, whose project is used.
        config_dir: Folder of a project or of its configs, as `--config-dir`.

    Returns:
        The finished run.

    Raises:
        ArcloopError: The config or the data is invalid, or a resource is not available.
    """
    if isinstance(overrides, str):
        raise ConfigError(
            f"overrides={overrides!r} is a text", remedy=f"pass a list: [{overrides!r}]"
        )
    arguments = [] if config_dir is None else ["--config-dir", os.fspath(config_dir)]
    with user_errors(), project_of(arguments):
        given = quote_paths(overrides)
        config = compose_config(given)
        set_origin(config, shlex.join(["arcloop", "run", *arguments, *given]), given)
        run_verb("run", config, given)
        return load(config.run_dir)
