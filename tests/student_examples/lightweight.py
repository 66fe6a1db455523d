"""Picture networks with attention over frames: as it comes, and with more convolutions over time."""

from __future__ import annotations

from student_examples import Examples

EXAMPLES: Examples = {
    "mobilenet": {"backbone": "timm/mobilenetv3_small_050", "frames": 4, "size": 32, "width": 16},
    "efficientnet": {
        "backbone": "timm/test_efficientnet",
        "frames": 5,
        "size": 32,
        "width": 16,
        "layers": 2,
        "kernel": 5,
        "dropout": 0.0,
    },
}
