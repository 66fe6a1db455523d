"""Records on disk: whole or not there, found by what they depend on, never moved, never silently wrong."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from distill.errors import UserError
from distill.files import sweep
from distill.shards import files
from distill.shards.claims import Claims
from distill.shards.grid import Needs, Shards, parse
from distill.shards.roll import FEWEST, MOST, rows_for

SPEC = {"teacher": "abc", "views": {"seed": 0, "span": 0.8}}
CLIPS, ROWS = 11, 4  # two full shards and a short one


def keys(clips: Sequence[int] | int) -> np.ndarray:
    """What a store knows these clips by; a clip's key tells its number."""
    numbers = np.arange(clips) if isinstance(clips, int) else np.array(clips)
    return (numbers * 7919 % 100_003 + 1).astype(np.uint64)


def shards(root: Path, clips: Sequence[int] | int = CLIPS, rows: int = ROWS, **more: Any) -> Shards:
    known = {name: more.pop(name) for name in ("maps", "remote") if name in more}
    return Shards(root, "outputs", {**SPEC, **more}, keys(clips), most=rows, **known)


def record(key: np.ndarray, view: int) -> dict[str, np.ndarray]:
    """What these tests keep about clips: every value tells its key."""
    number = key.astype(np.float64)
    return {
        "logits": (1000 * view + number[:, None] + np.array([0.0, 0.25])).astype(np.float64).astype(np.float32),
        "feature": (number[:, None] % 1000 * np.ones(3)).astype(np.float16),
        "frames": np.full((len(key), 2, 3), view, np.uint8),
        "key": key.astype(np.int64),
        "seen": np.ones((len(key), 20), np.uint8),
    }


def needs(store: Shards, views: Sequence[int], clips: Sequence[int] | None = None) -> Needs:
    wanted = np.arange(len(store.keys)) if clips is None else np.array(clips)
    return dict.fromkeys(views, wanted)


def fill(store: Shards, views: Sequence[int], most: int = 10**9) -> None:
    wanted = needs(store, views)
    store.enroll(wanted)
    for shard, missing in store.gaps(wanted)[:most]:
        for view in missing:
            store.commit(shard, view, record(store.keys[store.members(shard)], view))
    store.refresh()


def assert_right(store: Shards, index: np.ndarray, view: np.ndarray) -> None:
    names = ["logits", "feature", "frames", "key"]
    found = dict(zip(names, store.read(names, index, view), strict=True))
    for i, (clip, v) in enumerate(zip(index, view, strict=True)):
        expected = record(store.keys[[clip]], int(v))
        for name in names:
            assert np.array_equal(found[name][i], expected[name][0]), (name, clip, v)


@settings(max_examples=25)
@given(chosen=st.lists(st.tuples(st.integers(0, CLIPS - 1), st.integers(0, 2)), min_size=1, max_size=30))
def test_reads_any_keys_in_any_order(tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, int]]) -> None:
    store = shards(tmp_path_factory.getbasetemp() / "order")
    if store.missing(needs(store, range(3))):
        fill(store, range(3))
    index, view = np.array(chosen).T
    assert_right(store, index, view)
    assert store.read(["feature"], index, view)[0].dtype == np.float16


