"""Who is in a clip: faces of a few frames spread over it, sorted into people."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.config import VideoConfig
from faceswap.errors import MediaError, NoFaceError
from faceswap.faces.shots import is_cut, thumbnails
from faceswap.faces.track import Place, quality
from faceswap.media.reader import VideoReader
from faceswap.ops.geometry import align
from faceswap.swap import Swapper
from faceswap.types import ClipPerson, PeopleReport

QUICK = 40  # frames looked at to find the most present person
THOROUGH = 240  # frames looked at to list everybody
_TOGETHER = 8  # samples that the detector sees together
_SEEK_SECONDS = 2.0  # with samples further apart than this, the clip is not read through
_CLOSEST_SECONDS = 0.1  # samples are never nearer together
_CONFIDENT = 0.05  # quality under which a face says nothing about who it is
_GOOD = 0.4  # quality of a face that is believed though it is seen once
_LARGE_PORTRAITS = 64  # kept at full size
_RIVALS = 12  # people, the one that is looked for among them, who are told apart
_NEVER = 1e6  # distance of what cannot be the same
_VIEW = 2.2  # side of a portrait, in sizes of the face
_PORTRAIT = 1024  # px, longest side of a portrait
_SHEET = 128  # px, side of a picture on the contact sheet
_SHEET_ROW = 6  # pictures of a person on it


@dataclass(slots=True)
class Sight:
    """A face in a sampled frame."""

    seconds: float
    sample: int  # number of the frame among the samples
    size: float  # px
    quality: float
    crop: Tensor  # (3, S, S) float32 in [0, 1], as the identity encoder wants it
    portrait: Tensor  # (3, h, w) uint8, the face and some of what is around it


@dataclass(slots=True)
class Person:
    """One person, as seen in samples of a clip."""

    sights: list[Sight]
    embedding: Tensor  # (D,) float32, unit length
    share: float  # of the samples in which they are seen

    @property
    def best(self) -> Sight:
        """The clearest sight of them."""
        return max(self.sights, key=lambda sight: sight.quality)


def most_present(swapper: Swapper, clip: str, config: VideoConfig) -> tuple[Tensor | None, str]:
    """Whom to swap if nobody was named: the person seen in most of the clip.

    Returns:
        Their identity, and behind it those of others in the clip, whom they are not to be mistaken
        for, ``(K, D)``; and one line about them. None and "" if a single person is in view; if
        they are so in one shot, the identity network has not run.

    Raises:
        MediaError: the clip cannot be read.
    """
    census = _look_through(swapper, clip, config, QUICK)
    alone = all(n <= 1 for n in Counter(sight.sample for sight in census.sights).values())
    if (alone and census.one_shot) or not census.sights:
        return None, ""
    people = _sort(swapper, census)
    if len(people) < 2:
        return None, ""
    first, second = people[:2]
    return torch.stack([person.embedding for person in people[:_RIVALS]]), (
        f"{len(people)} people are in the clip; the one seen in {first.share:.0%} of it is "
        f"swapped, the next is in {second.share:.0%} (--target-ref takes another, `faceswap "
        "faces` shows who is there)"
    )


def list_people(
    swapper: Swapper,
    clip: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    config: VideoConfig | None = None,
) -> PeopleReport:
    """List the people in a clip; write a contact sheet and one portrait each.

    The portraits ``person-1.png``, ``person-2.png`` ... (the most present first) are cut from the
    clip and serve as reference photos; ``people.png`` is the sheet.

    Args:
        swapper: models; only detector and identity encoder are used.
        clip: the video.
        out_dir: folder to write to; made if it is not there. Files of these names are replaced.
        config: of it, ``start`` and ``end``.

    Raises:
        MediaError: the clip cannot be read, or the folder not be written to.
        NoFaceError: nobody is found; nothing is written.
    """
    clip, folder = os.fspath(clip), Path(out_dir)
    census = _look_through(swapper, clip, config or VideoConfig(), THOROUGH)
    people = _sort(swapper, census) if census.sights else []
    if not people:
        raise NoFaceError(f"{clip}: no face found in {census.samples} frames spread over it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listed = []
        for number, person in enumerate(people, 1):
            path = folder / f"person-{number}.png"
            _save(person.best.portrait, path)
            listed.append(_described(person, census, path))
        sheet = folder / "people.png"
        _contact_sheet(people, listed).save(sheet)
    except OSError as error:
        raise MediaError(f"Cannot write into {str(folder)!r}: {error.strerror}") from error
    return PeopleReport(str(sheet), tuple(listed), census.samples, tuple(census.warnings))


@dataclass(slots=True)
class _Census:
    sights: list[Sight]
    samples: int  # frames looked at
    interval: float  # seconds from one to the next
    cuts: list[int]  # samples that another shot begins with, as far as one can tell
    warnings: list[str]

    @property
    def one_shot(self) -> bool:
        return not self.cuts


def _look_through(swapper: Swapper, clip: str, config: VideoConfig, count: int) -> _Census:
    """Faces of about ``count`` frames spread evenly over a clip."""
    census = _Census([], 0, 0.0, [], [])
    last, moments = None, []
    sampled = samples(clip, config, count, census.warnings)
    while taken := list(itertools.islice(sampled, _TOGETHER)):
        frames = torch.stack([frame for _, frame in taken]).to(swapper.device)
        for number, small in enumerate(thumbnails(frames), census.samples):
            if last is not None and is_cut(last, small):
                census.cuts.append(number)
            last = small
        times = [seconds for seconds, _ in taken]
        census.sights += _sights(swapper, frames, times, census.samples)
        census.samples += len(taken)
        moments += times
        _thin_out(census.sights)
    if len(moments) > 1:
        census.interval = (moments[-1] - moments[0]) / (len(moments) - 1)
    return census


def _sights(
    swapper: Swapper,
    frames: Tensor,  # (B, 3, H, W) uint8
    times: Sequence[float],  # B, seconds
    first: int,  # number of the first among the samples
) -> list[Sight]:
    """The faces of some samples."""
    faces = swapper.detect(frames)
    aligned = align(faces.points, swapper.encoder.size, template="arcface")
    crops, faces = aligned.crop(frames, faces.frame), faces.to("cpu")
    sights = []
    for row, (crop, b) in enumerate(zip(crops, faces.frame.tolist(), strict=True)):
        place = Place(faces.box[row], faces.points[row], float(faces.score[row]))
        portrait = _portrait(frames[b].cpu(), place)
        sights.append(Sight(times[b], first + b, place.size, quality(place), crop, portrait))
    return sights


def samples(
    clip: str, config: VideoConfig, count: int, warnings: list[str]
) -> Iterator[tuple[float, Tensor]]:
    """(seconds from the start of the clip, frame) of about ``count`` frames spread over it."""
    start, stop = config.start or None, config.end
    with VideoReader(clip, start, stop, batch=1) as reader:
        info, zero = reader.info, reader.origin * reader.info.time_base - Fraction(start or 0)
        length = min(info.duration or float("inf"), stop or float("inf")) - (start or 0.0)
        step = 1.0 if length == float("inf") else max(_CLOSEST_SECONDS, length / count)
        if step < _SEEK_SECONDS or length == float("inf"):
            due = 0.0
            for batch in reader:
                seconds = float(batch.seconds[0] - zero)
                if seconds - (start or 0.0) >= due:
                    due = seconds - (start or 0.0) + step
                    yield seconds, batch.frames[0]
            warnings.extend(reader.warnings)
            return
        for number in range(int(length / step)):
            there = reader.frame_at((start or 0.0) + (number + 0.5) * step)
            if there is not None:  # else nothing can be decoded there; whoever swaps will say so
                yield float(there.seconds[0] - zero), there.frames[0]


def _thin_out(sights: list[Sight]) -> None:
    """Keep large portraits only of the clearest faces; the others shrink, so memory is bounded."""
    for rank, sight in enumerate(sorted(sights, key=lambda sight: -sight.quality)):
        side = max(sight.portrait.shape[1:])
        limit = _PORTRAIT if rank < _LARGE_PORTRAITS else _SHEET
        if side > limit:
            scale = limit / side
            small = F.interpolate(
                sight.portrait[None].float(), scale_factor=scale, mode="bilinear", antialias=True
            )
            sight.portrait = small[0].round().clamp(0, 255).byte()


def _sort(swapper: Swapper, census: _Census) -> list[Person]:
    """People, the most present first: average-linkage clusters of identities (Sokal 1958)."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    sights = [sight for sight in census.sights if sight.quality >= _CONFIDENT]
    if not sights:
        return []
    crops = torch.stack([sight.crop for sight in sights])
    embedding = F.normalize(swapper.encoder.embed(crops).cpu(), dim=1)
    labels = np.ones(len(sights), dtype=np.int64)
    if len(sights) > 1:
        apart = pdist(embedding.double().numpy(), "cosine")
        frame = np.array([[sight.sample] for sight in sights], dtype=float)
        apart[pdist(frame, "cityblock") == 0] = _NEVER  # two faces of a frame are two people
        tree = linkage(apart, method="average")
        labels = fcluster(tree, 1 - swapper.pack.similarity, criterion="distance")
    people = []
    for label in sorted(set(labels.tolist())):
        rows = [row for row, each in enumerate(labels.tolist()) if each == label]
        own = [sights[row] for row in rows]
        share = len({sight.sample for sight in own}) / census.samples
        people.append(Person(own, F.normalize(embedding[rows].mean(0), dim=0), share))
    people.sort(key=lambda person: (-person.share, -person.best.size))
    # Somebody seen once, and not well, is as likely no face at all.
    return [p for p in people if len(p.sights) > 1 or p.best.quality > _GOOD] or people[:1]


