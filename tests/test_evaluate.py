"""Figures: against scikit-learn, and against students that cheat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from distill.checkpoint import build_student
from distill.evaluate import Answers, confusion, evaluate, top_shares
from distill.measure import recognition_parameters
from distill.probing.classifiers import PROBES, judge
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


@pytest.mark.parametrize("name", list(PROBES))
def test_probes_find_what_is_there_and_nothing_else(name: str) -> None:
    rng = np.random.default_rng(1)
    label = np.arange(360) % 4
    centres = rng.normal(size=(4, 6)) * 4
    cut = [slice(0, 200), slice(200, 240), slice(240, 360)]
    clear = centres[label] + rng.normal(size=(360, 6))
    noise = rng.normal(size=(360, 6))
    scores = [judge(name, *((values[part], label[part]) for part in cut), seed=0).top1 for values in (clear, noise)]
    assert scores[0] > 0.9
    assert scores[1] < 0.45


def test_settings_are_chosen_on_validation() -> None:
    """A test split that would choose otherwise must not be asked."""
    rng = np.random.default_rng(2)
    values, label = rng.normal(size=(90, 3)), np.arange(90) % 3
    parts = [(values[cut], label[cut]) for cut in (slice(0, 30), slice(30, 60), slice(60, 90))]
    chosen = judge("svm", *parts, seed=0)
    scores = {
        setting["C"]: PROBES["svm"].make(0, **setting).fit(*parts[0]).score(*parts[1]) for setting in PROBES["svm"].grid
    }
    assert scores[chosen.setting["C"]] == max(scores.values())
