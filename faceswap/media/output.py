"""Where a result may be written, and how it gets there: never by surprise, never by half.

`check_output` runs before any work, so that a run of an hour does not end at a folder that cannot
be written. `replacing` runs at the end: everything goes to a ``.part`` beside the target, which is
renamed when it is complete and removed when it is not.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from faceswap.errors import MediaError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def check_output(
    path: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    *,
    extensions: Collection[str] = IMAGE_EXTENSIONS,
) -> Path:
    """Refuse, before any work, an output that cannot or must not be written.

    Args:
        path: the file that is to be written.
        inputs: files that are being read; ``path`` may be none of them, under any name (relative,
            through a symbolic or hard link).
        overwrite: whether ``path`` may exist already.
        extensions: what ``path`` may end in, lower case, with the dot.

    Returns:
        ``path`` as a Path.

    Raises:
        MediaError: one line that says what is wrong and what to do.
    """
    target = Path(path)
    if target.suffix.lower() not in extensions:
        known = " ".join(sorted(extensions))
        raise MediaError(
            f"Cannot tell the format of the output {str(target)!r} from its name: "
            f"end it in one of {known}"
        )
    folder = target.parent
    if not folder.is_dir():
        raise MediaError(f"The folder of the output {str(target)!r} does not exist; make it first")
    if target.is_dir():
        raise MediaError(f"The output {str(target)!r} is a folder; give the name of a file")
    for source in inputs:
        if os.path.exists(source) and target.exists() and os.path.samefile(source, target):
            raise MediaError(
                f"The output {str(target)!r} is the same file as the input {os.fspath(source)!r}; "
                "choose another name (an input is never overwritten)"
            )
    if os.path.lexists(target) and not overwrite:
        raise MediaError(
            f"{str(target)!r} exists already; pass --overwrite to replace it, or choose another "
            "name with -o"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediaError(
            f"Cannot write into {str(folder)!r}: {reason}; choose another folder with -o"
        ) from error
    return target


def part_of(path: str | os.PathLike[str]) -> Path:
    """The unfinished file beside ``path``."""
    target = Path(path)
    return target.with_name(target.name + ".part")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a ``.part`` to write; rename it to ``path`` at the end, remove it on any failure.

    A ``.part`` that a killed run left behind is removed first (if it is a link, only the link).

    Raises:
        MediaError: for any OSError inside the block: no space, no permission, a name too long.
    """
    part = part_of(path)
    try:
        part.unlink(missing_ok=True)
        yield part
        os.replace(part, path)
    except MediaError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediaError(f"Cannot write {os.fspath(path)!r}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
