"""Structured pruning: whole channels go, together with all that depends on them (torch-pruning finds out what does).

A network with the temporal shift is pruned without it: the shift is a hook that takes an eighth of whatever channels
there are, so it fits again once the student is built anew.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.checkpoint import StudentCard, copy_student, outline
from distill.errors import UserError
from distill.hub import DistilledStudent, check_options
from distill.outputs import Student
from distill.parts import Layer, layers
from distill.widths import Widths, narrow, narrowed, widths_of

OUTPUTS = ("out_channels", "out_features")


def cut_channels(
    student: Student, card: StudentCard, whole: Widths, amount: float, multiple: int, keep: Sequence[str]
) -> tuple[Student, StudentCard]:
    """A copy that has this share fewer channels than the `whole` one in every layer but the last, and its card."""
    plain = _unshifted(student, card)
    chosen = layers(plain, keep)
    head = list(layers(plain, ()))[-1]
    goals = {name: goal(_output(whole[name]), amount, multiple) for name in chosen if name != head}
    _prune(plain, {plain.get_submodule(name): left for name, left in goals.items()})
    before = outline(check_options(card.options, "the student"), len(card.classes))
    card = replace(card, widths=narrowed(plain, before))
    narrow(before, card.widths)
    wrong = [name for name, value in plain.state_dict().items() if value.shape != before.state_dict()[name].shape]
    if wrong:
        raise UserError(
            f"method=channels cannot prune this student: {wrong[0]} is a tensor whose width cannot be written down; "
            "method=magnitude can"
        )
    return copy_student(plain, card), card


def goal(width: int, amount: float, multiple: int) -> int:
    """Channels that are left of so many: the nearest multiple, and at least one unless there were fewer."""
    left = int(width * (1 - amount) / multiple + 0.5) * multiple
    return min(width, max(multiple, left))


def _output(widths: Mapping[str, int]) -> int:
    return next(widths[name] for name in OUTPUTS if name in widths)


def _unshifted(student: Student, card: StudentCard) -> Student:
    """A copy without the temporal shift."""
    options = {**card.options, **({"shift": "none"} if "shift" in card.options else {})}
    plain = DistilledStudent(options, card.classes, {}, card.widths)
    plain.fill(student.state_dict(), "the student")
    return plain.student.eval()


def _prune(student: Student, goals: Mapping[nn.Module, int]) -> None:
    """Leave as many channels of each layer as its goal says: the most important of those that depend on each other."""
    try:
        torch_pruning: Any = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UserError("method=channels needs torch-pruning, which is missing: pip install torch-pruning") from error
    # Half a channel more, so that torch-pruning's rounding down lands on the goal.
    shares = {
        layer: 1 - (left + 0.5) / width
        for layer, left in goals.items()
        if left < (width := _output(widths_of(layer)[""]))
    }
    spec = student.spec
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
    others = [part for part in student.modules() if isinstance(part, Layer) and part not in goals]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lone parameters that it found; whether all fits is looked at after
            pruner = torch_pruning.pruner.BasePruner(
                student,
                frames,
                torch_pruning.importance.GroupMagnitudeImportance(),
                pruning_ratio=0.0,
                pruning_ratio_dict=shares,
                ignored_layers=others,
                forward_fn=_everything,
                in_channel_groups={},  # its own defaults are shared between calls
                out_channel_groups={},
            )
            for group in pruner.step(interactive=True):
                if _is_understood(group):
                    group.prune()
    except (IndexError, KeyError, ValueError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise UserError(
            f"method=channels cannot prune this student: torch-pruning does not follow its layers "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); "
            "method=magnitude can"
        ) from error


def _is_understood(group: Any) -> bool:
    """Whether it is right about who reads the channels. Where a layer reads more numbers than there are channels, it
    takes each channel's to lie side by side, as a convolution's places do; a linear layer's frames do not."""
    count = len(group[0].idxs)
    return not isinstance(group[0].dep.target.module, nn.Linear) or all(len(item.idxs) == count for item in group)


def _everything(student: Student, frames: Tensor) -> list[Tensor]:
    """What a student answers, so that a decoder that reads the latent is pruned along."""
    answer = student(frames, want=("reconstruction",))
    return [answer.logits] + [answer.reconstruction] * (answer.reconstruction is not None)
