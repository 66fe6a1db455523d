"""TSN and TSM: what a clip's answer is made of, what the shift moves, and frames that come one at a time.

Shapes: B clips, T frames, C channels, D channels of the last map, K classes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from distill.outputs import ClipSpec, StudentOutput
from distill.sync import CpuSyncBatchNorm, sync_batch_norm
from students._backbones import backbone
from students._blocks import blocks
from students._shift import Shift
from students._squeeze_excite import Excite
from students.tsn import TSN, Options, build

CLASSES, FRAMES, SIZE = 5, 4, 32
SMALL = {"backbone": "test_resnet", "frames": FRAMES, "size": SIZE, "dropout": 0.0}


def clips(count: int = 2, frames: int = FRAMES, size: int = SIZE, seed: int = 1) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8, generator=chance)


def made(**options: Any) -> TSN:
    """A student whose normalisations know their pictures: a fresh network may answer nearly nothing."""
    torch.manual_seed(0)
    student = build(Options(**{**SMALL, **options}), CLASSES)
    for norm in student.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.5, 1)  # timm's residual branches start at zero
    with torch.no_grad():
        student.train()(clips(4, student.spec.frames, student.spec.size, seed=7))
    return student.eval()


def also(student: TSN, **options: Any) -> TSN:
    """Another student with the same weights."""
    other = build(Options(**{**SMALL, **options}), CLASSES).to(student.head.weight.dtype)
    other.load_state_dict(student.state_dict())
    return other.eval()


def shifts(student: nn.Module) -> list[nn.Module]:
    return [
        part for part in student.modules() if any(isinstance(hook, Shift) for hook in part._forward_pre_hooks.values())
    ]


# ---------------------------------------------------------------- a clip


@torch.no_grad()
def test_a_clip_s_answer_is_the_mean_of_its_frames_answers() -> None:
    student, frames = made(), clips()
    network = student.backbone
    answer = student(frames, want=student.feature_names)
    for b, clip in enumerate(frames):
        pictures = normalize(clip / 255, list(network.mean), list(network.std))
        maps = torch.stack([network(picture[None])[0] for picture in pictures])
        each = maps.mean((2, 3))
        logits = each @ student.head.weight.T + student.head.bias
        torch.testing.assert_close(answer.logits[b], logits.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.latent[b], each.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.features["frames"][b], each, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.features["frame_logits"][b], logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.features["map"][b], maps.transpose(0, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(answer.features["embedding"], answer.latent)
    assert answer.logits.std() > 0.01


def test_dropout_is_of_single_frames_and_only_before_the_classifier() -> None:
    student = made(dropout=0.5)
    student.dropout.train()
    frames = clips(1)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    answer = student(frames, want=("frames", "frame_logits"))
    torch.testing.assert_close(answer.features["frames"][:, 0], answer.features["frames"][:, 1])
    assert not torch.allclose(answer.features["frame_logits"][:, 0], answer.features["frame_logits"][:, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": "left"}, "shift=left is not one of none, bidirectional, online"),
        ({"dropout": 1.0}, "dropout is at least 0 and below 1"),
        ({"frames": 0}, "frames and size are at least 1"),
        ({"backbone": "inception_v3", "size": 32}, r"backbone=inception_v3 cannot take size=32 \(.*Kernel size"),
        ({"backbone": "resnet_34"}, "there is no backbone=resnet_34"),
        ({"backbone": "thinet_tiny", "shift": "online"}, "backbone=thinet_tiny has no residual blocks .*shift=none"),
        ({"backbone": "mobilenetv1_100", "shift": "bidirectional"}, "mobilenetv1_100 has no residual blocks"),
        ({"backbone": "mobilenet_v3_small", "squeeze_excite": True}, "squeeze-and-excite of its own"),
        ({"backbone": "test_efficientnet", "squeeze_excite": True}, "squeeze-and-excite of its own"),
        ({"backbone": "thinet_tiny", "squeeze_excite": True}, "no blocks that squeeze-and-excite could be added to"),
        ({"backbone": "squeezenet1_1", "partial_bn": True}, "needs a backbone with batch normalisation"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        build(Options(**{**SMALL, **options}), CLASSES)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- the shift


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mnasnet1_0", 10),
        ("mobilenet_v2", 10),
        ("mobilenetv2_100", 10),
        ("mobilenetv2_140", 10),
        ("resnet34", 16),
        ("resnet50", 16),
        ("timm/resnet18", 8),
        ("mobilenet_v3_small", 6),
        ("efficientnet_b0", 9),
        ("regnet_x_400mf", 22),
        ("regnetx_002", 13),
        ("mobilenetv4_conv_small", 10),
    ],
)
def test_every_residual_branch_is_shifted_and_no_weight_changes_its_name(name: str, count: int) -> None:
    student, plain = build(Options(backbone=name, shift="online", size=64), CLASSES), backbone(name)
    assert len(shifts(student)) == count
    assert list(student.backbone.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("channels", [8, 20])
def test_an_eighth_of_the_channels_comes_from_each_side(channels: int) -> None:
    maps = torch.randn(2 * FRAMES, channels, 3, 3)
    (moved,) = Shift(FRAMES, online=False)(nn.Identity(), (maps,))
    (past_only,) = Shift(FRAMES, online=True)(nn.Identity(), (maps,))
    n = channels // 8
    for b in range(2):
        for t in range(FRAMES):
            at = b * FRAMES + t
            after = maps[at + 1, :n] if t + 1 < FRAMES else torch.zeros(n, 3, 3)
            assert torch.equal(moved[at, :n], after)
            assert torch.equal(moved[at, n : 2 * n], maps[at - 1, n : 2 * n] if t else torch.zeros(n, 3, 3))
            assert torch.equal(moved[at, 2 * n :], maps[at, 2 * n :])
            assert torch.equal(past_only[at, :n], maps[at - 1, :n] if t else torch.zeros(n, 3, 3))
            assert torch.equal(past_only[at, n:], maps[at, n:])


class ShiftedConv(nn.Module):
    """The shift as its authors place it: around a block's first convolution."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, maps: Tensor) -> Tensor:
        video = maps.unflatten(0, (-1, FRAMES))
        n = maps.shape[1] // 8
        moved = torch.zeros_like(video)
        moved[:, :-1, :n] = video[:, 1:, :n]
        moved[:, 1:, n : 2 * n] = video[:, :-1, n : 2 * n]
        moved[:, :, 2 * n :] = video[:, :, 2 * n :]
        answer: Tensor = self.conv(moved.flatten(0, 1))
        return answer


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_shifted_network_is_the_authors(name: str) -> None:
    student = made(backbone=name, shift="bidirectional")
    theirs = models.get_model(name, num_classes=CLASSES)
    theirs.load_state_dict(student.backbone.network.state_dict(), strict=False)
    for part in list(theirs.modules()):
        if isinstance(part, models.resnet.BasicBlock):
            part.conv1 = ShiftedConv(part.conv1)
        elif isinstance(part, models.mobilenetv2.InvertedResidual) and part.use_res_connect:
            part.conv[0][0] = ShiftedConv(part.conv[0][0])
    last = [*theirs.children()][-1]
    last = last[-1] if isinstance(last, nn.Sequential) else last
    last.load_state_dict(student.head.state_dict())
    frames = clips()
    logits = theirs.eval()(normalize(frames.flatten(0, 1) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    answer = student(frames).logits
    torch.testing.assert_close(answer, logits.unflatten(0, (2, FRAMES)).mean(1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answer, also(student, backbone=name)(frames).logits, rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("shift", "earliest"), [("none", 2), ("online", 2), ("bidirectional", 0)])
def test_a_frame_knows_of_the_frames_that_its_shift_shows_it(shift: str, earliest: int) -> None:
    """Frame 2 is changed; the network is deep enough for the shift to carry that through the whole clip."""
    student, frames = made(shift=shift), clips()
    changed = frames.clone()
    changed[:, 2] = 255 - changed[:, 2]
    before, after = (student(clip, want=("frames",)).features["frames"] for clip in (frames, changed))
    moved = [not torch.allclose(before[:, t], after[:, t], rtol=0, atol=1e-5) for t in range(FRAMES)]
    assert moved == [t >= earliest and (t == 2 or shift != "none") for t in range(FRAMES)]


@torch.no_grad()
def test_a_copy_of_a_shifted_student_is_a_student_of_its_own() -> None:
    student, frames = made(shift="online", squeeze_excite=True), clips()
    plain = student(frames).logits
    copied = copy.deepcopy(student)
    for part in copied.modules():
        if isinstance(part, Excite):
            part.excite.weight.add_(1.0)
    assert torch.equal(student(frames).logits, plain)
    assert not torch.allclose(copied(frames).logits, plain, rtol=0, atol=1e-3)


# ---------------------------------------------------------------- squeeze and excite, partial batch normalisation


@pytest.mark.parametrize(
    ("name", "count", "width"),
    [
        ("mnasnet1_0", 16, 48),  # channels of the first block's depthwise convolution
        ("mobilenetv1_100", 13, 32),
        ("mobilenetv2_100", 17, 32),
        ("resnet50", 16, 64),
        ("nasnet_a_mobile", 16, 44),
        ("bn_inception", 10, 256),
        ("regnet_x_400mf", 22, 32),
    ],
)
def test_squeeze_and_excite_is_in_every_block_and_changes_nothing_at_first(name: str, count: int, width: int) -> None:
    torch.manual_seed(0)
    student = build(Options(**{**SMALL, "backbone": name, "squeeze_excite": True, "frames": 1}), CLASSES).eval()
    plain = build(Options(**{**SMALL, "backbone": name, "frames": 1}), CLASSES).eval()
    plain.load_state_dict(student.state_dict(), strict=False)
    assert len(student.excite) == count == len(list(blocks(student.backbone)))
    assert student.excite[0].squeeze.in_channels == width
    assert list(student.backbone.state_dict()) == list(plain.backbone.state_dict())
    frames = clips(frames=1)
    answer = student(frames)
    torch.testing.assert_close(answer.latent, plain(frames).latent, rtol=1e-5, atol=0)
    answer.latent.square().mean().backward()
    assert [key for key, value in student.excite.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_squeeze_and_excite_weighs_channels_by_their_means() -> None:
    part, maps = Excite(4), torch.randn(2, 4, 3, 3)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    means = maps.mean((2, 3))
    hidden = (means @ part.squeeze.weight.flatten(1).T).clamp(min=0)
    weights = 2 / (1 + (-hidden @ part.excite.weight.flatten(1).T).exp())
    torch.testing.assert_close(part(maps), maps * weights[:, :, None, None])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("mnasnet0_5", "layers.5", "layers.6"),
        ("mobilenetv2_035", "bn2", "conv_pwl"),
        ("mobilenetv1_100", "bn1", "conv_pw"),
        ("timm/resnet18", "act1", "conv2"),
        ("regnet_x_400mf", "f.b.2", "f.c.0"),
    ],
)
def test_squeeze_and_excite_stands_before_the_last_convolution_of_a_branch(name: str, before: str, after: str) -> None:
    student = made(backbone=name, squeeze_excite=True)
    nn.init.normal_(student.excite[1].excite.weight)
    block = list(blocks(student.backbone))[1].whole
    seen: dict[str, Tensor] = {}
    block.get_submodule(before).register_forward_hook(lambda part, given, answer: seen.update(before=answer.clone()))
    block.get_submodule(after).register_forward_pre_hook(lambda part, given: seen.update(after=given[0].clone()))
    student(clips())
    torch.testing.assert_close(seen["after"], student.excite[1](seen["before"]))
    assert not torch.allclose(seen["after"], seen["before"], rtol=0, atol=1e-3)


@torch.no_grad()
def test_squeeze_and_excite_weighs_what_leaves_a_block_of_several_branches() -> None:
    student = made(backbone="bn_inception", squeeze_excite=True)
    nn.init.normal_(student.excite[0].excite.weight)
    block = student.backbone.network.inception_3a
    seen: dict[str, Tensor] = {}
    block.register_forward_pre_hook(lambda part, given: seen.update(given=given[0].clone()))
    block.register_forward_hook(lambda part, given, answer: seen.update(answer=answer.clone()))
    student(clips())
    torch.testing.assert_close(seen["answer"], student.excite[0](block.forward(seen["given"])))


def test_partial_batch_normalisation_moves_the_first_only() -> None:
    student = build(Options(**{**SMALL, "partial_bn": True}), CLASSES)
    norms = {name: part for name, part in student.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = copy.deepcopy(student.state_dict())
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    for _ in range(2):
        student.train()
        student(clips(4)).logits.logsumexp(1).sum().backward()
        optimiser.step()
    after = student.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    first, *others = norms
    assert {f"{first}.running_mean", f"{first}.running_var", f"{first}.weight", f"{first}.bias"} <= moved
    assert [key for key in moved if key.startswith(tuple(f"{name}." for name in others))] == []
    assert {key for key in after if key.endswith("conv1.weight")} <= moved
    assert [norms[name].training for name in norms] == [True] + [False] * len(others)


def test_training_on_several_devices_keeps_the_parts_that_were_added() -> None:
    """It puts normalisations over all processes in the places of the network's own."""
    student, frames = made(backbone="resnet18", shift="online", squeeze_excite=True, partial_bn=True), clips()
    before = student(frames).logits
    sync_batch_norm(student, torch.device("cpu"))
    assert torch.equal(student.eval()(frames).logits, before)
    norms = [part for part in student.train().modules() if isinstance(part, CpuSyncBatchNorm)]
    assert [norm.training for norm in norms] == [True] + [False] * 19
    assert [norm.weight.requires_grad for norm in norms] == [True] + [False] * 19


# ---------------------------------------------------------------- frame by frame


def play(student: TSN, frames: Tensor) -> tuple[list[StudentOutput], list[list[Tensor]]]:
    """The answers after each frame, and the states."""
    states, answers = [student.initial_state(len(frames))], []
    for t in range(frames.shape[1]):
        answer, state = student.step(frames[:, t], states[-1])
        answers.append(answer)
        states.append(state)
    return answers, states


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"backbone": "mnasnet0_5"}, {"squeeze_excite": True}])
def test_frame_by_frame_says_what_the_clip_of_the_latest_frames_says(options: dict[str, Any]) -> None:
    student, frames = made(**options), clips(2, 3 * FRAMES)
    answers, _ = play(student, frames)
    for t in range(FRAMES - 1, frames.shape[1]):
        clip = student(frames[:, t + 1 - FRAMES : t + 1])
        assert_equal(answers[t], clip)
    assert not torch.allclose(answers[-1].logits, answers[FRAMES].logits, rtol=0, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["none", "online"])
