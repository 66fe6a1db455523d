"""A folder of finished files, perhaps with a remote one behind it whose files are copied here when they are read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import publish


class Folder:
    """`remote` is an fsspec URL (s3://, gs://, hf://, sftp://, file:// ...) of the same layout, or empty."""

    def __init__(self, local: Path, remote: str = "") -> None:
        self.local, self.remote = local, remote.rstrip("/")
        self._system: Any = None

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.local / name, f"{self.remote}/{name}" if self.remote else "")

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes a connection of its own."""
        return {**self.__dict__, "_system": None}

    def names(self) -> set[str]:
        """The files that there are, here or there."""
        found = {path.name for path in self.local.iterdir()} if self.local.is_dir() else set[str]()
        return found | self._remote_names()

    def path(self, name: str) -> Path | None:
        """The file on this machine, or None where there is none."""
        local = self.local / name
        if local.exists():
            return local
        if name in self._remote_names():
            publish(local, lambda part: self._copy(name, part), once=True)
            return local
        return None

    def _remote_names(self) -> set[str]:
        if not self.remote:
            return set()
        try:
            found = self._connect().ls(self._connect()._strip_protocol(self.remote), detail=False)
        except FileNotFoundError:
            return set()
        except Exception as error:  # whatever a storage library raises: no access, no network, no such bucket
            raise UserError(f"{self.remote} cannot be listed: {error}") from error
        return {str(name).rstrip("/").rpartition("/")[2] for name in found}

    def _copy(self, name: str, part: Path) -> None:
        try:
            with self._connect().open(f"{self.remote}/{name}", "rb") as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 16 << 20)
        except Exception as error:
            raise UserError(f"{self.remote}/{name} cannot be copied: {error}") from error

    def _connect(self) -> Any:
        if self._system is None:
            from fsspec.core import url_to_fs  # only people with a remote cache pay for its import

            try:
                self._system, _ = url_to_fs(self.remote)
            except (ValueError, ImportError) as error:
                raise UserError(f"{self.remote} cannot be reached: {error}") from error
        return self._system
