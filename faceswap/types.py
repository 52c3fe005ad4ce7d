"""The records that stages hand to each other.

Frozen, slotted and checked once, at construction. What more there is to say of a face (an
embedding, a track id, dense landmarks) travels as a separate tensor whose row i is face i.

Letters used everywhere: B frames, N faces, K identities, S crop side, H W frame size,
D embedding size. Points are (x, y) in pixels, pixel centres at integers, origin top left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

# B pictures: one (B, 3, H, W) tensor, or B of (3, H, W) that may differ in size
Pictures = Tensor | Sequence[Tensor]


def _check(
    owner: str, name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{owner}.{name}: expected {shape}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise ValueError(f"{owner}.{name}: expected {dtype}, got {value.dtype}")


@dataclass(frozen=True, slots=True)
class Faces:
    """The N faces of a batch of B frames, as one flat table.

    Rows of one frame stand together and frames ascend, so ``faces.of(b)`` is a slice by mask.
    """

    frame: Tensor  # (N,) int64, row -> frame of the batch
    box: Tensor  # (N, 4) float32, x0 y0 x1 y1 in frame pixels
    points: Tensor  # (N, 5, 2) float32, left eye, right eye, nose, mouth left, mouth right, as seen
    score: Tensor  # (N,) float32 in [0, 1]

    def __post_init__(self) -> None:
        n = self.frame.shape[0] if self.frame.ndim else 0
        _check("Faces", "frame", self.frame, (n,), torch.int64)
        _check("Faces", "box", self.box, (n, 4), torch.float32)
        _check("Faces", "points", self.points, (n, 5, 2), torch.float32)
        _check("Faces", "score", self.score, (n,), torch.float32)

    def __len__(self) -> int:
        return self.frame.shape[0]

    def __getitem__(self, rows: Tensor) -> Faces:
        """Rows by boolean mask ``(N,)`` or by index ``(M,) int64``, in that order."""
        return Faces(self.frame[rows], self.box[rows], self.points[rows], self.score[rows])

    def of(self, frame: int) -> Faces:
        """The faces of one frame of the batch."""
        return self[self.frame == frame]

    def to(self, device: torch.device | str) -> Faces:
        """The same table on another device."""
        return Faces(
            self.frame.to(device),
            self.box.to(device),
            self.points.to(device),
            self.score.to(device),
        )

    @property
    def size(self) -> Tensor:
        """Longer box side of each face in pixels, ``(N,) float32``."""
        return (self.box[:, 2:] - self.box[:, :2]).amax(1) if len(self) else self.score

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> Faces:
        """A table without rows."""
        return Faces(
            torch.zeros(0, dtype=torch.int64, device=device),
            torch.zeros(0, 4, device=device),
            torch.zeros(0, 5, 2, device=device),
            torch.zeros(0, device=device),
        )

    @staticmethod
    def cat(tables: list[Faces]) -> Faces:
        """Tables one under the other; ``frame`` is kept as it is."""
        if not tables:
            return Faces.empty()
        return Faces(
            torch.cat([t.frame for t in tables]),
            torch.cat([t.box for t in tables]),
            torch.cat([t.points for t in tables]),
            torch.cat([t.score for t in tables]),
        )


@dataclass(frozen=True, slots=True)
class Identities:
    """K people whose faces can be put on somebody else."""

    names: tuple[str, ...]  # K, what reports call them (a file name as a rule)
    embedding: Tensor  # (K, D) float32, exactly as the generator wants it (GHOST: not normalised)
    crop: Tensor | None = None  # (L, 3, S, S) float32 in [0, 1], aligned faces, for warp guidance
    mesh: Tensor | None = None  # (L, 478, 3) float32, dense points in `crop` pixels
    person: Tensor | None = None  # (L,) int64, rising, who it is; None: one look each, L = K

    def __post_init__(self) -> None:
        d = self.embedding.shape[-1] if self.embedding.ndim else 0
        _check("Identities", "embedding", self.embedding, (len(self.names), d), torch.float32)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Skin around the eyes of N faces, and how dark it may be; all of a coarse grid of side G."""

    ring: Tensor  # (N, 1, G, G) in [0, 1], soft, without lids' edges and brows
    floor: Tensor  # (N, 1, G, G), share of the light that is left in the target's, less some slack
    light: Tensor  # (N, 3, G, G), the target's


