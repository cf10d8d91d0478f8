"""Smaller ONNX files whose embeddings differ from those of the model: fp16 weights, int8.

Because they differ, each is compared with the model on the query split before it is accepted; see
`arcloop.export.retrieval_loss`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcloop.config.value_types import Fraction, PositiveInt
from arcloop.errors import ConfigError
from arcloop.export.formats import Images, OnnxFormat, example_images
from arcloop.models import Embedder
from arcloop.runtime.runtimes import FILES

_QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu")
_CALIBRATION_BATCH = 64
_SMALL = 64  # smaller tensors, e.g. biases and constants, stay float32


@dataclass(frozen=True, kw_only=True)
class CompactFormat(OnnxFormat):
    """An ONNX file that is smaller and less exact than model.onnx.

    Attributes:
        max_top1_loss: Largest allowed loss of top-1 accuracy on the query split, compared with the
            model.
        max_recall_loss: Largest allowed loss of recall@5 on the query split.
    """

    max_top1_loss: Fraction
    max_recall_loss: Fraction


@dataclass(frozen=True, kw_only=True)
class OnnxFp16Format(CompactFormat):
    """Stores the weights in float16, which halves the file; computes in float32.

    ONNX Runtime converts the weights once, when it loads the file, so the speed is that of
    model.onnx. CPUs mostly lack kernels that compute in float16.
    """

    name: ClassVar[str] = "onnx_fp16"
    file: ClassVar[str] = FILES["onnxruntime_fp16"]

    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        model = self.to_onnx(embedder)
        casts = []
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or values.size < _SMALL:
                continue
            name = tensor.name
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise ConfigError(
                    f"the weight {name} has values above 65,504, the largest float16 number",
                    where="export=onnx_fp16",
                    remedy="choose export=onnx",
                )
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
        nodes = [*casts, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.checker.check_model(model, full_check=True)
        self.save(model, embedder, path)


@dataclass(frozen=True, kw_only=True)
class OnnxInt8Format(CompactFormat):
    """Quantizes weights and feature maps to 8 bits with ONNX Runtime's static quantization.

    Weights have a scale per channel and use 7 of 8 bits (`reduce_range`), because products of 8-bit
    weights overflow on CPUs without VNNI instructions. Ranges of the feature maps are the extremes
    on images of the val split. The L2 normalisation is computed in float32.

    Attributes:
        calibration_images: Number of val images for the ranges, evenly spaced.
    """

    calibration_images: PositiveInt
    name: ClassVar[str] = "onnx_int8"
    file: ClassVar[str] = FILES["onnxruntime_int8"]

    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if calibration_NCHW is None:
            calibration_NCHW = example_images(embedder).numpy()
        with tempfile.TemporaryDirectory() as folder:
            prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(self.to_onnx(embedder), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(made),
                _Batches(calibration_NCHW),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            model = onnx.load(str(made))
        del model.metadata_props[:]
        self.save(model, embedder, path)


class _Batches:
    """Iterates over the calibration images as ONNX Runtime's `CalibrationDataReader` does."""

    def __init__(self, images_NCHW: Images) -> None:
        starts = range(0, len(images_NCHW), _CALIBRATION_BATCH)
        self._batches: Iterator[Images] = (
            images_NCHW[start : start + _CALIBRATION_BATCH] for start in starts
        )

    def get_next(self) -> dict[str, Any] | None:
        batch_NCHW = next(self._batches, None)
        return None if batch_NCHW is None else {"images": batch_NCHW}
