"""Lengths of time, numbers that move over it, and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distill.errors import UserError
from distill.objective.schedule import Course, read_course, steps_of
from distill.optim import Optim, Rate, check, make_optimizer


@pytest.mark.parametrize(
    ("span", "steps"),
    [(7, 7), ("7", 7), ("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("1 epoch", 10), ("2.5 epochs", 25), (0, 0)],
)
def test_a_span_is_steps_or_epochs(span: Any, steps: int) -> None:
    assert steps_of(span, 10, "train.steps") == steps


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_spans_add_up(count: int, epoch: int) -> None:
    assert steps_of(count, epoch, "x") == steps_of(f"{count} steps", epoch, "x") == count
    assert steps_of(f"{count} epochs", epoch, "x") == count * epoch


@pytest.mark.parametrize("span", ["many", "-3", -3, "3 days", "", "1.5", 1.5, "epochs", "1e3", None])
def test_what_is_no_span_is_refused_by_its_key(span: Any) -> None:
    with pytest.raises(UserError, match=r"^train\.steps is .*"):
        steps_of(span, 10, "train.steps")
    with pytest.raises(UserError, match="at least 1"):
        steps_of(0, 10, "train.log_every", 1)


@pytest.mark.parametrize(
    ("given_", "at"),
    [
        (3, {0: 3.0, 999: 3.0}),
        ({"to": 3, "over": 4}, {0: 0.75, 2: 2.25, 3: 3.0, 9: 3.0}),
        ({"to": 1, "over": "2 epochs"}, {0: 0.05, 9: 0.5, 19: 1.0, 50: 1.0}),
        ({"from": 8, "to": 2, "over": 6}, {0: 7.0, 2: 5.0, 5: 2.0, 6: 2.0}),
        ({"to": 1, "after": "1 epoch"}, {0: 0.0, 9: 0.0, 10: 1.0}),
        ({"from": 4, "to": 1, "after": 3, "over": 3}, {0: 4.0, 2: 4.0, 3: 3.0, 5: 1.0, 7: 1.0}),
        ({"to": 2, "until": 5}, {4: 2.0, 5: 0.0, 6: 0.0}),
        ({"to": 1, "over": 4, "shape": "cosine"}, {0: 0.5 - math.sqrt(0.125), 1: 0.5, 3: 1.0}),
    ],
)
def test_a_course(given_: Any, at: dict[int, float]) -> None:
    course = read_course(given_, "objective.kl.weight", epoch_steps=10)
    assert {step: course.at(step) for step in at} == pytest.approx(at)
    assert course.ever


def test_a_course_that_is_never_anything_is_off() -> None:
    assert not Course(0).ever
    assert not Course(0, over=10).ever
    assert not Course(0, start=3).ever
    assert Course(0, start=3, over=10).ever
    assert Course(0, start=3, after=10).ever


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ("heavy", "'heavy'; it is a number, or {to"),
        (None, "None; it is a number"),
        (True, "True; it is a number"),
        (-1, "-1.0; it is at least 0"),
        (math.nan, "nan"),
        ({"over": 3}, "has no 'to'"),
        ({"to": "high"}, r"\.to is 'high'"),
        ({"to": 1, "from": -2}, "-2.0; it is at least 0"),
        ({"to": 1, "ovr": 3}, r"no key objective\.kl\.weight\.ovr; known: from, to, after, over, until, shape"),
        ({"to": 1, "over": "long"}, r"\.over is 'long'"),
        ({"to": 1, "shape": "round"}, "'round'; known: linear, cosine"),
    ],
)
def test_what_is_no_course_is_refused_by_its_key(given_: Any, told: str) -> None:
    with pytest.raises(UserError, match=r"objective\.kl\.weight.*" + told if not told.startswith("no") else told):
        read_course(given_, "objective.kl.weight")


def test_the_cosine_rate_rises_falls_and_ends_where_it_should() -> None:
    rate = Rate(Optim(lr=1.0, warmup_steps="1 epoch", final_lr=0.1), steps=110, epoch_steps=10)
    assert [rate.at(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate.at(60) == pytest.approx(0.55)
    assert rate.at(110) == pytest.approx(0.1)
    assert all(rate.at(step) >= rate.at(step + 1) for step in range(9, 110))


def test_the_step_rate_falls_at_its_milestones() -> None:
    options = Optim(lr=0.01, schedule="step", milestones=["45 epochs", "60 epochs", 700], warmup_steps=0)
    rate = Rate(options, steps=1000, epoch_steps=10)
    found = [rate.at(step) for step in (0, 449, 450, 599, 600, 700)]
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5])


def test_the_constant_rate_stays() -> None:
    rate = Rate(Optim(lr=0.5, schedule="constant", warmup_steps=2), steps=10, epoch_steps=1)
    assert [rate.at(step) for step in (0, 1, 9)] == [0.25, 0.5, 0.5]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_optimizer_is_torch_s_with_these_options(name: str) -> None:
    """Two steps of ours end where two steps of torch's own end; only what has more than one dimension decays."""
    ours, theirs = (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    options = Optim(name=name, lr=0.1, weight_decay=0.2, momentum=0.8)
    flat = [p for p in theirs.parameters() if p.dim() == 1]
    groups: Any = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.2},
        {"params": flat, "weight_decay": 0.0},
    ]
    known = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    reference = known(groups, lr=0.1, **({"momentum": 0.8} if name == "sgd" else {}))
    x = torch.randn(5, 3)
    for module, optimizer in ((ours, make_optimizer(ours, options)), (theirs, reference)):
        for _ in range(2):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_norms_and_biases_decay_when_asked() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decays = [group["weight_decay"] for group in make_optimizer(module, Optim(decay_norms=True)).param_groups]
    assert decays == [0.05]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "adamax"}, r"optim\.name is 'adamax'; known: adamw, adam, sgd"),
        ({"schedule": "linear"}, r"optim\.schedule is 'linear'; known"),
        ({"lr": -1.0}, r"optim\.lr is -1\.0"),
        ({"momentum": math.inf}, r"optim\.momentum"),
        ({"schedule": "step"}, r"optim\.milestones"),
        ({"milestones": [3]}, r"optim\.milestones"),
        ({"schedule": "constant", "final_lr": 1e-5}, r"optim\.final_lr is where a cosine ends; schedule=constant"),
    ],
)
def test_a_wrong_option_of_the_optimizer_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(Optim(**options))