def test_a_copy_for_a_worker_maps_anew(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    assert_right(store, np.array([9]), np.array([0]))
    copy = pickle.loads(pickle.dumps(store))
    assert_right(copy, np.array([9, 0]), np.array([0, 0]))


def test_what_is_read_is_a_copy_and_files_cannot_be_written(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    (one,) = store.read(["logits"], np.array([3]), np.array([0]))
    one[:] = -1
    assert_right(store, np.array([3]), np.array([0]))
    fields, _ = store.record("", 3, 0)
    with pytest.raises(ValueError, match="read-only"):
        fields["logits"][0] = 1


def test_any_tool_can_open_a_shard(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [1])
    found = load_file(store.path(1, 0))
    expected = record(store.keys[:ROWS], 1)
    assert all(np.array_equal(found[name], rows) for name, rows in expected.items())


def test_missing_and_gaps_tell_what_is_not_there(tmp_path: Path) -> None:
    store = shards(tmp_path)
    wanted = needs(store, [0, 2])
    store.enroll(wanted)
    assert store.gaps(wanted) == [(0, [0, 2]), (1, [0, 2]), (2, [0, 2])]
    store.commit(1, 2, record(store.keys[store.members(1)], 2))
    store.refresh()
    assert store.gaps(wanted) == [(0, [0, 2]), (1, [0]), (2, [0, 2])]
    assert store.missing(needs(store, [2], [4, 7])) == {}
    assert {view: clips.tolist() for view, clips in store.missing(needs(store, [2], [10, 4])).items()} == {2: [10]}
    assert [store.members(shard) for shard in (1, 2)] == [[4, 5, 6, 7], [8, 9, 10]]


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    with pytest.raises(UserError, match=r"has no records of the clips \[3\] in view 1; run the caching job"):
        store.read(["logits"], np.array([3]), np.array([1]))
    part = shards(tmp_path / "part")
    fill(part, [0], most=1)
    assert_right(part, np.arange(ROWS), np.zeros(ROWS, np.int64))
    with pytest.raises(UserError, match=r"has no records of the clips \[9\] in view 0"):
        part.read(["logits"], np.array([1, 9]), np.array([0, 0]))
    with pytest.raises(UserError, match=r"has no records of the clips \[9\] in view 0"):
        part.record("", 9, 0)
    assert store.missing(needs(store, [0])) == {}
    store.path(0, 2).unlink()
    with pytest.raises(UserError, match="was there and is gone"):
        store.read(["logits"], np.array([9]), np.array([0]))


# ---------------------------------------------------------------- clips join and leave


def test_new_clips_join_and_nothing_is_done_twice(tmp_path: Path) -> None:
    first = shards(tmp_path, clips=6)
    fill(first, [0, 1])
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("s*.safetensors")}
    both = shards(tmp_path, clips=[*range(20, 24), *range(6)])  # the new ones come first in the data set
    assert both.folder == first.folder
    wanted = needs(both, [0, 1])
    assert {view: clips.tolist() for view, clips in both.missing(wanted).items()} == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}
    fill(both, [0, 1])
    assert_right(both, np.arange(10), np.ones(10, np.int64))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_right(shards(tmp_path, clips=6), np.arange(6), np.zeros(6, np.int64))  # who knows fewer still finds theirs


def test_other_views_and_maps_join(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    assert list(store.missing(needs(store, [0, 1]))) == [1]
    more = shards(tmp_path, maps=["attention"])
    assert more.folder == store.folder
    assert list(more.missing(needs(more, [0]))) == [0]
    fields = record(more.keys[:ROWS], 0) | {"maps.attention": np.full((ROWS, 2, 2), 3, np.float16)}
    unchanged = store.path(0, 0).read_bytes()
    more.commit(0, 0, fields)
    more.refresh()
    assert more.read(["maps.attention"], np.array([2]), np.array([0]))[0].tolist() == [[[3, 3], [3, 3]]]
    assert store.path(0, 0).read_bytes() == unchanged
    assert more.missing(needs(more, [0], range(ROWS))) == {}


def test_a_gap_among_clips_that_are_not_ours_gets_a_row_of_its_own(tmp_path: Path) -> None:
    """A job of many clips stopped half way; a job of a few of them cannot fill shards whose other clips it does not
    know."""
    many = shards(tmp_path, clips=12)
    fill(many, [0], most=1)
    few = shards(tmp_path, clips=[1, 5, 9])
    assert {view: clips.tolist() for view, clips in few.missing(needs(few, [0])).items()} == {0: [1, 2]}
    fill(few, [0])
    assert_right(few, np.arange(3), np.zeros(3, np.int64))
    assert len(few.roll.segments) == 2
    fill(many, [0])
    assert_right(many, np.arange(12), np.zeros(12, np.int64))
    assert len(many.roll.segments) == 2


@settings(max_examples=30)
@given(data=st.data())
def test_jobs_of_any_clips_and_views_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("jobs")
    for _ in range(data.draw(st.integers(1, 5))):
        clips = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True))
        store = shards(root, clips=clips)
        views = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
        done = data.draw(st.sampled_from([10**9, 1, 2]))
        fill(store, views, most=done)
        if done == 10**9:
            assert store.missing(needs(store, views)) == {}
            view = np.array([data.draw(st.sampled_from(views)) for _ in clips])
            assert_right(store, np.arange(len(clips)), view)


