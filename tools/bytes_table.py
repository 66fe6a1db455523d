"""How many bytes a clip is on its way from the edge to the cloud: `python -m tools.bytes_table`.

Messages are written by the functions that write them in the field, around latents of 1,024 random numbers. --write puts
the table into README.md, between its marks; --check says whether the one there is this one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill.command import guarded
from distill.live import wire
from tools import readme_table

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- bytes per clip -->", "<!-- /bytes per clip -->")
WIDTH, TOGETHER = 1024, 32
PLAIN = 4 * WIDTH  # float32 without anything around it: the paper's number
CLIPS = {"16 x 112 x 112 pictures, uint8": 16 * 112 * 112 * 3, "16 x 224 x 224 pictures, uint8": 16 * 224 * 224 * 3}
FORMS = (
    (wire.JSON, "list"),
    (wire.JSON, "float16"),
    (wire.JSON, "int8"),
    (wire.MSGPACK, "float32"),
    (wire.MSGPACK, "float16"),
    (wire.MSGPACK, "int8"),
)
SAID = {"list": "a list of numbers"}
HEADINGS = ("a clip", "bytes, alone", f"bytes, {TOGETHER} in a message", "times smaller than 112", "than 224")


def message_bytes(media: str, encoding: str, clips: int) -> int:
    """Of a whole message, as the edge sends it."""
    random = np.random.default_rng(0)
    made = [
        wire.Clip(
            camera=f"camera-{place % 4 + 1}",
            boot="0123456789abcdef",
            seq=100_000 + place,
            captured=1_800_000_000.123456 + place,
            latent=wire.pack(random.standard_normal(WIDTH).astype(np.float32), encoding),
            encode_ms=12.345678901234567,
        )
        for place in range(clips)
    ]
    post = wire.Post("0123456789abcdef" * 8, 1_800_000_100.123456, made, 3.1415926535897931)
    return len(wire.dump(post, media))


def table() -> str:
    """As Markdown."""
    lines = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows() -> Iterator[tuple[str, ...]]:
    small, large = CLIPS.values()
    for name, size in CLIPS.items():
        yield name, f"{size:,}", "", f"{small / size:.2g}", f"{large / size:.2g}"
    yield f"{WIDTH:,} bare float32, as in the paper", f"{PLAIN:,}", "", f"{small / PLAIN:.0f}", f"{large / PLAIN:.0f}"
    for media, encoding in FORMS:
        alone, share = message_bytes(media, encoding, 1), message_bytes(media, encoding, TOGETHER) / TOGETHER
        name = f"{'JSON' if media == wire.JSON else 'msgpack'}, {SAID.get(encoding, encoding)}"
        yield name, f"{alone:,}", f"{share:,.0f}", f"{small / share:.0f}", f"{large / share:.0f}"


def run(arguments: Sequence[str]) -> None:
    stale = "the bytes per clip in README.md are out of date; python -m tools.bytes_table --write"
    readme_table.run(arguments, str(__doc__), table, README, MARKS, stale)


def main() -> int:
    return guarded(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
