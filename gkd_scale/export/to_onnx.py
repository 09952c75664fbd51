"""``model.onnx`` by torch's dynamo exporter, checked in onnxruntime; float32, float16 or int8.

fp16 has 16-bit weights and arithmetic; its input and outputs stay float32. int8 is onnxruntime's: networks
whose weights are mostly matrices get int8 matrices, and activations are measured as they run (dynamic); the
others get int8 convolutions too, with the ranges of activations on real images (static).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor, nn

from gkd_scale.export.subject import INPUT, Forward, How, Shapes, Subject
from gkd_scale.export.tracing import names, quiet, trace

FILE = "model.onnx"
FIXED = True
_LARGEST = 1 << 31
"""Bytes that one protobuf holds: weights of more lie beside the model."""


def write(subject: Subject, folder: Path, how: How) -> None:
    """``model.onnx`` (and ``model.onnx.data``, for weights of more than 2 GB)."""
    program = trace(subject, how.shapes)
    graph = subject.graph()
    outputs = list(graph.outputs)
    size = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    with quiet(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        onnx_program = torch.onnx.export(
            program, (), dynamo=True, input_names=[INPUT], output_names=outputs, verbose=False
        )
        assert onnx_program is not None
        plain = (folder if how.dtype == "fp32" else Path(scratch)) / FILE
        onnx_program.save(str(plain), external_data=size > _LARGEST)
        if how.dtype == "fp16":
            half = OnnxModel(float16.convert_float_to_float16(onnx.load(str(plain)), keep_io_types=True))
            half.topological_sort()  # the converter appends its casts
            onnx.save(half.model, str(folder / FILE))
        elif how.dtype == "int8":
            _quantise(subject, plain, folder / FILE, how)
    onnx.checker.check_model(str(folder / FILE))


def quantisation(subject: Subject) -> str:
    """``dynamic`` if most of the weights are matrices, else ``static``."""
    matrices, kernels = (
        sum(layer.weight.numel() for layer in subject.graph().modules() if isinstance(layer, kind))
        for kind in (nn.Linear, nn.Conv2d)
    )
    return "dynamic" if matrices > kernels else "static"


def _quantise(subject: Subject, plain: Path, out: Path, how: How) -> None:
    ready = plain.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)  # folds BatchNorm into convolutions
    if quantisation(subject) == "dynamic":
        quantize_dynamic(
            ready,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # else sums overflow on CPUs without VNNI
            weight_type=QuantType.QInt8,
        )
        return
    quantize_static(
        ready,
        out,
        _Calibration(how),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Calibration(CalibrationDataReader):
    """Images one by one, as onnxruntime asks for them."""

    def __init__(self, how: How) -> None:
        self._images = iter(how.calibration.split(1))

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: (image.float() / 255).numpy()}


def load(folder: Path, subject: Subject, shapes: Shapes) -> Forward:  # noqa: ARG001
    """The model in onnxruntime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(
        str(folder / FILE), options, providers=["CPUExecutionProvider"]
    )
    outputs = subject.graph().outputs

    def run(pixels: Tensor) -> dict[str, Tensor]:
        arrays = session.run(list(outputs), {INPUT: pixels.numpy()})
        return names(outputs, tuple(map(torch.from_numpy, arrays)))

    return run
