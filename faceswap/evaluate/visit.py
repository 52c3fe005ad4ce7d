"""Measure the swap of a clip, frame by frame; rows of swaps in general."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.evaluate.extract import Instruments
from faceswap.evaluate.protocol import Triple, is_clip
from faceswap.evaluate.seen import Seen, look
from faceswap.evaluate.table import FAILURE, Row
from faceswap.evaluate.thumbs import cut, grey, pack
from faceswap.evaluate.values import NO_TARGET, curve_values, face_values, view
from faceswap.media.image import read_image

BATCH = 8  # frames of a clip that are looked at together


@dataclass(frozen=True, slots=True)
class Source:
    """The person put in, as their photo or clip shows them."""

    seen: Seen  # frames with a face only; none at all if there is a `reason`
    thumb: bytes  # JPEG of (3, T, T)
    reason: str = ""

    @staticmethod
    def none(reason: str) -> Source:
        """Nobody, and why."""
        return Source(Seen.empty(), pack(grey(1)), reason)


@dataclass(slots=True)
class Visit:
    """What one swap gave; lists have one entry a row."""

    rows: list[Row] = field(default_factory=list)
    swapped: list[dict[str, Tensor]] = field(default_factory=list)  # encoder -> (D,), if seen
    thumbs: list[bytes] = field(default_factory=list)  # JPEG of (3, T, 2T): target, swapped
    features: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (D,) target, swapped
    curves: dict[str, Tensor] = field(default_factory=dict)  # measure -> (frames,), clips only
    images: int = 0  # swapped pictures or frames that were looked at


def frames_of(
    paths: Sequence[Path],
    wanted: Container[int],
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Frames of several versions of one photo or clip, side by side.

    Args:
        paths: the versions; all photos or all clips.
        wanted: frames to give out; a photo is frame 0 and always given.

    Yields:
        Numbers of the frames, and for each version ``(B, 3, H, W) uint8``.

    Raises:
        MediaError: one cannot be read, or they differ in size or length.
    """
    if not is_clip(paths[0]):
        photos = [read_image(path).pixels[None] for path in paths]
        check_sizes(paths, photos)
        yield [0], photos
        return
    from faceswap.media.reader import VideoReader

    with ExitStack() as stack:
        readers = [stack.enter_context(VideoReader(path, batch=BATCH)) for path in paths]
        start = 0
        for batches in itertools.zip_longest(*readers):
            parts = [None if batch is None else batch.frames for batch in batches]
            lengths = [0 if part is None else len(part) for part in parts]
            if len(set(lengths)) > 1:
                raise MediaError(
                    f"{str(paths[0])!r} and {str(paths[1])!r} differ in length: "
                    f"{start + lengths[0]} and {start + lengths[1]} frames or more"
                )
            frames = [part for part in parts if part is not None]
            check_sizes(paths, frames)
            keep = [i for i in range(lengths[0]) if start + i in wanted]
            if keep:
                yield [start + i for i in keep], [part[keep] for part in frames]
            start += lengths[0]


def spaced(path: Path, count: int) -> list[int]:
    """Numbers of so many frames of a clip, evenly spaced; all of a shorter one; 0 of a photo."""
    if not is_clip(path):
        return [0]
    from faceswap.media.reader import VideoReader

    with VideoReader(path, batch=BATCH) as reader:
        total = reader.info.frames or sum(len(batch.frames) for batch in reader)
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def look_at_clip(tools: Instruments, path: Path, frames: int) -> Source:
    """The face in so many frames of a clip."""
    parts: list[tuple[Tensor, Seen]] = []
    reason = "no face in the source"
    try:
        for _, (pictures,) in frames_of([path], spaced(path, frames)):
            parts.append((pictures, look(tools, pictures)))
    except MediaError as error:
        reason = str(error)
    return source_of(tools, parts, reason)


def source_of(
    tools: Instruments,
    parts: Sequence[tuple[Tensor, Seen]],  # each: pictures (B, 3, H, W) uint8, and what they show
    reason: str = "no face in the source",
) -> Source:
    """A person as these pictures show them; with the reason if they show nobody."""
    faces = [(p[b], s[_one(b)]) for p, s in parts for b in range(len(s)) if bool(s.valid[b])]
    if not faces:
        return Source.none(reason)
    picture, seen = faces[0]
    thumb = pack(cut(picture.to(tools.device), seen.mesh[0]))
    return Source(Seen.cat([s for _, s in faces]), thumb)