def test_until_there_are_enough_frames_the_first_stands_in_for_those_before_it(shift: str) -> None:
    student, frames = made(shift=shift), clips()
    answers, _ = play(student, frames)
    known = student(frames, want=("frames", "frame_logits")).features
    for t in range(FRAMES):
        latest = [0] * (FRAMES - 1 - t) + list(range(t + 1))
        assert_equal(
            answers[t], StudentOutput(known["frame_logits"][:, latest].mean(1), known["frames"][:, latest].mean(1))
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "mnasnet0_5", "mobilenetv2_035"])
def test_with_the_online_shift_frame_by_frame_is_the_clip_and_then_the_end_of_a_longer_clip(name: str) -> None:
    """Each frame knows of all before it, so a stream is one long clip, of which the last T frames are averaged."""
    student, frames = made(backbone=name, shift="online").double(), clips(2, 3 * FRAMES)
    answers, _ = play(student, frames)
    assert_equal(answers[FRAMES - 1], student(frames[:, :FRAMES]), 1e-9)
    longer = also(student, backbone=name, shift="online", frames=3 * FRAMES)
    known = longer(frames, want=("frames", "frame_logits")).features
    for t in range(FRAMES - 1, 3 * FRAMES):
        latest = slice(t + 1 - FRAMES, t + 1)
        end = StudentOutput(known["frame_logits"][:, latest].mean(1), known["frames"][:, latest].mean(1))
        assert_equal(answers[t], end, 1e-9)
    assert not torch.allclose(answers[-1].logits, student(frames[:, -FRAMES:]).logits, rtol=0, atol=1e-3)


