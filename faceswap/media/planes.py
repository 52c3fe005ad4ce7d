"""A video frame as the codec sees it, beside the 8-bit RGB that the networks see.

The networks get RGB; the writer gets the frame's own planes (YUV of any depth and subsampling, or
RGB), and into these only the *difference* that the swap made is added. So what is not swapped goes
to the encoder exactly as the decoder gave it, in 8, 10 or 12 bits, whatever its colour matrix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceswap.types import VideoInfo

Plane = NDArray[Any]  # (h, w) uint8 or little-endian uint16; differences are float32
# Red and blue luma weights by ffmpeg's name of the matrix (ITU-T H.273, table 4).
_LUMA = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt470bg": (0.299, 0.114),
    "smpte170m": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020nc": (0.2627, 0.0593),
    "bt2020c": (0.2627, 0.0593),  # as if non-constant; only differences pass through it
}
# Formats that are not planar, and the planar ones that hold the same samples.
_SAME_SAMPLES = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "p010le": "yuv420p10le",
    "p210le": "yuv422p10le",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yuv411p": "yuv444p",
    "yuv410p": "yuv444p",
    "monow": "gray",
    "monob": "gray",
}
_SUBSAMPLING = {"420": (2, 2), "422": (2, 1), "440": (1, 2), "444": (1, 1)}


@dataclass(frozen=True, slots=True)
class PlaneFormat:
    """A planar pixel format of ffmpeg."""

    name: str  # ffmpeg's name: yuv420p10le, gbrap, gray
    kind: str  # "yuv", "gbr" or "gray"
    bits: int
    sub_x: int = 1  # columns of luma per column of chroma
    sub_y: int = 1
    alpha: bool = False

    @property
    def sample_bytes(self) -> int:
        """1 or 2; two are little-endian."""
        return 1 if self.bits == 8 else 2

    @property
    def top(self) -> int:
        """Largest sample."""
        return int(2**self.bits - 1)

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of each plane of a frame; subsampled sides are rounded up."""
        full = (height, width)
        if self.kind == "gray":
            return [full]
        chroma = (-(-height // self.sub_y), -(-width // self.sub_x))
        second = chroma if self.kind == "yuv" else full
        return [full, second, second] + [full] * self.alpha


def parse_format(name: str) -> PlaneFormat | None:
    """The planar format of this name; None if it is another kind of format."""
    match = re.fullmatch(r"yuv(a?)j?(4\d\d)p(?:(\d+)le)?", name)
    if match and match[2] in _SUBSAMPLING:
        x, y = _SUBSAMPLING[match[2]]
        return PlaneFormat(name, "yuv", int(match[3] or 8), x, y, bool(match[1]))
    match = re.fullmatch(r"gbr(a?)p(?:(\d+)le)?", name)
    if match:
        return PlaneFormat(name, "gbr", int(match[2] or 8), alpha=bool(match[1]))
    match = re.fullmatch(r"gray(?:(\d+)le)?", name)
    return PlaneFormat(name, "gray", int(match[1] or 8)) if match else None


def carrier(name: str, alpha: bool, deep: bool, turned: bool) -> PlaneFormat:
    """The planar format that holds the samples of any other.

    Args:
        name: ffmpeg's name of the other.
        alpha: it has alpha.
        deep: it has more than 8 bits.
        turned: the frames are turned by 90 degrees, so chroma has to be the same both ways.
    """
    name = name.replace("yuvj", "yuv")
    name = _SAME_SAMPLES.get(name, name)
    form = parse_format(name[:-2] + "le" if name.endswith("be") else name)
    if form is None:
        form = parse_format(("gbrap" if alpha else "gbrp") + ("16le" if deep else ""))
    if form is not None and turned and form.sub_x != form.sub_y:
        form = parse_format(form.name.replace("422", "444").replace("440", "444"))
    assert form is not None  # every name made here is one
    return form


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """Some consecutive frames of a video."""

    frames: Tensor  # (B, 3, H, W) uint8 RGB, upright
    pts: tuple[int, ...]  # B, presentation times in ticks of `time_base`, strictly increasing
    time_base: Fraction  # seconds per tick
    planes: tuple[tuple[Plane, ...], ...]  # B tuples, the same frames in the stream's own format

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def seconds(self) -> tuple[Fraction, ...]:
        """Exact presentation times, B."""
        return tuple(pts * self.time_base for pts in self.pts)


def matrix_of(info: VideoInfo) -> str:
    """The colour matrix to convert with; an untagged stream is bt709 from 720 lines on."""
    if info.color_space in _LUMA:
        return info.color_space
    return "bt709" if min(info.height, info.width) >= 720 else "smpte170m"


def with_changes(
    planes: tuple[Plane, ...],
    old: Tensor,  # (3, H, W) uint8 RGB, what the networks were shown of these planes
    new: Tensor,  # (3, H, W) uint8 RGB, what they made of it
    info: VideoInfo,
) -> tuple[Plane, ...]:
    """The planes with the change from ``old`` to ``new`` put in.

    Samples whose pixels did not change are the same, bit for bit; without any change the very
    arrays that came in are returned.
    """
    form = parse_format(info.pixel_format)
    assert form is not None  # the reader gives planar formats only
    box = _changed_box(old, new)
    if box is None:
        return planes
    y0, y1, x0, x1 = box
    delta = _numpy(new[:, y0:y1, x0:x1]).astype(np.float32, order="C")
    delta -= _numpy(old[:, y0:y1, x0:x1])
    full_range = _is_full_range(form, info)
    if form.kind == "gbr":
        parts = delta[[1, 2, 0]]
    else:
        matrix = _to_yuv(matrix_of(info) if form.kind == "yuv" else "smpte170m")
        parts = (matrix @ delta.reshape(3, -1)).reshape(delta.shape)
    result = list(planes)
    for index in range(1 if form.kind == "gray" else 3):
        chroma = index > 0 and form.kind == "yuv"
        steps = form.top if full_range else (224 if chroma else 219) << form.bits - 8
        sub_y, sub_x = (form.sub_y, form.sub_x) if chroma else (1, 1)
        small = _shrink(parts[index], sub_y, sub_x) * np.float32(steps / 255)
        plane = planes[index].copy()
        top, left = y0 // sub_y, x0 // sub_x
        place = plane[top : top + small.shape[0], left : left + small.shape[1]]
        small = np.rint(small[: place.shape[0], : place.shape[1]])
        small += place
        place[:] = np.clip(small, 0, form.top, out=small)
        result[index] = plane
    return tuple(result)


def from_rgb(frame: Tensor, info: VideoInfo) -> tuple[Plane, ...]:
    """A frame (3, H, W) uint8 RGB in the stream's own format; alpha is opaque."""
    form = parse_format(info.pixel_format)
    assert form is not None
    full_range = _is_full_range(form, info)
    black = 0 if full_range else 16 << form.bits - 8
    values = [black, 1 << form.bits - 1, 1 << form.bits - 1] if form.kind == "yuv" else [black] * 3
    shapes = form.shapes(*frame.shape[1:])
    fill = zip(shapes, [*values, form.top], strict=False)  # grey takes one, alpha the last
    planes = [np.full(shape, value, f"<u{form.sample_bytes}") for shape, value in fill]
    return with_changes(tuple(planes), torch.zeros_like(frame), frame, info)


def to_rgb(planes: tuple[Plane, ...], form: PlaneFormat) -> Plane:
    """(3, H, W) uint8 of RGB or grey planes, rounded to 8 bits."""
    order = [2, 0, 1] if form.kind == "gbr" else [0, 0, 0]
    stacked = np.stack([planes[index] for index in order])
    if form.bits == 8:
        return stacked
    rounded: Plane = np.rint(stacked * np.float32(255 / form.top)).astype(np.uint8)
    return rounded


def with_even_sides(info: VideoInfo) -> VideoInfo:
    """The same video with a row or column more where a side is odd."""
    return replace(info, width=info.width + info.width % 2, height=info.height + info.height % 2)


def even_sides(planes: tuple[Plane, ...], info: VideoInfo) -> tuple[Plane, ...]:
    """Planes of ``info`` as those of ``with_even_sides(info)``; the last row or column twice."""
    form = parse_format(info.pixel_format)
    assert form is not None
    larger = with_even_sides(info)
    shapes = form.shapes(larger.height, larger.width)
    return tuple(
        np.pad(plane, [(0, new - old) for new, old in zip(shape, plane.shape, strict=True)], "edge")
        for plane, shape in zip(planes, shapes, strict=True)
    )


def _is_full_range(form: PlaneFormat, info: VideoInfo) -> bool:
    return info.color_range == "pc" or form.kind != "yuv"  # ffmpeg takes all grey for full range


def _changed_box(old: Tensor, new: Tensor) -> tuple[int, int, int, int] | None:
    """y0, y1, x0, x1 around all changes, on the chroma grid; None if there are none."""
    if new.data_ptr() == old.data_ptr():
        return None
    different = _numpy(new) != _numpy(old)
    height, width = different.shape[1:]
    rows = np.flatnonzero(different.any(2).any(0))
    if not len(rows):
        return None
    columns = np.flatnonzero(different[:, rows[0] : rows[-1] + 1].any(1).any(0))
    y0, y1 = int(rows[0]) // 2 * 2, int(rows[-1]) // 2 * 2 + 2
    # two more columns on each side: a chroma sample has a quarter of the pixels beside its column
    x0, x1 = int(columns[0]) // 2 * 2 - 2, int(columns[-1]) // 2 * 2 + 4
    return y0, min(y1, height), max(x0, 0), min(x1, width)


def _numpy(frame: Tensor) -> Plane:
    array: Plane = frame.cpu().numpy()
    return array


def _to_yuv(matrix: str) -> Plane:
    """(3, 3) float32: RGB to luma and two colour differences (ITU-T H.273, equations 38 to 40)."""
    red, blue = _LUMA[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    of_blue = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    of_red = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    rows: Plane = np.stack([luma, of_blue, of_red]).astype(np.float32)
    return rows


def _shrink(values: Plane, sub_y: int, sub_x: int) -> Plane:
    """Low-pass and subsample: chroma lies on every second column, between two rows (MPEG-2)."""
    if sub_y == 2:
        values = np.pad(values, ((0, values.shape[0] % 2), (0, 0)), mode="edge")
        values = (values[0::2] + values[1::2]) / 2
    if sub_x == 2:
        values = np.pad(values, ((0, 0), (0, values.shape[1] % 2)), mode="edge")
        even, odd = values[:, 0::2], values[:, 1::2]
        left = np.pad(odd, ((0, 0), (1, 0)), mode="edge")[:, :-1]
        values = (left + 2 * even + odd) / 4
    return values
