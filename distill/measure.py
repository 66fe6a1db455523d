"""How big and how fast a student is, here and now."""

from __future__ import annotations

import time
from collections.abc import Collection
from statistics import median

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from distill.outputs import Student, StudentOutput


def recognition_parameters(student: Student, frames: torch.Tensor) -> int:
    """Parameters of the parts that take part in recognising; a decoder, say, does not."""
    used: set[nn.Parameter] = set()
    hooks = [
        part.register_forward_hook(lambda part, *_: used.update(part.parameters(recurse=False)))
        for part in student.modules()
    ]
    student(frames)
    for hook in hooks:
        hook.remove()
    return sum(parameter.numel() for parameter in used)


@torch.no_grad()
def imagined(student: Student, want: Collection[str] = ()) -> StudentOutput:
    """The shapes of a student's answer to one clip; nothing is computed."""
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    shapes = {name: value.to("meta") for name, value in tensors.items()}
    frames = torch.empty(1, student.spec.frames, 3, student.spec.size, student.spec.size, dtype=torch.uint8)
    training = student.training
    answer: StudentOutput = functional_call(student.eval(), shapes, (frames.to("meta"), want))
    student.train(training)
    return answer


@torch.no_grad()
def measure(student: Student, repeats: int = 20) -> dict[str, float]:
    """Figures of a student for one clip on the CPU: recognition only, no decoder."""
    student.eval()
    frames = torch.randint(0, 256, (1, student.spec.frames, 3, student.spec.size, student.spec.size), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        parameters = recognition_parameters(student, frames)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        student(frames)
        times.append(time.perf_counter() - started)
    return {
        "parameters": parameters,
        "gflops": counter.get_total_flops() / 1e9,
        "milliseconds": 1e3 * median(times[repeats // 4 :]),
        "megabytes": 4 * parameters / 1e6,
    }
