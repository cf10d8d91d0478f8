"""Install completion of verbs, groups, choices and keys for a shell.

Hydra's own flag -sc cannot be installed, because Hydra does not know the verbs: its script calls
the command without a verb, and it reads the verb as an override. The script here calls `arcloop
completion --query`, which completes verbs and passes the rest of the line to Hydra's plug-in.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from arcloop.artifacts.atomic import write_bytes
from arcloop.config.files import bundled
from arcloop.errors import ArcloopError, ConfigError

_BASH = """\
_arcloop() {
    local line="${COMP_LINE:0:$COMP_POINT}" IFS=$'\\n' word
    local last="${line##* }"
    local kept="${last%"${last##*[=:]}"}"  # bash replaces only what follows the last "=" or ":"
    COMPREPLY=()
    for word in $(arcloop completion --query "$line" 2>/dev/null); do
        word="${word#"$kept"}"
        case "$word" in
            *[=./]) ;;
            */*) [[ -d "$word" ]] && word="$word/" || word="$word " ;;
            *) word="$word " ;;
        esac
        COMPREPLY+=("$word")
    done
}
complete -o nospace -o default -F _arcloop arcloop
"""
_ZSH = """\
#compdef arcloop
_arcloop() {
    local -a found
    found=("${(@f)$(arcloop completion --query "$LBUFFER" 2>/dev/null)}")
    compadd -Q -S '' -- ${found:#}
    (( ${#found:#} )) || _files
}
compdef _arcloop arcloop
"""
_FISH = """\
function __arcloop_complete
    arcloop completion --query (commandline -cp | string collect) 2>/dev/null
end
complete -c arcloop -a '(__arcloop_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(arguments: Sequence[str]) -> int:
    """Install or print the script of a shell, or print the completions of a line."""
    parser = argparse.ArgumentParser("arcloop completion", description=__doc__)
    parser.add_argument(
        "shell", metavar="SHELL", choices=_SCRIPTS, nargs="?",
        help="bash, zsh or fish; default: that of $SHELL",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="print the script; install nothing")
    parser.add_argument("--query", metavar="LINE", help="print the completions of a command line")
    options = parser.parse_args(arguments)
    if options.query is not None:
        with contextlib.suppress(ArcloopError):  # the line is not complete yet
            print("\n".join(complete(options.query)))
        return 0
    shell = options.shell or Path(os.environ.get("SHELL", "bash")).name
    if shell not in _SCRIPTS:
        raise ConfigError(
            f"there is no completion for {shell}", remedy=f"name {' or '.join(_SCRIPTS)}"
        )
    script = _SCRIPTS[shell]
    if options.print:
        sys.stdout.write(script)
        return 0
    file = _place(shell)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, script.encode())
    print(f"wrote {file}\n{_advice(shell, file)}")
    return 0


def complete(line: str) -> list[str]:
    """Return the completions of the last word of a command line.

    A completion that ends with "=" or "." can be continued; the others are complete words.

    Args:
        line: The line up to the cursor, e.g. "arcloop train head=arc".
    """
    from arcloop.cli.main import VERBS

    words = line.split()
    is_new = not line or line[-1].isspace()
    if len(words) + is_new <= 2:
        start = "" if is_new else words[-1]
        return [verb for verb in VERBS if verb.startswith(start)] if words else []
    rest = line.split(maxsplit=2)[2:]
    return _complete_overrides(rest[0] if rest else "")


def _complete_overrides(line: str) -> list[str]:
    """Complete the last of several overrides with Hydra's plug-in."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from arcloop.config.composition import CONFIG_ERRORS, register_schema

    register_schema()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        try:
            found: list[str] = plugin._query("config", line)  # noqa: SLF001 - used by its shells
        except (*CONFIG_ERRORS, SystemExit):  # an override before it is not valid
            return []
    return found


def _place(shell: str) -> Path:
    """Return the file from which a shell loads completions of its user."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "bash": data / "bash-completion/completions/arcloop",
        "zsh": data / "zsh/site-functions/_arcloop",
        "fish": config / "fish/completions/arcloop.fish",
    }[shell]


def _advice(shell: str, file: Path) -> str:
    return {
        "bash": f"new shells with the package bash-completion load it; in others: source {file}",
        "zsh": f"add this line to ~/.zshrc, after compinit: source {file}",
        "fish": "new shells load it",
    }[shell]
