"""Losses on the answer: closed forms, certain answers, missing labels, mixed clips, and cached top-k logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_examples import LABEL, STUDENT, TEACHER, clips, said, value
from torch import Tensor
from torch.nn import functional as F

from distill.clips.batches import Plan
from distill.clips.views import ViewOptions
from distill.errors import UserError
from distill.objective.losses import LOSSES
from distill.outputs import Blend, TeacherOutput, TopK

SOFT = ("kl", "dkd", "dist")


def gradient(name: str, student: Tensor, teacher: Any, label: Tensor = LABEL, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    found = value(name, leaf, teacher, label, **options)
    return found.detach(), torch.autograd.grad(found, leaf)[0]


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("standardise", [False, True])
def test_equal_answers_cost_nothing_and_a_shift_of_logits_does_not_count(name: str, standardise: bool) -> None:
    options: dict[str, Any] = {} if name == "dist" else {"standardise": standardise}
    assert value(name, TEACHER, TEACHER, **options).item() == pytest.approx(0, abs=1e-5)
    shifted = value(name, STUDENT + 7, TEACHER - 3, **options)
    assert shifted.item() == pytest.approx(value(name, STUDENT, TEACHER, **options).item())


@pytest.mark.parametrize("name", ["kl", "dkd"])
def test_standardised_answers_may_be_on_any_scale(name: str) -> None:
    assert value(name, 5 * STUDENT, TEACHER / 3, standardise=True).item() == pytest.approx(
        value(name, STUDENT, TEACHER, standardise=True).item(), rel=1e-5
    )


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
    assert value("kl", STUDENT, TEACHER, temperature=1e3).item() == pytest.approx(
        0.5 * gap.square().mean().item(), rel=0.01
    )


def test_dkd_is_kl_taken_apart() -> None:
    """KL = KL of label against rest + (1 - p of the label) KL among the rest, clip by clip."""
    for row in range(8):
        one = slice(row, row + 1)
        rest = 1 - TEACHER[one].softmax(1)[0, LABEL[row]].item()
        options = {"alpha": 1.0, "beta": rest, "temperature": 1.0}
        apart = value("dkd", STUDENT[one], TEACHER[one], LABEL[one], **options)
        whole = value("kl", STUDENT[one], TEACHER[one], LABEL[one], temperature=1.0)
        assert apart.item() == pytest.approx(whole.item())


def test_dist_sees_order_and_not_scale() -> None:
    """A student whose probabilities are a straight line of the teacher's has nothing to learn."""
    teacher = TEACHER.softmax(1)
    student = (0.3 * teacher + 0.7 / 10).log()
    assert value("dist", student, TEACHER).item() == pytest.approx(0, abs=1e-5)
    far = value("dist", STUDENT, TEACHER, temperature=2.0)
    parts = [value("dist", STUDENT, TEACHER, temperature=2.0, beta=b, gamma=1.0 - b) for b in (1.0, 0.0)]
    torch.testing.assert_close(far, parts[0] + parts[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_closed_form(smoothing: float) -> None:
    log_p = STUDENT.log_softmax(1)
    expected = -(1 - smoothing) * log_p[torch.arange(8), LABEL].mean() - smoothing * log_p.mean(1).mean()
    assert value("cross_entropy", STUDENT, TEACHER, smoothing=smoothing).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross_entropy", {"smoothing": 1.5}, "smoothing is 1.5; it is a share between 0 and 1"),
        ("kl", {"temperature": 0.0}, "objective.kl.temperature is 0.0; it is above 0"),
        ("dkd", {"temperature": -1.0}, "objective.dkd.temperature is -1.0; it is above 0"),
        ("dist", {"temperature": 0.0}, "objective.dist.temperature is 0.0; it is above 0"),
    ],
)
def test_impossible_numbers_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        value(name, STUDENT, TEACHER, **options)


def test_dkd_of_two_classes_is_refused() -> None:
    with pytest.raises(UserError, match="dkd needs three classes"):
        value("dkd", STUDENT[:, :2], TEACHER[:, :2], LABEL % 2)


# ---------------------------------------------------------------- certain answers