def assert_equal(answer: StudentOutput, clip: StudentOutput, within: float = 1e-5) -> None:
    torch.testing.assert_close(answer.logits, clip.logits, rtol=within, atol=within)
    torch.testing.assert_close(answer.latent, clip.latent, rtol=within, atol=within)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["none", "online"])
def test_a_step_keeps_nothing_and_changes_nothing(shift: str) -> None:
    student, frames = made(shift=shift), clips()
    _, states = play(student, frames)
    kept = [tensor.clone() for tensor in states[2]]
    first, _ = student.step(frames[:, 2], states[2])
    student(frames)  # a clip in between
    second, after = student.step(frames[:, 2], states[2])
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(one, other) for one, other in zip(states[2], kept, strict=True))
    assert [(one.shape, one.dtype) for one in after] == [(one.shape, one.dtype) for one in states[0]]
    assert len(states[0]) == 3 + len(shifts(student))


@torch.no_grad()
def test_streams_do_not_mix() -> None:
    student, frames = made(shift="online"), clips(3)
    together, _ = play(student, frames)
    for b in range(3):
        alone, _ = play(student, frames[b : b + 1])
        torch.testing.assert_close(alone[-1].logits[0], together[-1].logits[b], rtol=1e-5, atol=1e-5)


def test_what_looks_ahead_cannot_go_frame_by_frame() -> None:
    student = made(shift="bidirectional")
    with pytest.raises(ValueError, match="shift=bidirectional looks at the frame after"):
        student.initial_state(1)
    with pytest.raises(ValueError, match="shift=bidirectional looks at the frame after"):
        student.step(clips()[:, 0], [])


