"""Swapping in all photos of a folder: the models are loaded and the source is read once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faceswap.errors import MediaError, NoFaceError
from faceswap.faces.select import Selection
from faceswap.media.folder import find_photos
from faceswap.media.image import read_image, write_image
from faceswap.media.output import check_output
from faceswap.photo import Photo, Plan, pair_up, photos_of
from faceswap.swap import Swapper
from faceswap.types import FolderReport


def swap_folder(
    swapper: Swapper,
    source: Photo | Sequence[tuple[Photo, Photo]],
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    select: Selection | None = None,
    reference: Photo | None = None,
    extra: Sequence[Photo] = (),
    source_face: int | None = None,
    quality: int | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, faces: None,
) -> FolderReport:
    """Swap a face in every photo of a folder and of the folders in it.

    Photos keep their names and places. What is in `output` already is left alone, so a call that
    was broken off is gone on with by the same call. A photo with nobody to swap, or one that cannot
    be read, is left out and named in the report; one that cannot be written ends the call, as the
    next could not be either.

    Args:
        swapper: models.
        source: as of `swap_image`, like everything that is not named here.
        folder: photos, the formats that `swap_image` writes; hidden ones are passed over.
        output: another folder, which is made if it is not there; it may lie in `folder`.
        overwrite: whether photos in `output` are made anew.
        progress: is told photos done, photos in all and faces swapped.

    Raises:
        MediaError: no photo in the folder, or the output cannot be written.
        NoFaceError: no face in a source, or no photo in which somebody was swapped.
        ConfigError: options that exclude each other.
    """
    began = time.perf_counter()
    home, out = Path(folder), Path(output)
    photos = find_photos(home, out)
    pairs = pair_up(source, reference)
    inputs = [p for p in [*photos_of(pairs), *extra] if isinstance(p, (str, os.PathLike))]
    plan = Plan.of(swapper, pairs, select=select, extra=extra, source_face=source_face)
    there = swapped = faces = 0
    left_out: list[tuple[str, str]] = []
    unreadable: list[tuple[str, str]] = []
    warnings: list[str] = []
    for done, photo in enumerate(photos):
        progress(done, len(photos), faces)
        name = photo.relative_to(home).as_posix()
        target = out / name
        if os.path.lexists(target) and not overwrite:
            there += 1
            continue
        try:
            picture = read_image(photo)
            result = plan.swap(picture)
        except NoFaceError as error:
            left_out.append((name, str(error).removeprefix(f"{photo}: ")))
            continue
        except MediaError as error:
            unreadable.append((name, str(error).removeprefix(f"{os.fspath(photo)!r} ")))
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(f"Cannot make {str(target.parent)!r}: {error.strerror}") from error
        check_output(target, [photo, *inputs], overwrite)
        written = write_image(
            target, result.frames[0], picture, quality=quality, overwrite=overwrite
        )
        swapped += 1
        faces += int((result.source >= 0).sum())
        said = (*picture.warnings, *plan.unmet(result), *written.warnings)
        warnings += [f"{name}: {each}" for each in said]
    progress(len(photos), len(photos), faces)
    if not swapped and not there:
        first = (left_out + unreadable)[0][1]
        raise NoFaceError(
            f"{home}: nobody was swapped in any of its photos ({len(photos)}) and nothing written; "
            f"the first: {first}"
        )
    return FolderReport(
        output=os.fspath(output),
        photos=len(photos),
        swapped=swapped,
        there_already=there,
        faces_swapped=faces,
        pack=swapper.pack.name,
        device=str(swapper.device),
        left_out=tuple(left_out),
        unreadable=tuple(unreadable),
        seconds=time.perf_counter() - began,
        warnings=tuple(warnings),
    )