def certain(classes: Tensor) -> Tensor:
    return 1e4 * F.one_hot(classes, 10).float()


@pytest.mark.parametrize("teacher_says", [LABEL, (LABEL + 1) % 10, (LABEL + 2) % 10])
@pytest.mark.parametrize("student_says", [LABEL, (LABEL + 1) % 10])
@pytest.mark.parametrize("name", ["cross_entropy", *SOFT])
def test_certain_answers_in_float32_cost_what_they_do_in_float64(
    name: str, student_says: Tensor, teacher_says: Tensor
) -> None:
    answer, target = certain(student_says), certain(teacher_says)
    found, found_gradient = gradient(name, answer, target)
    expected, expected_gradient = gradient(name, answer.double(), target.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_gradient.double(), expected_gradient, rtol=1e-5, atol=1e-6)


def test_certain_answers_have_the_right_value_and_gradient() -> None:
    """KL of two certain answers is the margin; its gradient takes all from the one class and gives it to the other."""
    answer, target = certain((LABEL + 1) % 10), certain(LABEL)
    found, slope = gradient("kl", answer, target, temperature=4.0)
    assert found.item() == pytest.approx(4.0**2 * 1e4 / 4.0)
    move = F.one_hot((LABEL + 1) % 10, 10) - F.one_hot(LABEL, 10)
    torch.testing.assert_close(slope, 4.0 * move.float() / 8)
    found, _ = gradient("dkd", answer, target, beta=0.0)
    assert found.item() == pytest.approx(4.0**2 * (1e4 / 4.0 - math.log(1)))


# ---------------------------------------------------------------- labels

MASKS: tuple[list[int], ...] = ([0, 3], [1, 2, 5, 6, 7], [4], [])


@pytest.mark.parametrize("hidden", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_cross_entropy_is_torch_s_with_ignore_index(hidden: list[int], smoothing: float) -> None:
    label, theirs = LABEL.clone(), STUDENT.clone().requires_grad_()
    label[hidden] = -1
    mine, slope = gradient("cross_entropy", STUDENT, TEACHER, label, smoothing=smoothing)
    reference = F.cross_entropy(theirs, label, ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(mine, reference.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(reference, theirs)[0])


@pytest.mark.parametrize("hidden", MASKS)
def test_dkd_is_the_mean_over_labelled_clips(hidden: list[int]) -> None:
    label, kept = LABEL.clone(), [row for row in range(8) if row not in hidden]
    label[hidden] = -1
    found, slope = gradient("dkd", STUDENT, TEACHER, label)
    torch.testing.assert_close(found, value("dkd", STUDENT[kept], TEACHER[kept], LABEL[kept]))
    assert slope[hidden].count_nonzero() == 0


@pytest.mark.parametrize("name", ["cross_entropy", "dkd"])
def test_without_any_label_there_is_nothing_to_learn(name: str) -> None:
    found, slope = gradient(name, certain(LABEL), certain(LABEL + 1 - 10 * (LABEL == 9)), torch.full((8,), -1))
    assert found.item() == 0
    assert slope.count_nonzero() == 0


@pytest.mark.parametrize("name", ["cross_entropy", "dkd"])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_of_a_batch_average_to_the_whole(name: str, parts: int) -> None:
    """Micro-batches with few labels, or none, together give what one batch gives."""
    labels = torch.tensor([1, -1, -1, 2, -1, 0, -1, -1])
    plan = Plan(range(8), (labels >= 0).tolist(), batch=8, parts=parts, view_options=ViewOptions(), seed=3)
    pieces = [
        LOSSES[name](
            said(STUDENT[part.indices]),
            TeacherOutput(TEACHER[part.indices]),
            clips(labels[list(part.indices)], torch.from_numpy(part.label_weight)),
        )
        for part in plan.step(0)
    ]
    assert len(pieces) == parts
    torch.testing.assert_close(torch.stack(pieces).mean(), value(name, STUDENT, TEACHER, labels))


def test_mixed_clips_have_a_share_of_both_labels() -> None:
    order, share = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4]), torch.linspace(0, 1, 8)
    label = LABEL.clone()
    label[2] = -1  # unlabelled, and so is half of clip 1
    own = clips(label)
    blend = Blend(label[order], own.label_weight[order], share)
    mixed = clips(label, blend=blend)
    found = LOSSES["cross_entropy"](said(STUDENT), None, mixed, smoothing=0.1)
    expected = 0.0
    for row in range(8):
        for clip, part in ((row, share[row].item()), (int(order[row]), 1 - share[row].item())):
            if label[clip] >= 0:
                one = F.cross_entropy(STUDENT[row : row + 1], label[clip : clip + 1], label_smoothing=0.1)
                expected += part * one.item() / 7  # clips with a label
    assert found.item() == pytest.approx(expected)
    whole = clips(label, blend=Blend(label[order], own.label_weight[order], torch.ones(8)))
    torch.testing.assert_close(
        LOSSES["cross_entropy"](said(STUDENT), None, whole), value("cross_entropy", STUDENT, TEACHER, label)
    )


