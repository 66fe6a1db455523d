"""The torch student as it may run: eager, compiled, in bf16; on the processor or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.deploy.forms import TorchSession, open_run
from distill.deploy.recogniser import Recogniser


def open_torch(run: Path, form: str, threads: int, how: str, device: str, batch: int = 1) -> Recogniser:
    """A run's student; `how` is eager, compile or bf16. Its card is of so many clips."""
    recogniser = open_run(run, form, threads, batch)
    if (how, device) != ("eager", "cpu"):
        assert isinstance(recogniser.session, TorchSession)
        recogniser.session = Elsewhere(recogniser.session.form, how, device)
    return recogniser


class Elsewhere:
    """A form on a device: arrays come from the processor and go back to it, which waits until they are there."""

    def __init__(self, form: nn.Module, how: str, device: str) -> None:
        self.device = torch.device(device)
        moved = form.to(self.device)
        self.form = torch.compile(moved) if how == "compile" else moved
        self.half = how == "bf16"

    @torch.no_grad()
    def __call__(self, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(array).to(self.device) for array in given]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            answer = self.form(*tensors)
        return [_array(value) for value in (answer if isinstance(answer, tuple) else (answer,))]


def _array(value: Tensor) -> np.ndarray:
    whole = value.float() if value.dtype == torch.bfloat16 else value
    found: np.ndarray = whole.cpu().numpy()
    return found
