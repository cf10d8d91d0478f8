import dataclasses
import hashlib
import json
import warnings
import zipfile
from datetime import UTC, datetime

import pytest

from arcloop import artifacts
from arcloop.artifacts.writer import write_manifest
from arcloop.errors import ArtifactError
from arcloop.serving.archive import collect, read_manifest, write_archive
from arcloop.serving.model_store import archive_file_name, make_version, parse_version
from arcloop.serving.servers.members import find_member_fault

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make(run_dir, settings, folder, *, force=False):
    folder.mkdir(exist_ok=True)
    contents = collect(run_dir, settings, force=force)
    return write_archive(contents, folder, make_version(NOW, contents.lineage))


def test_same_run_and_version_give_the_same_bytes(small_run, run_dir, settings, tmp_path):
    first = make(small_run, settings, tmp_path / "a")
    second = make(run_dir, settings, tmp_path / "b")  # a copy, with other file times
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_manifest_has_the_hash_of_every_file_and_the_provenance(small_run, settings, tmp_path):
    archive = make(small_run, settings, tmp_path / "a")
    manifest = read_manifest(archive)
    with zipfile.ZipFile(archive) as packed:
        names = set(packed.namelist()) - {"manifest.json", "MAR-INF/MANIFEST.json"}
        assert names == set(manifest["files"])
        for name in names:
            assert (
                hashlib.sha256(packed.read(name)).hexdigest() == manifest["files"][name]["sha256"]
            )
        torchserve = json.loads(packed.read("MAR-INF/MANIFEST.json"))
    assert {"model.pt", "faiss_index.bin", "faiss_label.json", "faiss_label.npy",
            "arcloop_runtime/images.py", "arcloop_runtime/searcher.py", "handler.py",
            "model-config.yaml", "golden.npz"} <= names  # fmt: skip
    assert torchserve["model"]["modelVersion"] == manifest["version"]
    assert torchserve["model"]["modelVersion"].startswith("20260102T030405Z-")
    run, index = artifacts.read(small_run, "run"), artifacts.read(small_run / "index", "index")
    assert manifest["parents"]["run"] == run.sha256
    assert manifest["parents"]["index"] == index.sha256
    assert manifest["parents"]["store"] == run.parents["store"]
    assert manifest["parents"]["model"] == run.file_sha256("model.pt")
    assert manifest["forced"] is False
    assert manifest["gate"]["passed"] is True


def test_other_settings_give_another_lineage(small_run, settings):
    other = dataclasses.replace(settings, max_k=7)
    assert (
        collect(small_run, settings, force=False).lineage
        != collect(small_run, other, force=False).lineage
    )


def test_a_run_whose_gate_did_not_pass_is_rejected_unless_forced(run_dir, settings, tmp_path):
    evaluation = artifacts.read(run_dir / "evaluation", "evaluation")
    gate = {"passed": False, "reasons": ["eer is 0.2, but at most 0.1 is required."]}
    (run_dir / "evaluation/gate.json").write_text(json.dumps(gate))
    write_manifest(
        evaluation.path, "evaluation", config=evaluation.config, parents=evaluation.parents
    )
    with pytest.raises(ArtifactError, match=r"the gate did not pass: eer is"):
        make(run_dir, settings, tmp_path / "a")
    manifest = read_manifest(make(run_dir, settings, tmp_path / "a", force=True))
    assert manifest["forced"] is True
    assert manifest["gate"] == gate


def test_a_run_without_evaluation_is_rejected_unless_forced(run_dir, settings, tmp_path):
    (run_dir / "evaluation").rename(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="has not been evaluated"):
        collect(run_dir, settings, force=False)
    assert collect(run_dir, settings, force=True).manifest["forced"] is True


@pytest.mark.parametrize("name", ["model.pt", "index/faiss_index.bin", "golden.npz",
                                  "evaluation/gate.json"])  # fmt: skip
def test_a_changed_part_is_rejected(run_dir, settings, name):
    content = bytearray((run_dir / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run_dir / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        collect(run_dir, settings, force=True)


def test_an_evaluation_of_another_index_is_rejected(run_dir, settings):
    manifest = json.loads((run_dir / "evaluation/manifest.json").read_text())
    manifest["parents"]["index"] = "0" * 64
    (run_dir / "evaluation/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="the evaluation was made from another index"):
        collect(run_dir, settings, force=False)


def test_versions_are_parsed_from_file_names(tmp_path):
    version = "20260102T030405Z-0123456789ab"
    assert parse_version(tmp_path / archive_file_name("a-b", version), "a-b") == version
    assert parse_version(tmp_path / archive_file_name("a-b", version), "a") is None
    assert parse_version(tmp_path / "a-b.mar", "a") is None


def test_another_file_is_not_an_archive(tmp_path):
    (tmp_path / "x.mar").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="not a model archive"):
        read_manifest(tmp_path / "x.mar")


CHANGES = {
    "a file is appended": (["json.py"], "files that its manifest does not list: ['json.py']"),
    "code is changed": (["handler.py"], "handler.py has changed"),
    "settings are changed": (["model-config.yaml"], "model-config.yaml has changed"),
    "a file is repeated": (["model.pt", "model.pt"], "several files with the same name"),
    "a file is missing": ([], "handler.py"),
    "it is cut": (None, "it is not an archive"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_members_of_an_archive_are_found(small_run, settings, tmp_path, case):
    names, message = CHANGES[case]
    contents = collect(small_run, settings, force=False)
    archive = write_archive(contents, tmp_path, contents.new_version())
    assert find_member_fault(archive) is None
    if names is None:
        archive.write_bytes(archive.read_bytes()[:-100])
    else:
        with zipfile.ZipFile(archive) as packed:
            parts = {name: packed.read(name) for name in packed.namelist()}
        kept = {"handler.py"} if not names else {*names}
        with warnings.catch_warnings(), zipfile.ZipFile(archive, "w") as packed:
            warnings.simplefilter("ignore")  # of repeated names
            for name, content in parts.items():
                if name not in kept:
                    packed.writestr(name, content)
            for name in names:
                packed.writestr(name, b"changed")
    assert message in find_member_fault(archive)
