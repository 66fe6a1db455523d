"""What is exported says what the student says, with less in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from student_examples import examples
from test_flat import EVERY, lively
from torch import Tensor, fx, nn
from torch.nn import functional as F

from distill import plugins
from distill.deploy.forms import Form, make_form
from distill.deploy.lean import CONVOLUTIONS, aten, lean
from distill.outputs import Student

DEEP = ("tinyact", "tinyact_frames", "video3d")  # who may have 3-D layers: there are two ways to make them lean
WAYS = [
    pytest.param(*each.values, flat, id=f"{each.id}-{'flat' if flat else 'deep'}")
    for each in EVERY
    for flat in ((True, False) if each.values[0] in DEEP else (True,))
]
SCALINGS = (aten.mul.Tensor, aten.div.Tensor)


def a_student(name: str, options: dict[str, Any]) -> Student:
    torch.manual_seed(0)
    student: Student = plugins.build("student", plugins.schema("student", name)(name=name, **options), classes=5)
    lively(student)
    return student.eval()


def before(node: fx.Node) -> Iterator[fx.Node]:
    """All that a node is made of."""
    for each in node.all_input_nodes:
        yield each
        yield from before(each)


def given(form: Form) -> tuple[Tensor, ...]:
    pixels, *state = form.example()
    return (torch.randint_like(pixels, 256), *(torch.rand_like(value) for value in state))


def told(network: nn.Module, example: tuple[Tensor, ...]) -> list[Tensor]:
    found = network(*example)
    return list(found) if isinstance(found, tuple) else [found]


def alike(form: nn.Module, other: nn.Module, example: tuple[Tensor, ...], close: float = 5e-5) -> None:
    for wanted, found in zip(told(form, example), told(other, example), strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= close * wanted.abs().max()


def is_lean(network: nn.Module, flat: bool) -> None:
    assert isinstance(network, fx.GraphModule)
    nodes = list(network.graph.nodes)
    norms = [node for node in nodes if node.target is aten.batch_norm.default]
    assert not [node for node in norms if node.args[0].target in CONVOLUTIONS]
    first = next(node for node in nodes if node.target in CONVOLUTIONS)
    assert not [node for node in before(first) if node.target in SCALINGS]
    made = [node for node in nodes if node.op == "call_function" and not node.all_input_nodes]
    assert not made
    names = {str(node.target) for node in nodes if node.op == "call_function"}
    assert not {name for name in names if "adaptive_avg_pool3d" in name or (flat and "3d" in name)}
    assert not {name for name in names if "dropout" in name or "assert" in name}


@torch.no_grad()
@pytest.mark.parametrize(("name", "options", "flat"), WAYS)
def test_every_student(name: str, options: dict[str, Any], flat: bool) -> None:
    student = a_student(name, options)
    streams = hasattr(student, "step") and getattr(student, "direction", "") != "bidirectional"
    for form in ("whole", "stream") if streams else ("whole",):
        made = make_form(form, student)
        network = lean(made, made.example(), flat)
        is_lean(network, flat)
        alike(made, network, given(made))


@torch.no_grad()
def test_an_encoder_has_no_head() -> None:
    made = make_form("encoder", a_student("tinyact", examples("tinyact")["whole"]))
    network = lean(made, made.example(), True)
    is_lean(network, True)
    alike(made, network, given(made))
    assert len([node for node in network.graph.nodes if node.target is aten.linear.default]) == 1


def test_a_student_stays_as_it_was() -> None:
    student = a_student("tsn", {"backbone": "test_resnet", "frames": 2, "size": 32})
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    form = make_form("whole", student)
    lean(form, form.example(), True)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


class Made(nn.Module):
    """A function of a picture, and layers for it."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, given: Tensor) -> Tensor:
        return self.function(given, **dict(self.layers.items()))


def check(function: Callable[..., Tensor], example: Tensor, flat: bool = False, **layers: nn.Module) -> list[Any]:
    """It says the same once lean; what is called in it."""
    torch.manual_seed(0)
    network = Made(function, **layers).eval()
    lively(network)
    with torch.no_grad():
        thin = lean(network, (example,), flat)
        alike(network, thin, (torch.randn_like(example),))
    assert isinstance(thin, fx.GraphModule)
    return [node.target for node in thin.graph.nodes if node.op == "call_function"]


PICTURE, VIDEO = torch.zeros(2, 4, 9, 9), torch.zeros(1, 4, 5, 7, 7)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_norm_is_folded_whatever_it_lacks(bias: bool) -> None:
    layer, norm = nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6)
    assert check(lambda x, layer, norm: norm(layer(x)), PICTURE, layer=layer, norm=norm) == [aten.conv2d.default]
    mean, variance = torch.randn(6), torch.rand(6) + 0.5
    bare = check(lambda x, layer: F.batch_norm(layer(x), mean, variance), PICTURE, layer=layer)
    assert bare == [aten.conv2d.default]


