"""Keys and values without a recipe around them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UserError
from distill.keys import COMMAND_LINE, flatten, nearest, read_group, whole_list

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Inner:
    rate: float = 0.5


@dataclass
class Outer:
    """A group with all kinds of values."""

    name: str = ""
    many: list[int] = field(default_factory=list)
    on: bool | None = None
    inner: Inner = field(default_factory=Inner)


def test_what_is_said_replaces_what_is_not() -> None:
    assert read_group(Outer, ["name=a # b: c", "many=[1,2]", "inner.rate=3e-4"]) == Outer(
        "a # b: c", [1, 2], None, Inner(3e-4)
    )
    assert read_group(Outer, []) == Outer()
    assert read_group(Outer, ["on=true", "on=false"]).on is False


@given(st.text(st.characters(codec="utf-8", categories=["L", "Nd"]) | st.sampled_from(" /:#.-_"), min_size=1))
def test_a_path_stays_what_it_is(path: str) -> None:
    path = f"/{path}/x"
    assert read_group(Outer, [f"name={path}"]).name == path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nam=1", "there is no key 'nam'; did you mean 'name'?"),
        ("inner.zzz=1", "there is no key 'inner.zzz'; known: rate"),
        ("many=1", "many is a list, not 1; say many=[...]"),
        ("inner=1", "inner is a group of keys, not 1; say inner.rate=..."),
        ("inner.rate=fast", "inner.rate: Value 'fast'"),
        ("many=[1,", "'many=[1,' cannot be read: "),
    ],
)
def test_a_mistake_is_one_line_with_the_key(change: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_group(Outer, [change])
    assert str(caught.value).startswith(f"{COMMAND_LINE}: {told}")
    assert "\n" not in str(caught.value)


def test_a_list_may_go_without_brackets() -> None:
    assert [whole_list(text, ("many",)) for text in ("many=1,2", "many=[1,2]", "name=1,2", "many=")] == [
        "many=[1,2]",
        "many=[1,2]",
        "name=1,2",
        "many=[]",
    ]


def test_the_nearest_name_or_all() -> None:
    assert nearest("trian", ["train", "cache"]) == "; did you mean 'train'?"
    assert nearest("q", ["train", "cache"]) == "; known: train, cache"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, {"f": 2}]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [1, {"f": 2}],
    }


def test_reading_keys_needs_nothing_large() -> None:
    code = "import distill.keys, distill.command, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "omegaconf" in done.stdout.split()
    assert not {"torch", "numpy", "rich", "transformers"} & set(done.stdout.split())
