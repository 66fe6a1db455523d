"""The table of students: what is counted, and whether README's is noticed to be another."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from distill.command import guarded
from distill.errors import UserError
from tools import student_table
from tools.student_table import MARKS, ROWS, cells, run, table

Capture = pytest.CaptureFixture[str]
FEW = [row for row in ROWS if row.student == "tinyact"]


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(student_table, "README", tmp_path / "README.md")
    monkeypatch.setattr(student_table, "ROWS", FEW)
    monkeypatch.setattr(student_table.plugins, "names", lambda kind: ["tinyact"])
    return tmp_path / "README.md"


def test_tinyact_is_counted_as_it_was_by_hand() -> None:
    """Convolutions, normalisations, the linear layer from four cells; 1.346 GMAC of them and a little for the rest."""
    (row,) = FEW
    widths = (3, 64, 128, 256, 512)
    encoder = sum(27 * a * b + 2 * b for a, b in pairwise(widths)) + (4 * 512 + 1) * 1024
    found = dict(zip(student_table.HEADINGS, cells(row), strict=True))
    assert found["of them encoder"] == f"{encoder / 1e6:.3f}"
    mlp = 1025 * 512 + 2 * (2 * 512 + 2 * 513 * 512) + 513 * 400
    assert found["M parameters"] == f"{(encoder + mlp) / 1e6:.3f}"
    assert found["GMAC a clip"] == "1.348"
    assert found["input"] == "16 x 224"


def test_every_student_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row.student for row in ROWS} == set(student_table.plugins.names("student"))
    with pytest.raises(UserError, match="has no row for student"):
        table([row for row in ROWS if row.student != "tsn"])


def test_a_readme_with_another_table_is_noticed(readme: Path, capsys: Capture) -> None:
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert guarded(lambda: run(["--check"])) == 2
    assert "README.md is out of date; make students" in capsys.readouterr().err
    run(["--write"])
    run(["--check"])
    run([])
    printed = capsys.readouterr().out
    assert readme.read_text() == f"before\n{MARKS[0]}\n{printed}{MARKS[1]}\nafter\n"


def test_a_readme_without_marks_is_left_alone(readme: Path) -> None:
    readme.write_text("nothing here")
    with pytest.raises(UserError, match="<!-- students -->"):
        run(["--write"])
    assert readme.read_text() == "nothing here"
