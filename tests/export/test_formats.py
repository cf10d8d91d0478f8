"""Each format gives the embeddings of the eager model, for any batch size, on any machine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from arcloop.errors import ArtifactError, ConfigError
from arcloop.export import (
    CompiledFormat,
    OnnxFormat,
    OnnxFp16Format,
    OnnxInt8Format,
    TorchExportFormat,
)
from arcloop.export.run import dry_run_formats, export_run
from arcloop.models import ConvNet, Embedder, IResNet
from arcloop.runtime.runtimes import CompiledModel, OnnxModel, compiled_for
from arcloop.runtime.searcher import SearcherError

FORMATS = {
    "onnx": OnnxFormat(opset=17, max_abs_diff=1e-5),
    "onnx of the newest opset": OnnxFormat(opset=20, max_abs_diff=1e-5),
    "onnx of the oldest opset": OnnxFormat(opset=11, max_abs_diff=1e-5),
    "torch_export": TorchExportFormat(max_abs_diff=1e-5),
}
BOUNDS = {"max_top1_loss": 0.0, "max_recall_loss": 0.0}
BACKBONES = {
    "convnet": lambda channels: ConvNet(in_channels=channels, widths=[4, 8], depth=2),
    "iresnet": lambda channels: IResNet(in_channels=channels, layers=[1, 2], widths=[4, 8]),
}


def embedder(backbone, channels=3):
    """Return an embedder with random running statistics, since the initial ones hide mistakes."""
    torch.manual_seed(0)
    made = Embedder(backbone, image_shape=(16, 20, channels), embedding_dim=8, dropout=0.5,
                    mean=[0.4], std=[0.2])  # fmt: skip
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.eval()


def images(rows, channels=3):
    return np.random.default_rng(rows).integers(0, 256, (rows, 16, 20, channels), dtype=np.uint8)


def eager(model, images_NHWC):
    with torch.inference_mode():
        return model(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize(("backbone", "channels"), [("convnet", 1), ("iresnet", 3)])
@pytest.mark.parametrize("name", FORMATS)
def test_loaded_file_embeds_batches_of_any_size_like_the_eager_model(
    tmp_path, name, backbone, channels
):
    chosen, model = FORMATS[name], embedder(BACKBONES[backbone](channels), channels)
    path = tmp_path / chosen.file
    chosen.write(model, path)
    for rows in (1, 2, 7):
        batch = images(rows, channels)
        found = chosen.embed(path, batch.transpose(0, 3, 1, 2))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, eager(model, batch), rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_same_weights_give_the_same_bytes_without_local_paths(tmp_path, name):
    chosen, model = FORMATS[name], embedder(BACKBONES["convnet"](3))
    chosen.write(model, tmp_path / "one")
    chosen.write(model, tmp_path / "two")
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    for place in (Path(__file__).parents[2], Path(torch.__file__).parents[1], tmp_path):
        assert str(place).encode() not in content


def test_onnx_takes_uint8_and_contains_metadata(tmp_path):
    import onnx

    FORMATS["onnx"].write(embedder(BACKBONES["convnet"](3)), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    (given,) = model.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *shape = given.type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert [dim.dim_value for dim in shape] == [3, 16, 20]
    assert [o.version for o in model.opset_import] == [17]
    (facts,) = model.metadata_props
    assert facts.value == '{"image_shape": [16, 20, 3], "embedding_dim": 8}'


@pytest.mark.parametrize(("opset", "bound"), [(10, "greater .* 11"), (21, "less .* 20")])
def test_unsupported_opset_is_an_error(opset, bound):
    with pytest.raises(ConfigError, match=f"export.onnx.opset={opset} must be {bound}"):
        OnnxFormat(opset=opset, max_abs_diff=1e-5)


class Digamma(nn.Module):
    """Uses an operation without an ONNX operator."""

    def forward(self, x):
        return torch.special.digamma(x[:, :, ::4, ::4] + 10)


def test_operation_without_onnx_operator_is_named_with_a_remedy():
    with pytest.raises(ConfigError) as caught:
        dry_run_formats(embedder(Digamma()), {"onnx": FORMATS["onnx"]})
    assert "aten::digamma" in str(caught.value)
    assert "export=torch_export" in str(caught.value)
    dry_run_formats(embedder(Digamma()), {"torch_export": FORMATS["torch_export"]})


class Branching(nn.Module):
    """Cannot be traced: the control flow depends on the values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_unsupported_torch_export_is_one_message():
    with pytest.raises(ConfigError, match=r"cannot be exported with torch\.export") as caught:
        dry_run_formats(embedder(Branching()), {"torch_export": FORMATS["torch_export"]})
    assert "export=onnx" in str(caught.value)


