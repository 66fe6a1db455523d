"""Mixup and CutMix against what they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.errors import UserError
from distill.mixing import Mixer, paste
from distill.objective.losses import LOSSES
from distill.outputs import Clips, StudentOutput
from distill.randomness import generator


def batch(count: int = 6) -> Clips:
    """Clip i is the colour 40 i all over, and of class i; the last one has no label."""
    index = torch.arange(count)
    frames = (40 * index).to(torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 3, 3, 8, 8).contiguous()
    label = index.clone()
    label[-1] = -1
    return Clips(frames, label, index, torch.zeros_like(index))


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_frames_and_labels_by_one_share(seed: int) -> None:
    clips = batch()
    mixed = Mixer(mixup=0.4, cutmix=0)(clips, generator(seed))
    assert mixed.blend is not None
    share = mixed.blend.share
    assert len(share.unique()) == 1
    other = mixed.blend.label.where(mixed.blend.label >= 0, torch.tensor(5))
    expected = 40 * (share * torch.arange(6) + (1 - share) * other)
    assert (mixed.frames.float() - expected.view(-1, 1, 1, 1, 1)).abs().max() <= 0.5001
    assert mixed.frames.dtype == torch.uint8
    assert torch.equal(mixed.label, clips.label)
    assert torch.equal(mixed.blend.label_weight > 0, mixed.blend.label >= 0)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_rectangle_into_all_frames_and_counts_it(seed: int) -> None:
    clips = batch()
    mixed = Mixer(mixup=0, cutmix=1)(clips, generator(seed))
    assert mixed.blend is not None
    own = mixed.frames == clips.frames
    assert torch.equal(own[:, :1].expand_as(own), own)
    for i in range(6):
        if mixed.blend.label[i] != clips.label[i]:
            assert own[i].float().mean() == pytest.approx(float(mixed.blend.share[i]))
            assert set(mixed.frames[i].unique().tolist()) <= {40 * i, 40 * (int(mixed.blend.label[i]) % 6)}


def test_a_rectangle_stays_inside_the_picture() -> None:
    frames, other = torch.zeros(1, 2, 3, 10, 12), torch.ones(1, 2, 3, 10, 12)
    for seed in range(200):
        pasted, share = paste(frames, other, float(np.random.default_rng(seed).random()), generator("x", seed))
        assert 1 - pasted.mean().item() == pytest.approx(share, abs=1e-6)
        assert 0 <= share <= 1
    assert frames.sum() == 0  # the batch of the loader is left alone


def test_the_same_draw_gives_the_same_batch_and_both_kinds_happen() -> None:
    mixer, kinds = Mixer(0.5, 1.0), set()
    for seed in range(20):
        one, again = (mixer(batch(), generator(seed)) for _ in range(2))
        assert torch.equal(one.frames, again.frames)
        kinds.add(bool((one.frames == batch().frames).float().mean() > 0.4))
    assert kinds == {True, False}
    assert not Mixer(0, 0)


def test_cross_entropy_of_a_mixed_batch_is_that_of_soft_labels() -> None:
    mixed = Mixer(0.7, 0)(batch(), generator(3))
    assert mixed.blend is not None
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    share, soft = mixed.blend.share[0], torch.zeros(6, 6)
    for i in range(6):
        if mixed.label[i] >= 0:
            soft[i, mixed.label[i]] += share * mixed.label_weight[i]
        if mixed.blend.label[i] >= 0:
            soft[i, mixed.blend.label[i]] += (1 - share) * mixed.blend.label_weight[i]
    found = LOSSES["cross_entropy"](StudentOutput(logits, logits), None, mixed)
    torch.testing.assert_close(found, F.cross_entropy(logits, soft))
    alone = LOSSES["cross_entropy"](StudentOutput(logits, logits), None, replace(mixed, blend=None))
    assert found != alone


@pytest.mark.parametrize(("mixup", "cutmix", "told"), [(-1, 0, r"train\.mixup is -1"), (0, float("nan"), r"cutmix")])
def test_a_wrong_strength_is_refused(mixup: float, cutmix: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Mixer(mixup, cutmix)
