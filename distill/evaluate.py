"""What a student is worth. Answers are collected once; evaluators are pure and yield (name, value)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from distill.clips.batches import Heed, evaluation_batches, ignore
from distill.clips.clipset import ClipSet
from distill.objective.pictures import pictures
from distill.outputs import Clips, Student, StudentOutput


@dataclass(frozen=True)
class Answers:
    """What a student says about clips, in the order of `index`; over several test views, their mean."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]; -1 = unlabelled
    logits: np.ndarray  # float32 [N,K]; nan where the clip gave no frames
    latent: np.ndarray  # float32 [N,L]
    error: np.ndarray  # float32 [N]; mean squared error of the reconstruction, nan without a decoder
    failed: np.ndarray  # bool [N]; the clip gave no frames, which counts as a wrong answer


@torch.no_grad()
def collect(
    student: Student,
    clips: ClipSet,
    indices: Sequence[int],
    batch: int,
    accelerator: Accelerator,
    heed: Heed = ignore,
) -> Answers:
    """The student's answers about these clips in the test views; every process does its share, all get all."""
    student.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    parts: list[list[torch.Tensor]] = []
    for on_host in evaluation_batches(clips, indices, batch, heed, rank, world):
        given = on_host.to(accelerator.device)
        with accelerator.autocast():
            answer = student(student.spec.fit(given.frames), want=("reconstruction",)).float()
        error = torch.full((len(given),), torch.nan, device=accelerator.device)
        if answer.reconstruction is not None:
            error = (answer.reconstruction - pictures(answer.reconstruction, given)).square().flatten(1).mean(1)
        parts.append(_by_clip(given, answer, error))
    student.train()
    gathered = [torch.cat(column) for column in zip(*parts, strict=True)]
    if world > 1:
        gathered = [_gather(column, -(-len(indices) // world), accelerator) for column in gathered]
    rows = [column.cpu().numpy() for column in gathered]
    found, place = np.unique(rows[0], return_index=True)
    index, label, logits, latent, errors, failed = (row[place[found >= 0]] for row in rows)
    return Answers(index, label, logits, latent, errors, failed.astype(bool))


def _by_clip(given: Clips, answer: StudentOutput, error: torch.Tensor) -> list[torch.Tensor]:
    """A row for each clip: the mean over its views (of probabilities, for the classes)."""
    shown = int((given.index == given.index[0]).sum())
    logits, latent, error = (value.view(-1, shown, *value.shape[1:]) for value in (answer.logits, answer.latent, error))
    logits = logits[:, 0] if shown == 1 else logits.softmax(-1).mean(1).log()
    failed = given.failed[::shown]
    logits = logits.masked_fill(failed[:, None], torch.nan)
    error = error.mean(1).masked_fill(failed, torch.nan)
    return [given.index[::shown], given.label[::shown], logits, latent.mean(1), error, failed.long()]


def _gather(column: torch.Tensor, length: int, accelerator: Accelerator) -> torch.Tensor:
    """Everybody's rows; shares shorter than `length` are filled up with -1."""
    filler = column.new_full((length - len(column), *column.shape[1:]), -1)
    gathered: torch.Tensor = accelerator.gather(torch.cat([column, filler]))
    return gathered


def accuracy(answers: Answers) -> Iterator[tuple[str, float]]:
    yield from top_shares(answers.label, answers.logits)


def top_shares(label: np.ndarray, logits: np.ndarray) -> Iterator[tuple[str, float]]:
    """Top-1 and top-5 over the labelled clips."""
    known = label >= 0
    if not known.any():
        return
    label, logits = label[known], logits[known]
    # Ties, and numbers that are not numbers, count against the student: one that always says the same scores nothing.
    better = (~(logits < logits[np.arange(len(label)), label][:, None])).sum(1) - 1
    better[np.isnan(logits).any(1)] = logits.shape[1]
    yield "top1", float((better == 0).mean())
    if logits.shape[1] > 5:
        yield "top5", float((better < 5).mean())


def reconstruction(answers: Answers) -> Iterator[tuple[str, float]]:
    error = answers.error[~answers.failed]
    if len(error) and np.isfinite(error).all():
        yield "reconstruction", float(error.mean())


EVALUATORS = (accuracy, reconstruction)
REALTIME = "realtime"  # in a summary, beside a test of several views: what they yield by one look at each clip
HIGHER_IS_BETTER = {"top1": True, "top5": True, "reconstruction": False}  # what they yield


def evaluate(answers: Answers) -> dict[str, float]:
    return {name: value for evaluator in EVALUATORS for name, value in evaluator(answers)}


def confusion(answers: Answers, classes: int) -> np.ndarray:
    """Counts [true class, predicted class] of the clips that could be read."""
    known = (answers.label >= 0) & ~answers.failed
    return counts(answers.label[known], answers.logits[known].argmax(1), classes)


def confused_pairs(table: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """The most frequent errors of such counts: true class, answer, how often."""
    wrong = table * (1 - np.eye(len(table), dtype=np.int64))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist():
        true, said = divmod(place, len(table))
        if not wrong[true, said]:
            break
        yield true, said, int(wrong[true, said])


def counts(label: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """[true class, class that was said]"""
    return np.bincount(label * classes + said, minlength=classes**2).reshape(classes, classes)
