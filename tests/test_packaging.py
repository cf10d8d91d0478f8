"""The metadata, the pinned versions and the files of the repository agree with each other."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from arcloop import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SUPPORTED = ["3.11", "3.12", "3.13"]
PINNED = {
    "constraints.txt": EXTRAS.keys() - {"gpu"},
    "constraints/without-kubeflow.txt": EXTRAS.keys() - {"kubeflow", "bench", "docs", "dev"},
}


def required(extras):
    named = [text for extra in extras for text in EXTRAS[extra]]
    every = [Requirement(text) for text in [*PROJECT["dependencies"], *named]]
    return [requirement for requirement in every if requirement.name != "arcloop"]


def pins(file):
    lines = (line.partition(";")[0].strip() for line in file.read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("file", PINNED)
def test_every_requirement_has_a_pin_that_satisfies_it(file):
    found = pins(ROOT / file)
    for requirement in required(PINNED[file]):
        assert requirement.specifier.contains(found[requirement.name]), requirement


def test_only_kubeflow_limits_the_kubernetes_client():
    newest = Version(pins(ROOT / "constraints/without-kubeflow.txt")["kubernetes"])
    (of_kfp,) = (Requirement(text) for text in metadata.requires("kfp") if "kubernetes<" in text)
    assert newest not in of_kfp.specifier
    (of_ours,) = (r for r in required(["kubeflow"]) if r.name == "kubernetes")
    assert newest not in of_ours.specifier
    assert Version(pins(ROOT / "constraints.txt")["kubernetes"]) in of_kfp.specifier


def test_the_changelog_has_a_section_of_this_version():
    heading = rf"^## {re.escape(__version__)} - (unreleased|\d{{4}}-\d{{2}}-\d{{2}})$"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_the_supported_versions_of_python_are_those_that_are_tested():
    prefix = "Programming Language :: Python :: 3."
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith(prefix)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    assert named == workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == SUPPORTED


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda f: f.stem)
def test_the_files_for_github_are_valid(file):
    """They have the keys without which GitHub ignores them."""
    content = yaml.safe_load(file.read_text())
    if file.parent.name == "workflows":
        assert content["permissions"] == {"contents": "read"} or "permissions" in content
        for job in content["jobs"].values():
            assert job["timeout-minutes"] <= 360
            assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    elif file.stem == "config":
        assert content == {"blank_issues_enabled": True}
    else:
        assert content["name"]
        assert content["description"]
        identifiers = [part["id"] for part in content["body"] if part["type"] != "markdown"]
        assert len(identifiers) == len(set(identifiers))


def test_a_release_publishes_only_what_was_installed_and_tried():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert set(jobs["publish"]["needs"]) == {"build", "try"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    for name in ("build", "try"):
        assert "id-token" not in jobs[name].get("permissions", {})
