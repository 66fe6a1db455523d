"""A table that is made anew: shown, put into the README between its marks, or compared with the one there."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.errors import UserError
from distill.files import publish_text

Marks = tuple[str, str]  # before and after it


def run(
    arguments: Sequence[str], about: str, table: Callable[[], str], readme: Path, marks: Marks, out_of_date: str
) -> None:
    """What --write, --check, or neither of them asks for; `out_of_date` says what to do about another table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="put the table into README.md")
    what.add_argument("--check", action="store_true", help="fail when README.md has another table")
    options = parser.parse_args(arguments)
    found = table()
    if not options.write and not options.check:
        print(found)
        return
    text = readme.read_text(encoding="utf-8")
    wanted = _with_table(text, found, readme, marks)
    if options.check and text != wanted:
        raise UserError(out_of_date)
    if options.write:
        publish_text(readme, wanted)


def _with_table(text: str, found: str, readme: Path, marks: Marks) -> str:
    if any(text.count(mark) != 1 for mark in marks):
        raise UserError(f"{readme.name} should have {marks[0]} and {marks[1]} once each, around the table")
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{found}\n{marks[1]}{after}"
