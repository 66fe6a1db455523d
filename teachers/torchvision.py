"""torchvision's classifiers as teachers: its video models, and its picture models frame by frame.

The feature is what the last layer of the network reads, so that logits == last layer(feature); a picture model's is
the mean over the frames, and there the same holds where logits are averaged. Picture models give one map on request:
`frame_features` [B,T,D], the features of the frames. Video models give none.

Shape legend: B clips, T frames, N = B videos or B*T pictures, K classes, D feature width.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from distill.labels import read_labels
from distill.outputs import ClipSpec, TeacherOutput
from distill.weights import digest_facts, digest_file, read_weights
from teachers._frames import Normalise
from teachers._loading import load_strictly

# How many frames the published weights were trained with.
FRAMES = {"s3d": 128, "swin3d_t": 32, "swin3d_s": 32, "swin3d_b": 32}
VIDEO_FRAMES, PICTURE_FRAMES = 16, 8
AVERAGES = ("logits", "probabilities")


@dataclass
class Options:
    model: str = MISSING
    """Name of one of torchvision's classifiers of videos (r3d_18, mvit_v2_s, ...) or pictures (resnet50, ...)."""
    weights: str = "DEFAULT"
    """Tag of published weights (DEFAULT, KINETICS400_V1, ...), or a file of one's own, normalised as DEFAULT is."""
    labels: str = ""
    """File of class names in the order of the logits; only for a file of one's own, a tag brings its names."""
    frames: int = 0
    """Frames the teacher sees; 0 = as many as the video model was trained with, or 8 pictures."""
    size: int = 0
    """Side of the picture the teacher sees; 0 = the size that the published weights were evaluated at."""
    average: str = "logits"
    """What is averaged over the frames of a picture model: logits or probabilities."""


class LastLayer(nn.Module):
    """A last layer whose answer brings along what it read: [N,D,...] -> [N,K+D,...].

    Whatever a network does after its last layer, it does to each channel alike (it averages over places), so logits
    and feature leave it side by side, without hooks.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, feature: Tensor) -> Tensor:
        return torch.cat([self.layer(feature), feature], dim=1)


class TorchvisionTeacher(nn.Module):
    """`network` ends in a LastLayer; `average` is None for one that reads videos."""

    def __init__(
        self, network: nn.Module, classes: Sequence[str], spec: ClipSpec, normalise: Normalise, average: str | None
    ) -> None:
        super().__init__()
        self.network, self.classes, self.spec = network, list(classes), spec
        self.normalise, self.average = normalise, average
        self.map_names = () if average is None else ("frame_features",)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        pixels = self.normalise(frames)
        if self.average is None:
            return TeacherOutput(*self._ask(pixels.transpose(1, 2)))
        logits, features = (answer.view(*frames.shape[:2], -1) for answer in self._ask(pixels.flatten(0, 1)))
        if self.average == "logits":
            logits = logits.mean(dim=1)
        else:
            logits = logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(frames.shape[1])
        maps = {"frame_features": features} if "frame_features" in want else {}
        return TeacherOutput(logits, features.mean(dim=1), maps)

    def _ask(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[N,3,...] -> logits [N,K] and feature [N,D]."""
        logits, feature = self.network(pixels).float().tensor_split([len(self.classes)], dim=1)
        return logits, feature


def build(options: Options, classes: Sequence[str]) -> TorchvisionTeacher:
    spec, labels, file = wants(options), _labels(options), _file(options)
    weights = read_weights(file, _tags(options))
    network = _load(options, spec, labels, weights)
    preset = _published(options).transforms()
    normalise = Normalise(preset.mean, preset.std)
    return TorchvisionTeacher(network, labels, spec, normalise, None if _is_video(options) else options.average)


def fingerprint(options: Options) -> str:
    spec, preset = wants(options), _published(options).transforms()
    facts = {
        "model": options.model,
        "weights": digest_file(_file(options), _tags(options)),
        "classes": _labels(options),
        "sees": [spec.frames, spec.size, *preset.mean, *preset.std],
        "average": None if _is_video(options) else options.average,
    }
    return digest_facts(facts)


def wants(options: Options) -> ClipSpec:
    if options.average not in AVERAGES:
        raise ValueError(f"average={options.average} is not one of {', '.join(AVERAGES)}")
    if min(options.frames, options.size) < 0:
        raise ValueError(f"frames={options.frames} and size={options.size} cannot be negative")
    own = FRAMES.get(options.model, VIDEO_FRAMES) if _is_video(options) else PICTURE_FRAMES
    return ClipSpec(options.frames or own, options.size or _published(options).transforms().crop_size[0])


# ---------------------------------------------------------------- what torchvision knows about the model


def _is_video(options: Options) -> bool:
    from torchvision import models

    return options.model in models.list_models(module=models.video)


