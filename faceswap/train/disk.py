"""What a disk that is full, or no folder at all, makes of a write: one line, not a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from faceswap.errors import FaceSwapError, MediaError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, something is written to a file or folder.

    Raises:
        MediaError: it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of OSError
        if isinstance(error, FaceSwapError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be written ({reason})") from error


def discard(path: Path) -> None:
    """Remove a file if it is there; nothing happens where it cannot even be."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """A text file that is there whole or not at all; an older one is kept until then.

    Raises:
        MediaError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with writing(path):
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
    finally:
        discard(unfinished)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The same for a JSON object, one member a line."""
    write_whole(path, json.dumps(value, indent=1))
