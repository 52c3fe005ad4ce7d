"""Swapping in photos: files or arrays in, a marked file or an array out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faceswap.errors import ConfigError, NoFaceError
from faceswap.faces.identity import similarity
from faceswap.faces.select import Selection
from faceswap.media.image import Image, Written, read_image, write_image
from faceswap.media.output import check_output
from faceswap.swap import Swapper, merge
from faceswap.types import Faces, Identities, ImageReport, SwapResult

Photo = str | os.PathLike[str] | np.ndarray | Tensor  # arrays: (H, W, 3) uint8; tensors: (3, H, W)


def swap_image(
    swapper: Swapper,
    source: Photo | Sequence[tuple[Photo, Photo]],
    target: Photo,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    select: Selection | None = None,
    reference: Photo | None = None,
    extra: Sequence[Photo] = (),
    source_face: int | None = None,
    quality: int | None = None,
) -> ImageReport:
    """Swap a face in a photo.

    Args:
        swapper: models, loaded once for many calls.
        source: a photo of the person to put in; or pairs (source, reference photo of the person in
            the target whom it replaces).
        target: the photo to change.
        output: file to write, format by its extension; None: the picture is in the report.
        overwrite: whether ``output`` may exist. It is never one of the inputs.
        select: which faces; the largest by default.
        reference: a photo of the person in the target to be replaced (with a single source).
        extra: more photos of the source person: identity is the mean over all, and a guided swapper
            shows the one turned most like the target.
        source_face: which face of the source photo, from the left, 0 = leftmost.
        quality: of JPEG and WebP, 1 to 100.

    Returns:
        What was done. Pixels outside the swapped faces are the target's own; see `write_image`
        about JPEG.

    Raises:
        MediaError: a file cannot be read or written; nothing is left half-written.
        NoFaceError: no face in a source or in the target, or nobody matches the reference; no file
            is written.
        ConfigError: options that exclude each other.
    """
    began = time.perf_counter()
    before = dict(swapper.seconds)
    pairs = pair_up(source, reference)
    paths = [p for p in [*photos_of(pairs), target, *extra] if isinstance(p, (str, os.PathLike))]
    if output is not None:
        check_output(output, paths, overwrite)
    picture = _read(target)
    plan = Plan.of(swapper, pairs, select=select, extra=extra, source_face=source_face)
    result = plan.swap(picture)
    written = Written()
    if output is not None:
        written = write_image(
            output, result.frames[0], picture, quality=quality, overwrite=overwrite
        )
    seconds = {k: v - before.get(k, 0.0) for k, v in swapper.seconds.items()}
    return ImageReport(
        output="" if output is None else os.fspath(output),
        faces_seen=len(result.faces),
        faces_swapped=int((result.source >= 0).sum()),
        pack=swapper.pack.name,
        device=str(swapper.device),
        seconds={**seconds, "total": time.perf_counter() - began},
        warnings=picture.warnings + plan.unmet(result) + written.warnings,
        jpeg=written.jpeg,
        image=None if output is not None else result.frames[0],
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is put in and for whom, the same for any number of photos."""

    swapper: Swapper
    pairs: Sequence[tuple[Photo, Photo | None]]
    identities: Identities
    choose: Selection

    @classmethod
    def of(
        cls,
        swapper: Swapper,
        pairs: Sequence[tuple[Photo, Photo | None]],
        *,
        select: Selection | None = None,
        extra: Sequence[Photo] = (),
        source_face: int | None = None,
    ) -> Plan:
        """Read the sources and references; see `swap_image`."""
        identities = identify_sources(swapper, pairs, extra, source_face)
        return cls(swapper, pairs, identities, _selection(swapper, pairs, select))

    def swap(self, picture: Image) -> SwapResult:
        """One photo.

        Raises:
            NoFaceError: nothing in it is to be swapped.
        """
        result = self.swapper(picture.pixels[None], self.identities, self.choose)
        if not bool((result.source >= 0).any()):
            raise _nothing_swapped(result.faces, picture, self.choose, result.embedding)
        return result

    def unmet(self, result: SwapResult) -> tuple[str, ...]:
        """A warning for each reference that nobody in the photo matched."""
        return _unmet(self.pairs, self.choose, result)


def photos_of(pairs: Sequence[tuple[Photo, Photo | None]]) -> list[Photo]:
    """All photos that pairs name."""
    return [photo for pair in pairs for photo in pair if photo is not None]


