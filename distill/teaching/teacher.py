"""A teacher that is asked live. It never learns: no gradients, and evaluation mode whatever is done to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import nn

from distill import plugins
from distill.errors import UserError
from distill.labels import columns
from distill.outputs import Clips, ClipSpec, TeacherOutput

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(Protocol):
    """What training asks. A cached teacher and a live one answer alike."""

    def __call__(self, clips: Clips) -> TeacherOutput: ...


class LiveTeacher(nn.Module):
    """Wraps a teacher plug-in's network: frames -> TeacherOutput, its logits in the order of the data set's classes.

    `want` names the maps to ask for; `autocast` is the precision to compute in.
    """

    def __init__(
        self, network: nn.Module, classes: Sequence[str], want: Collection[str] = (), autocast: str = "no"
    ) -> None:
        super().__init__()
        self.network, self.want, self.autocast = network.requires_grad_(False), tuple(want), AUTOCAST[autocast]
        self.spec: ClipSpec = network.spec  # type: ignore[assignment]
        for name in self.want:
            if name not in network.map_names:  # type: ignore[operator]
                known = ", ".join(network.map_names) or "none"  # type: ignore[arg-type]
                raise UserError(f"the teacher gives no map {name!r}; those it has: {known}")
        places = columns(network.classes, classes)  # type: ignore[arg-type]
        self.columns = None if places == list(range(len(network.classes))) else places  # type: ignore[arg-type]
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, clips: Clips) -> TeacherOutput:
        frames = self.spec.fit(clips.frames)
        with torch.autocast(frames.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            answer: TeacherOutput = self.network(frames, want=self.want)
        missing = [name for name in self.want if name not in answer.maps]
        if missing:
            raise UserError(f"the teacher gives no map {missing[0]!r} with these options")
        logits = answer.logits if self.columns is None else answer.dense[:, self.columns]
        return replace(answer, logits=logits, maps={name: answer.maps[name] for name in self.want})


def open_teacher(options: Any, classes: Sequence[str], want: Collection[str] = (), autocast: str = "no") -> LiveTeacher:
    """Build the teacher that the recipe names. Building it leaves the student's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        network = plugins.build("teacher", options, classes=classes)
    try:
        return LiveTeacher(network, classes, want, autocast)
    except ValueError as error:
        raise UserError(f"teacher {options.name} {error}") from error


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
