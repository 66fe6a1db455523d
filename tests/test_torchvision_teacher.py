"""The torchvision teacher against torchvision's own networks, and what it says to mistakes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models as library
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import video

from distill.outputs import ClipSpec
from teachers import torchvision as plugin
from teachers.torchvision import FRAMES, VIDEO_FRAMES, Options, TorchvisionTeacher

LABELS = [f"class {i}" for i in range(5)]
VIDEOS = {  # small, as far as they let us
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t", "swin3d_s", "swin3d_b"), ClipSpec(4, 32)),
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), ClipSpec(16, 224)),
    "s3d": ClipSpec(14, 224),
}
PICTURES = {  # one of each kind
    **dict.fromkeys(("convnext_tiny", "efficientnet_b0", "mnasnet0_75", "mobilenet_v2"), 32),
    **dict.fromkeys(("mobilenet_v3_small", "regnet_x_400mf", "resnet18", "vit_b_32"), 32),
    **dict.fromkeys(("alexnet", "densenet121", "swin_v2_t", "squeezenet1_1", "googlenet", "vgg11"), 64),
    "inception_v3": 96,
    "maxvit_t": 224,
}
LARGE = ("mvit_v1_b", "mvit_v2_s", "swin3d_s", "swin3d_b", "alexnet", "maxvit_t", "vgg11", "vit_b_32")


def each(models: Iterable[str]) -> list[Any]:
    return [pytest.param(model, marks=pytest.mark.slow if model in LARGE else ()) for model in models]


def frames_of(spec: ClipSpec, count: int = 2) -> Tensor:
    chance = torch.Generator().manual_seed(2)
    shape = (count, spec.frames, 3, spec.size, spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance)


def network_of(model: str, spec: ClipSpec, classes: int = len(LABELS)) -> nn.Module:
    """torchvision's own, with random weights. Its last layer is made louder, so that classes differ."""
    torch.manual_seed(0)
    known: dict[str, dict[str, Any]] = {
        "vit": {"image_size": spec.size},
        "googlenet": {"transform_input": True, "init_weights": False, "aux_logits": False},
        "inception": {"transform_input": True, "init_weights": False},
    }
    network: nn.Module = library.get_model(model, num_classes=classes, **known.get(model.split("_")[0], {}))
    with torch.no_grad():
        [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)][-1].weight.normal_()
    return network.eval()


def options_of(folder: Path, model: str, spec: ClipSpec, network: nn.Module, **changes: Any) -> Options:
    """The network's weights as a file of one's own."""
    file = folder / f"{model}.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    given = {"weights": str(file), "labels": str(folder / "labels.txt"), "frames": spec.frames, "size": spec.size}
    return Options(model, **given | changes)


def build(options: Options) -> TorchvisionTeacher:
    return plugin.build(options, ["data", "set"]).eval().requires_grad_(False)


def last_layer(options: Options) -> tuple[Tensor, Tensor]:
    """Weight [K,D] and bias [K] of the layer that ends the file; only maxvit's has no bias."""
    weights = load_file(options.weights)
    found = {name: value for name, value in weights.items() if value.dim() > 1 and len(value) == len(LABELS)}
    name, weight = next((name, value) for name, value in found.items() if "AuxLogits" not in name)
    bias = weights.get(name.removesuffix("weight") + "bias", torch.zeros(len(LABELS)))
    return weight.flatten(1), bias


def pixels_of(model: str, frames: Tensor) -> Tensor:
    preset = library.get_model_weights(model)["DEFAULT"].transforms()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (preset.mean, preset.std))
    return (frames.float() / 255 - mean) / std


