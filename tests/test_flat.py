"""Networks without 3-D layers say what they said with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from student_examples import examples
from torch import Tensor, nn
from torch.nn import functional as F

from distill import plugins
from distill.deploy.flat import runs, windows, without_3d
from distill.outputs import Student

EVERY = [
    pytest.param(name, options, id=f"{name}-{label}")
    for name in plugins.names("student")
    for label, options in examples(name).items()
]
ODD = st.integers(1, 3)
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Said(nn.Module):
    """A student as tensors in, tensors out."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.student(frames)
        return answer.logits, answer.latent


def layers(network: nn.Module, example: Tensor) -> set[str]:
    """The operations of a network."""
    graph = torch.export.export(network, (example,)).graph
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def lively(network: nn.Module) -> None:
    """Statistics and scales of normalisations that are not 0 and 1."""
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.running_mean, part.bias):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3)
            for tensor in (part.running_var, part.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)


@torch.no_grad()
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_student_says_the_same(name: str, options: dict[str, Any], clips: int) -> None:
    torch.manual_seed(0)
    student: Student = plugins.build("student", plugins.schema("student", name)(name=name, **options), classes=5)
    lively(student)
    frames = torch.randint(
        0, 256, (clips, student.spec.frames, 3, student.spec.size, student.spec.size), dtype=torch.uint8
    )
    whole = Said(student).eval()
    flat = flattened(whole, (frames,))
    for wanted, found in zip(whole(frames), flat(frames), strict=True):
        scale = wanted.abs().max().item()
        assert found / scale == pytest.approx(wanted / scale, abs=2e-5)
    assert not {layer for layer in layers(flat, frames) if "3d" in layer}


def flattened(network: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    return without_3d(torch.export.export(network.eval(), example).module())


def same(layer: Callable[[Tensor], Tensor], video: Tensor) -> None:
    class Alone(nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            return layer(video)

    wanted, found = layer(video), flattened(Alone(), (video,))(video)
    assert found.shape == wanted.shape
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def a_video(draw: Draw, channels: int, least: int) -> Tensor:
    clips, frames, height, width = (draw(st.integers(low, 7)) for low in (1, least, least, least))
    return torch.randn(min(clips, 3), channels, frames, height, width)


@settings(max_examples=40)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    kernel, stride, padding, dilation = (
        data.draw(st.tuples(each, each, each)) for each in (ODD, ODD, st.integers(0, 2), st.integers(1, 2))
    )
    groups = data.draw(st.sampled_from([1, 2, 4]))
    weight, bias = torch.randn(8, 4 // groups, *kernel), torch.randn(8) if data.draw(st.booleans()) else None
    video = a_video(data.draw, 4, 5)
    same(lambda given: F.conv3d(given, weight, bias, stride, padding, dilation, groups), video)


@settings(max_examples=40)
@given(st.data())
def test_poolings(data: st.DataObject) -> None:
    kernel, stride = (data.draw(st.tuples(ODD, ODD, ODD)) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, side // 2)) for side in kernel)
    ceil, counted = data.draw(st.booleans()), data.draw(st.booleans())
    cells, video = data.draw(st.tuples(ODD, ODD, ODD)), a_video(data.draw, 2, 4)
    same(lambda given: F.max_pool3d(given, kernel, stride, padding, ceil_mode=ceil), video)
    same(lambda given: F.avg_pool3d(given, kernel, stride, padding, ceil, counted), video)
    same(lambda given: F.adaptive_avg_pool3d(given, cells), video)


def test_a_gate_weighs_every_frame() -> None:
    def gated(video: Tensor) -> Tensor:
        inside = F.max_pool3d(video, 1)
        return inside * F.adaptive_avg_pool3d(inside, 1).sigmoid() + 1

    for clips in (1, 3):
        same(gated, torch.randn(clips, 2, 4, 5, 5))


def test_what_is_not_known_sees_the_video_as_it_was() -> None:
    def odd(video: Tensor) -> Tensor:
        inside = F.max_pool3d(video, (1, 2, 2))
        return torch.cat([inside.flip(2), inside.cumsum(2)], 2).softmax(4)

    same(odd, torch.randn(2, 2, 4, 6, 6))


def test_channels_and_frames_are_joined() -> None:
    def joined(video: Tensor) -> Tensor:
        inside = F.max_pool3d(video, (1, 2, 2))
        return torch.cat([torch.cat([inside, inside + 1], 1), torch.cat([inside - 1, inside], -4)], 2)

    same(joined, torch.randn(2, 2, 3, 4, 4))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_runs_are_the_places(places: list[int]) -> None:
    assert [first + ahead for first, count in runs(places) for ahead in range(count)] == places


@given(st.integers(1, 12), st.integers(1, 12))
def test_windows_are_those_of_adaptive_pooling(length: int, cells: int) -> None:
    row = torch.arange(float(length))
    wanted = F.adaptive_avg_pool1d(row[None], cells)[0].tolist()
    assert [row[start:end].mean().item() for start, end in windows(length, cells)] == pytest.approx(wanted)