def visit_clip(
    tools: Instruments, triple: Triple, source: Source, *, frames: int, track: int
) -> Visit:
    """Measure the swap of a clip.

    Args:
        tools: what looks.
        triple: the swap.
        source: the person put in.
        frames: evenly spaced ones that faces are measured in; so many.
        track: frames from the start that jitter, drift and flicker are taken over.

    Raises:
        MediaError: target or swapped cannot be read, or differ in size or length.
    """
    out = Visit()
    measured = set(spaced(triple.target, frames))
    tracked = range(track)
    wanted = measured | set(tracked)
    before: Tensor | None = None
    parts: list[tuple[Tensor, ...]] = []
    for numbers, pair in frames_of([triple.target, triple.swapped], wanted):
        pictures = pair[0].to(tools.device), pair[1].to(tools.device)
        t = look(tools, pictures[0], clip=True, before=before)
        out.images += len(numbers)
        s = look(tools, pictures[1], t)
        before = t.mesh[-1] if bool(t.valid[-1]) else None
        rows = [i for i, number in enumerate(numbers) if number in measured]
        if rows:
            at = torch.tensor(rows, device=tools.device)
            add(out, tools, (pictures[0][at], pictures[1][at]), t[at], s[at], source)
            for row, i in zip(out.rows[-len(rows) :], rows, strict=True):
                row.frame = numbers[i]
        following = [i for i, number in enumerate(numbers) if number in tracked]
        if following:
            at = torch.tensor(following, device=tools.device)
            parts.append(_for_track((pictures[0][at], pictures[1][at]), t[at], s[at]))
    if parts:
        out.curves = curve_values(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return out


def visit_failed(tools: Instruments, triple: Triple, source: Source, reason: str) -> Visit:
    """A swap that could not be made: a failure of identity, if the target has a face at all.

    Raises:
        MediaError: the target cannot be read.
    """
    _, (pictures,) = next(frames_of([triple.target], [0]))
    seen = look(tools, pictures[:1])
    there = bool(seen.valid[0])
    values = {k: v for k, v in FAILURE.items() if k != "ID retrieval" or "cosface" in seen.extra}
    row = Row(0, 0, values if there and len(source.seen) else {}, reason if there else NO_TARGET)
    return Visit([row], [{}], [pack(grey(2))])


def unreadable(reason: str) -> Visit:
    """A swap of which nothing can be said."""
    return Visit([Row(0, 0, reason=reason)], [{}], [pack(grey(2))])


def add(
    out: Visit,
    tools: Instruments,
    pictures: tuple[Tensor, Tensor],
    target: Seen,
    swapped: Seen,
    source: Source,
) -> None:
    """Measure B frames and put them at the end of a visit."""
    values, reasons = face_values(tools.shape, pictures, target, swapped, source.seen)
    for b, (row, reason) in enumerate(zip(values, reasons, strict=True)):
        out.rows.append(Row(0, 0, row, reason or source.reason))
        seen = bool(swapped.valid[b])
        extra = {k: v[b].cpu() for k, v in swapped.extra.items() if k == "cosface"} if seen else {}
        out.swapped.append({"": swapped.embedding[b].cpu(), **extra} if seen else {})
        if seen and "features" in swapped.extra:
            both = target.extra["features"][b], swapped.extra["features"][b]
            out.features.append((both[0].cpu(), both[1].cpu()))
        if bool(target.valid[b]):
            crops = [cut(frames[b], target.mesh[b]) for frames in pictures]
            out.thumbs.append(pack(torch.cat(crops, 2)))
        else:
            out.thumbs.append(pack(grey(2)))


def _for_track(pictures: tuple[Tensor, Tensor], target: Seen, swapped: Seen) -> tuple[Tensor, ...]:
    """What `curve_values` wants of B frames, on the CPU."""
    mesh = target.mesh.nan_to_num(0.0)
    crops = torch.stack([view(frames, mesh)[0] for frames in pictures], 1)
    small = (crops * 255).round().byte()
    return tuple(x.cpu() for x in (target.mesh, swapped.mesh, swapped.embedding, small))


def _one(row: int) -> Tensor:
    return torch.tensor([row])


def check_sizes(
    paths: Sequence[Path],
    frames: Sequence[Tensor],  # each (B, 3, H, W)
) -> None:
    """Refuse versions of one picture that differ in size.

    Raises:
        MediaError: the first that differs from the first path's.
    """
    for path, each in zip(paths, frames, strict=True):
        (h, w), (height, width) = each.shape[2:], frames[0].shape[2:]
        if (h, w) != (height, width):
            raise MediaError(
                f"{str(path)!r} is {w}x{h}, its target {str(paths[0])!r} is {width}x{height}; "
                "they have to be equal"
            )
