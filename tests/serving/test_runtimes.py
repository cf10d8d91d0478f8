"""Archives whose model is executed by ONNX Runtime: selection, answers, damage, both servers."""

import dataclasses
import json
import shutil
import sys
import zipfile
from typing import get_args, get_type_hints

import numpy as np
import pytest

from arcloop.artifacts.atomic import sha256_file
from arcloop.cli.main import main as arcloop
from arcloop.errors import ArtifactError, ConfigError
from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import Predictor, PredictRequest
from arcloop.runtime.runtimes import FILES, load_runtime
from arcloop.runtime.searcher import SearcherError
from arcloop.serving import model_file
from arcloop.serving.archive import collect, read_manifest
from arcloop.serving.deploy import deploy, unpack_and_check
from arcloop.serving.deploy import main as deploy_command
from arcloop.serving.serve import SERVERS
from arcloop.serving.servers.client import require_parity
from arcloop.serving.versions import main as versions

HANDLER = {"workers": 1, "max_pixels": 4096, "default_k": 5, "max_k": 20, "memory_map": False,
           "parity_tolerance": 1e-4}  # fmt: skip


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """Copies of the run, exported to model.onnx and to model.int8.onnx."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_run.parents[1])  # with the store
        for name in ("onnx", "onnx_int8"):
            shutil.copytree(small_run, folder / name)
            assert arcloop(["export", f"run_dir={folder / name}", f"export={name}"]) == 0
    return folder


@pytest.fixture
def onnx_run(exported, tmp_path):
    return shutil.copytree(exported / "onnx", tmp_path / "run")


def unpacked(run, settings, folder):
    live = deploy(run, settings, force=False)
    with zipfile.ZipFile(live.path) as packed:
        packed.extractall(folder)
    return folder, json.loads((folder / "manifest.json").read_bytes())


def answers(folder, images):
    predictor = Predictor(folder, HANDLER)
    replies = predictor.predict([PredictRequest(encode_png(image)) for image in images])
    return [json.loads(reply.body) for reply in replies]


def test_auto_serves_the_exported_file_with_the_same_answers(
    exported, small_run, make_settings, tmp_path, capsys
):
    """Random images, in other numbers than the golden batch."""
    found = {}
    for name, run in (("onnx", exported / "onnx"), ("torch", small_run)):
        folder, manifest = unpacked(run, make_settings(tmp_path / f"s{name}"), tmp_path / name)
        found[name] = folder, manifest["runtime"]
    assert found["onnx"][1]["name"] == "onnxruntime"
    assert found["torch"][1]["name"] == "torchscript"
    assert found["onnx"][1]["image_shape"] == found["torch"][1]["image_shape"] == [16, 16, 1]
    assert (tmp_path / "onnx/model.onnx").is_file()
    assert found["onnx"][1]["bytes"] == (tmp_path / "onnx/model.onnx").stat().st_size
    assert not (tmp_path / "torch/model.onnx").exists()
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), dtype=np.uint8)
    for rows in (1, 7):
        ours, theirs = (answers(found[name][0], images[:rows]) for name in ("onnx", "torch"))
        for one, other in zip(ours, theirs, strict=True):
            assert one["model"].pop("runtime") == "onnxruntime"
            assert other["model"].pop("runtime") == "torchscript"
            assert one["label"] == other["label"]
            assert one["lineage"]["model"] == other["lineage"]["model"]
            assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)
    store = [f"deploy.model_store={tmp_path / 'sonnx'}", f"run_dir={exported / 'onnx'}"]
    capsys.readouterr()
    assert versions(["list", *store]) == 0
    assert capsys.readouterr().out.split()[1:] == ["live", "onnxruntime"]


def test_int8_archive_gives_the_answers_that_its_gate_measured(exported, make_settings, tmp_path):
    """The golden batch of the archive is that of the file, so the tolerance stays 1e-4."""
    run, settings = exported / "onnx_int8", make_settings(tmp_path / "store")
    assert collect(run, settings, force=False).manifest["runtime"]["name"] == "torchscript"
    settings = dataclasses.replace(settings, runtime="onnxruntime_int8")
    folder, manifest = unpacked(run, settings, tmp_path / "x")
    assert manifest["runtime"]["top1_loss"] <= 0.005
    golden, own = np.load(run / "golden.npz"), np.load(folder / "golden.npz")
    served = load_runtime(folder, manifest, "cpu", 1).embed(golden["images"])
    np.testing.assert_allclose(served, own["embeddings"], atol=1e-5)
    assert np.abs(served - golden["embeddings"]).max() > 1e-4


def test_runtime_that_was_not_exported_is_an_error_with_the_command(small_run, tmp_path, capsys):
    arguments = [f"run_dir={small_run}", f"deploy.model_store={tmp_path / 'store'}"]
    assert deploy_command([*arguments, "deploy.runtime=onnxruntime_int8"]) == 2
    error = capsys.readouterr().err
    assert "deploy.runtime=onnxruntime_int8 needs model.int8.onnx" in error
    assert f"arcloop export run_dir={small_run} export=onnx_int8`" in error
    assert not (tmp_path / "store").exists()
    assert deploy_command([*arguments, "deploy.runtime=tensorrt"]) == 2
    assert "deploy.runtime='tensorrt'" in capsys.readouterr().err


def test_without_the_package_auto_uses_torchscript(onnx_run, settings, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    contents = collect(onnx_run, settings, force=False)
    assert contents.manifest["runtime"]["name"] == "torchscript"
    assert "model.onnx cannot be used: model.onnx needs the package" in capsys.readouterr().err
    explicit = dataclasses.replace(settings, runtime="onnxruntime")
    with pytest.raises(ArtifactError, match=r"or deploy with deploy\.runtime=torchscript"):
        deploy(onnx_run, explicit, force=False)


def test_auto_serves_model_pt_on_gpus(onnx_run, settings, monkeypatch):
    monkeypatch.setattr(model_file.torch.cuda, "is_available", lambda: True)
    assert collect(onnx_run, settings, force=False).manifest["runtime"]["name"] == "torchscript"


def replace_export(run, name, content):
    """Replace an exported file, and its hash in the manifest of the export."""
    folder = run / "export"
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": sha256_file(folder / name), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of_opset(content, opset):
    import onnx

    model = onnx.load_from_string(content)
    model.opset_import[0].version = opset
    return model.SerializeToString()


def negated(content):
    import onnx

    model = onnx.load_from_string(content)
    last = model.graph.node[-1]
    result = last.output[0]
    last.output[0] = "positive"
    model.graph.node.append(onnx.helper.make_node("Neg", ["positive"], [result]))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[: len(content) // 2], "cannot load model.onnx"),
        (lambda content: b"", "cannot load model.onnx"),
        (lambda content: of_opset(content, 9999), "cannot load model.onnx"),
        (negated, "embeddings differ by"),
    ],
    ids=["torn", "empty", "newer opset", "other values"],
)
def test_unusable_file(onnx_run, settings, capsys, change, reason):
    """With the right hash, as of an export by another version."""
    replace_export(onnx_run, "model.onnx", change((onnx_run / "export/model.onnx").read_bytes()))
    assert collect(onnx_run, settings, force=False).manifest["runtime"]["name"] == "torchscript"
    printed = capsys.readouterr().err
    assert "runtime: torchscript, because" in printed
    assert reason in printed
    explicit = dataclasses.replace(settings, runtime="onnxruntime")
    with pytest.raises(ArtifactError, match=r"cannot load model\.onnx|fails the parity check"):
        deploy(onnx_run, explicit, force=False)


def test_damaged_file_and_file_of_another_model(onnx_run, settings):
    explicit = dataclasses.replace(settings, runtime="onnxruntime")
    manifest = onnx_run / "export/manifest.json"
    before = manifest.read_text()
    changed = json.loads(before)
    changed["parents"]["model"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=r"model\.onnx was made from another model"):
        collect(onnx_run, explicit, force=False)
    manifest.write_text(before)
    (onnx_run / "export/model.onnx").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        collect(onnx_run, explicit, force=False)


def test_damaged_archive_is_refused(exported, make_settings, tmp_path):
    live = deploy(exported / "onnx", make_settings(tmp_path / "store"), force=False)
    assert read_manifest(live.path)["runtime"]["name"] == "onnxruntime"
    with zipfile.ZipFile(live.path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    parts["model.onnx"] = parts["model.onnx"][:-1] + b"x"
    with zipfile.ZipFile(tmp_path / "changed.mar", "w") as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    with pytest.raises(ArtifactError, match=r"model\.onnx has changed"):
        unpack_and_check(tmp_path / "changed.mar", tmp_path / "y")


def test_compiled_file_needs_the_machine_of_its_export(tmp_path):
    facts = {"name": "aoti", "image_shape": [4, 4, 1], "embedding_dim": 2,
             "requires": {"torch": "1.0", "cpu": []}}  # fmt: skip
    manifest = {"runtime": facts, "parents": {"model": "0" * 64}}
    with pytest.raises(SearcherError, match=r"was compiled for torch 1\.0"):
        load_runtime(tmp_path, manifest, "cpu", 1)
    with pytest.raises(SearcherError, match="unknown runtime 'x'"):
        load_runtime(tmp_path, {"runtime": {"name": "x"}}, "cpu", 1)


@pytest.mark.parametrize("kind", [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"])
def test_both_servers_serve_by_onnx_runtime(kind, exported, make_settings, tmp_path):
    settings = make_settings(tmp_path / "store", runtime="onnxruntime")
    live = deploy(exported / "onnx", settings, force=False)
    golden = unpack_and_check(live.path, tmp_path / "unpacked")
    (tmp_path / "server").mkdir()
    with SERVERS[kind](settings, live.path, tmp_path / "server") as server:
        server.wait_until_ready()
        require_parity(server.endpoint, golden, live.version)
        image = golden.encoded_images()[0]
        status, answer = server.endpoint.predict(image, 5)
    (expected,) = Predictor(tmp_path / "unpacked", HANDLER).predict([PredictRequest(image)])
    assert (status, answer) == (200, json.loads(expected.body))
    assert answer["model"]["runtime"] == "onnxruntime"


def test_settings_list_the_runtimes(settings):
    assert get_args(get_type_hints(type(settings))["runtime"]) == ("auto", *FILES)
    with pytest.raises(ConfigError, match=r"deploy\.runtime='onnx'"):
        dataclasses.replace(settings, runtime="onnx")


def test_auto_uses_torchscript_if_the_manifest_of_the_export_is_damaged(onnx_run, settings, capsys):
    (onnx_run / "export/manifest.json").write_text("{")
    assert collect(onnx_run, settings, force=False).manifest["runtime"]["name"] == "torchscript"
    assert "model.onnx cannot be used" in capsys.readouterr().err
