"""Losses on features, maps and relations: what they see, what they overlook, and which shapes come together."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from loss_examples import clips, example
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.losses import LEARNT, LOSSES
from distill.objective.pairs import averaged
from distill.outputs import StudentOutput, TeacherOutput

BATCH = 4


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed)).double()


def answers(mine: Tensor, other: Tensor) -> tuple[StudentOutput, TeacherOutput]:
    none = torch.zeros(len(mine), 3).double()
    return StudentOutput(none, none, {"it": mine}), TeacherOutput(none, maps={"it": other})


def value(name: str, mine: Tensor, other: Tensor, learnt: nn.Module | None = None, **options: Any) -> Tensor:
    given = {} if learnt is None else {LEARNT: learnt}
    label = torch.zeros(len(mine), dtype=torch.int64)
    return LOSSES[name](*answers(mine, other), clips(label), student="it", teacher="it", **options, **given)


def learn(name: str, mine: Tensor, other: Tensor, **options: Any) -> nn.Module | None:
    found = LOSSES[name].learns(*answers(mine, other), range(BATCH), student="it", teacher="it", **options)
    return found and found.double()


# ---------------------------------------------------------------- shapes that come together

VECTOR, FRAMES, MAP, VIDEO = (3,), (4, 3), (3, 4, 6), (3, 4, 4, 6)  # beside B


@pytest.mark.parametrize("name", ["mse", "feature", "hint", "vid"])
@pytest.mark.parametrize("mine", [VECTOR, FRAMES, MAP, VIDEO])
@pytest.mark.parametrize("other", [VECTOR, FRAMES, MAP, VIDEO])
@pytest.mark.parametrize("wider", [0, 2])
def test_the_finer_side_is_averaged(name: str, mine: tuple[int, ...], other: tuple[int, ...], wider: int) -> None:
    """And the student led to the teacher's width."""
    axis = len(other) - 1 if other in (VECTOR, FRAMES) else 0
    other = tuple(size + wider * (place == axis) for place, size in enumerate(other))
    student, teacher = some(*mine), some(*other, seed=1)
    if {len(mine), len(other)} == {2, 3}:
        with pytest.raises(UserError, match="cannot be brought to one shape"):
            learn(name, student, teacher)
        return
    learnt = learn(name, student, teacher)
    assert (learnt is None) == (wider == 0 and name != "vid")
    assert torch.isfinite(value(name, student, teacher, learnt))
    if wider == 0 and name == "mse":
        assert value(name, *plain(student, teacher)).item() == pytest.approx(value(name, student, teacher).item())