def _described(person: Person, census: _Census, portrait: Path) -> ClipPerson:
    """What the list says of a person."""
    appearances: list[tuple[float, float]] = []
    before: int | None = None
    for sight in sorted(person.sights, key=lambda sight: sight.sample):
        if before is not None and sight.sample - before <= 1 and sight.sample not in census.cuts:
            appearances[-1] = (appearances[-1][0], sight.seconds)
        elif before != sight.sample:
            appearances.append((sight.seconds, sight.seconds))
        before = sight.sample
    sizes = sorted(sight.size for sight in person.sights)
    return ClipPerson(
        name=portrait.stem,
        portrait=str(portrait),
        first=appearances[0][0],
        share=person.share,
        appearances=tuple((a, b + census.interval) for a, b in appearances),
        size=round(sizes[len(sizes) // 2]),
    )


def _portrait(frame: Tensor, place: Place) -> Tensor:
    """A square around a face, ``(3, h, w) uint8``, as far as the frame goes."""
    height, width = frame.shape[1:]
    x, y = ((place.box[:2] + place.box[2:]) / 2).tolist()
    half = _VIEW / 2 * place.size
    top, left = max(0, int(y - half)), max(0, int(x - half))
    return frame[
        :, top : min(height, int(y + half) + 1), left : min(width, int(x + half) + 1)
    ].clone()


def _save(pixels: Tensor, path: Path) -> None:
    PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(path)


def _contact_sheet(people: Sequence[Person], listed: Sequence[ClipPerson]) -> PIL.Image.Image:
    """A row for each person: who, when, how large, and some sights in the order of time."""
    label = 2 * _SHEET
    size = (label + _SHEET_ROW * _SHEET, len(people) * _SHEET)
    sheet = PIL.Image.new("RGB", size, (24, 24, 24))
    draw = PIL.ImageDraw.Draw(sheet)
    for row, (person, entry) in enumerate(zip(people, listed, strict=True)):
        text = (
            f"{entry.name}\nin {entry.share:.0%} of the clip\nfrom {entry.first:.1f} s, "
            f"{len(entry.appearances)} times\nface {entry.size} px"
        )
        draw.multiline_text((8, row * _SHEET + 8), text, fill=(235, 235, 235), spacing=6)
        chosen = sorted(person.sights, key=lambda sight: -sight.quality)[:_SHEET_ROW]
        for column, sight in enumerate(sorted(chosen, key=lambda sight: sight.seconds)):
            picture = PIL.Image.fromarray(sight.portrait.permute(1, 2, 0).contiguous().numpy())
            picture.thumbnail((_SHEET - 4, _SHEET - 4))
            sheet.paste(picture, (label + column * _SHEET + 2, row * _SHEET + 2))
    return sheet
