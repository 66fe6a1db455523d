"""Files are whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Thread

import pytest

from distill.files import digest, publish, publish_text


def test_publish_makes_the_folder_and_leaves_one_file(tmp_path: Path) -> None:
    publish_text(tmp_path / "a" / "b.txt", "grüße\n")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grüße\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    publish_text(path, "old")

    def half(part: Path) -> None:
        part.write_text("ne")
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError, match="half way"):
        publish(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_content_is_complete(tmp_path: Path) -> None:
    path, numbers = tmp_path / "new.bin", list[int]()

    def write(part: Path) -> None:
        part.write_bytes(b"x" * 10)
        assert not path.exists()
        numbers.append(part.stat().st_ino)

    publish(path, write)
    assert path.read_bytes() == b"x" * 10
    assert numbers == [path.stat().st_ino]  # renamed, which is one step; a copy could be cut off half way


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    path, texts = tmp_path / "shared.txt", [str(i) * 10_000 for i in range(8)]
    threads = [Thread(target=publish_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_digest(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(bytes(range(256)) * 5000)
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
