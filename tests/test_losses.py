"""Losses against golden values, closed forms and the promises that their file makes."""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from typing import Any

import pytest
import torch
from omegaconf import MISSING
from torch import Tensor
from torch.nn import functional as F

from distill.clips.batches import Plan
from distill.clips.views import ViewOptions
from distill.errors import UserError
from distill.objective.losses import LOSSES, own_options, schema
from distill.objective.objective import Objective
from distill.objective.schedule import weight_at
from distill.outputs import Clips, StudentOutput, TeacherOutput

ROW, COLUMN = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
STUDENT = 3 * torch.sin(0.7 * ROW.double() + 1.3 * COLUMN.double() + 0.1)  # [B,K]: the golden inputs
TEACHER = 4 * torch.cos(0.5 * ROW.double() - 0.9 * COLUMN.double() + 0.2)
LABEL = (3 * torch.arange(8) + 1) % 10


def clips(label: Tensor, weight: Any = None, frames: Tensor | None = None) -> Clips:
    batch = len(label)
    frames = torch.zeros(batch, 2, 3, 4, 4, dtype=torch.uint8) if frames is None else frames
    return Clips(frames, label, index=torch.arange(batch), view=torch.zeros_like(label), label_weight=weight)


def said(logits: Tensor, **more: Any) -> StudentOutput:
    return StudentOutput(logits=logits, latent=logits, **more)


def value(name: str, student: Tensor, teacher: Tensor, label: Tensor, **options: Any) -> Tensor:
    return LOSSES[name](said(student), TeacherOutput(teacher), clips(label), **options)


def objective(**terms: dict[str, Any]) -> Objective:
    return Objective({name: schema(name)(**options) for name, options in terms.items()})


GOLDEN = [  # made with the original authors' code in float64
    ({"kl": {"weight": 1.0, "temperature": 4.0}}, 4.8723214036171125, 0.3448451767102523),
    (
        {"cross_entropy": {"weight": 0.1}, "kl": {"weight": 0.9, "temperature": 4.0}},
        4.742798722870188,
        0.3178096175166144,
    ),
]


@pytest.mark.parametrize(("terms", "loss", "gradient"), GOLDEN, ids=["KD", "CE + KD"])
def test_golden(terms: dict[str, dict[str, Any]], loss: float, gradient: float) -> None:
    logits = STUDENT.clone().requires_grad_()
    goal = objective(**terms)
    raw, weights = goal(said(logits), TeacherOutput(TEACHER), clips(LABEL)), goal.weights(0)
    total = torch.stack([weights[name] * raw[name] for name in raw]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert total.item() == pytest.approx(loss, rel=1e-9)
    assert logits.grad.norm().item() == pytest.approx(gradient, rel=1e-9)


def test_kl_of_equal_answers_is_zero_and_a_shift_of_logits_does_not_count() -> None:
    assert value("kl", TEACHER, TEACHER, LABEL).item() == pytest.approx(0, abs=1e-12)
    shifted = value("kl", STUDENT + 7, TEACHER - 3, LABEL)
    assert shifted.item() == pytest.approx(value("kl", STUDENT, TEACHER, LABEL).item())


def test_kl_points_from_the_teacher_to_the_student() -> None:
    one, other = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[math.log(9), 0.0]]).double()
    label = torch.tensor([0])
    assert value("kl", one, other, label, temperature=1.0).item() == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    )
    assert value("kl", other, one, label, temperature=1.0).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )


def test_hot_kl_compares_centred_logits() -> None:
    """T^2 KL tends to half the mean squared difference of the centred logits, so its size does not fall with T."""
    gap = (STUDENT - TEACHER) - (STUDENT - TEACHER).mean(1, keepdim=True)
    assert value("kl", STUDENT, TEACHER, LABEL, temperature=1e3).item() == pytest.approx(
        0.5 * gap.square().mean().item(), rel=0.01
    )


