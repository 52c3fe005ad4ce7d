"""One process at a time: a lock that the system lifts when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


class LockedError(OSError):
    """Another process holds the lock; the text says which."""


class Lock:
    """Take a lock file, making its folder if need be, and hold it until `release`.

    The file is only what the system's lock is attached to: one that a dead process left behind
    locks nobody out.

    Args:
        path: the file.

    Raises:
        LockedError: another process holds it.
        OSError: the file or its folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            path.parent.mkdir(exist_ok=True)
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the folder went as its last holder left
                continue
            try:
                _seize(self._file)
            except OSError as error:
                holder = os.pread(self._file, 32, 1) if hasattr(os, "pread") else b""
                os.close(self._file)
                who = f"process {holder.decode()}" if holder.isdigit() else "another process"
                raise LockedError(who) from error
            if self._is_mine():
                break
            os.close(self._file)  # removed by its last holder between our two steps
        os.ftruncate(self._file, 0)
        os.write(self._file, b" %d" % os.getpid())  # its first byte is what Windows locks

    def release(self) -> None:
        """Let others in; the file goes."""
        if sys.platform != "win32":  # while it is held, so that nobody else's is removed
            with contextlib.suppress(OSError):
                if self._is_mine():
                    self.path.unlink()
        os.close(self._file)

    def _is_mine(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False


def _seize(file: int) -> None:
    """Lock an open file without waiting; OSError if somebody has."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
