"""One process per data folder: an advisory lock that the kernel drops with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from dht.errors import LockedError, StorageError

LOCK_NAME = "lock"


class FolderLock:
    """Holds `folder/lock` exclusively, as a context manager or until `release`; the folder is created (0700).

    The file names the holder's process id. Raises LockedError when another process holds it, StorageError when
    the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot use the folder {folder}: {error.strerror}", remedy="check --data-dir") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise LockedError(
                f"{folder} is in use by process {holder}", remedy="stop that process, or choose another --data-dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others in. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
