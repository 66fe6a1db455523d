"""The smallest ILA with a text head. Its vocabulary has to be CLIP's, so that class names are tokens of it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from teacher_examples import Example
from teachers.ila import ILA, Sizes, TextSizes

CLASSES = ["abseiling", "air drumming", "answering questions", "applauding", "archery"]


def randomised(network: nn.Module) -> None:
    """Move every number away from where a fresh network begins, statistics too: zeros hide mistakes."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and name != "logit_scale":
                value.add_(torch.randn_like(value), alpha=0.05)


def make(folder: Path) -> Example:
    torch.manual_seed(0)
    network = ILA(Sizes(4, 8, 4, 64, 1, 64, 1, True, TextSizes(49408, 77, 64, 1, 1)))
    randomised(network)
    save_file(network.state_dict(), folder / "ila.safetensors")
    options = {"weights": str(folder / "ila.safetensors"), "frames": 4, "size": 32}
    maps = ("frame_cls", "points", "alignment", "attention")
    return Example(options, CLASSES, [folder / "ila.safetensors"], maps=maps)
