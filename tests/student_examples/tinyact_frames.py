"""The autoencoder of single frames: with and without a decoder, and of one frame alone."""

from __future__ import annotations

from student_examples import Examples

SMALL: dict[str, object] = {"frames": 4, "size": 32, "widths": [8, 16, 16], "code": 8, "latent": 16}
EXAMPLES: Examples = {
    "whole": SMALL,
    "without decoder": {**SMALL, "decoder": False},
    "one frame": {**SMALL, "frames": 1, "widths": [8]},
}
