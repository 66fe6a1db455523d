"""Records on disk: whole or not there, found by what they depend on, and never silently wrong."""

from __future__ import annotations

import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.shards import Shards, flatten

SPEC = {"teacher": "abc", "views": {"seed": 0, "span": 0.8}}
CLIPS, ROWS = 11, 4  # two full shards and a short one


def shards(root: Path, rows: int = ROWS, clips: int = CLIPS, **changes: object) -> Shards:
    return Shards(root, "outputs", {**SPEC, **changes}, clips, rows)


def record(members: range, view: int) -> dict[str, np.ndarray]:
    """What these tests keep about clips: every value tells its key."""
    index = np.array(members)
    return {
        "logits": (1000 * view + index[:, None] + np.array([0.0, 0.25])).astype(np.float32),
        "feature": (index[:, None] % 1000 * np.ones(3)).astype(np.float16),
        "frames": np.full((len(index), 2, 3), view, np.uint8),
        "index": index.astype(np.int64),
    }


def fill(store: Shards, views: range) -> None:
    for view in views:
        for shard in range(-(-store.clips // store.rows)):
            store.commit(shard, view, record(store.members(shard), view))


@settings(max_examples=25, deadline=None)
@given(keys=st.lists(st.tuples(st.integers(0, CLIPS - 1), st.integers(0, 2)), min_size=1, max_size=30))
def test_reads_any_keys_in_any_order(tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, int]]) -> None:
    store = shards(tmp_path_factory.getbasetemp() / "order")
    if store.missing(range(CLIPS), range(3)):
        fill(store, range(3))
    index, view = np.array(keys).T
    assert store.read("logits", index, view)[:, 0].tolist() == (1000 * view + index).tolist()
    assert store.read("index", index, view).tolist() == index.tolist()
    assert store.read("frames", index, view)[:, 1, 2].tolist() == view.tolist()
    assert store.read("feature", index, view).dtype == np.float16


def test_fields_and_a_copy_for_a_worker(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, range(1))
    assert store.fields(10, 0) == {"logits", "feature", "frames", "index"}
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("index", np.array([9, 0]), np.array([0, 0])).tolist() == [9, 0]


def test_missing_tells_the_gaps(tmp_path: Path) -> None:
    store = shards(tmp_path)
    assert store.missing(range(CLIPS), [0, 2]) == [(0, [0, 2]), (1, [0, 2]), (2, [0, 2])]
    store.commit(1, 2, record(store.members(1), 2))
    assert store.missing(range(CLIPS), [0, 2]) == [(0, [0, 2]), (1, [0]), (2, [0, 2])]
    assert store.missing([4, 7], [2]) == []
    assert store.missing([10], [0]) == [(2, [0])]
    assert [list(store.members(shard)) for shard in (1, 2)] == [[4, 5, 6, 7], [8, 9, 10]]


def test_require_names_the_command_and_counts(tmp_path: Path) -> None:
    store = shards(tmp_path)
    with pytest.raises(UserError, match=r"lacks 6 shards of the outputs .*run: distill cache recipe=x$") as caught:
        store.require(range(CLIPS), [0, 1], "distill cache recipe=x")
    assert str(store.folder) in str(caught.value)
    fill(store, range(2))
    store.require(range(CLIPS), [0, 1], "distill cache recipe=x")


def test_require_names_the_key_in_which_the_nearest_record_differs(tmp_path: Path) -> None:
    near, far = shards(tmp_path, views={"seed": 7, "span": 0.8}), shards(tmp_path, views={"seed": 9, "span": 0.1})
    fill(near, range(1))
    fill(far, range(1))
    expected = re.escape(f"({near.folder.name} beside it differs in views.seed (7 there, 0 here))")
    with pytest.raises(UserError, match=expected):
        shards(tmp_path).require([0], [0], "distill cache")


@pytest.mark.parametrize("change", [{"teacher": "abd"}, {"views": {"seed": 0, "span": 0.9}}, {"more": 1}, {"rows": 5}])
def test_whatever_the_records_depend_on_has_a_folder_of_its_own(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = change.pop("rows", ROWS)
    assert shards(tmp_path, rows, **change).folder != shards(tmp_path).folder


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    turned = Shards(tmp_path, "outputs", dict(reversed(SPEC.items())), CLIPS, ROWS)
    assert turned.folder == shards(tmp_path).folder


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_kept(tmp_path: Path, bad: float) -> None:
    store = shards(tmp_path)
    rows = record(store.members(0), 0)
    rows["logits"][2, 1] = bad
    with pytest.raises(UserError, match="logits that are not finite"):
        store.commit(0, 0, rows)
    assert store.missing([0], [0])


def test_a_shard_of_the_wrong_length_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="logits has 3 rows"):
        shards(tmp_path).commit(0, 0, record(range(3), 0))


@pytest.mark.parametrize("keep", ["nothing", "half the length", "the length", "half the header", "all but a byte"])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: str) -> None:
    store = shards(tmp_path)
    fill(store, range(1))
    path = store.path(0, 1)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    sizes = {"nothing": 0, "half the length": 4, "the length": 8, "half the header": header // 2}
    path.write_bytes(whole[: sizes.get(keep, len(whole) - 1)])
    with pytest.raises(UserError, match=re.escape(str(path))):
        shards(tmp_path).read("logits", np.array([5]), np.array([0]))


def test_a_tail_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, range(1))
    with store.path(0, 1).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(UserError, match="not what its header says"):
        store.read("logits", np.array([5]), np.array([0]))


WRITER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from test_shards import big, record
store = big(Path(sys.argv[3]))
for view in range(int(sys.argv[4])):
    for shard in range(4):
        store.commit(shard, view, record(store.members(shard), view))
"""


def big(root: Path) -> Shards:
    return shards(root, rows=20_000, clips=80_000)  # about a megabyte each: a kill often falls into a write


def writer(root: Path, views: int) -> subprocess.Popen[bytes]:
    here = Path(__file__).resolve()
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(here.parents[1]), str(here.parent), str(root), str(views)]
    )


def assert_whole(store: Shards) -> int:
    """Every shard that has its name is complete and right; returns how many there are."""
    found = sorted(store.folder.glob("v*/s*.safetensors"))
    for path in found:
        view, shard = int(path.parent.name[1:]), int(path.stem[1:])
        members = store.members(shard)
        expected = record(members, view)
        index = np.array(members[:: len(members) // 7])
        for name, rows in expected.items():
            kept = store.read(name, index, np.full(len(index), view))
            assert np.array_equal(kept, rows[index - members.start]), f"{path}: {name}"
    return len(found)


def test_a_killed_writer_leaves_no_bad_shard(tmp_path: Path) -> None:
    chance = random.Random(0)
    for kill in range(5):
        process = writer(tmp_path / str(kill), views=1000)
        store = big(tmp_path / str(kill))
        try:
            give_up = time.monotonic() + 60
            while not store.path(0, 0).exists():
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert assert_whole(store) >= 1
        gaps = store.missing(range(store.clips), range(1000))
        assert gaps  # it was killed at work; going on from the gaps makes it whole
        shard, views = gaps[0]
        store.commit(shard, views[0], record(store.members(shard), views[0]))
        assert_whole(store)


def test_two_writers_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, views=3) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert assert_whole(big(tmp_path)) == 12
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, {"f": 2}]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [1, {"f": 2}],
    }
