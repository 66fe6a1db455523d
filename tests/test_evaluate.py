"""Figures: against scikit-learn, and against students that cheat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from distill.checkpoint import build_student
from distill.evaluate import Answers, confusion, evaluate, top_shares
from distill.measure import recognition_parameters
from students.tinyact import Options


def answers(label: np.ndarray, logits: np.ndarray) -> Answers:
    count = len(label)
    latent, error, failed = np.zeros((count, 2), np.float32), np.full(count, np.nan), np.zeros(count, bool)
    return Answers(np.arange(count), label, logits, latent, error, failed)


def test_shares_and_confusion_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label, logits = rng.integers(0, 9, 500), rng.normal(size=(500, 9)).astype(np.float32)
    logits[np.arange(500), label] += 1
    found = evaluate(answers(label, logits))
    assert found.keys() == {"top1", "top5"}
    assert found["top1"] == pytest.approx(top_k_accuracy_score(label, logits, k=1))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(label, logits, k=5))
    table = confusion(answers(label, logits), 9)
    assert np.array_equal(table, confusion_matrix(label, logits.argmax(1), labels=range(9)))


def test_unlabelled_clips_do_not_count() -> None:
    label, logits = np.array([0, -1, 1, -1]), np.eye(4, 3, dtype=np.float32)
    assert dict(top_shares(label, logits)) == {"top1": 0.5}
    assert dict(top_shares(np.full(4, -1), logits)) == {}


def test_always_saying_the_same_scores_nothing() -> None:
    assert dict(top_shares(np.arange(6), np.zeros((6, 6), np.float32)))["top1"] == 0


def test_numbers_that_are_not_numbers_score_nothing() -> None:
    broken = np.full((6, 6), np.nan, np.float32)
    assert dict(top_shares(np.arange(6), broken)) == {"top1": 0, "top5": 0}


def test_parameters_of_recognition_leave_the_decoder_out() -> None:
    small = {"frames": 4, "size": 8, "widths": [4, 4], "strides": [[2, 2, 2], [2, 2, 2]], "pool": [1, 1, 1]}
    small |= {"latent": 4, "hidden": 4, "blocks": 1}
    whole, bare = (TinyOptions(decoder=decoder, **small) for decoder in (True, False))
    students = [build_student(options, 3).eval() for options in (whole, bare)]
    frames = torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8)
    counted = [recognition_parameters(student, frames) for student in students]
    total = [sum(parameter.numel() for parameter in student.parameters()) for student in students]
    assert counted[0] == counted[1] == total[1] < total[0]


class TinyOptions(Options):
    name = "tinyact"
