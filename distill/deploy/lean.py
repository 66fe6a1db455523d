"""A network as it is exported: what only training needs is folded into the weights, and the answers stay the same.

A batch normalisation after a convolution becomes part of it. The scale of the pixels' normalisation moves into the
first convolution's weights, so that only a shift is left: zeros around a picture are the mean colour before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from distill.deploy.flat import with_plain_pools, without_3d

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CONSTANTS = (aten.full.default, aten.ones.default)
DEEP = (aten.conv3d.default, aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default)
REWRITTEN = (*DEEP, aten.avg_pool2d.default)  # where there is room for 2-D layers alone
MOVES = (  # what leaves every pixel the number that it was
    aten.movedim.int,
    aten.permute.default,
    aten.transpose.int,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)


def lean(form: nn.Module, example: tuple[Tensor, ...], flat: bool) -> nn.Module:
    """The same network, folded; with `flat` without 3-D layers, else without such poolings as few exporters know."""
    graph = _graph_of(form.eval(), example)
    _drop_idle(graph)
    _fold_constants(graph)
    _fold_norms(graph)
    _fold_scale(graph)
    targets = {node.target for node in graph.graph.nodes}
    if targets.intersection(REWRITTEN if flat else DEEP[-1:]):
        rewritten = (without_3d if flat else with_plain_pools)(_tidied(graph))
        graph = _graph_of(rewritten, example)
        _drop_idle(graph)
    _fold_constants(graph)
    return _tidied(graph)


def _graph_of(network: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    graph = torch.export.export(network, example).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _tidied(graph: fx.GraphModule) -> fx.GraphModule:
    """Without what nothing uses."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    drop_unused(graph)
    return graph


def drop_unused(graph: fx.GraphModule) -> None:
    """Tensors that its graph does not use would be in the file all the same."""
    graph.delete_all_unused_submodules()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph.state_dict(keep_vars=True) if name not in used]:
        owner, _, last = name.rpartition(".")
        delattr(graph.get_submodule(owner), last)


def _drop_idle(graph: fx.GraphModule) -> None:
    """What checks, or does nothing once training is over."""
    for node in list(graph.graph.nodes):
        same = node.target is aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]
        if same or node.target is aten.dropout.default:
            node.replace_all_uses_with(node.args[0])
        if same or node.target in (aten.dropout.default, aten._assert_tensor_metadata.default):
            graph.graph.erase_node(node)


def _fold_norms(graph: fx.GraphModule) -> None:
    for node in _calls(graph, aten.batch_norm.default):
        layer, weight, bias, mean, variance, training, _, epsilon, _ = node.args
        if layer.target not in CONVOLUTIONS or len(layer.users) > 1 or not all(map(_known, layer.args[1:3])):
            continue
        assert not training, "a network is exported in evaluation mode"
        gain = (_value(graph, variance) + epsilon).rsqrt()
        gain = gain if weight is None else gain * _value(graph, weight)
        kernel, before = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        shift = -_value(graph, mean) if before is None else _value(graph, before) - _value(graph, mean)
        shift = shift * gain if bias is None else shift * gain + _value(graph, bias)
        width = (-1, *(1,) * (_value(graph, kernel).dim() - 1))
        _put(graph, layer, 1, _value(graph, kernel) * gain.view(width))
        _put(graph, layer, 2, shift)
        node.replace_all_uses_with(layer)
        graph.graph.erase_node(node)


def _fold_scale(graph: fx.GraphModule) -> None:
    """x * scale + shift before a convolution becomes x + shift / scale, and the scale part of its weights."""
    first = next(node for node in graph.graph.nodes if node.op == "placeholder")
    node = _last_move(first)
    scaled = _only_user(node)
    if scaled is None or scaled.target is not aten.mul.Tensor or scaled.args[0] is not node:
        return
    shifted = _only_user(scaled)
    if shifted is None or shifted.target not in (aten.add.Tensor, aten.sub.Tensor) or shifted.args[0] is not scaled:
        return
    last = _last_move(shifted)
    layer = _only_user(last)
    if layer is None or layer.target not in CONVOLUTIONS or layer.args[0] is not last:
        return
    if not all(map(_known, (scaled.args[1], shifted.args[1], layer.args[1]))):
        return
    scale, shift = (torch.as_tensor(_value(graph, each.args[1]), dtype=torch.float32) for each in (scaled, shifted))
    gain, kernel = _of_channels(scale, scaled, layer), _value(graph, layer.args[1])
    if gain is None or len(gain) != kernel.shape[1] or not gain.all():
        return
    _put(graph, layer, 1, kernel * gain.view(1, -1, *(1,) * (kernel.dim() - 2)))
    scaled.replace_all_uses_with(node)
    graph.graph.erase_node(scaled)
    _put(graph, shifted, 1, shift / scale)


def _of_channels(scale: Tensor, scaled: fx.Node, layer: fx.Node) -> Tensor | None:
    """What each channel that a layer sees was multiplied by, if that is one number wherever it lies."""
    seen, node = scale.expand(scaled.meta["val"].shape), next(iter(scaled.users))
    while (node := next(iter(node.users))) is not layer:
        assert callable(node.target)
        seen = node.target(seen, *node.args[1:], **node.kwargs)
    rows = seen.transpose(0, 1).flatten(1)
    return rows[:, 0] if torch.equal(rows, rows[:, :1].expand_as(rows)) else None


def _fold_constants(graph: fx.GraphModule) -> None:
    """What is made of constants alone is a constant; weights that were brought into another order, say."""
    for node in list(graph.graph.nodes):
        given = node.all_input_nodes
        made = bool(given) or node.target in CONSTANTS
        if node.op != "call_function" or not made or not all(map(_known, given)):
            continue
        name = f"constant_{node.name}"
        values = fx.node.map_arg((node.args, node.kwargs), lambda each: _value(graph, each))
        graph.register_buffer(name, node.target(*values[0], **values[1]).contiguous())
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(name))
        graph.graph.erase_node(node)


def _last_move(node: fx.Node) -> fx.Node:
    """Where the pixels of this node are after they were only moved about."""
    while (user := _only_user(node)) is not None and user.target in MOVES:
        node = user
    return node


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(graph: fx.GraphModule, target: Callable[..., Any]) -> Iterator[Any]:
    return (node for node in list(graph.graph.nodes) if node.target is target)


def _known(value: Any) -> bool:
    """Whether it is a constant."""
    return not isinstance(value, fx.Node) or value.op == "get_attr"


def _value(graph: fx.GraphModule, value: Any) -> Any:
    """What a constant of the graph is."""
    if not isinstance(value, fx.Node):
        return value
    assert _known(value), f"{value} is not a constant"
    found: Any = graph
    for name in str(value.target).split("."):
        found = getattr(found, name)
    return found.detach()


def _put(graph: fx.GraphModule, node: fx.Node, place: int, constant: Tensor) -> None:
    """Another constant as an argument of a node."""
    name = f"lean_{node.name}_{place}"
    graph.register_buffer(name, constant.contiguous())
    with graph.graph.inserting_before(node):
        made = graph.graph.get_attr(name)
    node.args = (*node.args[:place], *[None] * (place - len(node.args)), made, *node.args[place + 1 :])
