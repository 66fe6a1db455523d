"""TSN and TSM: a picture network sees each frame of a clip, and what it says of them is averaged.

With `shift` the frames also look at their neighbours on the way (TSM, students/_shift.py). A clip can be given frame by
frame, too: `initial_state` and `step` are functions of the frame and a list of tensors, and keep nothing themselves.

Features: "map" is the last map of every frame as a video [B,D,T,h,w], "frames" its mean over places [B,T,D],
"frame_logits" what is said of each frame [B,T,K]; "embedding" is the latent, the mean of "frames" [B,D].

Shape legend: B clips, T frames, N = B*T pictures, D channels of the last map, h and w its sides, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.outputs import ClipSpec, Student, StudentOutput
from students._backbones import Backbone, fitting
from students._ring import rolled
from students._shift import DIRECTIONS, insert_shift, streaming
from students._squeeze_excite import insert_squeeze_excite


@dataclass
class Options:
    backbone: str = "mnasnet1_0"
    """A convolutional network of torchvision or timm (timm/NAME if both have it), or one of students/_backbones.py."""
    pretrained: bool = False
    """Whether the backbone starts from what its library publishes, which is fetched."""
    frames: int = 8
    """Frames the student sees."""
    size: int = 224
    """Side of the picture the student sees."""
    shift: str = "none"
    """Temporal shift in the residual branches: none, bidirectional, or online (from the past only)."""
    squeeze_excite: bool = False
    """Whether squeeze-and-excite is added to every block of a backbone that has none."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    partial_bn: bool = False
    """Whether all batch normalisations but the first stay as they start, statistics and weights."""


class TSN(Student):
    def __init__(self, options: Options, network: Backbone, classes: int) -> None:
        super().__init__()
        self.spec = ClipSpec(options.frames, options.size)
        self.feature_names = ("map", "frames", "frame_logits", "embedding")
        self.backbone = network
        self.excite = insert_squeeze_excite(network) if options.squeeze_excite else nn.ModuleList()
        self.encoder = ("backbone", "excite") if options.squeeze_excite else ("backbone",)
        self.direction = options.shift
        if options.shift != "none" and not insert_shift(network, options.frames, options.shift == "online"):
            raise ValueError(f"backbone={options.backbone} has no residual blocks that are known here; set shift=none")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(network.width, classes)
        # By name, because training on several devices puts other normalisations in their places.
        self.still = self._norms()[1:] if options.partial_bn else []
        for name in self.still:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        maps, each = self._see(frames.flatten(0, 1))
        clips = each.view(-1, self.spec.frames, each.shape[1])
        frame_logits = self.classify(clips)
        latent = clips.mean(1)
        video = maps.view(-1, self.spec.frames, *maps.shape[1:]).transpose(1, 2)
        features = {"map": video, "frames": clips, "frame_logits": frame_logits, "embedding": latent}
        return StudentOutput(
            logits=frame_logits.mean(1),
            latent=latent,
            features={name: feature for name, feature in features.items() if name in want},
        )

    def classify(self, latent: Tensor) -> Tensor:
        """Of frames as well: what is said of their mean is the mean of what is said of each."""
        logits: Tensor = self.head(self.dropout(latent))
        return logits

    def initial_state(self, batch: int) -> list[Tensor]:
        """Of `batch` streams before their first frame: what each shift keeps [B,n,h,w], then the latest frames'
        logits [B,T,K] and features [B,T,D], the oldest first, and 1 once there are any [B]."""
        self._check_online()
        like, frames = self.head.weight, self.spec.frames
        with streaming(None) as kept:
            self.backbone.try_on(self.spec.size)
        shapes = [*(channels.shape[1:] for channels in kept), *((frames, width) for width in like.shape), ()]
        return [like.new_zeros(batch, *shape) for shape in shapes]

    def step(self, frame: Tensor, state: list[Tensor]) -> tuple[StudentOutput, list[Tensor]]:
        """The next frame of each stream, uint8 [B,3,H,W], and the state -> what the latest frames say, the next state.

        After as many frames as a clip has, this is what the clip of the latest frames says; until then the first
        frame stands in for those before it. With the online shift the frames before them count too, as they do in a
        longer clip: each frame knows of all before it.
        """
        self._check_online()
        *before, frame_logits, features, started = state
        with streaming(before) as now:
            _, feature = self._see(frame)
        frame_logits = rolled(frame_logits, self.head(feature), started)
        features = rolled(features, feature, started)
        answer = StudentOutput(frame_logits.mean(1), features.mean(1))
        return answer, [*now, frame_logits, features, torch.ones_like(started)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.still:
            self.get_submodule(name).eval()
        return self

    def _see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N,3,H,W] -> the last maps [N,D,h,w] and their means [N,D]."""
        maps = self.backbone.look(pictures)
        return maps, self.pool(maps).flatten(1)

    def _check_online(self) -> None:
        if self.direction == "bidirectional":
            raise ValueError(
                "shift=bidirectional looks at the frame after, so it cannot go frame by frame as online can"
            )

    def _norms(self) -> list[str]:
        norms = [name for name, part in self.named_modules() if isinstance(part, _BatchNorm)]
        if not norms:
            raise ValueError("partial_bn needs a backbone with batch normalisation; set partial_bn=false")
        return norms


def build(options: Options, classes: int) -> TSN:
    if options.shift not in DIRECTIONS:
        raise ValueError(f"shift={options.shift} is not one of {', '.join(DIRECTIONS)}")
    if min(options.frames, options.size) < 1 or not 0 <= options.dropout < 1:
        raise ValueError("frames and size are at least 1, and dropout is at least 0 and below 1")
    network = fitting(options.backbone, options.pretrained, options.size)
    # Channels last is how oneDNN and cuDNN like convolutions best: a quarter faster on a CPU.
    return TSN(options, network, classes).to(memory_format=torch.channels_last)
