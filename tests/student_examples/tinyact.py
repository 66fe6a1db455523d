"""The 3-D autoencoder: with and without a decoder, with several cells to pool into, and with few blocks."""

from __future__ import annotations

from student_examples import Examples

SMALL: dict[str, object] = {
    "frames": 4,
    "size": 32,
    "widths": [8, 16, 16],
    "strides": [[1, 4, 4], [2, 2, 2], [1, 2, 2]],
    "pool": [1, 2, 2],
    "latent": 16,
    "hidden": 16,
}
EXAMPLES: Examples = {
    "whole": SMALL,
    "without decoder": {**SMALL, "decoder": False},
    "one linear layer": {**SMALL, "blocks": 0, "dropout": 0.0, "pool": [2, 1, 1]},
}
