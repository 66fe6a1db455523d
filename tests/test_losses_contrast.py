"""Contrastive distillation: what its memory keeps, and that it is the same after a stop and on every process."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective import contrast
from distill.objective.contrast import Memory, Queue
from distill.objective.losses import LOSSES
from distill.outputs import Clips, StudentOutput, TeacherOutput

TRAINING = [3, 5, 8, 13, 21, 34, 55]
SMALL = {"width": 8, "negatives": 4}
TOGETHER = [3, 8, 55, 21]  # a batch of two processes
Batch = tuple[StudentOutput, TeacherOutput, Clips]


def batch(index: list[int], seed: int = 0) -> Batch:
    chance, count = torch.Generator().manual_seed(seed), len(index)
    mine, other, none = torch.randn(count, 6, generator=chance), torch.randn(count, 5, generator=chance), torch.zeros
    label = torch.full((count,), -1)
    frames = none(count, 1, 3, 1, 1, dtype=torch.uint8)
    given = Clips(frames, label, torch.tensor(index), torch.ones_like(label))
    return StudentOutput(none(count, 2), mine), TeacherOutput(none(count, 2), other), given


def half(rank: int) -> Batch:
    """A process's part of the batch of both."""
    student, teacher, given = batch(TOGETHER)
    mine = slice(2 * rank, 2 * rank + 2)
    return tuple(part.map(lambda tensor: tensor[mine]) for part in (student, teacher, given))  # type: ignore[return-value]


def learnt(mode: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return LOSSES["crd"].learns(*batch([3, 5])[:2], TRAINING, mode=mode, **(SMALL | options))


def value(memory: Any, given: Batch) -> Tensor:
    return LOSSES["crd"](*given, learnt=memory)


def train(memory: Any, steps: range) -> list[float]:
    found = []
    for step in steps:
        loss = value(memory, batch([TRAINING[step % 7], TRAINING[(2 * step + 1) % 7], 55], step))
        slopes = torch.autograd.grad(loss, list(memory.parameters()))
        for parameter, slope in zip(memory.parameters(), slopes, strict=True):
            parameter.data -= 0.1 * slope
        found.append(loss.item())
    return found


MODES = pytest.mark.parametrize("mode", ["memory", "queue"])


@MODES
def test_a_checkpoint_goes_on_bit_for_bit_whatever_the_global_chance(mode: str) -> None:
    whole, stopped = learnt(mode), learnt(mode)
    expected = train(whole, range(6))
    first = train(stopped, range(3))
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    resumed = LOSSES["crd"].learns(*batch([3, 5])[:2], TRAINING, mode=mode, **SMALL)
    assert resumed is not None
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert first + train(resumed, range(3, 6)) == expected
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@MODES
def test_the_global_chance_is_left_alone(mode: str) -> None:
    memory = learnt(mode)
    before = torch.get_rng_state()
    value(memory, batch([3, 5]))
    assert torch.equal(torch.get_rng_state(), before)


@MODES
def test_what_it_learns_and_what_it_keeps(mode: str) -> None:
    memory = learnt(mode)
    assert {name for name, _ in memory.named_parameters()} == {
        f"embed.{side}.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")
    }
    value(memory, batch([3, 5, 8])).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad.abs().sum() > 0 for parameter in memory.parameters())
    copy.deepcopy(memory)  # the rehearsal does


@MODES
def test_at_rest_it_remembers_nothing(mode: str) -> None:
    memory = learnt(mode).eval()
    before = copy.deepcopy(memory.state_dict())
    assert value(memory, batch([3, 5])).item() == value(memory, batch([3, 5])).item()
    for name, kept in memory.state_dict().items():
        assert torch.equal(kept, before[name])


# ---------------------------------------------------------------- memory


def embedded(memory: Memory | Queue, given: Batch) -> tuple[Tensor, Tensor]:
    student, teacher = given[0].latent, given[1].feature
    assert teacher is not None
    return F.normalize(memory.embed.student(student)), F.normalize(memory.embed.teacher(teacher))


def test_memory_moves_the_rows_of_the_batch_and_no_others() -> None:
    memory, given = learnt("memory", momentum=0.25), batch([34, 5])
    assert memory.student_bank.abs().max() <= 1 / (8 / 3) ** 0.5
    before = memory.student_bank.clone(), memory.teacher_bank.clone()
    value(memory, given)
    for bank, old, new in zip((memory.student_bank, memory.teacher_bank), before, embedded(memory, given), strict=True):
        expected = old.clone()
        expected[[5, 1]] = F.normalize(0.25 * old[[5, 1]] + 0.75 * new)  # places of 34 and 5 in TRAINING
        torch.testing.assert_close(bank, expected)


def test_a_clip_that_is_twice_in_the_batch_is_remembered_as_it_was_last() -> None:
    memory, given = learnt("memory", momentum=0.0), batch([8, 3, 8])
    value(memory, given)
    student, _ = embedded(memory, given)
    torch.testing.assert_close(memory.student_bank[2], student[2])
    torch.testing.assert_close(memory.student_bank[0], student[1])


def test_others_are_other_clips_and_all_of_them_alike() -> None:
    memory, own = learnt("memory", negatives=7000), torch.tensor([0, 3, 6])
    drawn = memory.others(own, 5)
    assert not (drawn == own[:, None]).any()
    for row, clip in zip(drawn, own, strict=True):
        counts = torch.bincount(row, minlength=7)
        assert counts[clip] == 0
        assert counts.sum() == 7000
        assert (counts[counts > 0] / 7000 - 1 / 6).abs().max() < 0.02
    assert torch.equal(memory.others(own, 5), drawn)
    assert not torch.equal(memory.others(own, 6), drawn)


