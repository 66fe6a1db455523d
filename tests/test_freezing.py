"""What trains when: groups, their rates, their running statistics."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.freezing import Freezing, Group, Schedule
from distill.optim import Optim, make_optimizer
from distill.outputs import ClipSpec, Student, StudentOutput


class Small(Student):
    """Two blocks with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.feature_names, self.encoder = ClipSpec(1, 2), (), ("blocks",)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12)) for _ in range(2)))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(12, 3)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        latent = self.blocks(frames.flatten(1).float() / 255)
        return StudentOutput(self.head(self.drop(latent)), latent)


FRAMES = torch.randint(0, 256, (6, 1, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(student: Student, options: Freezing, steps: int, epoch: int = 1) -> tuple[Schedule, list[set[str]]]:
    """Train for some steps; which entries of the state changed at each."""
    schedule = Schedule(student, options, epoch)
    optimizer = make_optimizer(student, Optim(lr=0.1), schedule.factor)
    changed = []
    for step in range(steps):
        before = {name: value.clone() for name, value in student.state_dict().items()}
        if step == 1:
            student.eval().train()  # a look at the validation split
        schedule.apply(step)
        assert student.drop.training
        optimizer.zero_grad()
        student(FRAMES).logits.square().sum().backward()
        optimizer.step()
        changed.append({name for name, value in student.state_dict().items() if not torch.equal(value, before[name])})
    return schedule, changed


def of(prefix: str) -> set[str]:
    return {name for name in Small().state_dict() if name.startswith(prefix)}


def test_joint_trains_everything_from_the_start() -> None:
    _, changed = trained(Small(), Freezing(), 1)
    assert changed == [of("")]


def test_frozen_keeps_the_encoder_and_its_statistics() -> None:
    student = Small()
    _, changed = trained(student, Freezing(mode="frozen"), 3)
    assert changed == [of("head")] * 3
    assert not any(module.training for module in student.blocks.modules())
    assert student.drop.training
    assert all(p.grad is None for p in student.blocks.parameters())


def test_progressive_unfreezes_at_the_stated_epochs() -> None:
    groups = {"late": Group(["blocks.1"], "2 epochs", 0.1), "last": Group(["encoder"], "4 epochs", 0.01)}
    student = Small()
    schedule, changed = trained(student, Freezing("progressive", groups), 6, epoch=1)
    assert changed[:2] == [of("head")] * 2
    assert changed[2:4] == [of("head") | of("blocks.1")] * 2
    assert changed[4:] == [of("")] * 2
    factors = {name: schedule.factor(p) for name, p in student.named_parameters()}
    assert factors["blocks.1.0.weight"] == 0.1  # the longest name counts
    assert factors["blocks.0.0.weight"] == 0.01
    assert factors["head.weight"] == 1.0


@pytest.mark.parametrize("order", [1, -1])
def test_a_part_by_its_name_goes_before_the_encoder_as_a_whole(order: int) -> None:
    student = Small()
    student.encoder = ("blocks.0", "blocks.1")
    groups = [("early", Group(["encoder"], 6)), ("late", Group(["blocks.1"], 3, 0.5))][::order]
    schedule = Schedule(student, Freezing("progressive", dict(groups)), 1)
    assert {part: (turn.at, turn.factor) for part, turn in schedule.by_part.items()} == {
        "blocks.0": (6, 1.0),
        "blocks.1": (3, 0.5),
    }


def test_the_optimiser_keeps_its_state_when_a_group_joins() -> None:
    student = Small()
    schedule = Schedule(student, Freezing("progressive", {"e": Group(["encoder"], 2)}), 1)
    optimizer = make_optimizer(student, Optim(), schedule.factor)
    for step in range(4):
        schedule.apply(step)
        optimizer.zero_grad()
        student(FRAMES).logits.square().sum().backward()
        optimizer.step()
    counts = {name: int(optimizer.state[p]["step"]) for name, p in student.named_parameters()}
    assert counts["head.weight"] == 4
    assert counts["blocks.0.0.weight"] == 2


def test_what_the_student_holds_fixed_stays_fixed() -> None:
    student = Small()
    student.head.bias.requires_grad_(False)
    _, changed = trained(student, Freezing("progressive", {"h": Group(["head"], 1)}), 2)
    assert changed == [of("blocks"), of("") - {"head.bias"}]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "half"}, r"schedule\.mode is 'half'; known: joint, frozen, progressive"),
        ({"mode": "progressive"}, r"schedule\.groups and schedule\.mode=progressive"),
        ({"groups": {"a": Group(["head"])}}, r"schedule\.groups and schedule\.mode=progressive"),
        (
            {"mode": "progressive", "groups": {"a": Group(["heads"])}},
            r"no part 'heads'; it has encoder, blocks, blocks\.0, .*head",
        ),
        ({"mode": "progressive", "groups": {"a": Group([])}}, r"schedule\.groups\.a\.parts is \[\]"),
        ({"mode": "progressive", "groups": {"a": Group([""])}}, r"schedule\.groups\.a\.parts is \[''\]"),
        (
            {"mode": "progressive", "groups": {"a": Group(["head"]), "b": Group(["drop", "head"], 3)}},
            "both a and b name head",
        ),
        ({"mode": "progressive", "groups": {"a": Group(["head"], "soon")}}, r"schedule\.groups\.a\.at is 'soon'"),
        ({"mode": "progressive", "groups": {"a": Group(["head"], 1, -1.0)}}, r"schedule\.groups\.a\.lr is -1"),
    ],
)
def test_a_wrong_schedule_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Schedule(Small(), Freezing(**options), 1)


def test_nothing_left_to_train_is_refused() -> None:
    student = Small()
    schedule = Schedule(student, Freezing("progressive", {"all": Group(["encoder", "head"], "never")}), 1)
    with pytest.raises(UserError, match="nothing is left to train"):
        make_optimizer(student, Optim(), schedule.factor)
    assert all(course.at == math.inf for _, course in schedule.parameters)
