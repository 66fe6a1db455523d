"""A small picture model with weights of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import shufflenet_v2_x0_5

from teacher_examples import Example

CLASSES = [f"class {i}" for i in range(5)]


def make(folder: Path) -> Example:
    torch.manual_seed(0)
    network = shufflenet_v2_x0_5(num_classes=len(CLASSES))
    for _ in range(3):  # so that what its normalisations have seen is something
        network(torch.randn(16, 3, 32, 32))
    file = folder / "shufflenet.safetensors"
    save_file(network.state_dict(), file)
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    (folder / "others.txt").write_text("\n".join(CLASSES[::-1]))
    options = {
        "model": "shufflenet_v2_x0_5",
        "weights": str(file),
        "labels": str(folder / "labels.txt"),
        "frames": 3,
        "size": 32,
    }
    changes = [{"average": "probabilities"}, {"frames": 2}, {"size": 64}, {"labels": str(folder / "others.txt")}]
    return Example(options, CLASSES, [file], changes, ["frame_features"])