def test_jobs_that_start_at_once_agree_on_the_rows(tmp_path: Path) -> None:
    one, other = shards(tmp_path), shards(tmp_path)
    one.enroll(needs(one, [0]))
    other.enroll(needs(other, [0]))
    assert len(other.roll.segments) == 1
    assert one.members(0) == other.members(0)


@pytest.mark.parametrize("clips", [1, 31, 64, 2048, 2049, 5000, 240_000])
def test_shards_are_many_enough_to_share_and_not_too_many(clips: int) -> None:
    rows = rows_for(clips, 10**9)
    assert FEWEST <= rows <= MOST
    assert -(-clips // rows) <= 64 or rows == MOST
    assert rows_for(clips, 3) == 3


# ---------------------------------------------------------------- identity


def test_require_names_the_command_and_counts(tmp_path: Path) -> None:
    store = shards(tmp_path)
    with pytest.raises(
        UserError, match=r"lacks 22 of the outputs .*\(view 0, 1\); run: distill cache recipe=x$"
    ) as caught:
        store.require(needs(store, [0, 1]), "distill cache recipe=x")
    assert str(store.folder) in str(caught.value)
    fill(store, range(2))
    store.require(needs(store, [0, 1]), "distill cache recipe=x")
    with pytest.raises(UserError, match=r"\(view 0, 1\) \(it has no map block9\); run: distill cache"):
        shards(tmp_path, maps=["block9"]).require(needs(store, [0, 1]), "distill cache")


def test_require_names_the_key_in_which_the_nearest_store_differs(tmp_path: Path) -> None:
    near, far = shards(tmp_path, views={"seed": 7, "span": 0.8}), shards(tmp_path, views={"seed": 9, "span": 0.1})
    fill(near, range(1))
    fill(far, range(1))
    expected = re.escape(f"({near.folder.name} beside it differs in views.seed (7 there, 0 here))")
    store = shards(tmp_path)
    with pytest.raises(UserError, match=expected):
        store.require(needs(store, [0]), "distill cache")


@pytest.mark.parametrize("change", [{"teacher": "abd"}, {"views": {"seed": 0, "span": 0.9}}, {"more": 1}])
def test_whatever_the_records_depend_on_has_a_folder_of_its_own(tmp_path: Path, change: dict[str, Any]) -> None:
    assert shards(tmp_path, **change).folder != shards(tmp_path).folder


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    turned = Shards(tmp_path, "outputs", dict(reversed(SPEC.items())), keys(CLIPS))
    assert turned.folder == shards(tmp_path).folder


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_kept(tmp_path: Path, bad: float) -> None:
    store = shards(tmp_path)
    store.enroll(needs(store, [0]))
    rows = record(store.keys[:ROWS], 0)
    rows["logits"][2, 1] = bad
    with pytest.raises(UserError, match="logits that are not finite"):
        store.commit(0, 0, rows)
    assert not store.is_there(0, 0)


def test_every_flipped_byte_is_found_at_open(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    path = store.path(0, 1)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            with pytest.raises(UserError, match=re.escape(f"{path} is damaged")):
                shards(tmp_path).read(["logits"], np.array([5]), np.array([0]))
            with pytest.raises(UserError, match="is damaged"):
                store.check(path)
    path.write_bytes(whole)
    store.check(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    store = shards(tmp_path)
    fill(store, range(1))
    path = store.path(0, 1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=re.escape(str(path))):
        shards(tmp_path).read(["logits"], np.array([5]), np.array([0]))


def test_a_tail_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, range(1))
    with store.path(0, 1).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(UserError, match="checksum"):
        store.read(["logits"], np.array([5]), np.array([0]))


def test_a_shard_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0, 1])
    store.path(0, 1).write_bytes(store.path(0, 0).read_bytes())
    with pytest.raises(UserError, match="says that its"):
        store.read(["logits"], np.array([5]), np.array([0]))
    store.path(1, 1).write_bytes(store.path(0, 0).read_bytes())
    with pytest.raises(UserError, match="says that its"):
        store.check(store.path(1, 1))
    other = shards(tmp_path, teacher="another")
    fill(other, [0])
    other.path(0, 0).write_bytes(store.path(0, 0).read_bytes())
    with pytest.raises(UserError, match="says that its store"):
        other.read(["logits"], np.array([0]), np.array([0]))