# ---------------------------------------------------------------- cached top-k logits


def merged(logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """[B,K] as [B,k+1] logits over T: of probabilities that are added up in the plain way."""
    shares = (logits / temperature).softmax(-1)
    top = shares.gather(-1, indices)
    return torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1).log()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", ["kl", "dkd"])
def test_top_k_is_the_same_loss_with_all_others_as_one_class(name: str, temperature: float) -> None:
    top = TopK.of(TEACHER, 4)
    inside = (top.indices == LABEL[:, None]).any(1)
    assert inside.any()
    assert not inside.all()
    label = torch.where(inside, (top.indices == LABEL[:, None]).int().argmax(1), 4)
    answer, target = (merged(logits, top.indices, temperature) for logits in (STUDENT, TEACHER))
    expected = temperature**2 * value(name, answer, target, label, temperature=1.0)
    torch.testing.assert_close(value(name, STUDENT, top, temperature=temperature), expected)


def test_dist_of_top_k_spreads_the_rest_on_both_sides() -> None:
    top, rows = TopK.of(TEACHER, 4), torch.arange(8)[:, None]

    def spread(logits: Tensor) -> Tensor:
        shares = logits.softmax(-1)
        kept = torch.zeros_like(shares)
        kept[rows, top.indices] = shares[rows, top.indices]
        rest = (1 - kept.sum(1, keepdim=True)) / 6
        return torch.where(kept > 0, kept, rest).log()

    torch.testing.assert_close(value("dist", STUDENT, top), value("dist", spread(STUDENT), spread(TEACHER)))


@pytest.mark.parametrize("name", SOFT)
def test_top_k_that_leaves_out_next_to_nothing_is_the_whole(name: str) -> None:
    teacher = TEACHER.clone()
    teacher[:, 9] = -60
    student = STUDENT.clone()
    student[:, 9] = -60
    found = value(name, student, TopK.of(teacher, 9), temperature=1.0)
    assert found.item() == pytest.approx(value(name, student, teacher, temperature=1.0).item(), rel=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_top_k_of_certain_answers_is_finite(name: str) -> None:
    target = certain(LABEL) + torch.arange(10.0)
    for teacher in (TopK.of(target, 3), TopK.of(target.flip(1), 3)):
        found, slope = gradient(name, certain((LABEL + 1) % 10), teacher)
        assert torch.isfinite(found)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("name", SOFT)
def test_top_k_says_nothing_of_low_temperatures(name: str) -> None:
    with pytest.raises(UserError, match=rf"objective.{name}.temperature: a temperature of 0.5 needs all logits"):
        value(name, STUDENT, TopK.of(TEACHER, 4), temperature=0.5)


@pytest.mark.parametrize("name", ["kl", "dkd"])
def test_top_k_cannot_be_standardised(name: str) -> None:
    with pytest.raises(UserError, match=rf"objective.{name}.standardise: only the teacher's largest logits are cached"):
        value(name, STUDENT, TopK.of(TEACHER, 4), standardise=True)


def test_dkd_needs_two_of_the_top() -> None:
    with pytest.raises(UserError, match="dkd needs three classes"):
        value("dkd", STUDENT, TopK.of(TEACHER, 1))
