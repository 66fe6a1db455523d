"""TinyAct: a 3-D convolutional video autoencoder and a residual MLP that classifies its latent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from distill.outputs import ClipSpec, Student, StudentOutput

Triple = tuple[int, int, int]  # time, height, width


@dataclass
class Options:
    frames: int = 16
    """Frames the student sees."""
    size: int = 224
    """Side of the picture the student sees."""
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    """Channels of the convolution blocks."""
    strides: list[list[int]] = field(default_factory=lambda: [[2, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]])
    """Stride (time, height, width) of each block."""
    pool: list[int] = field(default_factory=lambda: [1, 2, 2])
    """Cells (time, height, width) that the last block's map is averaged to."""
    latent: int = 1024
    """Width of the latent."""
    hidden: int = 512
    """Width of the classifier."""
    blocks: int = 2
    """Residual blocks of the classifier."""
    dropout: float = 0.1
    """Dropout in the classifier."""
    decoder: bool = True
    """Whether there is a decoder, which reconstruction needs; recognition never does."""


class VideoAutoEncoder3D(nn.Module):
    """[B,3,T,H,W] in [-1,1] -> latent [B,L]; latent -> [B,T,3,H,W] in [0,1]."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        channels = [3, *options.widths]
        strides = [(t, h, w) for t, h, w in options.strides]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(channels[i], channels[i + 1], 3, stride, 1, bias=False),
                nn.BatchNorm3d(channels[i + 1]),
                nn.ReLU(inplace=True),
            )
            for i, stride in enumerate(strides)
        )
        self.pool = nn.AdaptiveAvgPool3d(tuple(options.pool))
        self.to_latent = nn.Linear(channels[-1] * prod(options.pool), options.latent)

        total = [prod(stride[axis] for stride in strides) for axis in range(3)]
        self.grid = (options.frames // total[0], options.size // total[1], options.size // total[2])
        self.decoder = self._make_decoder(options, channels, strides) if options.decoder else None

    def _make_decoder(self, options: Options, channels: list[int], strides: list[Triple]) -> nn.Sequential:
        layers: list[nn.Module] = [
            nn.Linear(options.latent, channels[-1] * prod(self.grid)),
            nn.Unflatten(1, (channels[-1], *self.grid)),
        ]
        for i in reversed(range(len(strides))):
            # A kernel as wide as the stride plus two, cut by one on each side, gives exactly stride times the size.
            t, h, w = strides[i]
            layers.append(nn.ConvTranspose3d(channels[i + 1], channels[i], (t + 2, h + 2, w + 2), (t, h, w), 1))
            if i:
                layers += [nn.BatchNorm3d(channels[i]), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Sigmoid())

    def encode(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = {}
        for i, block in enumerate(self.encoder):
            video = block(video)
            features[f"block{i + 1}"] = video
        return self.to_latent(self.pool(video).flatten(1)), features

    def decode(self, latent: Tensor) -> Tensor:
        assert self.decoder is not None
        picture: Tensor = self.decoder(latent)
        return picture.transpose(1, 2)


class ResidualMLP(nn.Module):
    """Latent [B,L] -> embedding [B,hidden] -> logits [B,K]."""

    def __init__(self, options: Options, classes: int) -> None:
        super().__init__()
        width = options.hidden
        self.project = nn.Linear(options.latent, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Dropout(options.dropout),
                nn.Linear(width, width),
                nn.Dropout(options.dropout),
            )
            for _ in range(options.blocks)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.project(latent)
        for block in self.blocks:
            embedding = embedding + block(embedding)
        return self.head(embedding), embedding


class TinyAct(Student):
    def __init__(self, options: Options, classes: int) -> None:
        super().__init__()
        self.spec = ClipSpec(options.frames, options.size)
        self.autoencoder = VideoAutoEncoder3D(options)
        self.classifier = ResidualMLP(options, classes)
        self.feature_names = (*(f"block{i + 1}" for i in range(len(options.widths))), "embedding")
        self.encoder = ("autoencoder.encoder", "autoencoder.to_latent")

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        video = frames.transpose(1, 2).to(self.classifier.head.weight.dtype).mul(2 / 255).sub(1)
        latent, features = self.autoencoder.encode(video)
        logits, embedding = self.classifier(latent)
        decode = "reconstruction" in want and self.autoencoder.decoder is not None
        return StudentOutput(
            logits=logits,
            latent=latent,
            features={"embedding": embedding, **{name: features[name] for name in want if name in features}},
            reconstruction=self.autoencoder.decode(latent) if decode else None,
        )

    def classify(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.classifier(latent)[0]
        return logits


def build(options: Options, classes: int) -> TinyAct:
    if len(options.widths) != len(options.strides):
        raise ValueError(f"{len(options.widths)} widths and {len(options.strides)} strides; each block has one of both")
    sizes = [options.frames, options.size, options.latent, options.hidden, *options.widths]
    if not options.widths or min(sizes) < 1 or options.blocks < 0:
        raise ValueError("frames, size, latent, hidden and every width are at least 1, and there is a width")
    if any(len(triple) != 3 for triple in (*options.strides, options.pool)):
        raise ValueError("strides and pool are triples (time, height, width)")
    if any(min(triple) < 1 for triple in (*options.strides, options.pool)):
        raise ValueError("strides and pool are at least 1 in time, height and width")
    for name, side, axes in (("frames", options.frames, [0]), ("size", options.size, [1, 2])):
        for axis in axes:
            total = prod(stride[axis] for stride in options.strides)
            if side % total:
                raise ValueError(f"{name} is {side}; the strides need a multiple of {total}")
    # Channels last is how oneDNN and cuDNN like 3-D convolutions best: a quarter faster on a CPU.
    return TinyAct(options, classes).to(memory_format=torch.channels_last_3d)
