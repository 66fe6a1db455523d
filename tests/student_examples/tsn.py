"""A small residual network of timm's, frame by frame; with frames that see each other, and with those before only."""

from __future__ import annotations

from student_examples import Examples

SMALL: dict[str, object] = {"backbone": "test_resnet", "frames": 3, "size": 32}
EXAMPLES: Examples = {
    "plain": SMALL,
    "shifted": {**SMALL, "shift": "bidirectional", "squeeze_excite": True},
    "online": {**SMALL, "shift": "online"},
    "partial": {**SMALL, "partial_bn": True},
}