@pytest.mark.parametrize("model", each(VIDEOS))
def test_video_models(tmp_path: Path, model: str) -> None:
    spec = VIDEOS[model]
    network = network_of(model, spec)
    options = options_of(tmp_path, model, spec, network)
    with torch.no_grad():
        wanted = network(pixels_of(model, frames_of(spec, 1)).transpose(1, 2))
    teacher = build(options)
    answer = teacher(frames_of(spec, 1))
    torch.testing.assert_close(answer.logits, wanted, rtol=1e-4, atol=1e-4)
    weight, bias = last_layer(options)
    torch.testing.assert_close(answer.feature @ weight.T + bias, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 1e-2
    assert (teacher.spec, teacher.classes) == (spec, LABELS)


def test_every_video_model_is_tried() -> None:
    assert set(VIDEOS) == set(library.list_models(module=video))


@pytest.mark.parametrize("model", each(PICTURES))
def test_picture_models(tmp_path: Path, model: str) -> None:
    spec = ClipSpec(2, PICTURES[model])
    network = network_of(model, spec)
    options = options_of(tmp_path, model, spec, network)
    with torch.no_grad():
        frame = network(pixels_of(model, frames_of(spec)).flatten(0, 1)).view(2, 2, -1)
    answer = build(options)(frames_of(spec), want=["frame_features"])
    torch.testing.assert_close(answer.logits, frame.mean(1), rtol=1e-4, atol=1e-4)
    assert list(answer.maps) == ["frame_features"]
    torch.testing.assert_close(answer.feature, answer.maps["frame_features"].mean(1))
    weight, bias = last_layer(options)
    from_feature = answer.maps["frame_features"] @ weight.T + bias
    if model.startswith("squeezenet"):  # which cuts off what is negative before it averages over places
        assert answer.feature.shape == (2, weight.shape[1])
    else:
        torch.testing.assert_close(from_feature, frame, rtol=1e-4, atol=1e-4)


def test_probabilities_can_be_averaged(tmp_path: Path) -> None:
    spec = ClipSpec(3, 32)
    network = network_of("resnet18", spec)
    options = options_of(tmp_path, "resnet18", spec, network, average="probabilities")
    with torch.no_grad():
        frame = network(pixels_of("resnet18", frames_of(spec)).flatten(0, 1)).view(2, 3, -1)
    answer = build(options)(frames_of(spec))
    torch.testing.assert_close(answer.logits.exp(), frame.softmax(-1).mean(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(answer.logits, frame.mean(1), atol=0.01)
    assert plugin.fingerprint(options) != plugin.fingerprint(replace(options, average="logits"))


def test_a_video_model_has_nothing_to_average(tmp_path: Path) -> None:
    options = options_of(tmp_path, "mc3_18", VIDEOS["mc3_18"], network_of("mc3_18", VIDEOS["mc3_18"]))
    assert plugin.fingerprint(options) == plugin.fingerprint(replace(options, average="probabilities"))


# ---------------------------------------------------------------- published weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, model: str, tag: str = "DEFAULT") -> nn.Module:
    """Random weights in the place of published ones, and the network that torchvision makes of them."""
    entry = library.get_model_weights(model)[tag]
    torch.manual_seed(0)
    known = {"init_weights": False} if model == "googlenet" else {}
    state = library.get_model(model, num_classes=len(entry.meta["categories"]), **known).state_dict()
    if model.startswith("densenet"):
        old = re.compile(r"(denselayer\d+\.[a-z]+)(\d)")
        state = type(state)((old.sub(r"\1.\2", name), value) for name, value in state.items() if "batches" not in name)
    torch.save(state, folder / entry.url.rpartition("/")[2])
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: state)
    network: nn.Module = library.get_model(model, weights=entry)
    return network.eval()


@pytest.mark.parametrize("model", ["squeezenet1_1", "googlenet", "mnasnet0_5", "mc3_18"])
def test_a_tag_is_what_torchvision_makes_of_it(cache: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Its preset is asked to resize to the size that our frames already have."""
    network, entry = publish(monkeypatch, cache, model), library.get_model_weights(model)["DEFAULT"]
    teacher = build(Options(model, frames=2 if model != "mc3_18" else 4))
    frames, side = frames_of(teacher.spec, 1), teacher.spec.size
    is_video = model == "mc3_18"
    preset = entry.transforms(resize_size=(side, side) if is_video else side)
    assert preset.crop_size[0] == side
    with torch.no_grad():
        wanted = network(preset(frames)) if is_video else network(preset(frames[0])).mean(0, keepdim=True)
    torch.testing.assert_close(teacher(frames).logits, wanted, rtol=1e-4, atol=1e-4)
    assert teacher.classes == entry.meta["categories"]


def test_old_names_in_densenet_s_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file has names from before they were legal; torchvision rewrites them while it loads."""
    publish(monkeypatch, cache, "densenet121")
    teacher = build(Options("densenet121", "IMAGENET1K_V1"))
    (file,) = cache.iterdir()
    saved = torch.load(file, weights_only=True)["features.denseblock4.denselayer16.norm.2.bias"]
    assert torch.equal(teacher.network.get_submodule("features.denseblock4.denselayer16.norm2").bias, saved)


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (Options("r3d_18"), ClipSpec(16, 112)),
        (Options("mvit_v2_s"), ClipSpec(16, 224)),
        (Options("swin3d_b", "KINETICS400_IMAGENET22K_V1"), ClipSpec(32, 224)),
        (Options("s3d", frames=64), ClipSpec(64, 224)),
        (Options("resnet50", "IMAGENET1K_V2"), ClipSpec(8, 224)),
        (Options("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), ClipSpec(8, 384)),
        (Options("resnet50", size=160, frames=4), ClipSpec(4, 160)),
    ],
)
def test_what_published_weights_want_is_known_without_them(options: Options, spec: ClipSpec) -> None:
    assert plugin.wants(options) == spec


@pytest.mark.parametrize("model", VIDEOS)
def test_frames_are_as_many_as_torchvision_s_figures_were_measured_with(model: str) -> None:
    (length,) = re.findall(r"clip_len=(\d+)", library.get_model_weights(model)["DEFAULT"].meta["_docs"])
    assert FRAMES.get(model, VIDEO_FRAMES) == int(length)


def test_published_weights_are_fetched_to_torch_s_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(url: str, place: str, digest: str, progress: bool) -> None:
        asked.append((url, digest))
        torch.save(network_of("squeezenet1_1", ClipSpec(8, 224), 1000).state_dict(), place)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    options = Options("squeezenet1_1")
    found = plugin.fingerprint(options)
    build(options)
    assert asked == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]
    (file,) = cache.iterdir()
    labels = cache.parent / "labels.txt"
    labels.write_text("\n".join(library.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]))
    assert plugin.fingerprint(Options("squeezenet1_1", str(file), str(labels))) == found, "the same weights as a file"


def test_published_weights_out_of_reach(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    place = cache / "r3d_18-b3b3357e.pth"
    said = rf"https://download.pytorch.org/models/r3d_18-b3b3357e.pth cannot be fetched .*no route.*; put .* at {place}"
    for ask in (plugin.fingerprint, build):
        with pytest.raises(ValueError, match=said):
            ask(Options("r3d_18"))


# ---------------------------------------------------------------- files of one's own


def test_weights_as_trainers_save_them(tmp_path: Path) -> None:
    spec = ClipSpec(2, 64)
    network = network_of("squeezenet1_1", spec)
    options = options_of(tmp_path, "squeezenet1_1", spec, network)
    saved = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": saved, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "model_3.pth")
    other = replace(options, weights=str(tmp_path / "model_3.pth"))
    assert torch.equal(build(other)(frames_of(spec)).logits, build(options)(frames_of(spec)).logits)
    assert plugin.fingerprint(other) == plugin.fingerprint(options)


def test_half_precision_on_disk_is_computed_in_full(tmp_path: Path) -> None:
    spec = ClipSpec(2, 64)
    options = options_of(tmp_path, "squeezenet1_1", spec, network_of("squeezenet1_1", spec).half())
    assert build(options)(frames_of(spec)).logits.dtype == torch.float32


def test_the_labels_are_part_of_the_teacher(tmp_path: Path) -> None:
    spec = ClipSpec(2, 64)
    options = options_of(tmp_path, "squeezenet1_1", spec, network_of("squeezenet1_1", spec))
    found = plugin.fingerprint(options)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS[::-1]))
    assert plugin.fingerprint(options) != found
    assert build(options).classes == LABELS[::-1]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "resnet19"}, r"torchvision has no classifier named 'resnet19'; it has resnet1"),
    "detector": ({"model": "fasterrcnn_resnet50_fpn"}, r"torchvision has no classifier named 'fasterrcnn"),
    "tag": (
        {"weights": "IMAGENET1K_V9"},
        r"IMAGENET1K_V9 is not there; .* tags of squeezenet1_1: IMAGENET1K_V1, DEFAULT",
    ),
    "no labels": ({"labels": ""}, r"squeezenet1_1.safetensors needs labels=FILE"),
    "labels of a tag": (
        {"weights": "DEFAULT"},
        r"labels=.*labels.txt is for a file of weights; DEFAULT brings its own",
    ),
    "average": ({"average": "median"}, r"average=median is not one of logits, probabilities"),
    "frames": ({"frames": -1}, r"frames=-1 and size=64 cannot be negative"),
    "size": ({"size": 8}, r"squeezenet1_1 cannot take 2 frames of 8x8 pixels \(.*\); its own are 8 frames of 224x224"),
    "another model": (
        {"model": "mobilenet_v2"},
        r"are not those of mobilenet_v2 for 2 frames of 64x64.*: they lack features",
    ),
    "another end": ({"model": "resnet18"}, r"holds no fc.weight, so these are not the weights of resnet18"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named(tmp_path: Path, mistake: str) -> None:
    spec = ClipSpec(2, 64)
    changes, said = WRONG[mistake]
    options = options_of(tmp_path, "squeezenet1_1", spec, network_of("squeezenet1_1", spec))
    with pytest.raises(ValueError, match=said):
        build(replace(options, **changes))


def test_labels_of_another_number(tmp_path: Path) -> None:
    spec = ClipSpec(2, 64)
    options = options_of(tmp_path, "squeezenet1_1", spec, network_of("squeezenet1_1", spec))
    (tmp_path / "labels.txt").write_text("one\ntwo")
    with pytest.raises(ValueError, match=r"labels.txt names 2 classes; the weights .* have 5"):
        build(options)


def test_weights_without_a_classifier() -> None:
    with pytest.raises(ValueError, match=r"IMAGENET1K_FEATURES of vgg16 has no classifier"):
        build(Options("vgg16", "IMAGENET1K_FEATURES"))


@pytest.mark.parametrize("model", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit_takes_one_size(tmp_path: Path, model: str) -> None:
    options = options_of(tmp_path, "squeezenet1_1", ClipSpec(2, 64), network_of("squeezenet1_1", ClipSpec(2, 64)))
    for frames, size in ((8, 224), (16, 112)):
        with pytest.raises(
            ValueError, match=rf"{model} takes 16 frames of 224x224 pixels only, not {frames} frames of {size}"
        ):
            build(replace(options, model=model, frames=frames, size=size))


def test_a_picture_transformer_takes_the_size_of_its_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = network_of("vit_b_32", ClipSpec(2, 64)).state_dict()
    weights = {name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in shapes.items()}
    network = nn.Module()
    network.state_dict = lambda: weights  # type: ignore[method-assign,assignment]
    options = options_of(tmp_path, "vit_b_32", ClipSpec(2, 96), network)
    with pytest.raises(
        ValueError, match=r"2 frames of 96x96 pixels: they have in other sizes .*pos_embedding \[1, 5, 768\]"
    ):
        build(options)
    with pytest.raises(
        ValueError, match=r"vit_b_32 cannot take 2 frames of 33x33 pixels \(.*\); its own are 8 frames of 224"
    ):
        build(replace(options, size=33))


def test_s3d_wants_long_clips_of_large_pictures(tmp_path: Path) -> None:
    options = options_of(tmp_path, "s3d", VIDEOS["s3d"], network_of("s3d", VIDEOS["s3d"]))
    for changes in ({"frames": 8}, {"size": 112}):
        with pytest.raises(ValueError, match=r"s3d cannot take .*; its own are 128 frames of 224x224 pixels"):
            build(replace(options, **changes))


def test_probabilities_of_one_frame_are_its_own(tmp_path: Path) -> None:
    spec = ClipSpec(1, 64)
    options = options_of(tmp_path, "squeezenet1_1", spec, network_of("squeezenet1_1", spec))
    by_logits, by_chance = (build(replace(options, average=a))(frames_of(spec)).logits for a in plugin.AVERAGES)
    torch.testing.assert_close(by_chance.exp().sum(1), torch.ones(2))
    torch.testing.assert_close(by_chance.diff(dim=1), by_logits.diff(dim=1))
    assert math.isfinite(by_chance.sum())
