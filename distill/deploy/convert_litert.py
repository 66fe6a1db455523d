"""To TFLite: litert-torch for the network, ai-edge-quantizer for INT8.

The file takes pixels as float32, or in INT8 as int8 of pixel - 128. The state of a stream is as its ports say: it may
come out otherwise than it goes in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator, quantizer, recipe
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.utils import qsv_utils
from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

from distill.deploy.card import Port
from distill.deploy.conversion import Conversion, Ports, after_linear
from distill.deploy.lean import lean
from distill.deploy.sessions import in_order

SIGNATURE = "serving_default"
PIXELS = 0.0, 255.0


def convert(wanted: Conversion, file: Path) -> Ports:
    example = wanted.form.example()
    litert_torch.convert(lean(wanted.form, example, flat=True), example).export(str(file))
    if wanted.precision == "int8":
        _quantise(file, wanted.samples)
    return _ports(file, wanted)


def _quantise(file: Path, samples: Sequence[Sequence[np.ndarray]]) -> None:
    """Static INT8 with ranges that hold everything that was seen; the default forgets all but the first clips."""
    plan = quantizer.Quantizer(str(file), recipe.static_wi8_ai8())
    plan.update_quantization_recipe("output_0", TFLOperationName.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    plan.update_quantization_recipe(
        _head(file), TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE
    )
    plan.add_dynamic_config(".", TFLOperationName.FULLY_CONNECTED, 8)  # another pattern than the first: it comes last
    observer = calibrator.Calibrator(str(file), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    data = [{f"args_{i}": array.astype(np.float32) for i, array in enumerate(sample)} for sample in samples]
    observer.calibrate({SIGNATURE: data}, plan._recipe_manager)
    ranges = observer.get_model_qsvs()
    _share_ranges(ranges, file)
    plan.quantize(ranges).export_model(str(file), overwrite=True)


def _head(file: Path) -> str:
    """A pattern for what follows on linear layers."""
    steps = Interpreter(str(file))
    operations = [
        (step["op_name"] == "FULLY_CONNECTED", step["inputs"].tolist(), step["outputs"].tolist())
        for step in steps._get_ops_details()
        if step["op_name"] != "DELEGATE"
    ]
    names = {port["index"]: port["name"] for port in steps.get_tensor_details()}
    found = (re.escape(names[tensor]) for tensor in sorted(after_linear(operations)))
    return f"^({'|'.join(found)})"


def _share_ranges(ranges: dict[str, Any], file: Path) -> None:
    """Pixels are 0 to 255, whatever was seen; what a stream leaves is what it takes next."""
    interpreter = Interpreter(str(file))
    inputs, outputs = in_order(interpreter.get_input_details()), in_order(interpreter.get_output_details())
    pixels, *state = (port["name"] for port in inputs)
    for bound, value in zip(("min", "max"), PIXELS, strict=True):
        ranges[pixels][bound] = np.full_like(ranges[pixels][bound], value)
    for name, left in zip(state, (port["name"] for port in outputs[1:]), strict=True):
        if left in ranges:  # what never changes has none
            both = qsv_utils.min_max_update(ranges[name], ranges[left])
            ranges[name], ranges[left] = both, dict(both)


def _ports(file: Path, wanted: Conversion) -> Ports:
    interpreter = Interpreter(str(file))
    details = in_order(interpreter.get_input_details()), in_order(interpreter.get_output_details())
    inputs, outputs = (
        [_port(name, port) for name, port in zip(names, ports, strict=True)]
        for names, ports in zip((wanted.form.inputs, wanted.form.outputs), details, strict=True)
    )
    assert wanted.precision == "fp32" or (inputs[0].scale, inputs[0].zero) == (1.0, -128), "int8 pixels are pixel - 128"
    return inputs, outputs


def _port(name: str, found: dict[str, Any]) -> Port:
    scale, zero = found["quantization"]
    shape = tuple(int(side) for side in found["shape"])
    return Port(name, shape, np.dtype(found["dtype"]).name, float(scale), int(zero))


def put_metadata(file: Path, text: str) -> None:
    model = flatbuffer.read_model(str(file))
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    entry.name, entry.buffer = "distill", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    flatbuffer.write_model(model, str(file))
