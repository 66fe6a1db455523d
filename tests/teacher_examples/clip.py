"""A tiny CLIP in a folder as open_clip writes it, and a linear head over its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from teacher_examples import Example

CLASSES = ["brush_hair", "ApplyLipstick", "playing the violin", "jump", "run"]
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def write(folder: Path, **changes: Any) -> open_clip.CLIP:
    """A model with random weights in a folder."""
    folder.mkdir(exist_ok=True)
    architecture = ARCHITECTURE | changes
    torch.manual_seed(0)
    custom = architecture.get("custom_text")
    made = {name: value for name, value in architecture.items() if name != "custom_text"}
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file(
        {name: value.clone() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    config = {"model_cfg": architecture, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


def write_head(folder: Path) -> dict[str, str]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (len(CLASSES), 16), "bias": (len(CLASSES),)}
    save_file({n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}, folder / "head.safetensors")
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    return {"head": str(folder / "head.safetensors"), "labels": str(folder / "labels.txt")}


def make(folder: Path) -> Example:
    write(folder)
    changes = [
        {"frames": 2},
        {"templates": ["{}"]},
        {"pool": "attention"},
        {"pool": "attention", "temperature": 0.2},
        write_head(folder),
    ]
    options = {"model": f"local-dir:{folder}", "frames": 3, "templates": ["{}.", "a video of {}."]}
    return Example(options, CLASSES, [folder / "open_clip_model.safetensors"], changes, ["blocks", "frame_features"])