@dataclass(frozen=True, slots=True)
class Guide:
    """What warp guidance knows of N swaps; maps ``(N, C, S, S)`` float, in the target's crop."""

    image: Tensor  # (N, 3, S, S) in [0, 1], the source's face warped and lit as the target
    base: Tensor  # (N, 3, S, S) in [0, 1], the target with its face low-passed
    region: Tensor  # (N, 1, S, S) in [0, 1], soft, where the swapped face will be
    mouth: Tensor  # (N, 1, S, S) in [0, 1], soft interior of the lips
    trust: Tensor  # (N, 1, S, S) in [0, 1], how well the source shows this part
    points: Tensor  # (N, 2, S, S) in [0, 1], landmarks and irises drawn as dots
    eyes: Tensor  # (N, 1, S, S) in [0, 1], where ``image`` shows the target's eyes, to be kept
    sockets: Sockets | None = None  # not to be darkened by a generator; None: it may

    @classmethod
    def of(cls, maps: Iterable[Tensor]) -> Guide:
        """A guide of maps in the order of `GUIDE_CHANNELS`."""
        return cls(**dict[str, Any](zip(GUIDE_CHANNELS, maps, strict=True)))


GUIDE_CHANNELS = {
    "image": 3,
    "base": 3,
    "region": 1,
    "mouth": 1,
    "trust": 1,
    "points": 2,
    "eyes": 1,
}


@dataclass(frozen=True, slots=True)
class SwapResult:
    """What the pipeline made of one batch of frames."""

    frames: Tensor  # (B, 3, H, W) uint8 RGB, the swapped frames
    faces: Faces  # every face seen in them
    source: Tensor  # (N,) int64, which identity face i received, -1 = left alone
    embedding: Tensor | None = None  # (N, D) float32, of the target faces, if they were computed

    def __post_init__(self) -> None:
        _check("SwapResult", "source", self.source, (len(self.faces),), torch.int64)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a container says about its video stream, and what else it carries."""

    width: int  # px, as shown (after rotation)
    height: int  # px, as shown (after rotation)
    rate: Fraction  # frames per second, average
    time_base: Fraction  # seconds per pts tick
    frames: int  # as the container says; 0 if it does not
    duration: float  # seconds; 0 if unknown
    rotation: int = 0  # degrees clockwise the player has to turn the picture: 0, 90, 180, 270
    pixel_format: str = "yuv420p"
    bits: int = 8  # per component
    codec: str = ""
    container: str = ""
    color_space: str = ""  # matrix, ffmpeg's name: bt709, smpte170m, bt2020nc ...
    color_primaries: str = ""
    color_transfer: str = ""
    color_range: str = ""  # tv, pc or empty
    sample_aspect: Fraction = Fraction(1)
    interlaced: bool = False
    variable_rate: bool = False
    alpha: bool = False
    audio: int = 0  # streams
    subtitles: int = 0  # streams


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What `swap_image` did to one photo."""

    output: str  # path written, or "" when the result was returned as an array
    faces_seen: int
    faces_swapped: int
    pack: str
    device: str
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    warnings: tuple[str, ...] = ()
    image: Tensor | None = None  # (3, H, W) uint8 RGB, when no file was written
    jpeg: str = ""  # of a JPEG made from a JPEG: "blocks kept", or "encoded again: REASON"


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What `swap_folder` did to a folder of photos."""

    output: str  # the folder written to
    photos: int  # found
    swapped: int  # written by this call
    there_already: int  # written by an earlier one, left as they are
    faces_swapped: int
    pack: str
    device: str
    left_out: tuple[tuple[str, str], ...] = ()  # photo (path in the folder), why: nobody to swap
    unreadable: tuple[tuple[str, str], ...] = ()  # photo, why
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VideoReport:
    """What `swap_video` did to one clip."""

    output: str
    frames: int
    faces_seen: int
    faces_swapped: int
    pack: str
    device: str
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    warnings: tuple[str, ...] = ()
    jitter: float | None = None  # `evaluate.temporal.jitter`, % of eye distance; None: too short
    tracks: int = 0  # faces followed through a shot
    bridged: int = 0  # swapped faces that the detector missed
    dropped: int = 0  # faces of tracks too short to be a person, left alone
    person: str = ""  # whom the clip itself had to name: who is swapped, and how present they are
    peak_mb: float | None = None  # most memory the process ever held
    swaps: tuple[dict[str, object], ...] = ()  # each track swapped: source, first, last, frames


@dataclass(frozen=True, slots=True)
class ClipPerson:
    """Somebody who is in a clip."""

    name: str
    portrait: str  # file, usable as a reference photo
    first: float  # seconds, when they are first seen
    share: float  # of the frames looked at in which they are seen
    appearances: tuple[tuple[float, float], ...]  # seconds from, to
    size: int  # px, middle size of the face


@dataclass(frozen=True, slots=True)
class PeopleReport:
    """What `list_people` found in a clip."""

    sheet: str  # contact sheet, a PNG
    people: tuple[ClipPerson, ...]  # the most present first
    samples: int  # frames looked at
    warnings: tuple[str, ...] = ()
