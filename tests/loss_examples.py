"""Something for every loss to compare: the inputs of the golden values, and a small student and teacher.

Shape legend: B clips, T frames, K classes, C channels, H and W places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.objective.losses import LOSSES
from distill.outputs import Blend, Clips, StudentOutput, TeacherOutput


def grid(*sizes: int) -> list[Tensor]:
    """The place of every entry along each axis, float64."""
    return list(torch.meshgrid(*(torch.arange(float(size), dtype=torch.float64) for size in sizes), indexing="ij"))


_i, _j = grid(8, 10)
STUDENT, TEACHER = 3 * torch.sin(0.7 * _i + 1.3 * _j + 0.1), 4 * torch.cos(0.5 * _i - 0.9 * _j + 0.2)  # [8,10] logits
LABEL = (3 * torch.arange(8) + 1) % 10
_i, _d = grid(8, 16)
VECTOR, TEACHER_VECTOR = torch.sin(0.31 * _i + 0.77 * _d) + 0.1 * _d, torch.cos(0.53 * _i - 0.41 * _d) + 0.05 * _i
_n, _k, _y, _x = grid(8, 6, 5, 5)
MAP = torch.sin(0.3 * _n + 0.9 * _k + 0.17 * (5 * _y + _x)) + 0.2
TEACHER_MAP = torch.sin(0.45 * _n + 0.6 * _k + 0.23 * (5 * _y + _x)) + 0.2


def clips(
    label: Tensor, weight: Tensor | None = None, frames: Tensor | None = None, blend: Blend | None = None
) -> Clips:
    batch = len(label)
    frames = torch.zeros(batch, 2, 3, 4, 4, dtype=torch.uint8) if frames is None else frames
    view = torch.zeros_like(label)
    return Clips(frames, label, torch.arange(batch), view, label_weight=weight, blend=blend)  # type: ignore[arg-type]


def said(logits: Tensor, latent: Tensor | None = None, **features: Tensor) -> StudentOutput:
    return StudentOutput(logits, logits if latent is None else latent, features)


def value(name: str, student: Tensor, teacher: Any, label: Tensor = LABEL, **options: Any) -> Tensor:
    """Of a loss on logits."""
    return LOSSES[name](said(student), TeacherOutput(teacher), clips(label), **options)


# ---------------------------------------------------------------- a small student and teacher

VIDEO, FLAT = {"student": "video", "teacher": "video"}, {"student": "flat", "teacher": "flat"}
BOTH = {"student": ["video", "deep"], "teacher": ["video", "deep"]}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{"smoothing": 0.1}],
    "kl": [{}, {"temperature": 2.0, "standardise": True}],
    "dkd": [{}, {"temperature": 2.0, "standardise": True}],
    "dist": [{"temperature": 2.0}],
    "mse": [{}, {"student": "latent", "teacher": "feature"}, VIDEO],
    "reconstruction": [{"kind": "mse"}, {"kind": "ssim"}, {"kind": "l1"}],
    "feature": [{}, {"kind": "smooth_l1"}, {"student": "frames", "teacher": "frames"}],
    "hint": [
        VIDEO,
        FLAT,
        {**VIDEO, "normalise": True, "relu": False},
        {"student": "frames", "teacher": "frames"},
        {"student": "video", "teacher": "feature"},
    ],
    "temporal": [{"student": "video", "teacher": "frames"}, VIDEO],
    "vid": [VIDEO, {"student": "latent", "teacher": "feature"}],
    "attention": [
        VIDEO,
        FLAT,
        {**VIDEO, "norm": True, "power": 3.0},
        {"student": "video", "teacher": "rows", "rows": True},
    ],
    "reviewkd": [BOTH, FLAT],
    "rkd_distance": [{}, {"normalise": True}],
    "rkd_angle": [{}, {"normalise": True}],
    "pkt": [{}, VIDEO],
    "similarity": [{}, VIDEO],
    "crd": [{"negatives": 3, "width": 4}, {"mode": "queue", "negatives": 5, "width": 4}],
}
CASES = [(name, options) for name, found in EXAMPLES.items() for options in found]
IDS = [f"{name}-{place}" for name, found in EXAMPLES.items() for place in range(len(found))]


def example(batch: int = 4, seed: int = 0) -> tuple[StudentOutput, TeacherOutput, Clips]:
    """Everything that the options above name, in float64; the teacher is finer here and coarser there."""
    chance = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=chance, dtype=torch.float64)

    features = {"video": some(3, 4, 4, 4), "deep": some(4, 2, 2, 2), "flat": some(2, 6, 6), "frames": some(4, 3)}
    student = StudentOutput(some(5), some(6), features, some(2, 3, 12, 12).sigmoid())
    maps = {"video": some(2, 2, 2, 2), "deep": some(5, 4, 2, 2), "flat": some(3, 3, 3), "frames": some(2, 5)}
    teacher = TeacherOutput(some(5), some(7), maps | {"rows": some(2, 4).softmax(-1)})
    frames = torch.randint(0, 256, (batch, 2, 3, 12, 12), generator=chance, dtype=torch.uint8)
    label = torch.randint(0, 5, (batch,), generator=chance)
    return student, teacher, clips(label, frames=frames)


def learnt(name: str, options: dict[str, Any], training: Sequence[int] = range(12)) -> nn.Module | None:
    """What a loss learns for the example, in float64, its memory at rest."""
    torch.manual_seed(0)
    student, teacher, _ = example()
    found = LOSSES[name].learns(student, teacher, training, **options)
    if found is None:
        return None
    return found.double().train(name != "crd")


def with_learnt(name: str, options: dict[str, Any]) -> dict[str, Any]:
    found = learnt(name, options)
    return options if found is None else options | {"learnt": found}
