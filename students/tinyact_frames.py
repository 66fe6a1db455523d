"""TinyAct's base autoencoder: Conv2d and max-pooling encode each frame alone, and a linear layer joins what they found.

It is trained without labels, by drawing the clip again from its latent; what it has learned is then for classifiers of
other kinds to judge. The linear classifier that it carries learns only where an objective has a term for it.

B clips, T frames, C channels, H height, W width, D width of a frame's code, L latent width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill.outputs import ClipSpec, Student, StudentOutput


@dataclass
class Options:
    frames: int = 16
    """Frames the student sees."""
    size: int = 256
    """Side of the picture the student sees."""
    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256, 256])
    """Channels of the convolution blocks, each of which halves the picture."""
    code: int = 128
    """Width of a frame's code."""
    latent: int = 1024
    """Width of the latent, which is made of all frames' codes."""
    decoder: bool = True
    """Whether there is a decoder, which reconstruction needs; recognition never does."""


class FrameEncoder(nn.Module):
    """Pictures [N,3,H,W] -> code [N,D], and the maps of every block."""

    def __init__(self, options: Options, side: int) -> None:
        super().__init__()
        channels = [3, *options.widths]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            for before, after in zip(channels, options.widths, strict=False)
        )
        self.to_code = nn.Linear(channels[-1] * side**2, options.code)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for block in self.blocks:
            pictures = block(pictures)
            maps.append(pictures)
        return self.to_code(pictures.flatten(1)), maps


class FrameDecoder(nn.Sequential):
    """Code [N,D] -> pictures [N,3,H,W] in [0,1]."""

    def __init__(self, options: Options, side: int) -> None:
        channels = [3, *options.widths]
        layers: list[nn.Module] = [
            nn.Linear(options.code, channels[-1] * side**2),
            nn.Unflatten(1, (channels[-1], side, side)),
        ]
        for after, before in reversed(list(zip(channels, options.widths, strict=False))):
            layers += [nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
        super().__init__(*layers, nn.Sigmoid())


class TinyActFrames(Student):
    def __init__(self, options: Options, classes: int) -> None:
        super().__init__()
        self.spec = ClipSpec(options.frames, options.size)
        side, joined = options.size >> len(options.widths), options.frames * options.code
        self.frame_encoder = FrameEncoder(options, side)
        self.to_latent = nn.Linear(joined, options.latent)
        self.head = nn.Linear(options.latent, classes)
        self.to_codes = nn.Linear(options.latent, joined) if options.decoder else None
        self.frame_decoder = FrameDecoder(options, side) if options.decoder else None
        self.feature_names = (*(f"block{i + 1}" for i in range(len(options.widths))), "frames", "embedding")
        self.encoder = ("frame_encoder", "to_latent")
        self.apply(start)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        batch, count = frames.shape[:2]
        pictures = frames.flatten(0, 1).to(self.head.weight.dtype).mul(2 / 255).sub(1)
        codes, maps = self.frame_encoder(pictures)
        latent = self.to_latent(codes.view(batch, -1))
        found = {f"block{i + 1}": over_time(value, count) for i, value in enumerate(maps)}
        found |= {"frames": codes.view(batch, count, -1), "embedding": latent}
        return StudentOutput(
            logits=self.classify(latent),
            latent=latent,
            features={name: found[name] for name in want if name in found},
            reconstruction=self.decode(latent, count) if "reconstruction" in want and self.frame_decoder else None,
        )

    def classify(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.head(latent)
        return logits

    def decode(self, latent: Tensor, count: int) -> Tensor:
        assert self.to_codes is not None
        assert self.frame_decoder is not None
        codes = self.to_codes(latent).view(len(latent) * count, -1)
        pictures: Tensor = self.frame_decoder(codes)
        return pictures.view(-1, count, *pictures.shape[1:])


def start(part: nn.Module) -> None:
    """Random weights with which activations keep their size; without normalisation, torch's own fade with depth."""
    if isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        assert part.bias is not None
        nn.init.zeros_(part.bias)


def over_time(maps: Tensor, count: int) -> Tensor:
    """[B*T,C,H,W] -> [B,C,T,H,W]."""
    return maps.view(-1, count, *maps.shape[1:]).transpose(1, 2)


def build(options: Options, classes: int) -> TinyActFrames:
    sizes = [options.frames, options.size, options.code, options.latent, *options.widths]
    if not options.widths or min(sizes) < 1:
        raise ValueError("frames, size, code, latent and every width are at least 1, and there is a width")
    if options.size % 2 ** len(options.widths):
        raise ValueError(
            f"size is {options.size}; {len(options.widths)} halvings need a multiple of {2 ** len(options.widths)}"
        )
    return TinyActFrames(options, classes).to(memory_format=torch.channels_last)
