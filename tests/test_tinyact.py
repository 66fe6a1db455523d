"""What TinyAct refuses; what it promises is in test_contracts."""

from __future__ import annotations

from typing import Any

import pytest
from student_examples.tinyact import SMALL

from students.tinyact import Options, build


@pytest.mark.parametrize(
    "change",
    [
        {"strides": [[0, 0, 0], [2, 2, 2], [1, 2, 2]]},
        {"strides": [[1, 4, 4], [2, 2, -2], [1, 2, -2]]},
        {"pool": [1, 0, 2]},
        {"pool": [1, 2, -1]},
    ],
)
def test_strides_and_pool_are_at_least_one(change: dict[str, Any]) -> None:
    build(Options(**SMALL), 3)
    with pytest.raises(ValueError, match=r"^strides and pool are at least 1 in time, height and width$"):
        build(Options(**{**SMALL, **change}), 3)
