"""NASNet-A-Mobile (arXiv 1707.07012) and PNASNet-5-Mobile (arXiv 1712.00559): timm has their large sisters only.

Both are chains of cells. A cell reads the answers of the two before it, and adds five pairs of simple operations; what
they are, and what they are applied to, was found by search and stands in the tables below. Every operation pads its
map by the same on both sides (the authors' padded unevenly where they halve a map).

Shape legend: N pictures, F filters of a cell, h and w the sides of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BEFORE, NOW = 0, 1  # what a cell reads: the answer before the last, and the last; 2.. are its own pairs


@dataclass(frozen=True)
class Plan:
    """Pairs of (operation, what it is applied to), and which of all that leaves the cell side by side."""

    pairs: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    leaves: tuple[int, ...]


NASNET_NORMAL = Plan(
    pairs=(
        (("separable5", NOW), ("separable3", BEFORE)),
        (("separable5", BEFORE), ("separable3", BEFORE)),
        (("mean3", NOW), ("same", BEFORE)),
        (("mean3", BEFORE), ("mean3", BEFORE)),
        (("separable3", NOW), ("same", NOW)),
    ),
    leaves=(BEFORE, 2, 3, 4, 5, 6),
)
NASNET_HALVING = Plan(
    pairs=(
        (("separable5", NOW), ("separable7", BEFORE)),
        (("max3", NOW), ("separable7", BEFORE)),
        (("mean3", NOW), ("separable5", BEFORE)),
        (("same", 3), ("mean3", 2)),
        (("separable3", 2), ("max3", NOW)),
    ),
    leaves=(3, 4, 5, 6),
)
PNASNET = Plan(
    pairs=(
        (("separable5", BEFORE), ("max3", BEFORE)),
        (("separable7", NOW), ("max3", NOW)),
        (("separable5", NOW), ("separable3", NOW)),
        (("separable3", 4), ("max3", NOW)),
        (("separable3", BEFORE), ("same", NOW)),
    ),
    leaves=(2, 3, 4, 5, 6),
)


def norm(filters: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(filters, eps=1e-3)


def pointwise(width: int, filters: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, filters, 1, stride, bias=False), norm(filters))


def separable(width: int, filters: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False),
        nn.Conv2d(width, filters, 1, bias=False),
        norm(filters),
    ]


def operation(kind: str, width: int, filters: int, stride: int) -> nn.Module:
    """[N,width,h,w] -> [N,F,h/stride,w/stride]."""
    if kind == "same":
        return nn.Identity() if (width, stride) == (filters, 1) else pointwise(width, filters, stride)
    size = int(kind[-1])
    if kind.startswith("separable"):
        return nn.Sequential(*separable(width, filters, size, stride), *separable(filters, filters, size, 1))
    if kind.startswith("max"):
        pool: nn.Module = nn.MaxPool2d(size, stride, size // 2)
    else:
        pool = nn.AvgPool2d(size, stride, size // 2, count_include_pad=False)
    if width == filters:
        return pool
    return nn.Sequential(pool, nn.Conv2d(width, filters, 1, bias=False), norm(filters))


class Halve(nn.Module):
    """[N,width,h,w] -> [N,F,h/2,w/2]: every other pixel, and beside it those that lie between, diagonally."""

    def __init__(self, width: int, filters: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(width, filters // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(width, filters - filters // 2, 1, 2, bias=False)
        self.norm = norm(filters)

    def forward(self, maps: Tensor) -> Tensor:
        maps = torch.relu(maps)
        shifted = nn.functional.pad(maps[:, :, 1:, 1:], (0, 1, 0, 1))
        halved: Tensor = self.norm(torch.cat([self.even(maps), self.odd(shifted)], 1))
        return halved


class Cell(nn.Module):
    """Two maps -> one; `before` says how the older is brought to F channels and to the newer's size."""

    def __init__(self, plan: Plan, before: nn.Module, widths: tuple[int, int], filters: int, stride: int) -> None:
        super().__init__()
        self.plan, self.before, self.width = plan, before, filters * len(plan.leaves)
        self.now = pointwise(widths[NOW], filters)
        given = (widths[BEFORE] if isinstance(before, nn.Identity) else filters, filters)
        self.pairs = nn.ModuleList(
            nn.ModuleList(
                operation(kind, given[source], filters, stride)
                if source <= NOW
                else operation(kind, filters, filters, 1)
                for kind, source in pair
            )
            for pair in plan.pairs
        )

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        states = [self.before(before), self.now(now)]
        for operations, pair in zip(self.pairs, self.plan.pairs, strict=True):
            assert isinstance(operations, nn.ModuleList)
            left, right = (apply(states[source]) for apply, (_, source) in zip(operations, pair, strict=True))
            states.append(left + right)
        return torch.cat([states[i] for i in self.plan.leaves], 1)


class CellNetwork(nn.Module):
    """Pictures [N,3,H,W] -> the last map. `cells` are (plan, filters, stride) in order."""

    def __init__(self, stem: int, cells: list[tuple[Plan, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, bias=False), norm(stem))
        self.cells = nn.ModuleList()
        widths, halved = (stem, stem), False
        for plan, filters, stride in cells:
            if not self.cells:
                before: nn.Module = nn.Identity()  # there is nothing older, so the stem's map counts as both
            else:
                before = (Halve if halved else pointwise)(widths[0], filters)
            cell = Cell(plan, before, widths, filters, stride)
            self.cells.append(cell)
            widths, halved = (widths[1], cell.width), stride == 2
        self.last = nn.ReLU()

    def forward(self, pictures: Tensor) -> Tensor:
        before = now = self.stem(pictures)
        for cell in self.cells:
            before, now = now, cell(before, now)
        answer: Tensor = self.last(now)
        return answer


def nasnet_a_mobile() -> CellNetwork:
    """4 normal cells a stage, 1056 channels at the end."""
    filters = 44
    cells = [(NASNET_HALVING, filters // 4, 2)]
    for stage in range(3):
        cells += [(NASNET_HALVING, filters * 2**stage // (1 if stage else 2), 2)]
        cells += [(NASNET_NORMAL, filters * 2**stage, 1)] * 4
    return CellNetwork(32, cells)


def pnasnet_5_mobile() -> CellNetwork:
    """3 cells a stage, 1080 channels at the end."""
    filters = 54
    cells = [(PNASNET, filters // 4, 2), (PNASNET, filters // 2, 2)]
    for stage in range(3):
        cells += [(PNASNET, filters * 2**stage, 2 if stage and not i else 1) for i in range(3)]
    return CellNetwork(32, cells)
