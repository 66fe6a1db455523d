"""A small picture network for every frame, convolutions over time, and attention over the frames.

Online (`step`) each frame goes through the picture network once; a ring of the last frames' features is the state, and
what comes after them is computed anew, which costs next to nothing. Until the ring has been filled, the oldest frame
stands in for those before it, as if nothing had moved; then the answer is what the clip of the last frames would get.

Shape legend: B clips, T frames, N = B*T pictures, D width of the picture network's map, h and w its sides,
W width of the convolutions over time and of the latent, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.outputs import ClipSpec, Student, StudentOutput
from students._backbones import Backbone, fitting
from students._ring import rolled


@dataclass
class Options:
    backbone: str = "mobilenet_v3_small"
    """The picture network, by its name in torchvision or timm: mobilenet_v3_small, efficientnet_b0, ..."""
    pretrained: bool = False
    """Whether the picture network starts from its library's weights."""
    frames: int = 16
    """Frames the student sees."""
    size: int = 224
    """Side of the picture the student sees."""
    width: int = 256
    """Channels of the convolutions over time, and of the latent."""
    layers: int = 1
    """How many convolutions over time there are; from the second on each adds to what it is given."""
    kernel: int = 3
    """Frames that one of these convolutions spans."""
    dropout: float = 0.2
    """Dropout before the last layer."""


class Lightweight(Student):
    def __init__(self, options: Options, network: Backbone, classes: int) -> None:
        super().__init__()
        self.spec = ClipSpec(options.frames, options.size)
        self.backbone, self.pool = network, nn.AdaptiveAvgPool2d(1)
        self.over_time = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(inputs, options.width, options.kernel, padding=options.kernel // 2, bias=False),
                nn.BatchNorm1d(options.width),
                nn.ReLU(inplace=True),
            )
            for inputs in [network.width] + [options.width] * (options.layers - 1)
        )
        self.score = nn.Linear(options.width, 1, bias=False)  # scores count against each other, so a bias would not
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.width, classes)
        self.feature_names = ("map", "frames", "temporal", "attention", "embedding")
        self.encoder = ("backbone", "over_time", "score")

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        maps, count = self.backbone.look(frames.flatten(0, 1)), frames.shape[1]
        answer = self._judge(self.pool(maps).view(-1, count, maps.shape[1]), want)
        if "map" in want:
            answer.features["map"] = maps.view(-1, count, *maps.shape[1:]).transpose(1, 2)
        return answer

    def classify(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(latent))
        return logits

    def initial_state(self, batch: int) -> list[Tensor]:
        """Of streams before their first frame: the last frames' features [B,T,D], and 1 once there are any [B]."""
        like, first = self.head.weight.detach(), self.over_time[0].get_submodule("0")
        assert isinstance(first, nn.Conv1d)
        return [like.new_zeros(batch, self.spec.frames, first.in_channels), like.new_zeros(batch)]

    def step(
        self, frame: Tensor, state: list[Tensor], want: Collection[str] = ()
    ) -> tuple[StudentOutput, list[Tensor]]:
        """The next frame of each stream, uint8 [B,3,H,W], and the state -> what the last frames say, the next state."""
        ring, started = state
        ring = rolled(ring, self.pool(self.backbone.look(frame)).flatten(1), started)
        return self._judge(ring, want), [ring, torch.ones_like(started)]

    def _judge(self, frames: Tensor, want: Collection[str]) -> StudentOutput:
        """What the features of the frames [B,T,D] mean."""
        video = frames.transpose(1, 2)
        for i, layer in enumerate(self.over_time):
            video = layer(video) + video if i else layer(video)
        temporal = video.transpose(1, 2)
        attention = self.score(temporal).softmax(1)
        latent = (attention * temporal).sum(1)
        found = {"frames": frames, "temporal": temporal, "attention": attention.squeeze(2), "embedding": latent}
        features = {name: found[name] for name in want if name in found}
        return StudentOutput(self.classify(latent), latent, features)


def build(options: Options, classes: int) -> Lightweight:
    if min(options.frames, options.size, options.width, options.layers) < 1:
        raise ValueError("frames, size, width and layers are at least 1")
    if options.kernel < 3 or options.kernel % 2 == 0:
        raise ValueError(f"kernel={options.kernel}; it is odd, so that it has a middle, and at least 3")
    if not 0 <= options.dropout < 1:
        raise ValueError(f"dropout={options.dropout} is not from 0 to 1")
    network = fitting(options.backbone, options.pretrained, options.size)
    # Channels last is how oneDNN and cuDNN like convolutions best.
    return Lightweight(options, network, classes).to(memory_format=torch.channels_last)
