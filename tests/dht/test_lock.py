"""One process per folder, and the next one is told who holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dht.errors import LockedError, StorageError
from dht.lock import FolderLock

HOLD = "import sys; from pathlib import Path; from dht.lock import FolderLock; lock = FolderLock(Path(sys.argv[1])); "


def test_a_second_holder_is_told_the_process_id(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "data"):
        with pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
            FolderLock(tmp_path / "data")
        assert caught.value.exit_code == 73
    FolderLock(tmp_path / "data").release()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid}"):
            FolderLock(tmp_path)
        holder.kill()
    FolderLock(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        FolderLock(tmp_path / "file" / "data")


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
