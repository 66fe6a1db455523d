"""The lightweight student: what it costs, what its attention does, and that frame by frame it answers as for a clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from distill.outputs import StudentOutput
from students.lightweight import Lightweight, Options, build

FRAMES, SIZE = 4, 32
ALL = ("map", "frames", "temporal", "attention", "embedding")


def made(**options: Any) -> Lightweight:
    torch.manual_seed(0)
    small = {"backbone": "timm/test_efficientnet", "frames": FRAMES, "size": SIZE, "width": 16}
    return build(Options(**{**small, **options}), 5).eval()


def stream(count: int, batch: int = 2) -> Tensor:
    """Frames [B,T,3,H,W] that differ from each other."""
    chance = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, count, 3, SIZE, SIZE), dtype=torch.uint8, generator=chance)


@pytest.mark.parametrize("frames", [16, 32])
def test_it_costs_what_was_measured(frames: int) -> None:
    """shared/edge.md: MobileNetV3-small, a convolution over 16 frames and attention: 1.473 M and 0.886 GMAC."""
    with torch.device("meta"):
        student = build(Options(frames=frames), 400).eval()
    clip = torch.empty(1, frames, 3, 224, 224, dtype=torch.uint8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(clip)
    assert sum(parameter.numel() for parameter in student.parameters()) == pytest.approx(1.473e6, rel=1e-3)
    assert counter.get_total_flops() / 2 == pytest.approx(0.886e9 * frames / 16, rel=1e-3)


# ---------------------------------------------------------------- clips


def test_features_say_how_the_answer_came_about() -> None:
    student = made(layers=2, kernel=5)
    found = student(stream(FRAMES), ALL)
    features = found.features
    assert set(features) == set(ALL) == set(student.feature_names)
    assert features["map"].shape[:3] == (2, student.backbone.width, FRAMES)
    torch.testing.assert_close(features["map"].mean((3, 4)).transpose(1, 2), features["frames"])
    assert features["temporal"].shape == (2, FRAMES, 16)
    torch.testing.assert_close(features["attention"], student.score(features["temporal"])[:, :, 0].softmax(1))
    weighed = torch.einsum("bt,btw->bw", features["attention"], features["temporal"])
    torch.testing.assert_close(features["embedding"], weighed)
    assert torch.equal(features["embedding"], found.latent)
    torch.testing.assert_close(found.logits, student.head(weighed))


def test_a_frame_is_seen_as_its_picture_network_wants_it() -> None:
    student = made()
    clip = stream(FRAMES)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (student.backbone.mean, student.backbone.std))
    one = student.backbone((clip[:, 2] / 255 - mean) / std).mean((2, 3))
    torch.testing.assert_close(student(clip, ["frames"]).features["frames"][:, 2], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layers", "kernel"), [(1, 3), (2, 3), (1, 5)])
def test_a_convolution_sees_neighbours_and_no_more(layers: int, kernel: int) -> None:
    student = made(frames=9, layers=layers, kernel=kernel)
    clip = stream(9)
    changed = clip.clone()
    changed[:, 4] = 255 - changed[:, 4]
    before, after = (student(frames, ["temporal"]).features["temporal"] for frames in (clip, changed))
    reach = layers * (kernel // 2)
    moved = [place for place in range(9) if not torch.equal(before[:, place], after[:, place])]
    assert moved == list(range(4 - reach, 4 + reach + 1))


def test_layers_after_the_first_add_to_what_they_are_given() -> None:
    student = made(layers=2)
    clip = stream(FRAMES)
    nn.init.zeros_(student.over_time.get_parameter("1.1.weight"))
    frames, temporal = student(clip, ["frames", "temporal"]).features.values()
    first = student.over_time.get_submodule("0")(frames.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(temporal, first)


def test_the_order_of_frames_matters() -> None:
    student, clip = made(), stream(FRAMES)
    assert not torch.allclose(student(clip).latent, student(clip.flip(1)).latent, rtol=1e-3, atol=1e-4)


def test_a_frame_with_all_the_attention_decides() -> None:
    student, clip = made(), stream(FRAMES)
    even, chosen = (scaled(student, factor)(clip, ALL) for factor in (0.0, 1e9))
    torch.testing.assert_close(even.features["attention"], torch.full((2, FRAMES), 1 / FRAMES))
    torch.testing.assert_close(even.latent, even.features["temporal"].mean(1))
    attention = chosen.features["attention"]
    torch.testing.assert_close(attention, F.one_hot(attention.argmax(1), FRAMES).float())
    decisive = chosen.features["temporal"][torch.arange(2), attention.argmax(1)]
    torch.testing.assert_close(chosen.latent, decisive)
    torch.testing.assert_close(chosen.logits, student.head(decisive))


def scaled(student: Lightweight, factor: float) -> Lightweight:
    """A student of the same weights whose scores are so much louder."""
    other = made()
    other.load_state_dict(student.state_dict())
    with torch.no_grad():
        other.score.weight.mul_(factor)
    return other


# ---------------------------------------------------------------- frame by frame


def online(student: Lightweight, frames: Tensor) -> list[StudentOutput]:
    """What is answered after each frame."""
    state, answers = student.initial_state(len(frames)), []
    with torch.no_grad():
        for frame in frames.unbind(1):
            answer, state = student.step(frame, state, ALL)
            answers.append(answer)
    return answers


def assert_same(ours: StudentOutput, theirs: StudentOutput) -> None:
    assert set(ours.features) == {"frames", "temporal", "attention", "embedding"}
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.latent, theirs.latent)
    for name, value in ours.features.items():
        torch.testing.assert_close(value, theirs.features[name], msg=name)


def test_frame_by_frame_it_answers_as_for_the_clip_of_the_last_frames() -> None:
    student, frames = made(layers=2), stream(FRAMES + 3)
    answers = online(student, frames)
    for last in range(FRAMES, FRAMES + 4):
        assert_same(answers[last - 1], student(frames[:, last - FRAMES : last], ALL))


def test_until_there_are_enough_frames_the_oldest_stands_in_for_those_before_it() -> None:
    student, frames = made(), stream(FRAMES)
    answers = online(student, frames)
    for seen in range(1, FRAMES):
        stood_still = frames[:, :1].expand(-1, FRAMES - seen, -1, -1, -1)
        assert_same(answers[seen - 1], student(torch.cat([stood_still, frames[:, :seen]], 1), ALL))


def test_a_step_changes_nothing_and_streams_know_nothing_of_each_other() -> None:
    student, frames = made().double(), stream(3)
    fresh = student.initial_state(1)
    assert [value.dtype for value in fresh] == [torch.float64] * 2
    _, older = student.step(frames[:1, 0], fresh)
    assert not fresh[0].any()
    assert not fresh[1].any()
    together = [torch.cat(pair) for pair in zip(older, fresh, strict=True)]  # one stream has just begun
    kept, weights = [value.clone() for value in together], {k: v.clone() for k, v in student.state_dict().items()}
    both, after = student.step(frames[:, 1], together)
    for row, state in enumerate((older, fresh)):
        alone, its = student.step(frames[row : row + 1, 1], state)
        torch.testing.assert_close(both.logits[row : row + 1], alone.logits)
        torch.testing.assert_close([value[row : row + 1] for value in after], its)
    assert all(torch.equal(one, other) for one, other in zip(kept, together, strict=True))
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())


class Step(nn.Module):
    """What is exported for a camera: tensors in, tensors out."""

    def __init__(self, student: Lightweight) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame: Tensor, ring: Tensor, started: Tensor) -> tuple[StudentOutput, list[Tensor]]:
        return self.student.step(frame, [ring, started])


def test_a_step_can_be_exported() -> None:
    student, frames = made(), stream(3, batch=1)
    state = student.initial_state(1)
    program = torch.export.export(Step(student), (frames[:, 0], *state)).module()
    wanted = online(student, frames)
    for place, frame in enumerate(frames.unbind(1)):
        answer, state = program(frame, *state)
        torch.testing.assert_close(answer.logits, wanted[place].logits)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options(frames=0), "frames, size, width and layers are at least 1"),
        (Options(layers=0), "layers are at least 1"),
        (Options(kernel=4), "kernel=4; it is odd"),
        (Options(kernel=1), "kernel=1; it is odd, so that it has a middle, and at least 3"),
        (Options(dropout=1.0), "dropout=1.0 is not from 0 to 1"),
        (Options("mobilenet_v3_smal"), "there is no backbone=mobilenet_v3_smal; there are .*mobilenet_v3_small"),
        (Options("inception_v3", size=32), r"backbone=inception_v3 cannot take size=32 \(.*\)"),
    ],
)
def test_mistakes(options: Options, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(options, 5)
