"""Who is put on whom in a clip: what the user said, turned into identities and references."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from faceswap.casting import Casting
from faceswap.config import VideoConfig
from faceswap.errors import ConfigError
from faceswap.people import most_present
from faceswap.photo import Photo, embed_references, identify_sources, pair_up
from faceswap.swap import Swapper
from faceswap.types import Identities

Sources = Photo | Sequence[tuple[Photo, Photo]]  # one photo, or pairs (source, reference photo)


@dataclass(frozen=True, slots=True)
class Wish:
    """Who is to be put on whom, as the user said it; see `swap_video` for the fields.

    Raises:
        ConfigError: wishes that exclude each other.
    """

    source: Sources
    reference: Photo | Sequence[Photo] | None = None
    extra: Sequence[Photo] = ()
    source_face: int | None = None
    all_faces: bool = False

    def __post_init__(self) -> None:
        paired = not isinstance(self.source, (str, os.PathLike, np.ndarray, Tensor))
        if self.all_faces and (self.references or paired):
            raise ConfigError("--all-faces and references (--target-ref, --map) exclude each other")

    @property
    def references(self) -> list[Photo]:
        """Those that go with a single source."""
        if self.reference is None:
            return []
        if isinstance(self.reference, (str, os.PathLike, np.ndarray, Tensor)):
            return [self.reference]
        return list(self.reference)

    @property
    def pairs(self) -> list[tuple[Photo, Photo | None]]:
        """(source, reference photo)."""
        if len(self.references) < 2:
            return pair_up(self.source, next(iter(self.references), None))
        return [pair for each in self.references for pair in pair_up(self.source, each)]

    @property
    def photos(self) -> list[Photo]:
        """All photos that the result depends on."""
        return [photo for pair in self.pairs for photo in pair if photo is not None] + [*self.extra]

    @property
    def digest(self) -> list[object]:
        """The same for the same wish, and for no other: contents count, not names."""
        return [[_digest(photo) for photo in self.photos], self.source_face, self.all_faces]


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is put on whom."""

    identities: Identities
    roles: tuple[int, ...]  # row of `identities` for each reference; -1 = to be left alone
    references: Tensor | None  # (K, D) float32
    everyone: bool
    person: str = ""  # one line about whom the clip itself had to name

    def rule(self, swapper: Swapper, config: VideoConfig) -> Casting:
        """How tracks get their sources."""
        threshold = config.match.threshold
        return Casting(
            self.references,
            threshold=swapper.pack.similarity if threshold is None else threshold,
            margin=config.match.margin,
            everyone=self.everyone,
        )


def cast_of(swapper: Swapper, wish: Wish, clip: str, config: VideoConfig) -> Cast:
    """Look at the photos, and, where they do not say whom to replace, at the clip.

    Raises:
        NoFaceError: no face in a source or reference.
        MediaError: a file cannot be read.
    """
    kept: list[tuple[Photo, Photo | None]] = []  # each source once
    roles = []
    for pair in wish.pairs:
        known = [i for i, other in enumerate(kept) if other[0] is pair[0]]
        roles.append(known[0] if known else len(kept))
        if not known:
            kept.append(pair)
    identities = identify_sources(swapper, kept, wish.extra, wish.source_face)
    photos = [reference for _, reference in wish.pairs if reference is not None]
    if photos:
        return Cast(identities, tuple(roles), embed_references(swapper, photos), False)
    if wish.all_faces:
        return Cast(identities, (0,), None, True)
    references, person = most_present(swapper, clip, config)
    others = 0 if references is None else len(references) - 1
    return Cast(identities, (0,) + (-1,) * others, references, False, person)


def _digest(photo: Photo) -> str:
    if isinstance(photo, (str, os.PathLike)):
        return hashlib.sha256(Path(photo).read_bytes()).hexdigest()
    pixels = photo.cpu().numpy() if isinstance(photo, Tensor) else photo
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