def test_a_damaged_roll_is_refused(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    path = store.folder / "clips" / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(UserError, match="is damaged"):
        shards(tmp_path)


def test_the_same_records_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from distill.shards import files;"
        "records = {n: np.arange(9, dtype=np.float32).reshape(3, 3) for n in 'zyxabc'};"
        "sys.stdout.buffer.write(files.encode(records, {'b': 1, 'a': 2, 'c': 'x'}))"
    )
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1
    assert len(found.pop()) > 100


def test_clips_that_failed_are_remembered(tmp_path: Path) -> None:
    store = shards(tmp_path)
    store.enroll(needs(store, [0, 1]))
    store.commit(1, 1, record(store.keys[store.members(1)], 1), failed=[2])
    store.refresh()
    assert store.failures(needs(store, [0, 1])) == {(1, 1): [6]}
    assert store.failures(needs(store, [1], [5])) == {}
    turned = shards(tmp_path, clips=list(range(CLIPS))[::-1])
    assert turned.failures(needs(turned, [0, 1])) == {(1, 1): [4]}


# ---------------------------------------------------------------- several writers


def test_a_claim_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from distill.shards.claims import Claims;"
        "claims = Claims(Path(sys.argv[2])); print(claims.take(3), claims.take(4), flush=True); time.sleep(100)"
    )
    root = str(Path(__file__).resolve().parents[1])
    holder = subprocess.Popen(
        [sys.executable, "-c", code, root, str(tmp_path / "claims")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().split() == ["True", "True"]
    with Claims(tmp_path / "claims") as claims:
        assert [claims.take(shard) for shard in (2, 3, 4)] == [True, False, False]
        claims.give_back(2)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        assert claims.take(3)


WRITER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from test_shards import big, needs, record
store = big(Path(sys.argv[3]))
wanted = needs(store, range(int(sys.argv[4])))
store.enroll(wanted)
for shard, views in store.gaps(wanted):
    for view in views:
        store.commit(shard, view, record(store.keys[store.members(shard)], view))
"""


def big(root: Path) -> Shards:
    """Enough clips for many shards: a kill often falls into a write."""
    known = np.arange(1, 80_001, dtype=np.uint64)
    return Shards(root, "outputs", SPEC, known, most=10**9)


def writer(root: Path, views: int) -> subprocess.Popen[bytes]:
    here = Path(__file__).resolve()
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(here.parents[1]), str(here.parent), str(root), str(views)]
    )


def assert_whole(store: Shards) -> int:
    """Every shard that has its name is complete and right; returns how many there are."""
    store.refresh()
    found = sorted(store.folder.glob("v*/s*.safetensors"))
    for path in found:
        view, members = int(path.parent.name[1:]), np.array(store.members(int(path.stem[1:])))
        index = members[:: len(members) // 7]
        (kept,) = store.read(["key"], index, np.full(len(index), view))
        assert np.array_equal(kept, store.keys[index].astype(np.int64)), path
    return len(found)


def test_a_killed_writer_leaves_no_bad_shard(tmp_path: Path) -> None:
    chance = random.Random(0)
    for kill in range(4):
        process = writer(tmp_path / str(kill), views=40)
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
        gaps = store.gaps(needs(store, range(40)))
        assert gaps  # it was killed at work; going on from the gaps makes it whole
        shard, views = gaps[0]
        store.commit(shard, views[0], record(store.keys[store.members(shard)], views[0]))
        assert_whole(store)


def test_two_writers_at_once_leave_one_of_everything(tmp_path: Path) -> None:
    processes = [writer(tmp_path, views=3) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    store = big(tmp_path)
    assert assert_whole(store) == 3 * store.roll.shards
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_leftovers_of_the_dead_are_swept_once_their_shard_is_there(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0], most=1)
    done, not_done = (store.path(0, shard).with_name(f".s0000{shard}.safetensors.1-ab.part") for shard in (0, 1))
    for path in (done, not_done):
        path.write_bytes(b"half")
    sweep(store.folder)
    assert not done.exists()
    assert not_done.exists()


# ---------------------------------------------------------------- remote


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_remote_store_is_read_through_copies(tmp_path: Path, scheme: str) -> None:
    made = shards(tmp_path / "there")
    fill(made, [0, 1])
    if scheme == "memory":
        import fsspec

        url = "memory://bucket/cache"
        fsspec.filesystem("memory").put(f"{tmp_path / 'there'}/", "/bucket/cache/", recursive=True)
    else:
        url = f"file://{tmp_path / 'there'}"
    here = shards(tmp_path / "here", remote=url)
    assert here.missing(needs(here, [0, 1])) == {}
    assert_right(here, np.array([5, 1]), np.array([1, 1]))
    copied = sorted(path.relative_to(here.folder).as_posix() for path in here.folder.rglob("*.safetensors"))
    assert copied == ["clips/00000.safetensors", "v001/s00000.safetensors", "v001/s00001.safetensors"]
    assert (here.folder / copied[1]).read_bytes() == made.path(1, 0).read_bytes()
    assert_right(shards(tmp_path / "here"), np.array([5]), np.array([1]))  # and serve without it


@pytest.mark.parametrize(
    ("url", "complaint"), [("nonsense://x", "cannot be reached"), ("s3://bucket/cache", "cannot be reached")]
)
def test_a_remote_that_cannot_be_reached_is_one_line(tmp_path: Path, url: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        shards(tmp_path, remote=url)


def test_spec_is_in_clear(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    assert json.loads((store.folder / "spec.json").read_text()) == SPEC


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = shards(tmp_path, clips=40, rows=4)
    fill(store, range(3))
    monkeypatch.setattr("distill.shards.grid.MOST_OPEN", 12)
    chance = np.random.default_rng(0)
    for _ in range(60):
        assert_right(store, chance.integers(0, 40, 16), np.full(16, chance.integers(3)))
        assert len(store._open) <= 12
    assert_right(store, np.arange(40), np.arange(40) % 3)


def test_shards_without_their_list_of_clips_are_refused(tmp_path: Path) -> None:
    store = shards(tmp_path, clips=6)
    fill(store, [0])
    more = shards(tmp_path)
    fill(more, [0])
    (more.folder / "clips" / "00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"clips does not list the clips of all shards in v000; restore it"):
        shards(tmp_path).missing(needs(more, [0]))


def test_names_of_files() -> None:
    for shard in (0, 7, 99_999, 100_001):
        for part in ("", ".maps.attention", ".maps.0.block2"):
            assert parse(f"s{shard:05d}{part}.safetensors") == (shard, part)
    for name in (".DS_Store", "copy of s00000.safetensors", "s00000.safetensors.bak", "s0000001.safetensors", "vold"):
        assert parse(name) is None


def test_files_of_others_do_not_disturb(tmp_path: Path) -> None:
    store = shards(tmp_path)
    fill(store, [0])
    for name in ("v000/.nfs0001", "v000/copy of s00000.safetensors", "vold", "clips/x.txt", "notes/a.safetensors"):
        path = store.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        assert not store.check(path)
    again = shards(tmp_path)
    assert again.missing(needs(again, [0])) == {}
    (tmp_path / "outputs" / "other").mkdir()
    (tmp_path / "outputs" / "other" / "spec.json").write_text("")
    empty = shards(tmp_path, teacher="new")
    with pytest.raises(UserError, match=r"differs in teacher \(abc there, new here\)"):
        empty.require(needs(empty, [0]), "distill cache")


def test_other_clips_are_told_apart_from_missing_ones(tmp_path: Path) -> None:
    fill(shards(tmp_path), [0])
    other = shards(tmp_path, clips=[*range(3), *range(50, 58)])
    with pytest.raises(UserError, match=r"\(8 of its 11 clips are new to the cache, or have other files\)"):
        other.require(needs(other, [0]), "distill cache")


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_disk_without_links_or_locks_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("fcntl.lockf", refuse)
    store = shards(tmp_path)
    fill(store, [0])
    assert_right(store, np.arange(CLIPS), np.zeros(CLIPS, np.int64))
    before = store.path(0, 0).stat().st_mtime_ns
    store.commit(0, 0, record(store.keys[store.members(0)], 0))
    assert store.path(0, 0).stat().st_mtime_ns == before
    with Claims(tmp_path / "claims") as claims:
        assert claims.take(1)


def test_a_file_that_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is damaged"):
        files.read(tmp_path / "x")
