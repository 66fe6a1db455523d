"""3-D convolutional networks: torchvision's, and the small X3D and MoViNet-A0.

The latent is the mean over the last map. X3D and MoViNet widen it before they classify; what their last layer reads
is the embedding, which elsewhere is the latent. torchvision's networks keep their names of weights, under `network.`.
S3D's normalisations follow what they see as fast as all others do: torchvision's own take thousands of steps.

Shape legend: B clips, T frames, C channels, K classes, L latent width, D embedding width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision import models

from distill.outputs import ClipSpec, Student, StudentOutput
from students import _movinet, _x3d
from students._backbones import INSTEAD, published

OWN = {"x3d_xs": _x3d, "x3d_s": _x3d, "movinet_a0": _movinet}
CLIPS = {  # what each was made for; only s3d was trained with more frames, 128
    "r3d_18": ClipSpec(16, 112),
    "mc3_18": ClipSpec(16, 112),
    "r2plus1d_18": ClipSpec(16, 112),
    "s3d": ClipSpec(16, 224),
    "x3d_xs": ClipSpec(4, 160),
    "x3d_s": ClipSpec(13, 160),
    "movinet_a0": ClipSpec(50, 172),
}
LEAST = {"s3d": ClipSpec(13, 209), "movinet_a0": ClipSpec(1, 33)}  # smaller maps have no room for their poolings


@dataclass
class Options:
    model: str = "x3d_xs"
    """The network: r3d_18, mc3_18, r2plus1d_18, s3d, x3d_xs, x3d_s or movinet_a0."""
    pretrained: bool = False
    """Whether torchvision's weights from Kinetics-400 are loaded; there are none of x3d and movinet."""
    frames: int = 0
    """Frames the student sees; 0 = as many as the network was made for."""
    size: int = 0
    """Side of the picture the student sees; 0 = what the network was made for."""
    dropout: float = 0.2
    """Dropout before the last layer."""


def trunk(model: str) -> dict[str, str]:
    """The parts that a video goes through, in this order, and what the map that each makes is called, if anything."""
    if model == "s3d":
        blocks = {3: "block1", 6: "block2", 12: "block3", 15: "block4"}  # what stands before the next pooling
        return {**{f"features.{i}": blocks.get(i, "") for i in range(16)}, "avgpool": ""}
    if model not in OWN:
        return {"stem": "", **{f"layer{i}": f"block{i}" for i in range(1, 5)}}
    stages = len(_movinet.BLOCKS if model == "movinet_a0" else _x3d.WIDTHS)
    return {"stem": "", **{f"stages.{i}": f"block{i + 1}" for i in range(stages)}, "last": ""}


class Video3D(Student):
    shift: Tensor
    scale: Tensor

    def __init__(self, options: Options, spec: ClipSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec, self.network, self.trunk = spec, network, trunk(options.model)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(options.dropout)
        self.head = "head" if options.model in OWN else "classifier.1" if options.model == "s3d" else "fc"
        self.feature_names = (*filter(None, self.trunk.values()), "embedding")
        self.encoder = tuple(f"network.{part}" for part in self.trunk if part != "avgpool")
        for name, value in zip(("shift", "scale"), _normal(options.model), strict=True):
            self.register_buffer(name, value.view(3, 1, 1, 1), persistent=False)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        video = frames.transpose(1, 2).to(self.scale.dtype) * self.scale + self.shift
        features = {}
        for part, name in self.trunk.items():
            video = self.network.get_submodule(part)(video)
            if name in want:
                features[name] = video
        latent = self.pool(video).flatten(1)
        embedding = self._widen(latent)
        if "embedding" in want:
            features["embedding"] = embedding
        return StudentOutput(self._judge(embedding), latent, features)

    def classify(self, latent: Tensor) -> Tensor:
        return self._judge(self._widen(latent))

    def _widen(self, latent: Tensor) -> Tensor:
        embedding: Tensor = self.network.get_submodule("neck")(latent)
        return embedding

    def _judge(self, embedding: Tensor) -> Tensor:
        """[B,D] -> [B,K]"""
        head, embedding = self.network.get_submodule(self.head), self.dropout(embedding)
        if isinstance(head, nn.Conv3d):
            embedding = embedding[..., None, None, None]
        logits: Tensor = head(embedding)
        return logits.flatten(1)


def _normal(model: str) -> tuple[Tensor, Tensor]:
    """Shift and scale of each colour, 0 to 255, as the network was trained."""
    if model in OWN:
        mean, std = OWN[model].MEAN, OWN[model].STD
    else:
        preset = models.get_model_weights(model)["DEFAULT"].transforms()
        mean, std = preset.mean, preset.std
    return -torch.tensor(mean) / torch.tensor(std), 1 / (255 * torch.tensor(std))


def build(options: Options, classes: int) -> Video3D:
    if options.model not in CLIPS:
        raise ValueError(f"there is no model={options.model}; there are {', '.join(CLIPS)}")
    if min(options.frames, options.size) < 0 or not 0 <= options.dropout < 1:
        raise ValueError("frames and size are 0, for what the network was made for, or more; dropout is from 0 to 1")
    own = CLIPS[options.model]
    spec = ClipSpec(options.frames or own.frames, options.size or own.size)
    least = LEAST.get(options.model, spec)
    if spec.union(least) != spec:
        needs = f"{options.model} needs at least frames={least.frames} and size={least.size}"
        raise ValueError(f"frames={spec.frames} and size={spec.size} are not enough: {needs}")
    return Video3D(options, spec, _network(options, classes))


def _network(options: Options, classes: int) -> nn.Module:
    if options.model in OWN:
        if options.pretrained:
            raise ValueError(f"torchvision has no weights of model={options.model}; {INSTEAD}")
        return _movinet.MoViNetA0(classes) if options.model == "movinet_a0" else _x3d.X3D(classes)
    more = {"norm_layer": partial(nn.BatchNorm3d, eps=1e-3)} if options.model == "s3d" else {}
    network: nn.Module = models.get_model(options.model, weights=None, num_classes=classes, **more)
    if options.model == "s3d":
        network.get_submodule("features").apply(_x3d.start)  # with torchvision's own, signals fade in a fresh one
    if options.pretrained:
        _load(network, options.model)
    network.neck = nn.Identity()  # it classifies the latent itself
    return network


def _load(network: nn.Module, model: str) -> None:
    """What torchvision publishes; a last layer for another number of classes stays fresh."""
    fresh = network.state_dict()
    network.load_state_dict(
        {key: value if value.shape == fresh[key].shape else fresh[key] for key, value in published(model).items()}
    )
