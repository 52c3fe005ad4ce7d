"""A few frames of a clip before and after, as one picture: how it will look, in seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.cast import Sources, Wish, cast_of
from faceswap.config import VideoConfig
from faceswap.errors import NoFaceError
from faceswap.faces.select import Selection
from faceswap.media.image import write_image
from faceswap.media.output import check_output
from faceswap.people import samples
from faceswap.photo import Photo
from faceswap.swap import Swapper
from faceswap.types import Faces, VideoReport
from faceswap.video import config_of

_WIDTH = 320  # px, of a frame on the strip
_GAP = 4  # px


def preview_video(
    swapper: Swapper,
    source: Sources,
    clip: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    count: int = 8,
    config: VideoConfig | None = None,
    reference: Photo | Sequence[Photo] | None = None,
    extra: Sequence[Photo] = (),
    source_face: int | None = None,
    all_faces: bool = False,
    overwrite: bool = False,
) -> VideoReport:
    """Swap frames spread over a clip, and write them below the originals as one picture.

    Frames are swapped one by one: a person is chosen, as `swap_video` would choose, but nobody is
    followed and nothing steadied.

    Args:
        swapper: models.
        source: as for `swap_video`, and so are the other arguments not named here.
        clip: the video.
        output: picture to write, such as a PNG.
        count: frames.
        config: all settings; by default those of the swapper.
        reference: see `swap_video`.
        extra: see `swap_video`.
        source_face: see `swap_video`.
        all_faces: see `swap_video`.
        overwrite: whether ``output`` may exist.

    Raises:
        MediaError: a file cannot be read or written.
        NoFaceError: nobody to swap in these frames; no file.
        ConfigError: options that exclude each other.
    """
    config, clip = config or config_of(swapper), os.fspath(clip)
    wish = Wish(source, reference, extra, source_face, all_faces)
    inputs = [p for p in (clip, *wish.photos) if isinstance(p, (str, os.PathLike))]
    target = check_output(output, inputs, overwrite)
    cast = cast_of(swapper, wish, clip, config)
    rule = cast.rule(swapper, config)
    choose = Selection(
        all_faces=cast.everyone,
        references=None if cast.references is None else cast.references.to(swapper.device),
        threshold=rule.threshold,
        margin=rule.margin,
    )
    roles = torch.tensor([*cast.roles, -1], device=swapper.device)  # the last for "left alone"

    def role(faces: Faces, embedding: Tensor | None) -> Tensor:
        return roles[choose(faces, embedding)]

    role.needs_embedding = choose.needs_embedding  # type: ignore[attr-defined]
    columns, seen, swapped, warnings = [], 0, 0, list[str]()
    for _, frame in samples(clip, config, count, warnings):
        result = swapper(frame[None], cast.identities, role)
        columns.append(torch.cat([_small(frame), _small(result.frames[0])], 1))
        seen += len(result.faces)
        swapped += int((result.source >= 0).sum())
    if not swapped:
        raise NoFaceError(
            f"{clip}: nobody to swap in {len(columns)} frames spread over it ({seen} faces in "
            "them); nothing written"
        )
    warnings += write_image(target, torch.cat(columns, 2), overwrite=overwrite).warnings
    return VideoReport(
        output=str(Path(target)),
        frames=len(columns),
        faces_seen=seen,
        faces_swapped=swapped,
        pack=swapper.pack.name,
        device=str(swapper.device),
        seconds=dict(swapper.seconds),
        warnings=tuple(warnings),
        person=cast.person,
    )


def _small(frame: Tensor) -> Tensor:
    """A frame as it stands on the strip, ``(3, h, w) uint8`` with a dark edge."""
    height, width = frame.shape[1:]
    size = (max(1, round(height * min(1.0, _WIDTH / width))), min(width, _WIDTH))
    small = F.interpolate(frame[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return F.pad(small.round().clamp(0, 255).byte(), (0, _GAP, 0, _GAP), value=24)
