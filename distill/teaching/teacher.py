"""A teacher that is asked live. It never learns: no gradients, and evaluation mode whatever is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import nn

from distill import plugins
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, TeacherOutput


class Teacher(Protocol):
    """What training asks. A cached teacher and a live one answer alike."""

    def __call__(self, clips: Clips) -> TeacherOutput: ...


class LiveTeacher(nn.Module):
    """Wraps a teacher plug-in's network: frames -> TeacherOutput."""

    def __init__(self, network: nn.Module, spec: ClipSpec) -> None:
        super().__init__()
        self.network, self.spec = network.requires_grad_(False), spec
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, clips: Clips) -> TeacherOutput:
        answer: TeacherOutput = self.network(self.spec.fit(clips.frames))
        return answer


def open_teacher(options: Any, classes: Sequence[str]) -> LiveTeacher:
    """Build the teacher that the recipe names. Building it leaves the student's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        network = plugins.build("teacher", options)
    if list(network.classes) != list(classes):
        odd = next(
            (f"{a!r} there, {b!r} here" for a, b in zip(network.classes, classes, strict=False) if a != b),
            f"{len(network.classes)} there, {len(classes)} here",
        )
        raise UserError(f"the teacher knows other classes than the data set: {odd}; choose one trained on these")
    return LiveTeacher(network, network.spec)


def fingerprint(options: Any) -> str:
    """Changes whenever the teacher's answers would; costs no building of the network."""
    value: str = _ask(options, "fingerprint")
    return value


def wants(options: Any) -> ClipSpec:
    """What the teacher wants to see, without building it."""
    spec: ClipSpec = _ask(options, "wants")
    return spec


def _ask(options: Any, question: str) -> Any:
    try:
        return getattr(plugins.module("teacher", options.name), question)(options)
    except ValueError as error:
        raise UserError(f"teacher {options.name}: {error}") from error
