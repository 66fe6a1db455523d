"""Tiny networks of transformers in folders as transformers saves them, one of each architecture."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from teacher_examples import Example

CLASSES = ("wave", "jump_rope", "pour water", "clap", "spin")
# The data set's; the network's own are more, and in another order.
OWN = ("clap", "abseiling", "Spin", "wave", "jump rope", "archery", "pour water")
BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAIN = {**BODY, "intermediate_size": 64, "image_size": 32, "num_frames": 4}
VISION = {**PLAIN, "patch_size": 8, "mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_attention_heads": 4}
TEXT = {**BODY, "intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 40}
SIZES: dict[str, dict[str, Any]] = {
    "videomae": {**PLAIN, "patch_size": 8},
    "timesformer": {**PLAIN, "patch_size": 8},
    "vivit": {**PLAIN, "tubelet_size": [2, 8, 8]},
    "vjepa2": {
        **BODY,
        "num_attention_heads": 2,
        "crop_size": 32,
        "patch_size": 8,
        "frames_per_clip": 4,
        "mlp_ratio": 2,
        "num_pooler_layers": 1,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 2,
        "pred_num_mask_tokens": 2,
    },
    "xclip": {"text_config": TEXT, "vision_config": VISION, "projection_dim": 32, "prompt_num_attention_heads": 2},
}
MODELS = {
    "videomae": "VideoMAEForVideoClassification",
    "timesformer": "TimesformerForVideoClassification",
    "vivit": "VivitForVideoClassification",
    "vjepa2": "VJEPA2ForVideoClassification",
    "xclip": "XCLIPModel",
}
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.45, 0.4, 0.5],
    "image_processor_type": "VideoMAEImageProcessor",
    "image_std": [0.2, 0.25, 0.3],
    "rescale_factor": 0.00392156862745098,
}


def save(kind: str, folder: Path, classes: Sequence[str] = OWN, **sizes: Any) -> Any:
    """Write a network of random numbers with all that belongs to it into the folder, and return the network."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES[kind], **sizes})
    if kind != "xclip":
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: place for place, name in enumerate(classes)}
    torch.manual_seed(len(kind))
    model = getattr(transformers, MODELS[kind])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if kind == "xclip":
        letters = string.ascii_lowercase + string.digits
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        transformers.CLIPTokenizer({word: place for place, word in enumerate(words)}, []).save_pretrained(folder)
    return model


def make(folder: Path) -> Example:
    save("videomae", folder)
    changes = [{"mean": [0.5] * 3, "std": [0.5] * 3}]
    return Example(
        {"model": str(folder)}, CLASSES, [folder / "model.safetensors"], changes, maps=["attention", "hidden"]
    )