def test_z_is_frozen_after_the_first_batch_and_the_draws_go_on() -> None:
    memory = learnt("memory")
    value(memory, batch([3, 5]))
    frozen = memory.log_z.clone()
    assert frozen.abs().min() > 0
    seen: list[int] = []

    def others(own: Tensor, seed: int) -> Tensor:
        seen.append(seed)
        return torch.zeros(len(own), 4, dtype=torch.int64)

    memory.others = others
    for step in range(3):
        value(memory, batch([8, 55], seed=step))
    assert torch.equal(memory.log_z, frozen)
    assert len(set(seen)) == 3
    assert memory.draws[1] == 4


def test_memory_is_the_published_formula() -> None:
    """Written out in probabilities, for a batch after the first."""
    memory = learnt("memory")
    value(memory, batch([3, 5]))
    given, own = batch([13, 34], seed=1), torch.tensor([3, 5])
    others = torch.tensor([[0, 1, 2, 6], [0, 0, 4, 3]])
    memory.others = lambda own, seed: others
    rows, count, noise, expected = torch.cat([own[:, None], others], 1), 4, 1 / 7, torch.tensor(0.0)
    sides = zip(embedded(memory, given), (memory.teacher_bank, memory.student_bank), memory.log_z.exp(), strict=True)
    for vectors, bank, z in sides:
        p = ((bank[rows] * vectors[:, None]).sum(2) / 0.07).exp() / z
        right = (p[:, 0] / (p[:, 0] + count * noise + 1e-7)).log()
        wrong = (count * noise / (p[:, 1:] + count * noise + 1e-7)).log().sum(1)
        expected = expected - (right + wrong).mean()
    torch.testing.assert_close(value(memory, given), expected)


def test_certain_scores_stay_finite_at_a_low_temperature() -> None:
    memory = learnt("memory", temperature=1e-3)
    given = batch([3, 5])
    found = value(memory, given)
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found)
    assert all(torch.isfinite(parameter.grad).all() for parameter in memory.parameters())


def test_a_clip_that_was_not_to_be_trained_on_is_no_row() -> None:
    with pytest.raises(AssertionError, match="not one of the training clips"):
        value(learnt("memory"), batch([3, 4]))


# ---------------------------------------------------------------- queue


def test_a_queue_forgets_the_oldest_and_goes_round() -> None:
    queue, given = learnt("queue", negatives=5), [batch([3, 5, 8]), batch([13, 21, 34], seed=1)]
    for one in given:
        value(queue, one)
    assert queue.clips.tolist() == [34, 5, 8, 13, 21]
    assert queue.place == 1
    student, _ = embedded(queue, given[1])
    torch.testing.assert_close(queue.student_queue[[3, 4, 0]], student)


def test_a_batch_longer_than_the_queue_leaves_its_end() -> None:
    queue = learnt("queue", negatives=2)
    value(queue, batch([3, 5, 8]))
    assert sorted(queue.clips.tolist()) == [5, 8]


def test_a_queue_asks_which_and_no_gradient_goes_to_the_answer() -> None:
    queue = learnt("queue")
    value(queue, batch([3, 5, 8, 13], seed=2))
    given = batch([3, 21])
    before = copy.deepcopy(queue)
    found = value(queue, given)
    student, teacher = embedded(before, given)
    expected = torch.tensor(0.0)
    for asking, own, kept in ((student, teacher, before.teacher_queue), (teacher, student, before.student_queue)):
        for row in range(2):
            known = kept if row else kept[before.clips != 3]  # clip 3 is there already: it is no other
            choice = torch.cat([own[row : row + 1].detach(), known]) @ asking[row] / 0.07
            expected = expected - choice.log_softmax(0)[0] / 2
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, list(queue.parameters()))  # after the queue has moved on
    theirs = torch.autograd.grad(expected, list(before.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


# ---------------------------------------------------------------- options, processes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bank"}, "'bank'; known: memory, queue"),
        ({"negatives": 0}, "negatives is 0; it is at least 1"),
        ({"width": 0}, "width is 0; it is at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it is above 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it is at least 0 and below 1"),
        ({"student": "depth"}, "'depth'; the student gives latent, logits"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"objective.crd.*{message}"):
        LOSSES["crd"].learns(*batch([3, 5])[:2], TRAINING, **options)


def test_one_clip_cannot_be_told_from_others() -> None:
    with pytest.raises(UserError, match="only one training clip"):
        LOSSES["crd"].learns(*batch([3])[:2], [3])


def test_two_processes_remember_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has half of a batch; the banks are those of one process that had all of it, and on both the same bits."""
    here = Path(__file__)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, str(here.with_name("two_memories.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for mode in ("memory", "queue"):
        expected = learnt(mode)
        value(expected, batch(TOGETHER))
        one, two = (torch.load(tmp_path / f"{mode}{rank}.pt", weights_only=True) for rank in (0, 1))
        for name, kept in expected.state_dict().items():
            assert torch.equal(one[name], two[name]), name
            if name != "log_z":  # each draws others for its clips
                torch.testing.assert_close(one[name], kept)
        if mode == "memory":
            apart = []
            for rank in (0, 1):
                monkeypatch.setattr(contrast, "_rank", lambda rank=rank: rank)
                value(alone := learnt(mode), half(rank))
                apart.append(alone.log_z)
            torch.testing.assert_close(one["log_z"], torch.stack(apart).exp().mean(0).log())


def test_processes_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def others(own: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return torch.zeros(len(own), 4, dtype=torch.int64)

    for rank in (0, 1, 1):
        monkeypatch.setattr(contrast, "_rank", lambda rank=rank: rank)
        memory = learnt("memory")
        memory.others = others
        value(memory, batch([3, 5]))
    assert seeds[0] != seeds[1] == seeds[2]
