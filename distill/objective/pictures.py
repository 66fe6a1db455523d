"""Losses on pictures: how well the student paints what it saw.

Shape legend: B clips, T frames, C colours, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, StudentOutput, TeacherOutput

KINDS = ("mse", "ssim", "l1")
WINDOW, DEVIATION = 11, 1.5  # pixels
STEADY = (0.01**2, 0.03**2)  # keep the two fractions of SSIM from 0/0; for pictures in [0,1]


def reconstruction(said: StudentOutput, taught: TeacherOutput | None, clips: Clips, /, *, kind: str = "mse") -> Tensor:
    """How far the student's pictures, which are in [0,1], are from the clips' frames: mse, l1 or ssim.

    mse is the mean squared error, l1 the mean absolute one, ssim is 1 - structural similarity (Wang 2004).
    """
    if kind not in KINDS:
        raise UserError(f"objective.reconstruction.kind is {kind!r}; known: {', '.join(KINDS)}")
    painted = said.reconstruction
    if painted is None:
        raise UserError("objective.reconstruction needs a student with a decoder; this one gives no reconstruction")
    shown = pictures(painted, clips)
    if kind == "ssim":
        if min(painted.shape[-2:]) < WINDOW:
            raise UserError(
                f"objective.reconstruction.kind=ssim looks at {WINDOW} pixels at once; these pictures are "
                f"{painted.shape[-2]} x {painted.shape[-1]}"
            )
        return 1 - ssim(painted, shown).mean()
    return F.l1_loss(painted, shown) if kind == "l1" else F.mse_loss(painted, shown)


def pictures(like: Tensor, clips: Clips) -> Tensor:
    """The clips' frames in [0,1], at the size of `like` [B,T,C,H,W]."""
    return ClipSpec(like.shape[1], like.shape[-1]).fit(clips.frames).to(like.dtype) / 255


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of two pictures [...,H,W] in [0,1] at every place but for the border: [...,H-10,W-10].

    Means, variances and covariance are weighted with a Gaussian of 11 x 11 pixels, and taken only where all of it lies
    in the picture. That is scikit-image's structural_similarity with gaussian_weights=True,
    use_sample_covariance=False, data_range=1, whose mean leaves out the border of 5 pixels too.
    """
    down, across = (_windows(size, one) for size in one.shape[-2:])
    moments = torch.stack([one, other, one * one, other * other, one * other])
    mean, other_mean, square, other_square, product = down @ moments @ across.mT
    squares, both = mean.square() + other_mean.square(), mean * other_mean
    light = (2 * both + STEADY[0]) / (squares + STEADY[0])
    found: Tensor = light * (2 * (product - both) + STEADY[1]) / (square + other_square - squares + STEADY[1])
    return found


def _windows(size: int, like: Tensor) -> Tensor:
    """[size-10,size]: in each row the bell's weights of the pixels around one place."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    far = place - place[WINDOW // 2 : size - WINDOW // 2, None]
    bell = torch.exp(-far.square() / (2 * DEVIATION**2)) * (far.abs() <= WINDOW // 2)
    return bell / bell.sum(1, keepdim=True)
