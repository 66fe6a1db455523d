"""Losses on pictures, against scikit-image and closed forms."""

from __future__ import annotations

import pytest
import torch
from loss_examples import clips, example, said
from skimage.metrics import structural_similarity
from torch import Tensor

from distill.errors import UserError
from distill.objective.losses import LOSSES
from distill.objective.pictures import ssim
from distill.outputs import StudentOutput

LABEL = torch.zeros(3, dtype=torch.int64)
LOGITS = torch.zeros(3, 2)


def painted(picture: Tensor) -> StudentOutput:
    return StudentOutput(LOGITS, LOGITS, reconstruction=picture)


def frames(size: int = 16) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 2, 3, size, size), generator=chance, dtype=torch.uint8)
    smooth = (torch.linspace(0, 255, size)[:, None] * torch.linspace(0.2, 1, size)).byte()
    noise[1] = smooth
    noise[2] = 100
    return noise


@pytest.mark.parametrize(("kind", "expected"), [("mse", 0.25), ("l1", 0.5)])
def test_a_reconstruction_is_compared_in_0_to_1(kind: str, expected: float) -> None:
    loss, shown = LOSSES["reconstruction"], frames()
    perfect = shown.float() / 255
    assert loss(painted(perfect), None, clips(LABEL, frames=shown), kind=kind).item() == 0
    off = loss(painted(perfect + 0.5), None, clips(LABEL, frames=shown), kind=kind)
    assert off.item() == pytest.approx(expected)
    small = torch.full((3, 1, 3, 4, 4), 128 / 255)  # a decoder may paint fewer and smaller pictures
    grey = torch.full_like(shown, 128)
    assert loss(painted(small), None, clips(LABEL, frames=grey), kind=kind).item() == pytest.approx(0)


def test_ssim_is_that_of_scikit_image() -> None:
    """Picture by picture and colour by colour: noise, a gradient, one flat grey, and what is painted of them."""
    shown, chance = frames().double() / 255, torch.Generator().manual_seed(1)
    other = (0.7 * shown + 0.3 * torch.rand(shown.shape, generator=chance, dtype=torch.float64)).clamp(0, 1)
    ours = ssim(other, shown)
    assert ours.shape == (3, 2, 3, 6, 6)
    flat = (thing.flatten(0, 2) for thing in (other, shown, ours))
    for mine, theirs, found in zip(*flat, strict=True):
        value, whole = structural_similarity(  # type: ignore[no-untyped-call]
            mine.numpy(),
            theirs.numpy(),
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        torch.testing.assert_close(found, torch.from_numpy(whole[5:-5, 5:-5]), rtol=1e-9, atol=1e-9)
        assert found.mean().item() == pytest.approx(value, rel=1e-9)


def test_the_loss_is_one_minus_ssim_in_single_precision_too() -> None:
    shown = frames()
    picture = (shown.float() / 255).roll(1, -1)
    found = LOSSES["reconstruction"](painted(picture), None, clips(LABEL, frames=shown), kind="ssim")
    exact = ssim(picture.double(), shown.double() / 255)
    assert found.item() == pytest.approx(1 - exact.mean().item(), abs=1e-5)
    same = LOSSES["reconstruction"](painted(shown.float() / 255), None, clips(LABEL, frames=shown), kind="ssim")
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_ssim_of_very_small_pictures_is_refused() -> None:
    student, _, batch = example()
    assert student.reconstruction is not None
    student.reconstruction = student.reconstruction[..., :10, :10]
    with pytest.raises(UserError, match="looks at 11 pixels at once; these pictures are 10 x 10"):
        LOSSES["reconstruction"](student, None, batch, kind="ssim")


def test_a_student_without_a_decoder_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(UserError, match="decoder"):
        LOSSES["reconstruction"](said(LOGITS), None, clips(LABEL))
    with pytest.raises(UserError, match="'psnr'; known: mse, ssim, l1"):
        LOSSES["reconstruction"](*example(), kind="psnr")
