"""The spool keeps what it is given within its bounds, in order, whatever happens to the process or the disk."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.live import wire
from distill.live.edge import spool as spooling
from distill.live.edge.spool import ROW_BYTES, Spool, Spooled

NOW = time.time()


def clip(seq: int, camera: str = "door", encoder: str = "e", width: int = 64) -> Spooled:
    latent = wire.pack(np.full(width, seq, np.float32), "float16")
    return Spooled(wire.Clip(camera, "boot", seq, NOW, latent), encoder)


def opened(folder: Path, most_bytes: float = 1e9, most_seconds: float = 1e6, said: list[str] | None = None) -> Spool:
    return Spool(folder / "spool.sqlite", most_bytes, most_seconds, (said if said is not None else []).append)


def everything(spool: Spool) -> list[tuple[str, int]]:
    return [(item.clip.camera, item.clip.seq) for item in spool.oldest(10**6)]


SIZE = len(wire.dump(clip(1, "a").clip, wire.MSGPACK)) + ROW_BYTES  # of a clip whose seq is below 128
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6)),
        st.tuples(st.just("send"), st.integers(1, 5)),
        st.tuples(st.just("refuse"), st.none()),
        st.tuples(st.just("again"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, room=st.integers(1, 8))
def test_it_is_a_bounded_queue(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], room: int
) -> None:
    """Against a list: the oldest go first, and are dropped first, and every clip is waiting, sent or counted."""
    folder, model, dropped, seqs = tmp_path_factory.mktemp("spool"), list[tuple[str, int]](), dict[str, int](), 0
    spool = opened(folder, room * SIZE)
    for what, value in steps:
        if what == "add":
            assert isinstance(value, list)
            spool.add([clip(seqs + place, camera) for place, camera in enumerate(value)])
            model += [(camera, seqs + place) for place, camera in enumerate(value)]
            seqs += len(value)
            while len(model) > room:
                camera, _ = model.pop(0)
                dropped[camera] = dropped.get(camera, 0) + 1
        elif what == "send":
            assert isinstance(value, int)
            taken = spool.oldest(value)
            assert [(item.clip.camera, item.clip.seq) for item in taken] == model[:value]
            spool.remove([item.key for item in taken])
            model = model[value:]
        elif what == "refuse" and model:
            spool.give_up(spool.oldest(1)[0])
            camera, _ = model.pop(0)
            dropped[camera] = dropped.get(camera, 0) + 1
        elif what == "again":
            spool.close()
            spool = opened(folder, room * SIZE)
        depth = spool.depth()
        assert everything(spool) == model
        assert (depth.clips, depth.bytes) == (len(model), len(model) * SIZE)
        assert depth.dropped == dropped
    spool.close()


def test_the_file_itself_is_bounded(tmp_path: Path) -> None:
    spool = opened(tmp_path, 2e6)
    for start in range(0, 3000, 50):
        spool.add([clip(seq, width=1024) for seq in range(start, start + 50)])
    depth = spool.depth()
    assert 1.9e6 < depth.bytes <= 2e6
    assert (tmp_path / "spool.sqlite").stat().st_size < 1.25 * 2e6
    assert (tmp_path / "spool.sqlite-wal").stat().st_size < 20e6
    assert depth.clips + depth.dropped["door"] == 3000
    spool.close()


class Clock:
    """Stands in for `time` in the spool."""

    def __init__(self) -> None:
        self.now, self.ticks = NOW, 5.0

    def passes(self, seconds: float) -> None:
        self.now, self.ticks = self.now + seconds, self.ticks + seconds

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.ticks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(spooling, "time", made)
    return made


def test_what_is_too_old_goes(tmp_path: Path, clock: Clock) -> None:
    spool = opened(tmp_path, most_seconds=100)
    spool.add([clip(0, "yard")])
    clock.passes(50)
    spool.add([clip(1)])
    assert spool.depth().seconds == 50
    clock.passes(51)
    spool.add([clip(2)])
    assert everything(spool) == [("door", 1), ("door", 2)]
    assert spool.depth().dropped == {"yard": 1}
    spool.close()
    clock.ticks = 5.0  # a restart
    again = opened(tmp_path, most_seconds=50)
    assert everything(again) == [("door", 2)]
    assert again.depth().dropped == {"yard": 1, "door": 1}
    again.close()


@pytest.mark.parametrize("jump", [1.7e9, 86_400.0, -86_400.0])
def test_a_clock_that_is_set_makes_nothing_old(jump: float, tmp_path: Path, clock: Clock) -> None:
    """As on a box that learns the time from the network, which was away until now."""
    clock.now = 1.75e9 if jump < 0 else 1000.0
    spool = opened(tmp_path, most_seconds=100)
    spool.add([clip(0)])
    clock.passes(60)
    clock.now += jump
    spool.add([clip(1)])
    assert everything(spool) == [("door", 0), ("door", 1)]
    assert spool.depth().seconds == pytest.approx(60)
    clock.passes(41)
    spool.add([clip(2)])
    assert everything(spool) == [("door", 1), ("door", 2)]
    assert spool.depth().dropped == {"door": 1}
    spool.close()


def test_nobody_else_on_the_box_reads_it(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.add([clip(0)])
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    spool.close()


def test_encoders_are_kept_apart(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.add([clip(0, encoder="old"), clip(1, encoder="new"), clip(2, encoder="old"), clip(3, encoder="new")])
    assert [(item.clip.seq, item.encoder) for item in spool.oldest(9)] == [(0, "old"), (2, "old")]
    assert [(item.clip.seq, item.encoder) for item in spool.oldest(9, ["old"])] == [(1, "new"), (3, "new")]
    assert spool.oldest(9, ["old", "new"]) == []
    spool.close()


def test_a_clip_is_what_it_was(tmp_path: Path) -> None:
    given = [clip(7), Spooled(wire.Clip("desk", "b", 2**40, NOW, [1.5, -2.0], 3.25), "e")]
    spool = opened(tmp_path)
    spool.add(given)
    spool.add(given)  # the same once more is nothing new
    spool.close()
    spool = opened(tmp_path)
    assert spool.oldest(9) == given
    spool.close()


def test_what_another_version_wrote_holds_up_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.add([clip(seq) for seq in range(4)])
    spool._database.execute("UPDATE clips SET clip = x'81a161' WHERE seq IN (0, 2)")
    assert [item.clip.seq for item in spool.oldest(9)] == [1, 3]
    assert (spool.depth().clips, spool.depth().dropped) == (2, {"door": 2})
    spool.close()


def test_one_edge_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "BUSY_MS", 50)
    spool = opened(tmp_path)
    with pytest.raises(UserError, match=r"spool.sqlite is used by another edge; stop that one, or choose another out="):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be one" * 100, b"SQLite format 3\0" * 900]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spool.sqlite").write_bytes(content)
    with pytest.raises(UserError, match=r"spool.sqlite is damaged \(.*\); move it away, or choose another out="):
        opened(tmp_path)


def test_a_disk_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips wait in memory, behind those on the disk, and can be sent; what went meanwhile is gone afterwards too."""
    monkeypatch.setattr(spooling, "MOST_IN_MEMORY", 3)
    said: list[str] = []
    spool = opened(tmp_path, said=said)
    spool.add([clip(seq) for seq in range(4)])
    spool._database.execute("PRAGMA query_only = 1")
    for seq in range(4, 9):
        spool.add([clip(seq)])
    assert everything(spool) == [("door", seq) for seq in (0, 1, 2, 3, 6, 7, 8)]
    assert spool.depth().dropped == {"door": 2}
    spool.remove([("door", "boot", seq) for seq in (0, 1, 6)])
    assert everything(spool) == [("door", seq) for seq in (2, 3, 7, 8)]
    assert spool.depth().clips == 4
    assert len(said) == 1
    assert "cannot be written (attempt to write a readonly database); is the disk full?" in said[0]
    assert spool.trouble
    spool._database.execute("PRAGMA query_only = 0")
    spool.add([clip(9)])
    assert said[1:] == [f"{tmp_path / 'spool.sqlite'} takes clips again"]
    assert not spool.trouble
    spool.close()
    again = opened(tmp_path)
    assert everything(again) == [("door", seq) for seq in (2, 3, 7, 8, 9)]
    assert again.depth().dropped == {"door": 2}
    again.close()