class Blurred(OnnxFormat):
    """A format that loses precision."""

    def embed(self, path, images_NCHW):
        return super().embed(path, images_NCHW).astype(np.float16).astype(np.float32)


def test_format_with_different_embeddings_is_an_error(work):
    from arcloop import artifacts
    from arcloop.config.composition import build_node

    run = work / "runs/synthetic"
    recorded = artifacts.read(run, "run").config
    parts = {name: build_node(recorded[name]) for name in ("backbone", "embedder")}
    lossy = {"onnx": Blurred(opset=17, max_abs_diff=1e-5)}
    with pytest.raises(ArtifactError, match=r"model.onnx differs from the model by \d"):
        export_run(run, lossy, run / "export", **parts)
    assert not (run / "export").exists()


def test_bounds_of_the_opset_are_those_of_torch_and_onnx():
    import onnx
    from torch.onnx import _constants

    assert _constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET == 20
    assert onnx.defs.onnx_opset_version() >= 20


COMPACT = {
    "fp16": (OnnxFp16Format(opset=17, max_abs_diff=1e-2, **BOUNDS), 2e-3),
    "int8": (OnnxInt8Format(opset=17, max_abs_diff=0.2, calibration_images=64, **BOUNDS), 0.1),
}


@pytest.mark.parametrize(("backbone", "channels"), [("convnet", 1), ("iresnet", 3)])
@pytest.mark.parametrize("name", COMPACT)
def test_compact_file_is_close_for_batches_of_any_size(tmp_path, name, backbone, channels):
    (chosen, bound), model = COMPACT[name], embedder(BACKBONES[backbone](channels), channels)
    path = tmp_path / chosen.file
    chosen.write(model, path, images(64, channels).transpose(0, 3, 1, 2))
    served = OnnxModel(path, {"image_shape": (16, 20, channels), "embedding_dim": 8}, "", 1)
    for rows in (1, 2, 7):
        batch = images(rows, channels)
        found = served.embed(batch)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, chosen.embed(path, batch.transpose(0, 3, 1, 2)))
        difference = np.abs(found - eager(model, batch)).max()
        assert 1e-6 < difference < bound
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", COMPACT)
def test_compact_file_is_smaller_and_has_the_same_bytes_again(tmp_path, name):
    chosen = COMPACT[name][0]
    model = embedder(ConvNet(in_channels=1, widths=[32, 64], depth=2), 1)
    FORMATS["onnx"].write(model, tmp_path / "onnx")
    for again in "ab":
        chosen.write(model, tmp_path / again, images(32, 1).transpose(0, 3, 1, 2))
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert str(tmp_path).encode() not in content
    share = {"fp16": 0.6, "int8": 0.45}[name]
    assert len(content) < share * (tmp_path / "onnx").stat().st_size


def test_weight_too_large_for_float16_is_an_error(tmp_path):
    model = embedder(BACKBONES["convnet"](3))
    with torch.no_grad():
        model.neck[3].weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match="values above 65,504"):
        COMPACT["fp16"][0].write(model, tmp_path / "x")


def test_compiler_error_without_a_message_is_named_by_its_type(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    model = embedder(ConvNet(in_channels=3, widths=[2], depth=1))
    with pytest.raises(ConfigError, match="cannot be compiled: NotImplementedError"):
        CompiledFormat(max_abs_diff=1e-5).write(model, tmp_path / "x")


def test_compiled_file_embeds_like_the_eager_model_on_this_machine_only(tmp_path, monkeypatch):
    model = embedder(ConvNet(in_channels=3, widths=[2], depth=1))
    chosen, path = CompiledFormat(max_abs_diff=1e-5), tmp_path / "model.aoti.pt2"
    chosen.require()
    chosen.write(model, path)
    facts = {"image_shape": (16, 20, 3), "embedding_dim": 8, "requires": compiled_for()}
    served = CompiledModel(path, facts, "")
    for rows in (1, 2, 7):
        np.testing.assert_allclose(
            served.embed(images(rows)), eager(model, images(rows)), atol=1e-5
        )
    requires = compiled_for()
    for other in (requires | {"torch": "2.0"}, requires | {"cpu": [*requires["cpu"], "avx99"]}):
        with pytest.raises(SearcherError, match=r"2\.0, this is torch|lacks avx99"):
            CompiledModel(path, facts | {"requires": other}, "")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(SearcherError, match=r"torch cannot load model\.aoti\.pt2"):
        CompiledModel(path, facts, "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not installed"):
        chosen.require()
