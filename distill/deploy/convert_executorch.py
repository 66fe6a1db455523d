"""To ExecuTorch (.pte) for its XNNPACK kernels; PT2E for INT8.

The file takes pixels as uint8; the state of a stream, and every answer, is float32. Its method `distill` gives the
metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.schema import Chain, ContainerMetadata, EValue, ExecutionPlan, String
from torch import fx
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from distill.deploy.conversion import Conversion, Ports, after_linear, byte_ports, takes_bytes
from distill.deploy.lean import drop_unused

LINEAR = torch.ops.aten.linear.default
PAD = torch.ops.aten.pad.default


def convert(wanted: Conversion, file: Path) -> Ports:
    network, example = takes_bytes(wanted.form, flat=True)
    program = torch.export.export(network, example)
    if wanted.precision == "int8":
        joined = torch.export.export(_without_pads(program.module(check_guards=False)), example)
        program = torch.export.export(_quantised(joined.module(check_guards=False), wanted), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)
    return byte_ports(wanted)


def _without_pads(graph: torch.nn.Module) -> torch.nn.Module:
    """With zeros put beside a tensor instead: XNNPACK does not open a file that has quantised pads."""
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.target is not PAD or node.args[2:] not in ((), ("constant",), ("constant", 0)) or min(node.args[1]) < 0:
            continue
        value, shape = node.args[0], list(node.args[0].meta["val"].shape)
        pairs = zip(reversed(range(len(shape))), node.args[1][::2], node.args[1][1::2], strict=False)
        with graph.graph.inserting_before(node):
            for axis, *sides in pairs:
                parts = [_zeros(graph, f"{node.name}_{axis}_{at}", shape, axis, side) for at, side in enumerate(sides)]
                around = [each for each in (parts[0], value, parts[1]) if each is not None]
                value = graph.graph.call_function(torch.ops.aten.cat.default, (around, axis)) if around[1:] else value
                shape[axis] += sum(sides)
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _zeros(graph: fx.GraphModule, name: str, shape: Sequence[int], axis: int, count: int) -> fx.Node | None:
    if not count:
        return None
    graph.register_buffer(name, torch.zeros(*shape[:axis], count, *shape[axis + 1 :]))
    return graph.graph.get_attr(name)


def _quantised(graph: torch.nn.Module, wanted: Conversion) -> fx.GraphModule:
    assert isinstance(graph, fx.GraphModule)
    observed = prepare_pt2e(graph, _rules(graph.graph))
    with torch.no_grad():
        for sample in wanted.samples:
            observed(*map(torch.from_numpy, sample))
    found: fx.GraphModule = convert_pt2e(observed)
    drop_unused(found)
    return found


def _rules(graph: fx.Graph) -> XNNPACKQuantizer:
    """Convolutions and what is between them with fixed ranges, which hold everything that was seen; linear layers with
    weights of 8 bits and the range of whatever they are given; what follows on them as it is."""
    head = after_linear((node.target is LINEAR, node.all_input_nodes, [node]) for node in graph.nodes)
    floats = {node.name for node in head if node.target is not LINEAR}
    fixed = get_symmetric_quantization_config(is_per_channel=True)
    seen = replace(fixed.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12))
    rules = XNNPACKQuantizer().set_global(replace(fixed, input_activation=seen, output_activation=seen))
    rules.set_operator_type(LINEAR, get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    return rules.set_filter_function(lambda node: node.name not in floats)


def put_metadata(file: Path, text: str) -> None:
    """As a method that takes nothing and gives the text."""
    made = deserialize_pte_binary(file.read_bytes())
    made.program.execution_plan.append(
        ExecutionPlan(
            name="distill",
            container_meta_type=ContainerMetadata("", "T5\x00"),
            values=[EValue(String(text))],
            inputs=[],
            outputs=[0],
            chains=[Chain([], [], [], None)],
            operators=[],
            delegates=[],
            non_const_buffer_sizes=[0],
        )
    )
    file.write_bytes(bytes(serialize_pte_binary(made, extract_delegate_segments=True)))
