"""What a student becomes when it leaves: a network of tensors that takes pixels as cameras give them.

`whole` answers a clip with logits, `encoder` with its latent, `stream` a frame and a state with the logits of the
latest frames and the next state. The normalisation of colours is inside.

Shape legend: N clips, T frames, H height, W width, K classes, L latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.checkpoint import student_folder
from distill.deploy.card import SECONDS, TORCH, ExportCard, Port
from distill.deploy.recogniser import Recogniser
from distill.errors import UserError
from distill.hub import DistilledStudent
from distill.model_card import part
from distill.outputs import Student


class Whole(nn.Module):
    """Clips [N,T,H,W,3] -> logits [N,K]."""

    inputs, outputs = ("clip",), ("logits",)

    def __init__(self, student: Student, batch: int = 1) -> None:
        super().__init__()
        self.student, self.batch = student, batch

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.student(_video(clip)).logits
        return logits

    def example(self) -> tuple[Tensor, ...]:
        """Black frames."""
        spec = self.student.spec
        return (torch.zeros(self.batch, spec.frames, spec.size, spec.size, 3),)


class Encoder(Whole):
    """Clips [N,T,H,W,3] -> latents [N,L]."""

    outputs = ("latent",)

    def forward(self, clip: Tensor) -> Tensor:
        latent: Tensor = self.student(_video(clip)).latent
        return latent


class Stream(nn.Module):
    """Frame [1,H,W,3] and state -> logits [1,K] and the next state. Maps in a state are [1,h,w,n], as pictures are."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student
        self.blank = [value.contiguous() for value in _outside(student.initial_state(1))]
        names = [f"state{i}" for i in range(len(self.blank))]
        self.inputs, self.outputs = ("frame", *names), ("logits", *(f"next_{name}" for name in names))

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        answer, after = self.student.step(_pictures(frame), [_pictures(x) if x.dim() == 4 else x for x in state])
        return (answer.logits, *_outside(after))

    def example(self) -> tuple[Tensor, ...]:
        size = self.student.spec.size
        return (torch.zeros(1, size, size, 3), *self.blank)


def _outside(state: Sequence[Tensor]) -> list[Tensor]:
    return [value.permute(0, 2, 3, 1) if value.dim() == 4 else value for value in state]


CLIPS: dict[str, type[Whole]] = {"whole": Whole, "encoder": Encoder}
Form = Whole | Stream


def make_form(name: str, student: Student, batch: int = 1) -> Form:
    """The student in this form, in evaluation mode, for so many clips at once; a stream is of one."""
    if name == "stream" and not hasattr(student, "step"):
        raise UserError(f"form=stream is for students that go frame by frame; {type(student).__name__} does not")
    try:
        form: Form = CLIPS[name](student.eval(), batch) if name in CLIPS else Stream(student.eval())
    except ValueError as error:
        raise UserError(f"form={name}: {error}") from error
    return form.eval()


def _pictures(frames: Tensor) -> Tensor:
    """[N,H,W,3] -> [N,3,H,W]"""
    return frames.permute(0, 3, 1, 2)


def _video(clip: Tensor) -> Tensor:
    """[N,T,H,W,3] -> [N,T,3,H,W], by pictures: moves of four axes are what runtimes do well, or without."""
    if len(clip) == 1:
        return _pictures(clip.squeeze(0)).unsqueeze(0)
    pictures = _pictures(clip.flatten(0, 1))
    return pictures.view(*clip.shape[:2], *pictures.shape[1:])


def load_form(run: Path, name: str, batch: int = 1) -> tuple[Form, DistilledStudent]:
    """The student of a run in this form."""
    loaded = DistilledStudent.from_pretrained(student_folder(run))
    return make_form(name, loaded.student, batch), loaded


def make_card(run: Path, name: str, form: Form, loaded: DistilledStudent, seconds: float) -> ExportCard:
    """Of the student itself; what exports it says the rest."""
    with torch.no_grad():
        given = form.example()
        answers = form(*given)
    spec = loaded.spec
    return ExportCard(
        form=name,
        format=TORCH,
        precision="fp32",
        student=loaded._hub_mixin_config["options"]["name"],
        classes=loaded.classes,
        frames=spec.frames,
        size=spec.size,
        seconds=seconds,
        inputs=ports(form.inputs, given),
        outputs=ports(form.outputs, answers),
        origin={"run": str(run)},
    )


def ports(names: Sequence[str], values: Tensor | Sequence[Tensor]) -> list[Port]:
    """What such tensors go through."""
    pairs = zip(names, [values] if isinstance(values, Tensor) else values, strict=True)
    return [Port(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in pairs]


class TorchSession:
    """A form, asked as exported files are."""

    def __init__(self, form: nn.Module) -> None:
        self.form = form

    @torch.no_grad()
    def __call__(self, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        answer = self.form(*(torch.from_numpy(array) for array in given))
        return [value.numpy() for value in (answer if isinstance(answer, tuple) else (answer,))]


def open_run(run: Path, name: str, threads: int = 1, batch: int = 1) -> Recogniser:
    """A run's student in torch, asked as exported files are."""
    torch.set_num_threads(threads)
    form, loaded = load_form(run, name, batch)
    seconds = part(loaded.facts, "summary").get("clip_seconds", SECONDS)
    return Recogniser(make_card(run, name, form, loaded, seconds), TorchSession(form))
