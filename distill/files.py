"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What exFAT, SMB, FUSE and the like say of links, or of flushing a folder.
NOT_SUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def publish(path: Path, write: Callable[[Path], object], once: bool = False) -> bool:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then give it its name in one step.

    With `once` a file that has the name already stays, whoever made it. Returns whether ours got the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        write(part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        if once:
            _name_once(part, path)
        else:
            part.replace(path)
    except FileExistsError:
        return False
    except OSError as error:  # what write() complains of, a full disk for one, comes without the name of the file
        if once and path.exists():
            return False  # somebody tidied up after the one who was first
        raise named(error, path) from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def named(error: OSError, path: Path) -> OSError:
    """The same, with the name of the file that it is about."""
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


@contextmanager
def called(path: Path) -> Iterator[None]:
    """What goes wrong in here is about this file."""
    try:
        yield
    except OSError as error:
        raise named(error, path) from error


def make_private(path: Path) -> None:
    """A file that its owner alone may read, if there is none yet; why there can be none, whoever opens it will say."""
    with suppress(OSError):
        path.touch(0o600)


def make_folder(folder: Path) -> None:
    """For what a long job will leave there: that it cannot be written to shows before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; choose another out=", str(folder)) from error


def _name_once(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        if path.exists():
            raise FileExistsError(path) from error
        part.replace(path)  # without links two writers may both come here: they write the same


def sweep(folder: Path) -> None:
    """Remove what killed writers left of files that are there by now."""
    for part in folder.rglob(".*.part"):
        name = part.name[1:].rsplit(".", 2)[0]
        if (part.parent / name).exists():
            part.unlink(missing_ok=True)


def publish_text(path: Path, text: str, once: bool = False) -> None:
    publish(path, lambda part: part.write_text(text, encoding="utf-8"), once)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