class Step(nn.Module):
    """A step as a network of tensors, as a device runs it."""

    def __init__(self, student: TSN) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame: Tensor, state: list[Tensor]) -> list[Tensor]:
        answer, state = self.student.step(frame, state)
        return [answer.logits, answer.latent, *state]


@torch.no_grad()
@pytest.mark.parametrize("shift", ["none", "online"])
def test_a_step_can_be_exported(shift: str) -> None:
    student, frames = made(shift=shift), clips(2, 2 * FRAMES)
    state = student.initial_state(2)
    program = torch.export.export(Step(student), (frames[:, 0], state)).module()
    answers, _ = play(student, frames)
    for t, answer in enumerate(answers):
        logits, latent, *state = program(frames[:, t], state)
        assert_equal(StudentOutput(logits, latent), answer)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["none", "online"])
def test_a_step_works_in_other_precisions_and_its_state_keeps_its_type(shift: str) -> None:
    student, frames = made(shift=shift), clips()
    single, states = play(student, frames)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_states = play(student, frames)
    assert [state.dtype for state in half_states[-1]] == [state.dtype for state in states[0]]
    torch.testing.assert_close(half[-1].logits.float(), single[-1].logits, rtol=0.1, atol=0.1)
    double, double_states = play(student.double(), frames)
    assert {state.dtype for state in double_states[-1]} == {torch.float64}
    torch.testing.assert_close(double[-1].logits.float(), single[-1].logits, rtol=1e-4, atol=1e-4)


def test_the_default_is_eight_frames_of_mnasnet() -> None:
    with torch.device("meta"):
        student = build(Options(), 400)
    assert student.spec == ClipSpec(8, 224)
    assert sum(parameter.numel() for parameter in student.parameters()) == 3_102_312 + 400 * 1280 + 400