def plain(mine: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both as the coarser one of the two, the long way."""
    axes = min(mine.dim(), other.dim())

    def down(thing: Tensor) -> Tensor:
        if thing.dim() == axes:
            return thing
        if axes == 2:
            return thing.flatten(2).mean(2) if thing.dim() > 3 else thing.mean(1)
        return thing.mean(2) if axes == 4 else thing.mean((3, 4)).transpose(1, 2)

    return down(mine), down(other)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_averaging_is_torch_s_adaptive_pooling_but_never_makes_more(size: int, axis: int) -> None:
    thing = some(7, 7, 7)
    expected = F.adaptive_avg_pool1d(thing.movedim(axis, -1).flatten(0, 2), min(size, 7))
    assert torch.equal(averaged(thing, axis, size).movedim(axis, -1).flatten(0, 2), expected)
    cube = averaged(averaged(averaged(thing, 1, 2), 2, 3), 3, 5)
    torch.testing.assert_close(cube, F.adaptive_avg_pool3d(thing[:, None], (2, 3, 5))[:, 0])


@pytest.mark.parametrize(
    ("mine", "other", "kernel"),
    [
        ((3, 4, 8, 8), (5, 4, 4, 4), (1, 3, 3)),  # twice as big
        ((3, 8, 4, 4), (5, 4, 8, 8), (1, 4, 4)),  # half as big; more frames
        ((3, 4, 7, 6), (5, 2, 5, 6), (1, 3, 1)),  # bigger by so many places
        ((3, 4, 4, 4), (5, 4, 4, 4), (1, 1, 1)),
        ((3, 8, 6), (5, 4, 6), (3, 1)),
        ((3, 4, 3), (5, 8, 6), (4, 4)),
    ],
)
def test_a_hint_is_led_to_the_teacher_s_shape(
    mine: tuple[int, ...], other: tuple[int, ...], kernel: tuple[int, ...]
) -> None:
    learnt = learn("hint", some(*mine), some(*other))
    assert isinstance(learnt, nn.ModuleList)
    conv, norm, relu = cast(nn.Sequential, learnt[0])
    assert conv.kernel_size == kernel
    assert isinstance(norm, nn.BatchNorm3d if len(mine) == 4 else nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)
    assert value("hint", some(*mine), some(*other), learnt).item() > 0
    assert len(learn("hint", some(*mine), some(*other), relu=False)[0]) == 2  # type: ignore[index]


def test_a_hint_that_is_too_coarse_is_refused_with_both_shapes() -> None:
    with pytest.raises(UserError) as caught:
        learn("hint", some(3, 2, 4, 4), some(5, 2, 7, 7))
    assert str(caught.value) == (
        "objective.hint: the student's it [4, 3, 2, 4, 4] and the teacher's it [4, 5, 2, 7, 7]: "
        "the student's map has to be larger than the teacher's, as large, or half as large"
    )


# ---------------------------------------------------------------- features


def test_feature_by_cosine_overlooks_length_and_by_smooth_l1_does_not() -> None:
    mine, other = some(6), some(6, seed=1)
    assert value("feature", mine, 3 * mine).item() == pytest.approx(0, abs=1e-12)
    assert value("feature", mine, -mine).item() == pytest.approx(2)
    expected = 1 - (F.normalize(mine) * F.normalize(other)).sum(1).mean()
    torch.testing.assert_close(value("feature", mine, other), expected)
    gap = (mine - other).abs()
    expected = torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean()
    torch.testing.assert_close(value("feature", mine, other, kind="smooth_l1"), expected)


def test_temporal_sees_motion_and_not_appearance() -> None:
    mine, other = some(5, 3), some(5, 3, seed=1)
    found = value("temporal", mine, other)
    assert found.item() > 0
    for still in (some(1, 3, seed=2), 100 * some(1, 3, seed=3)):  # what all frames have in common
        torch.testing.assert_close(value("temporal", mine + still, other), found)
        torch.testing.assert_close(value("temporal", mine, other + still), found)
    assert value("temporal", other + some(1, 3), other).item() == pytest.approx(0, abs=1e-12)
    assert value("temporal", other.flip(1), other).item() > 1  # the same pictures, backwards


def test_temporal_is_the_length_of_a_path_however_many_frames_are_along_it() -> None:
    """A teacher that stands still, a student that goes straight on: the path is its way, by root mean square."""
    way = torch.tensor([3.0, 4.0]).double()
    for frames in (2, 5, 50):
        mine = torch.linspace(0, 1, frames).double()[None, :, None] * way
        found = value("temporal", mine, torch.zeros_like(mine))
        assert found.item() == pytest.approx(5 / math.sqrt(2))


def test_temporal_of_maps_is_that_of_their_means_and_frames_are_brought_together() -> None:
    mine, other = some(3, 8, 2, 2), some(4, 3, seed=1)
    slower = mine.mean((3, 4)).transpose(1, 2).unflatten(1, (4, 2)).mean(2)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value("temporal", mine, other), value("temporal", slower, other))


def test_temporal_s_projection_has_no_constant() -> None:
    learnt = learn("temporal", some(5, 3), some(5, 7))
    assert learnt is not None
    assert [tuple(p.shape) for p in learnt.parameters()] == [(7, 3)]
    still = some(1, 3).expand(-1, 5, -1)
    assert value("temporal", still, torch.zeros(BATCH, 5, 7).double(), learnt).item() == 0


def test_vid_begins_at_variance_five_and_is_best_at_that_of_its_error() -> None:
    mine, other = some(3, 4, 4), some(5, 4, 4, seed=1)
    learnt = learn("vid", mine, other)
    assert learnt is not None
    names = set(learnt.state_dict())
    assert names == {"0.mean.0.weight", "0.mean.2.weight", "0.mean.4.weight", "0.scale"}
    assert {name for name, _ in learnt.named_parameters()} == names  # the variance is trained, and saved
    for parameter in learnt[0].mean.parameters():  # type: ignore[index]
        nn.init.zeros_(parameter)
    found = value("vid", mine, other, learnt)
    torch.testing.assert_close(found, 0.5 * (other.square() / 5 + math.log(5)).mean(), rtol=1e-6, atol=0)
    best = other.square().mean((0, 2, 3))  # the variance of its error, as it predicts 0
    with torch.no_grad():
        learnt[0].scale.copy_((best - 1e-5).expm1().log())  # type: ignore[index]
    least = value("vid", mine, other, learnt)
    assert least.item() < found.item()
    (slope,) = torch.autograd.grad(least, learnt[0].scale)  # type: ignore[index]
    torch.testing.assert_close(slope, torch.zeros_like(slope))


# ---------------------------------------------------------------- maps


def test_attention_is_where_and_not_how_much_or_in_which_channel() -> None:
    mine = some(3, 2, 4, 4)
    assert value("attention", mine, -5 * mine.flip(1)).item() == pytest.approx(0, abs=1e-15)
    assert value("attention", mine, mine.flip(2)).item() > 0  # another time
    assert value("attention", mine, mine.flip(4)).item() > 0  # another place


@pytest.mark.parametrize(
    ("mine", "other"), [((3, 4, 4, 6), (5, 2, 4, 3)), ((3, 2, 2, 2), (5, 4, 4, 4)), ((3, 2, 6, 3), (2, 4, 3, 6))]
)
@pytest.mark.parametrize("norm", [False, True])
def test_attention_of_maps_of_different_size(mine: tuple[int, ...], other: tuple[int, ...], norm: bool) -> None:
    size: Any = tuple(min(sizes) for sizes in zip(mine[1:], other[1:], strict=True))
    maps = [F.adaptive_avg_pool3d(some(*shape, seed=n), size).square().sum(1) for n, shape in enumerate((mine, other))]
    one, two = (F.normalize(video.flatten(1)) for video in maps)
    expected = (one - two).norm(dim=1).mean() if norm else F.mse_loss(one, two)
    torch.testing.assert_close(value("attention", some(*mine), some(*other, seed=1), norm=norm), expected)


def test_attention_of_a_clip_and_of_a_picture() -> None:
    mine, other = some(3, 4, 2, 2), some(5, 2, 2, seed=1)
    torch.testing.assert_close(value("attention", mine, other), value("attention", mine.mean(2), other))


def test_rows_of_attention_are_taken_as_they_are() -> None:
    mine, rows = some(3, 2, 4, 4), some(2, 16, seed=1).softmax(2)
    found = value("attention", mine, rows, rows=True)
    expected = F.mse_loss(F.normalize(mine.square().sum(1).flatten(1)), F.normalize(rows.flatten(1)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(value("attention", mine, rows.view(BATCH, 2, 4, 4), rows=True), expected)
    coarse = rows.view(BATCH, 1, 2, 4, 4)
    small = F.adaptive_avg_pool3d(coarse, (2, 2, 2)).sqrt()
    few = F.adaptive_avg_pool3d(mine, (2, 2, 2))
    torch.testing.assert_close(value("attention", few, rows, rows=True), value("attention", few, small))
    with pytest.raises(UserError, match="N places of a square"):
        value("attention", mine, some(2, 15), rows=True)


def test_review_of_equal_maps_costs_nothing_and_sees_every_scale() -> None:
    mine = some(3, 2, 8, 8)
    assert value("reviewkd", mine, mine).item() == 0
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1).expand_as(mine)  # averages to nothing
    assert value("reviewkd", mine + board, mine).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))
    assert value("reviewkd", mine + 1, mine).item() == pytest.approx(1)
    assert value("reviewkd", mine[..., :1, :1] + 2, mine[..., :1, :1]).item() == pytest.approx(4)


def test_review_of_every_frame_twice_is_the_same() -> None:
    mine, other = some(3, 2, 4, 4), some(5, 2, 2, 2, seed=1)
    learnt = learn("reviewkd", mine, other)
    slow = mine.repeat_interleave(2, 2), other.repeat_interleave(2, 2)
    torch.testing.assert_close(value("reviewkd", *slow, learnt), value("reviewkd", mine, other, learnt))


def test_review_leads_deep_maps_to_shallow_ones() -> None:
    """The shallow level's loss reaches the deep map; the deep level's does not reach the shallow one."""
    student, teacher, batch = example()
    names = ["video", "deep"]
    learnt = LOSSES["reviewkd"].learns(student, teacher, range(4), student=names, teacher=names)
    assert learnt is not None
    learnt.double()
    maps = [student.features[name].requires_grad_() for name in names]
    levels = [(mine, averaged(teacher.maps[name], 2, mine.shape[2])) for name, mine in zip(names, maps, strict=True)]
    levels = [(averaged(mine, 2, other.shape[2]), other) for mine, other in levels]
    shallow, deep = learnt(levels)
    assert (shallow.shape, deep.shape) == (levels[0][1].shape, levels[1][1].shape)
    assert all(slope is not None for slope in torch.autograd.grad(shallow.sum(), maps, retain_graph=True))
    slopes = torch.autograd.grad(deep.sum(), maps, allow_unused=True)
    assert slopes[0] is None
    assert slopes[1] is not None
    assert LOSSES["reviewkd"](student, teacher, batch, student=names, teacher=names, learnt=learnt).item() > 0


# ---------------------------------------------------------------- relations

RELATIONS = ("rkd_distance", "rkd_angle", "pkt", "similarity")


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_do_not_change_when_all_clips_turn_together(name: str) -> None:
    mine, other = some(6), some(6, seed=1)
    turn, _ = torch.linalg.qr(some(6, 6, seed=2)[0])
    found = value(name, mine, other)
    torch.testing.assert_close(value(name, 3 * mine @ turn, other), found, rtol=1e-5, atol=1e-9)
    moved = value(name, mine + 1, other)
    if name.startswith("rkd"):
        torch.testing.assert_close(moved, found)
    else:
        assert moved.item() != pytest.approx(found.item(), rel=1e-3)
    assert value(name, 3 * mine @ turn, mine).item() == pytest.approx(0, abs=1e-9)


def test_distances_of_neighbours_far_from_the_origin_are_right_in_single_precision() -> None:
    """As a difference of squared lengths they would be noise."""
    grid = torch.arange(8.0)[:, None].expand(8, 2)
    found = value("rkd_distance", 1e4 + grid / 8, grid)
    assert found.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_two_clips_that_are_the_same_to_the_student_leave_its_gradient_small(name: str, normalise: bool) -> None:
    mine, other = some(6), some(6, seed=1)
    mine[1] = mine[0]
    mine.requires_grad_()
    value(name, mine, other, normalise=normalise).backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    assert mine.grad.abs().max() < 1
