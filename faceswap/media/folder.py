"""Which photos a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from faceswap.errors import MediaError, MissingMediaError
from faceswap.media.output import IMAGE_EXTENSIONS


def find_photos(folder: Path, output: Path) -> list[Path]:
    """Photos in a folder and below, sorted, without those in ``output``.

    Raises:
        MediaError: no photo, or no folder, or the output is the folder itself.
    """
    if not folder.is_dir():
        raise MissingMediaError(f"There is no folder {str(folder)!r}")
    if output.exists() and not output.is_dir():
        raise MediaError(f"The output {str(output)!r} is a file; for a folder it is a folder")
    if output.resolve() == folder.resolve():
        raise MediaError(
            f"The output {str(output)!r} is the folder the photos are in; choose another with -o "
            "(an input is never overwritten)"
        )
    photos = sorted(_photos(folder, output.resolve()))
    if not photos:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise MissingMediaError(f"The folder {str(folder)!r} has no photo in it ({known})")
    return photos


def _photos(folder: Path, output: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in IMAGE_EXTENSIONS or not path.is_file():
            continue
        if output not in path.resolve().parents:
            yield path
