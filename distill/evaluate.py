"""What a student is worth. Answers are collected once; evaluators are pure and yield (name, value)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from distill.clips.batches import ClipSet, evaluation_batches
from distill.objective.losses import pictures
from distill.outputs import Student


@dataclass(frozen=True)
class Answers:
    """What a student says about clips, in the order of `index`."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]; -1 = unlabelled
    logits: np.ndarray  # float32 [N,K]
    latent: np.ndarray  # float32 [N,L]
    error: np.ndarray  # float32 [N]; mean squared error of the reconstruction, nan without a decoder


@torch.no_grad()
def collect(student: Student, clips: ClipSet, indices: Sequence[int], batch: int, accelerator: Accelerator) -> Answers:
    """The student's answers about these clips in the plain view; every process does its share, all get all."""
    student.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    parts: list[list[torch.Tensor]] = []
    for on_host in evaluation_batches(clips, indices, batch, rank, world):
        given = on_host.to(accelerator.device)
        with accelerator.autocast():
            answer = student(student.spec.fit(given.frames), want=("reconstruction",)).float()
        error = torch.full((len(given),), torch.nan, device=accelerator.device)
        if answer.reconstruction is not None:
            error = (answer.reconstruction - pictures(answer.reconstruction, given)).square().flatten(1).mean(1)
        parts.append([given.index, given.label, answer.logits, answer.latent, error])
    student.train()
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if world > 1:
        columns = [_gather(column, -(-len(indices) // world), accelerator) for column in columns]
    rows = [column.cpu().numpy() for column in columns]
    index, place = np.unique(rows[0], return_index=True)
    return Answers(*(row[place[index >= 0]] for row in rows))


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
    yield "top1", float((better == 0).mean())
    if logits.shape[1] > 5:
        yield "top5", float((better < 5).mean())


def reconstruction(answers: Answers) -> Iterator[tuple[str, float]]:
    if np.isfinite(answers.error).all():
        yield "reconstruction", float(answers.error.mean())


EVALUATORS = (accuracy, reconstruction)


def evaluate(answers: Answers) -> dict[str, float]:
    return {name: value for evaluator in EVALUATORS for name, value in evaluator(answers)}


def confusion(answers: Answers, classes: int) -> np.ndarray:
    """Counts [true class, predicted class]."""
    known = answers.label >= 0
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (answers.label[known], answers.logits[known].argmax(1)), 1)
    return table