def pair_up(
    source: Photo | Sequence[tuple[Photo, Photo]], reference: Photo | None
) -> list[tuple[Photo, Photo | None]]:
    """Pairs (source, reference photo), whichever way a caller named them."""
    if isinstance(source, (str, os.PathLike, np.ndarray, Tensor)):
        return [(source, reference)]
    if reference is not None:
        raise ConfigError("--target-ref goes with one source; pairs already name their references")
    if not source:
        raise ConfigError("no source photo; name one, or pairs with --map source.jpg=reference.jpg")
    return [(s, r) for s, r in source]


def identify_sources(
    swapper: Swapper,
    pairs: Sequence[tuple[Photo, Photo | None]],
    extra: Sequence[Photo],
    face: int | None,
) -> Identities:
    """The people to put in, one a pair."""
    if len(pairs) > 1 and (extra or face is not None):
        raise ConfigError("--source-extra and --source-face go with one source, not with --map")
    people = []
    for photo, _ in pairs:
        photos = [photo, *extra]
        pictures, names = (
            [_read(each).pixels for each in photos],
            [name_of(each) for each in photos],
        )
        people.append(swapper.identify(pictures, names[0], face=face, names=names))
    return merge(people)


def _selection(
    swapper: Swapper,
    pairs: Sequence[tuple[Photo, Photo | None]],
    select: Selection | None,
) -> Selection:
    """The rule of the call: `select`, completed with the embeddings of the references."""
    references = [r for _, r in pairs if r is not None]
    if not references:
        return select or Selection()
    match = swapper.config.match
    threshold = swapper.pack.similarity if match.threshold is None else match.threshold
    return Selection(
        face=select.face if select else None,
        all_faces=select.all_faces if select else False,
        references=embed_references(swapper, references),
        threshold=threshold,
        margin=match.margin,
    )


def embed_references(swapper: Swapper, photos: Sequence[Photo]) -> Tensor:
    """Identity of the largest face of each reference photo, ``(K, D) float32``."""
    rows = []
    for photo in photos:
        frames = _read(photo).pixels[None].to(swapper.device)
        faces = swapper.detect(frames)
        if not len(faces):
            raise NoFaceError(f"{name_of(photo)}: no face found in the reference photo")
        rows.append(swapper.embed(frames, faces[faces.size.argmax()[None]]))
    return torch.cat(rows)


def _unmet(
    pairs: Sequence[tuple[Photo, Photo | None]], select: Selection, result: SwapResult
) -> tuple[str, ...]:
    """A warning for each reference that nobody in the target matched."""
    if select.references is None or result.embedding is None:
        return ()
    best = similarity(result.embedding, select.references).amax(0).tolist()
    met = set(result.source.tolist())
    lines = []
    for row, (photo, reference) in enumerate(pairs):
        if reference is None or row in met:
            continue
        needed = f", needed {select.threshold:.2f}" if best[row] < select.threshold else ""
        who = "nobody in the target matches it" if needed else "nobody in the target is left for it"
        lines.append(
            f"{name_of(reference)}: {who} (best similarity {best[row]:.2f}{needed}), so "
            f"{name_of(photo)} was not used"
        )
    return tuple(lines)


def _nothing_swapped(
    faces: Faces, picture: Image, select: Selection, embedding: Tensor | None
) -> NoFaceError:
    """Why a target stayed as it was, and what to do."""
    name = picture.path or "target"
    if not len(faces):
        return NoFaceError(f"{name}: no face found; nothing was swapped and nothing written")
    if select.references is not None and embedding is not None:
        best = float(similarity(embedding, select.references).max())
        return NoFaceError(
            f"{name}: nobody matches the reference (best similarity {best:.2f}, needed "
            f"{select.threshold:.2f}); use another reference photo or --set match.threshold="
            f"{max(best - 0.01, 0):.2f}"
        )
    number = (select.face or 0) + 1
    return NoFaceError(f"{name}: has {_faces(len(faces))}, there is no number {number}")


def _faces(count: int) -> str:
    return f"{count} face" if count == 1 else f"{count} faces"


def _read(photo: Photo) -> Image:
    if isinstance(photo, (str, os.PathLike)):
        return read_image(photo)
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ConfigError(
                f"photo: expected an array (H, W, 3) uint8 RGB, got {photo.shape} {photo.dtype}"
            )
        return Image(torch.from_numpy(photo.copy()).permute(2, 0, 1).contiguous())
    if photo.ndim != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8:
        raise ConfigError(
            f"photo: expected a tensor (3, H, W) uint8 RGB, got {tuple(photo.shape)} {photo.dtype}"
        )
    return Image(photo)


def name_of(photo: Photo) -> str:
    """What reports call a photo."""
    return Path(photo).name if isinstance(photo, (str, os.PathLike)) else "array"
