"""Work on a clip that survives being killed: finished segments, and the state behind the last.

Beside the output ``DIR/clip.mp4`` stands a folder ``DIR/.clip.mp4.work``: the segments written so
far, ``journal.json`` that lists those that are complete, and the state to go on with. The journal
is replaced as a whole, so it is always that of some moment; whatever it does not list is dropped.
A lock in the folder keeps a second run on the same output away for as long as this process lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import shutil
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from faceswap.errors import ConfigError, MediaError
from faceswap.media.lock import Lock, LockedError

_VERSION = 2
_log = logging.getLogger("faceswap")


class Journal:
    """The work folder of one output; use it in a ``with`` block.

    Leaving the block removes the folder, unless it is left through an error with segments that
    ``--resume`` can go on with; a `MediaError` then says so.

    Args:
        output: the clip that is being made.

    Raises:
        MediaError: another run is at work on this output, or the folder cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.work")
        self.segments: list[tuple[Path, Fraction]] = []  # file, length in seconds
        self.state: dict[str, Any] | None = None  # behind the last segment
        self._key = ""
        self._begun = False
        try:
            self._lock = Lock(self.folder / "lock")
        except LockedError as error:
            raise MediaError(
                f"Another run ({error}) is making {str(output)!r}; wait for it, end it, or choose "
                "another output with -o"
            ) from error
        except OSError as error:
            raise MediaError(f"Cannot make {str(self.folder)!r}: {error.strerror}") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kept = error is not None and bool(self.segments)
        if self._begun and not kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):  # not empty: work to go on with
            self.folder.rmdir()
        if kept and isinstance(error, MediaError):
            raise MediaError(f"{error}; what is finished is kept, --resume goes on") from error
        if kept and isinstance(error, KeyboardInterrupt):
            _log.warning("what is finished is kept, --resume goes on")

    def begin(self, key: dict[str, Any], *, resume: bool) -> None:
        """Go on with the work that is there, or throw it away.

        Args:
            key: what the result depends on; a run with another key cannot go on with this work.
            resume: go on with what is there.

        Raises:
            ConfigError: there is work, but of a run with other inputs or settings.
            MediaError: the work is damaged.
        """
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if resume:
            self._load()
        self._begun = True
        if self.state is None:
            self.drop()

    def drop(self) -> None:
        """Forget the segments; nothing of them is to be kept."""
        self.segments = []
        for path in self.folder.iterdir():
            if path != self._lock.path:
                path.unlink()

    def next_segment(self, suffix: str) -> Path:
        """The file to write next; a half-written one of that name is removed."""
        path = self.folder / f"{len(self.segments):05d}{suffix}"
        path.unlink(missing_ok=True)
        return path

    def commit(self, path: Path, length: Fraction, state: dict[str, Any]) -> None:
        """Note that a segment is complete.

        Args:
            path: what `next_segment` gave.
            length: of the segment, in seconds.
            state: plain values and tensors to go on with.
        """
        self.segments.append((path, length))
        name = f"state-{len(self.segments):05d}.pt"
        try:
            torch.save(state, self.folder / name)
            part = self.folder / "journal.part"
            part.write_text(
                json.dumps(
                    {
                        "version": _VERSION,
                        "key": self._key,
                        "state": name,
                        "segments": [[file.name, str(length)] for file, length in self.segments],
                    }
                ),
                encoding="utf-8",
            )
            os.replace(part, self.folder / "journal.json")
        except (OSError, RuntimeError) as error:  # torch.save: RuntimeError when the disk is full
            self.segments.pop()
            raise MediaError(f"Cannot write into {str(self.folder)!r}: {error}") from error
        for old in self.folder.glob("state-*.pt"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def _load(self) -> None:
        try:
            noted = json.loads((self.folder / "journal.json").read_text(encoding="utf-8"))
            if noted["version"] != _VERSION or noted["key"] != self._key:
                raise ConfigError(
                    f"The work in {str(self.folder)!r} was begun with other inputs or settings; "
                    "give the same ones, or leave --resume out to start over"
                )
            segments = [(self.folder / file, Fraction(n)) for file, n in noted["segments"]]
            self.state = torch.load(self.folder / noted["state"], weights_only=True)
            self.segments = segments
        except FileNotFoundError:
            return
        except ConfigError:
            raise
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RuntimeError,
            pickle.UnpicklingError,
        ) as error:
            raise MediaError(
                f"The work in {str(self.folder)!r} is damaged ({error}); leave --resume out to "
                "start over"
            ) from error
