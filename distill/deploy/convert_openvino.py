"""To OpenVINO's IR (.xml and .bin): its own front end for the network, NNCF for INT8.

The file takes pixels as uint8; the state of a stream, and every answer, is float32.
"""

from __future__ import annotations

from pathlib import Path

import nncf
import openvino
import torch
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from distill.deploy.conversion import Conversion, Ports, after_linear, byte_ports, takes_bytes


def convert(wanted: Conversion, file: Path) -> Ports:
    network, example = takes_bytes(wanted.form, flat=False)
    model = openvino.convert_model(torch.export.export(network, example))
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, example, strict=True)})
    if wanted.precision == "int8":
        head = nncf.IgnoredScope(names=_head(model), validate=False)
        model = nncf.quantize(
            model,
            nncf.Dataset(wanted.samples, list),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(wanted.samples),
            ignored_scope=head,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Seven bits of a weight, because processors without VNNI add up products of eight in sixteen bits.
                overflow_fix=nncf.OverflowFix.ENABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,  # frames that lie in the place of the batch upset it
            ),
        )
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    for ports, names in ((model.inputs, wanted.form.inputs), (model.outputs, wanted.form.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    openvino.save_model(model, file, compress_to_fp16=False)
    return byte_ports(wanted)


def _head(model: openvino.Model) -> list[str]:
    """What follows on linear layers."""
    operations = (
        (
            each.get_type_name() == "MatMul",
            [port.get_node().get_friendly_name() for port in each.input_values()],
            [each.get_friendly_name()],
        )
        for each in model.get_ordered_ops()
        if each.get_type_name() != "Result"
    )
    return sorted(after_linear(operations))


def put_metadata(file: Path, text: str) -> None:
    model = openvino.Core().read_model(file)
    model.set_rt_info(text, "distill")
    part = file.with_name(f"{file.stem}.named.xml")
    openvino.save_model(model, part, compress_to_fp16=False)
    del model  # lets go of the file
    for suffix in (".xml", ".bin"):
        part.with_suffix(suffix).replace(file.with_suffix(suffix))
