"""To ONNX: torch.onnx for the network, onnxruntime's static quantisation (QDQ) for INT8.

The file takes pixels as uint8; the state of a stream, and every answer, is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxscript  # noqa: F401 - torch.onnx needs it, and would only say so late
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from distill.deploy.conversion import Conversion, Ports, after_linear, byte_ports, takes_bytes

OPSET = 20
LINEAR = ("Gemm", "MatMul")


def convert(wanted: Conversion, file: Path) -> Ports:
    network, example = takes_bytes(wanted.form, flat=False)
    with TemporaryDirectory(dir=file.parent) as folder:
        plain = Path(folder, "plain.onnx") if wanted.precision == "int8" else file
        _write(network, example, wanted, plain)
        if wanted.precision == "int8":
            _quantise(plain, wanted, file)
    return byte_ports(wanted)


def _write(network: torch.nn.Module, example: tuple[Tensor, ...], wanted: Conversion, file: Path) -> None:
    program = torch.onnx.export(
        network,
        example,
        input_names=list(wanted.form.inputs),
        output_names=list(wanted.form.outputs),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.save(file, external_data=False)


def _quantise(plain: Path, wanted: Conversion, file: Path) -> None:
    prepared, body = plain.with_name("prepared.onnx"), plain.with_name("body.onnx")
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    head = after_linear((node.op_type in LINEAR, list(node.input), list(node.output)) for node in nodes)
    quantize_static(
        prepared,
        body,
        _Samples(wanted.form.inputs, wanted.samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Seven bits of a weight, because processors without VNNI add up products of eight in sixteen bits.
        reduce_range=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=[node.name for node in nodes if head.intersection(node.output)],
    )
    model = onnx.load(body)
    _shrink_linear(model.graph)
    onnx.save(model, file)


def _shrink_linear(graph: onnx.GraphProto) -> None:
    """The weights of linear layers as bytes, which the runtime makes numbers of when it opens the file."""
    weights = {each.name: each for each in graph.initializer}
    for node in list(graph.node):
        if node.op_type not in LINEAR or node.input[1] not in weights:
            continue
        name = node.input[1]
        rows = onnx.numpy_helper.to_array(weights.pop(name))
        axis = 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
        scale = np.maximum(np.abs(rows).max(1 - axis), 1e-12) / 127
        codes = np.round(rows / np.expand_dims(scale, 1 - axis)).astype(np.int8)
        for suffix, array in (("codes", codes), ("scale", scale.astype(np.float32))):
            graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{suffix}"))
        made = onnx.helper.make_node(
            "DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [f"{name}_again"], axis=axis
        )
        graph.node.insert(0, made)
        node.input[1] = f"{name}_again"
    used = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    for each in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(each)


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, names: Sequence[str], samples: Sequence[Sequence[np.ndarray]]) -> None:
        self.rows: Iterator[dict[str, np.ndarray]] = (dict(zip(names, row, strict=True)) for row in samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


def put_metadata(file: Path, text: str) -> None:
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {"distill": text})
    onnx.save(model, file)