def test_kl_is_finite_for_certain_answers() -> None:
    certain = torch.eye(10)[:8] * 1e4
    found = value("kl", certain.flip(1).requires_grad_(), certain, LABEL)
    assert torch.isfinite(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_closed_form(smoothing: float) -> None:
    log_p = STUDENT.log_softmax(1)
    expected = -(1 - smoothing) * log_p[torch.arange(8), LABEL].mean() - smoothing * log_p.mean(1).mean()
    found = value("cross_entropy", STUDENT, TEACHER, LABEL, smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item())


MASKS: tuple[list[int], ...] = ([0, 3], [1, 2, 5, 6, 7], [4], [])


@pytest.mark.parametrize("hidden", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_cross_entropy_is_torch_s_with_ignore_index(hidden: list[int], smoothing: float) -> None:
    label, ours, theirs = LABEL.clone(), STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    label[hidden] = -1
    mine = value("cross_entropy", ours, TEACHER, label, smoothing=smoothing)
    reference = F.cross_entropy(theirs, label, ignore_index=-1, label_smoothing=smoothing)
    (gradient,), (expected,) = torch.autograd.grad(mine, ours), torch.autograd.grad(reference, theirs)
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_without_any_label_is_zero_not_nan() -> None:
    assert value("cross_entropy", STUDENT, TEACHER, torch.full((8,), -1)).item() == 0


def test_reconstruction_is_the_mean_squared_error_of_pictures_in_0_to_1() -> None:
    frames = torch.randint(0, 256, (3, 4, 3, 8, 8), dtype=torch.uint8)
    loss, label = LOSSES["reconstruction"], torch.zeros(3, dtype=torch.int64)
    perfect = frames.float() / 255
    logits = torch.zeros(3, 2)
    assert loss(said(logits, reconstruction=perfect), None, clips(label, frames=frames)).item() == 0
    off = loss(said(logits, reconstruction=perfect + 0.5), None, clips(label, frames=frames))
    assert off.item() == pytest.approx(0.25)
    small = torch.full((3, 2, 3, 4, 4), 128 / 255)  # a decoder may paint fewer and smaller pictures
    grey = torch.full_like(frames, 128)
    assert loss(said(logits, reconstruction=small), None, clips(label, frames=grey)).item() == pytest.approx(0)


def test_reconstruction_without_a_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="decoder"):
        value("reconstruction", STUDENT, TEACHER, LABEL)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_mean_over_clips(name: str) -> None:
    """The same clips twice give the same loss, and none of them is forgotten."""
    torch.manual_seed(0)
    label, frames = LABEL.clone(), torch.randint(0, 256, (8, 2, 3, 4, 4), dtype=torch.uint8)
    label[[2, 5]] = -1
    student = said(STUDENT, reconstruction=torch.rand(8, 2, 3, 4, 4).double())
    teacher = TeacherOutput(TEACHER, feature=TEACHER)
    once = LOSSES[name](student, teacher, clips(label, frames=frames))
    twice = LOSSES[name](
        student.map(lambda tensor: torch.cat([tensor, tensor])),
        teacher.map(lambda tensor: torch.cat([tensor, tensor])),
        clips(torch.cat([label, label]), frames=torch.cat([frames, frames])),
    )
    assert once.shape == ()
    assert once.item() > 0
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_of_a_batch_average_to_the_whole(parts: int) -> None:
    """Micro-batches with few labels, or none, together give what one batch gives."""
    labels = torch.tensor([1, -1, -1, 2, -1, 0, -1, -1])
    plan = Plan(range(8), (labels >= 0).tolist(), batch=8, parts=parts, view_options=ViewOptions(), seed=3)
    pieces = [
        LOSSES["cross_entropy"](
            said(STUDENT[part.indices]),
            None,
            clips(labels[list(part.indices)], torch.from_numpy(part.label_weight)),
        )
        for part in plan.step(0)
    ]
    assert len(pieces) == parts
    whole = F.cross_entropy(STUDENT, labels, ignore_index=-1)
    torch.testing.assert_close(torch.stack(pieces).mean(), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_every_keyword_option_is_a_recipe_option(name: str) -> None:
    parameters = inspect.signature(LOSSES[name].function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    found = {field.name: field.default for field in fields(schema(name))}
    assert found.pop("weight") is MISSING  # no silent default
    assert found.pop("warmup_steps") == 0
    assert found == options
    assert inspect.Parameter.empty not in options.values()
    assert NO_DEFAULT not in options.values()
    assert own_options(schema(name)(weight=1.0)) == options
    assert inspect.getdoc(LOSSES[name].function), f"{name} has no docstring"


def test_unknown_losses_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=f"'kd'; known: {', '.join(sorted(LOSSES))}"):
        schema("kd")


def test_an_objective_weighs_and_asks_only_for_its_live_terms() -> None:
    goal = objective(
        kl={"weight": 2.0, "warmup_steps": 4}, cross_entropy={"weight": 1.0}, reconstruction={"weight": 0.0}
    )
    assert list(goal.terms) == ["kl", "cross_entropy"]
    assert goal.want == frozenset()
    assert goal.needs_teacher
    assert goal.weights(0) == {"kl": 0.5, "cross_entropy": 1.0}
    assert goal.weights(100) == {"kl": 2.0, "cross_entropy": 1.0}
    assert objective(reconstruction={"weight": 1.0}).want == {"reconstruction"}
    assert not objective(reconstruction={"weight": 1.0}).needs_teacher
    with pytest.raises(UserError, match="no term with a weight"):
        objective(kl={"weight": 0.0})


def test_a_term_with_its_options_reaches_its_loss() -> None:
    for temperature in (1.0, 4.0):
        goal = objective(kl={"weight": 1.0, "temperature": temperature})
        found = goal(said(STUDENT), TeacherOutput(TEACHER), clips(LABEL))["kl"]
        assert found.item() == value("kl", STUDENT, TEACHER, LABEL, temperature=temperature).item()


@pytest.mark.parametrize(
    ("warmup", "step", "expected"), [(0, 0, 3.0), (4, 0, 0.75), (4, 2, 2.25), (4, 3, 3.0), (4, 9, 3.0)]
)
def test_warm_up(warmup: int, step: int, expected: float) -> None:
    assert weight_at(3.0, warmup, step) == pytest.approx(expected)
