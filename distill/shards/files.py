"""One shard: a safetensors file that knows what it is, and in which every byte is checked.

Its header has one entry of its own, `about`: what the shard is (its store, place and members) and the checksum of the
file, taken with zeros in place of the checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from xxhash import xxh3_64, xxh3_64_hexdigest

from distill.errors import UserError

TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "F16": np.float16, "F32": np.float32}
TYPES |= {"I32": np.int32, "I64": np.int64}
BLANK = b"0" * 16
LISTS = "clips"  # the folder of files that say which clips there are


def label(path: Path) -> dict[str, Any]:
    """What a shard says of itself, without a look at its records; refuses a file of the wrong length."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    try:
        start = 8 + int.from_bytes(head[:8], "little")
        header = json.loads(head[8:start])
        about: dict[str, Any] = json.loads(header.pop("__metadata__")["about"])
        whole = start + max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, KeyError) as error:
        raise _damaged(path, "it is cut short, or no shard at all") from error
    if path.stat().st_size != whole:
        raise _damaged(path, "its length is not what it says")
    return about


def encode(records: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """The bytes of a shard; the same records make the same bytes in every process."""
    text = json.dumps({**about, "xxh3": BLANK.decode()}, sort_keys=True)
    blob = save({name: np.ascontiguousarray(rows) for name, rows in records.items()}, {"about": text})
    head = blob[: 8 + int.from_bytes(blob[:8], "little")]
    at = _checksum_place(head)
    return blob[:at] + xxh3_64_hexdigest(blob).encode() + blob[at + len(BLANK) :]


def _checksum_place(head: bytes) -> int:
    mark = b'xxh3\\": \\"'
    at = head.find(mark)
    return at + len(mark) if at >= 0 else -1


def read(path: Path, about: Mapping[str, Any] | None = None, check: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a shard as read-only views of the mapped file.

    Refuses a file whose bytes changed since it was written, and one that is not what `about` says it should be.
    """
    data = _map(path)
    start = 8 + int.from_bytes(data[:8].tobytes(), "little") if len(data) > 8 else 0
    head = data[:start].tobytes() if 8 < start <= len(data) else b""
    at = _checksum_place(head)
    if at < 0:
        raise _damaged(path, "it is cut short, or no shard at all")
    if check and _digest(head, at, data) != head[at : at + len(BLANK)]:
        raise _damaged(path, "its checksum is not that of its content")
    header = json.loads(head[8:])
    said = json.loads(header.pop("__metadata__")["about"])
    for key, value in (about or {}).items():
        if said.get(key) != value:
            raise _damaged(path, f"it says that its {key} is {said.get(key)}, where {value} belongs")
    return {name: _view(data[start:], entry) for name, entry in header.items()}


def _digest(head: bytes, at: int, data: np.ndarray) -> bytes:
    found = xxh3_64(head[:at])
    found.update(BLANK)
    found.update(head[at + len(BLANK) :])
    found.update(data[len(head) :].data)
    return found.hexdigest().encode()


def _map(path: Path) -> np.ndarray:
    """The bytes of a file. Torch maps without holding a file descriptor, so that thousands can be open."""
    size = path.stat().st_size
    if not size:
        return np.empty(0, np.uint8)
    storage = torch.UntypedStorage.from_file(str(path), False, size)
    data: np.ndarray = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()  # type: ignore[arg-type]
    data.flags.writeable = False
    return data


def _view(body: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    return body[begin:end].view(TYPES[entry["dtype"]]).reshape(entry["shape"])


def _damaged(path: Path, why: str) -> UserError:
    advice = "delete it and run the caching job again"
    if path.parent.name == LISTS:
        advice = (
            "restore this file from a copy, or delete the whole store: without it nobody knows whose records they are"
        )
    return UserError(f"{path} is damaged: {why}; {advice}")
