"""X3D-XS and X3D-S: one 3-D network that sees fewer or more frames.

After "X3D: Expanding Architectures for Efficient Video Recognition" (Feichtenhofer, CVPR 2020): a stem that looks at
space and time apart, four stages of depthwise bottlenecks, every other one of which weighs its channels.

A fresh bottleneck adds little to what it is given (its author: nothing), so a fresh network is a calm one.

Shape legend: B clips, C channels, T frames (no layer skips any), H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

Triple = tuple[int, int, int]  # time, height, width

STEM = 24
WIDTHS, DEPTHS = (24, 48, 96, 192), (3, 5, 11, 7)
EXPANSION = 2.25  # how much wider a bottleneck is inside
SQUEEZE = 1 / 16
FACTOR = 0.1  # of what a fresh bottleneck adds
EMBEDDING = 2048
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


def rounded(width: float) -> int:
    """The nearest multiple of eight, at least eight, that is not more than a tenth below."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


def conv_norm(
    channels: tuple[int, int],
    kernel: Triple = (1, 1, 1),
    stride: Triple = (1, 1, 1),
    groups: int = 1,
    eps: float = 1e-5,
    scale: float = 1.0,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """[B,C,T,H,W] -> the same of other channels; a stride of s divides a side by s, rounded up."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(*channels, kernel, stride, padding, groups=groups, bias=False)
    norm = nn.BatchNorm3d(channels[1], eps)
    nn.init.constant_(norm.weight, scale)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm)
    if activation is not None:
        layers["activation"] = activation
    return nn.Sequential(layers)


def start(part: nn.Module) -> None:
    """Random weights with which activations keep their size, from layer to layer."""
    if isinstance(part, nn.Conv3d):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")


class SqueezeExcite(nn.Module):
    """Weighs the channels [B,C,T,H,W] by what the whole clip shows."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1), nn.Conv3d(width, hidden, 1), activation, nn.Conv3d(hidden, width, 1), nn.Sigmoid()
        )

    def forward(self, video: Tensor) -> Tensor:
        weighed: Tensor = video * self.gate(video)
        return weighed


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, weighs: bool) -> None:
        super().__init__()
        inside, strides = int(EXPANSION * outputs), (1, stride, stride)
        self.expand = conv_norm((inputs, inside), activation=nn.ReLU(inplace=True))
        self.depthwise = conv_norm((inside, inside), (3, 3, 3), strides, groups=inside)
        weigh = SqueezeExcite(inside, rounded(SQUEEZE * inside), nn.ReLU(inplace=True)) if weighs else nn.Identity()
        self.weigh = nn.Sequential(weigh, nn.SiLU(inplace=True))
        self.project = conv_norm((inside, outputs), scale=FACTOR)
        self.skip = conv_norm((inputs, outputs), stride=strides) if stride > 1 else nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, video: Tensor) -> Tensor:
        inside = self.weigh(self.depthwise(self.expand(video)))
        found: Tensor = self.activation(self.project(inside) + self.skip(video))
        return found


class X3D(nn.Module):
    """The parts of the network in the order in which a video goes through them; `head` reads what `neck` makes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, STEM, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            conv_norm((STEM, STEM), (5, 1, 1), groups=STEM, activation=nn.ReLU(inplace=True)),
        )
        inputs = (STEM, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Bottleneck(inputs[i] if first else width, width, 2 if first else 1, weighs=layer % 2 == 0)
                    for layer, first in enumerate([True] + [False] * (depth - 1))
                )
            )
            for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True))
        )
        latent = int(EXPANSION * WIDTHS[-1])
        self.last = conv_norm((WIDTHS[-1], latent), activation=nn.ReLU(inplace=True))
        self.neck = nn.Sequential(nn.Linear(latent, EMBEDDING, bias=False), nn.ReLU(inplace=True))
        self.head = nn.Linear(EMBEDDING, classes)
        self.apply(start)
