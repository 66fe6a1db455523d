"""3-D networks: one of torchvision's, and our own two, which are X3D and MoViNet."""

from __future__ import annotations

from student_examples import Examples

EXAMPLES: Examples = {
    "torchvision": {"model": "mc3_18", "frames": 2, "size": 24, "dropout": 0.0},
    "x3d": {"model": "x3d_xs", "frames": 3, "size": 32},
    "movinet": {"model": "movinet_a0", "frames": 4, "size": 36},
}