def test_a_norm_after_weights_that_are_made_is_folded_if_they_are_constants() -> None:
    layers = {"layer": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}
    called = check(lambda x, layer, norm: norm(F.conv2d(x, layer.weight - layer.weight.mean())), PICTURE, **layers)
    assert called == [aten.conv2d.default]
    called = check(lambda x, layer, norm: norm(F.conv2d(x, layer.weight * x.mean())), PICTURE, **layers)
    assert aten.batch_norm.default in called


def test_a_norm_of_what_others_see_too_stays() -> None:
    layers = {"layer": nn.Conv2d(4, 6, 3), "norm": nn.BatchNorm2d(6)}
    called = check(lambda x, layer, norm: norm(y := layer(x)) + y, PICTURE, **layers)
    assert aten.batch_norm.default in called


def test_a_layer_that_is_used_twice_keeps_its_weights() -> None:
    layers = {"layer": nn.Conv2d(4, 4, 3, padding=1), "one": nn.BatchNorm2d(4), "two": nn.BatchNorm2d(4)}
    called = check(lambda x, layer, one, two: two(layer(one(layer(x)))), PICTURE, **layers)
    assert called == [aten.conv2d.default] * 2


@pytest.mark.parametrize("scale", [0.25, torch.rand(4, 1, 1) + 0.5], ids=["number", "channels"])
def test_a_scale_of_pixels_is_folded_only_where_that_is_exact(scale: Any) -> None:
    """Padding is zero after the shift, so the shift has to stay where it is."""
    plain, pad = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, padding_mode="zeros")
    called = check(lambda x, layer: layer(x * scale - 0.5), PICTURE, layer=plain)
    assert aten.mul.Tensor not in called
    assert aten.mul.Tensor in check(lambda x, layer: layer(y := x * scale - 0.5) + y.mean(), PICTURE, layer=pad)
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    assert aten.mul.Tensor in check(lambda x, layer: layer(x * scale - 0.5), PICTURE, layer=grouped)


@pytest.mark.parametrize(
    "add", [lambda y, x: y.sub(0.5, alpha=3), lambda y, x: y.add(x), lambda y, x: y.add(0.5, alpha=2)]
)
def test_an_odd_shift_of_pixels(add: Callable[..., Tensor]) -> None:
    check(lambda x, layer: layer(add(x * 0.25, x)), PICTURE, layer=nn.Conv2d(4, 6, 3, padding=1))
    check(lambda x, layer: layer(add(x * 0.25, 1.0)), PICTURE, layer=nn.Conv2d(4, 6, 3, padding=1))


def test_a_scale_that_is_no_constant() -> None:
    check(lambda x, layer: layer(x * x - 0.5), PICTURE, layer=nn.Conv2d(4, 6, 3))
    check(lambda x, layer: layer(x * x.mean() - 0.5), PICTURE, layer=nn.Conv2d(4, 6, 3))


def test_a_scale_over_places_stays() -> None:
    """Even where there are as many places as channels."""
    for side in (4, 9):
        places = torch.rand(side) + 0.5
        layer, picture = nn.Conv2d(4, 6, 3), torch.zeros(2, 4, side, side)
        assert aten.mul.Tensor in check(lambda x, layer, places=places: layer(x * places - 0.5), picture, layer=layer)


def test_a_scale_of_colours_that_are_the_last_axis_is_folded() -> None:
    colours = torch.rand(4) + 0.5
    layer = nn.Conv2d(4, 6, 3, padding=1)
    called = check(
        lambda x, layer: layer((x * colours - 0.5).permute(0, 3, 1, 2)), torch.zeros(1, 4, 4, 4), layer=layer
    )
    assert aten.mul.Tensor not in called


def test_a_scale_of_nothing_stays() -> None:
    check(
        lambda x, layer: layer(x * torch.tensor([1.0, 0, 1, 1]).view(4, 1, 1) - 0.5), PICTURE, layer=nn.Conv2d(4, 6, 3)
    )


def test_constants_are_made_once() -> None:
    def shuffled(x: Tensor, layer: nn.Module) -> Tensor:
        return F.conv2d(x, layer.weight.flip(1).transpose(2, 3) * 2)

    assert check(shuffled, PICTURE, layer=nn.Conv2d(4, 6, 3)) == [aten.conv2d.default]


@pytest.mark.parametrize("cells", [(1, 2, 2), (2, 2, 2), (2, 3, 2), (5, 7, 7), (1, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("side", [(5, 7, 7), (1, 1, 1), (4, 1, 3), (2, 8, 5)])
@pytest.mark.parametrize("flat", [False, True], ids=["deep", "flat"])
def test_poolings_to_cells(cells: tuple[int, int, int], side: tuple[int, int, int], flat: bool) -> None:
    """Of windows alike or not, and of maps smaller than the cells."""
    layer = nn.Conv3d(4, 3, 1)
    called = check(lambda x, layer: F.adaptive_avg_pool3d(layer(x), cells), torch.zeros(1, 4, *side), flat, layer=layer)
    assert not [target for target in called if "adaptive_avg_pool3d" in str(target)]


def test_a_network_without_pixels_scaled_or_layers() -> None:
    check(lambda x: x.flatten(1).softmax(1), PICTURE)
    check(lambda x, layer: layer(x.flatten(1)), PICTURE, layer=nn.Linear(324, 3))