def _entries(options: Options) -> Mapping[str, Any]:
    """torchvision's entries about the published weights of the model, by their tags."""
    from torchvision import models

    videos, pictures = models.list_models(module=models.video), models.list_models(module=models)
    if options.model not in videos + pictures:
        near = get_close_matches(options.model, videos + pictures) or videos
        raise ValueError(f"torchvision has no classifier named {options.model!r}; it has {', '.join(near)}, ...")
    entries: Mapping[str, Any] = models.get_model_weights(options.model).__members__
    return entries


def _published(options: Options) -> Any:
    """The entry of the tag; for a file of one's own, the default weights'."""
    entries = _entries(options)
    return entries.get(options.weights, entries["DEFAULT"])


def _tags(options: Options) -> str:
    return f"weights is a file, or one of the tags of {options.model}: {', '.join(_entries(options))}"


def _labels(options: Options) -> list[str]:
    if options.weights not in _entries(options):
        if not options.labels:
            raise ValueError(f"weights={options.weights} needs labels=FILE, its class names; {_tags(options)}")
        return read_labels(Path(options.labels))
    if options.labels:
        raise ValueError(f"labels={options.labels} is for a file of weights; {options.weights} brings its own names")
    names: list[str] | None = _published(options).meta["categories"]
    if names is None:
        raise ValueError(f"{options.weights} of {options.model} has no classifier; {_tags(options)}")
    return names


def _file(options: Options) -> Path:
    """Where the weights lie; those of a tag are fetched to where torchvision itself looks for them."""
    if options.weights not in _entries(options):
        return Path(options.weights)
    url = _published(options).url
    place = Path(str(torch.hub.get_dir()), "checkpoints", url.rpartition("/")[2])
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", place.name)
        try:
            torch.hub.download_url_to_file(url, str(place), digest and digest[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{url} cannot be fetched ({error}); put that file at {place}") from error
    return place


# ---------------------------------------------------------------- the network


def _load(options: Options, spec: ClipSpec, labels: Sequence[str], weights: dict[str, Tensor]) -> nn.Module:
    """The network with its weights, ending in a LastLayer."""
    # densenet's published files have "norm.1" where the network has "norm1".
    weights = {re.sub(r"(denselayer\d+\.[a-z]+)\.(\d\.)", r"\1\2", name): value for name, value in weights.items()}
    arguments = _sizes(options, spec) | _helpers(options, weights)
    last = _last_layer(_skeleton(options, spec, arguments))
    if f"{last}.weight" not in weights:
        raise ValueError(f"{options.weights} holds no {last}.weight, so these are not the weights of {options.model}")
    classes = len(weights[f"{last}.weight"])
    if classes != len(labels):
        raise ValueError(f"{options.labels} names {len(labels)} classes; the weights {options.weights} have {classes}")
    network = _skeleton(options, spec, arguments | {"num_classes": classes})
    state = OrderedDict(weights)
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]  # mnasnet asks which of its layouts this is
    load_strictly(network, state, options.weights, f"{options.model} for {_seen(spec)}", assign=True)
    parent, _, name = last.rpartition(".")
    setattr(network.get_submodule(parent), name, LastLayer(network.get_submodule(last)))
    return network.float()


def _sizes(options: Options, spec: ClipSpec) -> dict[str, Any]:
    """What transformers that are built for one size are told about it; for MViT torchvision has but one."""
    own = wants(replace(options, frames=0, size=0))
    if options.model.startswith("mvit") and spec != own:
        raise ValueError(f"{options.model} takes {_seen(own)} only, not {_seen(spec)}")
    if options.model.startswith("maxvit"):
        return {"input_size": (spec.size, spec.size)}
    return {"image_size": spec.size} if options.model.startswith("vit") else {}


def _helpers(options: Options, weights: Collection[str]) -> dict[str, Any]:
    """GoogLeNet and Inception: with helpers for training or without, and for pictures normalised as all others are."""
    if options.model not in ("googlenet", "inception_v3"):
        return {}
    helped = any(name.lower().startswith("aux") for name in weights)
    return {"aux_logits": helped, "transform_input": True, "init_weights": False}


def _skeleton(options: Options, spec: ClipSpec, arguments: dict[str, Any]) -> nn.Module:
    """The network without numbers, tried on a clip without numbers: some cannot take every size."""
    from torchvision.models import get_model

    shape = (3, spec.frames, spec.size, spec.size) if _is_video(options) else (3, spec.size, spec.size)
    try:
        # RegNet computes its widths with tensors, so it has to be made in earnest first.
        with torch.device("cpu" if options.model.startswith("regnet") else "meta"):
            network: nn.Module = get_model(options.model, weights=None, **arguments).to("meta").eval()
        with torch.no_grad():
            network(torch.empty(1, *shape, device="meta"))
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        own = wants(replace(options, frames=0, size=0))
        raise ValueError(f"{options.model} cannot take {_seen(spec)} ({reason}); its own are {_seen(own)}") from error
    return network


def _seen(spec: ClipSpec) -> str:
    return f"{spec.frames} frames of {spec.size}x{spec.size} pixels"


def _last_layer(network: nn.Module) -> str:
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    names: list[str] = [name for name, layer in network.named_modules() if isinstance(layer, layers)]
    return names[-1]
