"""Work on a clip that survives being killed: finished segments, and the state behind the last.

Beside the output ``DIR/clip.mp4`` stands a folder ``DIR/.clip.mp4.work``: the segments written so
far, ``journal.json`` that lists those that are complete, and the state to go on with. The journal
is replaced as a whole, so it is always that of some moment; whatever it does not list is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from faceswap.errors import ConfigError, MediaError

_VERSION = 1


class Journal:
    """The work folder of one output.

    Args:
        output: the clip that is being made.
        key: what the result depends on; a run with another key cannot go on with this work.
        resume: go on with what is there; otherwise it is thrown away.

    Raises:
        ConfigError: there is work, but of a run with other inputs or settings.
        MediaError: the folder cannot be made.
    """

    def __init__(self, output: Path, key: dict[str, Any], *, resume: bool) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.work")
        self.segments: list[tuple[Path, Fraction]] = []  # file, length in seconds
        self.state: dict[str, Any] | None = None  # behind the last segment
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if resume:
            self._load()
        if self.state is None:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder)
            self.segments = []
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise MediaError(f"Cannot make {str(self.folder)!r}: {error.strerror}") from error

    def next_segment(self) -> Path:
        """The file to write next; a half-written one of that name is removed."""
        path = self.folder / f"{len(self.segments):05d}{self.output.suffix.lower()}"
        path.unlink(missing_ok=True)
        return path

    def commit(self, length: Fraction, state: dict[str, Any]) -> None:
        """Note that the next segment is complete.

        Args:
            length: of the segment, in seconds.
            state: plain values and tensors to go on with.
        """
        path = self.folder / f"{len(self.segments):05d}{self.output.suffix.lower()}"
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

    def remove(self) -> None:
        """Remove the folder: the clip is complete, or there is nothing to keep."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> None:
        try:
            noted = json.loads((self.folder / "journal.json").read_text(encoding="utf-8"))
            if noted["version"] != _VERSION or noted["key"] != self._key:
                raise ConfigError(
                    f"The work in {str(self.folder)!r} was begun with other inputs or settings; "
                    "give the same ones, or leave --resume out to start over"
                )
            self.segments = [(self.folder / file, Fraction(n)) for file, n in noted["segments"]]
            self.state = torch.load(self.folder / noted["state"], weights_only=True)
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
