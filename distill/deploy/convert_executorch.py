"""To ExecuTorch (.pte) for its XNNPACK kernels; PT2E for INT8.

The file takes pixels as uint8; the state of a stream, and every answer, is float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from distill.deploy.conversion import Conversion, Ports, float_ports, takes_bytes


def convert(wanted: Conversion, file: Path) -> Ports:
    network, example = takes_bytes(wanted.form, flat=True)
    program = torch.export.export(network, example)
    if wanted.precision == "int8":
        program = torch.export.export(_quantised(program.module(), wanted), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)
    return float_ports(wanted.form, "uint8")


def _quantised(graph: torch.nn.Module, wanted: Conversion) -> torch.nn.Module:
    assert isinstance(graph, fx.GraphModule)
    rules = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(graph, rules)
    with torch.no_grad():
        for sample in wanted.samples:
            observed(*map(_tensor, sample))
    found: torch.nn.Module = convert_pt2e(observed)
    return found


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)
