"""Every command `arcloop ...` that no other test runs passes the checks that precede work.

Other tests run the blocks of the language `bash`. This one reads the blocks of the language
`console`, whose commands take too long or need a server or a GPU, and the commands in tables and
sentences.
"""

import re
import shlex
from pathlib import Path

import pytest
from benchmarks import results

from arcloop.cli.launch import _require_read
from arcloop.cli.main import ON_RUNS, VERBS, main
from arcloop.config.composition import compose_config, require_single_values, to_plain
from arcloop.config.paths import name_run
from arcloop.config.project import project_of
from arcloop.kfp.submission import read_submission
from arcloop.kfp.sweeps.combinations import read_sweep
from arcloop.pipeline import steps
from arcloop.pipeline.chains import CHAINS, FROM_RUN
from arcloop.pipeline.sweeps.plan import plan
from arcloop.serving.deploy import build_settings

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/results", "docs/tutorials", "serving", "kubeflow", "data/mnist")
PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]
HISTORY = "CHANGELOG.md"  # names commands of earlier versions
ON_A_FOLDER = (
    "query", "leaderboard", "clean", "compare", "diff", "lineage", "push", "reproduce",
    "check-labels",
)  # fmt: skip
NOT_CHECKED = {
    "arcloop prepare ... append=true": "an abbreviation of the command above it",
    "arcloop trigger data.root=... every=600": "an abbreviation",
    "arcloop train -m": "a sentence on what all sweeps have in common",
    "arcloop VERB --help": "stands for every verb",
    "arcloop --help": "has no verb",
    "arcloop leaderboard --markdown": "an abbreviation; the page is made by `make results`",
    "arcloop train head.margn=0.4": "the error that the README shows; test_docs compares it",
}
NEEDS_GPU = ("trainer=ddp", "trainer=gpu")
"""Choices whose trainer cannot be made without a GPU; their config is checked."""


def commands(page: Path) -> list[str]:
    """The commands in blocks of the language `console`, and between backquotes."""
    text = page.read_text()
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.M):
        joined = block.replace("\\\n", " ")
        found += re.findall(r"^(?:\$ )?(?:torchrun .*-m )?(arcloop .*)$", joined, flags=re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)
    found += [" ".join(span.split()) for span in re.findall(r"`(arcloop\s[^`]+)`", prose)]
    return found


ALL = {
    command: page.relative_to(ROOT).as_posix()
    for page in PAGES
    if page.name != HISTORY
    for command in commands(page)
}


def check_chain(verb: str, words: list[str]) -> None:
    overrides = [word for word in words if "=" in word]
    flags = set(words) - set(overrides)
    assert flags <= {"-m"}
    _require_read(verb, overrides)
    if "-m" in flags:
        if verb in FROM_RUN:  # the overrides of the run would come first; here, there is no run
            overrides = [o for o in overrides if not o.startswith("run_dir=") or "," in o]
        plan("train" if verb in FROM_RUN else verb, overrides)
        return
    require_single_values(overrides)
    config = compose_config(overrides)
    names = [name for name in CHAINS[verb] if name != "train" or not set(NEEDS_GPU) & set(words)]
    steps.dry_run(config, names)


def check(command: str) -> None:
    _, verb, *words = shlex.split(command, comments=True)
    assert verb in VERBS
    words = name_run(words) if verb in ON_RUNS else words
    if not words:
        return
    if "--help" in words:
        assert main([verb, *words]) == 0
    elif verb in CHAINS:
        check_chain(verb, words)
    elif verb in ON_A_FOLDER:
        assert main([verb, *words]) == 1  # the arguments are valid, the folder does not exist
    elif verb in ("pipeline", "trigger"):
        read = read_sweep if "-m" in words else read_submission
        read([word for word in words if not word.startswith("every=")])
    else:
        assert verb in ("deploy", "serve", "versions", "roll")
        build_settings(to_plain(compose_config([word for word in words if "=" in word]))["deploy"])


@pytest.mark.parametrize("command", [command for command in ALL if command not in NOT_CHECKED])
def test_every_documented_command_passes_the_checks_before_work(command, in_tmp, monkeypatch):
    monkeypatch.setenv("ARCLOOP_IMAGE", "registry.example/arcloop@sha256:" + 64 * "0")
    if "experiment=shop" in command:
        assert main(["init", "shop"]) == 0
        monkeypatch.chdir("shop")
    with project_of(()):
        check(command)


@pytest.mark.parametrize("name", results.SETS)
def test_the_sweeps_of_the_results_pass_the_checks_before_work(name, in_tmp):
    overrides = results.sweep_overrides(name, results.HEADS, "0", Path("runs/results"))
    check_chain("train", ["-m", *overrides])


def test_the_list_of_exceptions_has_no_other_entries():
    assert set(NOT_CHECKED) <= set(ALL)


def test_commands_are_found_in_blocks_tables_and_sentences():
    places = {page: sum(p == page for p in ALL.values()) for page in ALL.values()}
    assert places["docs/results/mnist.md"] >= 4
    assert "arcloop evaluate run_dir=runs/mnist store_dir=stores/other" in ALL
    assert len(ALL) > 50
