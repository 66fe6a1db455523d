"""How large the students are, beside what was published about their networks: `make students`.

Every student and backbone stands at its full size with 400 classes and is counted on the meta device, so nothing is
computed and the table is the same everywhere. Counted is what recognises (a decoder does not); a multiply-add is one.
--write puts the table into README.md, between its marks; --check says whether the one there is this one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill import plugins
from distill.checkpoint import blank_student
from distill.command import guarded
from distill.errors import UserError
from distill.measure import recognition_parameters
from distill.outputs import Student
from tools import readme_table

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- students -->", "<!-- /students -->")
CLASSES = 400
HEADINGS = ("student", "input", "M parameters", "of them encoder", "GMAC a clip", "MB", "published: M", "GMAC", "by")


@dataclass(frozen=True)
class Published:
    """What somebody wrote about a network."""

    millions: float  # of parameters
    billions: float  # of multiply-adds
    source: str
    pictures: bool = False  # of the picture network with 1000 classes, and of one picture


@dataclass(frozen=True)
class Row:
    student: str
    options: dict[str, Any] = field(default_factory=dict)
    published: Published | None = None


def of_pictures(millions: float, billions: float, source: str) -> Published:
    return Published(millions, billions, source, pictures=True)


SLIM, TSM, VISION, X3D = (
    "TF-Slim's list of models",
    "TSM, ICCV 2019",
    "torchvision's list of weights",
    "X3D's model zoo",
)
ROWS = (
    Row("tinyact", {}, Published(6.8, 1.05, "TinyAct, PLOS ONE 2026 (the encoder; 2.1 GFLOPs)")),
    Row("tinyact_frames"),
    Row("lightweight", {"backbone": "mobilenet_v3_small"}, of_pictures(2.543, 0.057, VISION)),
    Row("lightweight", {"backbone": "efficientnet_b0"}, of_pictures(5.289, 0.386, VISION)),
    Row("tsn", {"backbone": "mnasnet1_0"}, of_pictures(4.383, 0.314, VISION)),
    Row("tsn", {"backbone": "mnasnet1_0", "shift": "online"}, of_pictures(4.383, 0.314, VISION)),
    Row("tsn", {"backbone": "mobilenetv1_100"}, of_pictures(4.24, 0.569, SLIM)),
    Row("tsn", {"backbone": "mobilenetv2_100"}, of_pictures(3.47, 0.300, SLIM)),
    Row("tsn", {"backbone": "mobilenetv2_140"}, of_pictures(6.06, 0.582, SLIM)),
    Row("tsn", {"backbone": "nasnet_a_mobile"}, of_pictures(5.3, 0.564, "NASNet, CVPR 2018")),
    Row("tsn", {"backbone": "pnasnet_5_mobile"}, of_pictures(5.1, 0.588, "PNASNet, ECCV 2018")),
    Row("tsn", {"backbone": "thinet_tiny"}, of_pictures(1.32, 1.005, "ThiNet, ICCV 2017 (2.01 GFLOPs)")),
    Row("tsn", {"backbone": "bn_inception"}, Published(10.7, 16, TSM)),
    Row("tsn", {"backbone": "resnet34"}, of_pictures(21.798, 3.664, VISION)),
    Row("tsn", {"backbone": "resnet50", "shift": "bidirectional"}, Published(24.3, 33, TSM)),
    Row("video3d", {"model": "x3d_xs"}, Published(3.76, 0.60, X3D)),
    Row("video3d", {"model": "x3d_s"}, Published(3.76, 1.96, X3D)),
    Row("video3d", {"model": "movinet_a0"}, Published(3.1, 2.71, "MoViNets, CVPR 2021 (600 classes)")),
    Row("video3d", {"model": "s3d"}, Published(8.320, 17.979, VISION)),
    Row("video3d", {"model": "mc3_18"}, Published(11.695, 43.343, VISION)),
    Row("video3d", {"model": "r2plus1d_18"}, Published(31.505, 40.519, VISION)),
    Row("video3d", {"model": "r3d_18"}, Published(33.371, 40.697, VISION)),
)


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lacking = sorted(set(plugins.names("student")) - {row.student for row in rows})
    if lacking:
        raise UserError(f"tools/student_table.py has no row for student {lacking[0]}")
    lines = [HEADINGS, ("---",) * 2 + ("---:",) * 6 + ("---",), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    with torch.device("meta"):
        student = blank_student(plugins.schema("student", row.student)(**row.options), CLASSES)
    spec, (parameters, billions) = student.spec, counted(student)
    return (
        " ".join([f"`{row.student}`", *(str(value) for value in row.options.values())]),
        f"{spec.frames} x {spec.size}",
        f"{parameters / 1e6:.3f}",
        f"{encoder_parameters(student) / 1e6:.3f}",
        f"{billions:.3f}",
        f"{4 * parameters / 1e6:.1f}",
        *said(row.published, spec.frames),
    )


@torch.no_grad()
def counted(student: Student) -> tuple[int, float]:
    """Parameters that recognise, and billions of multiply-adds for a clip."""
    spec = student.spec
    frames = torch.empty(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        parameters = recognition_parameters(student.eval(), frames)
    return parameters, counter.get_total_flops() / 2e9


def encoder_parameters(student: Student) -> int:
    parts = dict(student.named_modules())
    inside = {parameter for name in student.encoder for parameter in parts[name].parameters()}
    return sum(parameter.numel() for parameter in inside)


def said(published: Published | None, frames: int) -> tuple[str, str, str]:
    if published is None:
        return "", "", ""
    if published.pictures:
        source = f"{published.source}: 1000 classes, {frames} times {published.billions:g}"
        return f"{published.millions:g}", f"{frames * published.billions:.3g}", source
    return f"{published.millions:g}", f"{published.billions:g}", published.source


def run(arguments: Sequence[str]) -> None:
    stale = "the table of students in README.md is out of date; make students writes it anew"
    readme_table.run(arguments, str(__doc__), lambda: table(ROWS), README, MARKS, stale)


def main() -> int:
    return guarded(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