FULL = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_edge_spool import clip, everything, opened
said = []
spool = opened(Path(sys.argv[1]), said=said)
spool.add([clip(0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))  # as if the disk were full then
for seq in range(1, 1200):
    spool.add([clip(seq)])
assert len(everything(spool)) + spool.depth().dropped["door"] == 1200
assert everything(spool)[-1] == ("door", 1199)
assert len(said) == 1 and "is the disk full?" in said[0], said
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.add([clip(1200)])
assert "takes clips again" in said[1]
assert len(everything(spool)) + spool.depth().dropped["door"] == 1201
spool.close()
"""


def test_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_edge_spool import clip, opened
spool = opened(Path(sys.argv[1]))
seq = 0
while True:
    spool.add([clip(seq), clip(seq + 1, "yard")])
    if seq % 6 == 4:
        first = spool.oldest(1)[0]
        spool.remove([first.key])
        print("sent", first.clip.camera, first.clip.seq, flush=True)
    print("kept", seq, flush=True)
    seq += 2
"""


def test_it_survives_kill_9(tmp_path: Path) -> None:
    """At any moment: what was kept is there, in order; what was sent is not; at most the last step is half known."""
    for count in (5, 60, 301):
        folder = tmp_path / str(count)
        arguments = [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(count)]
            time.sleep(count % 7 / 1000)
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        assert all(lines), "it ended by itself"
        said = [line.split() for line in lines if line.endswith("\n")]  # the last one may have been cut off
        kept = max(int(words[1]) for words in said if words[0] == "kept")
        gone = {(words[1], int(words[2])) for words in said if words[0] == "sent"}
        spool = opened(folder)
        found = everything(spool)
        expected = [(("door", "yard")[seq % 2], seq) for seq in range(kept + 2)]
        expected = [item for item in expected if item not in gone]
        dropped = spool.depth().dropped.total()
        assert dropped == 0
        start = found.index(expected[1])  # the first may just have been sent
        assert start in (0, 1)
        assert found[start : start + len(expected) - 1] == expected[1:]
        assert len(found) <= len(expected) + 2
        spool.close()
        with sqlite3.connect(folder / "spool.sqlite") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
