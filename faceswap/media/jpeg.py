"""A change to some pixels of a JPEG, as a change to some of its coefficients.

A JPEG holds each block of 8 x 8 samples as 64 rounded cosine coefficients (ITU-T T.81, annex A).
Decoding and encoding again moves all of them a little. Here the coefficients are read, the
transform of the *difference* of the pixels is added to those of the blocks in which there is one,
and everything else is written as it was: quantisation, subsampling, colours, restart markers,
progressive or not. Every other block decodes to the very same samples. Only where chroma is
subsampled, decoders interpolate one pixel across the edge of a block.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from faceswap.errors import FaceSwapError

if TYPE_CHECKING:
    from jpegio import DecompressedJpeg

Marker = tuple[int, bytes]  # second byte of the marker, body without its length
Tables = dict[int, NDArray[np.int32]]  # number of a quantisation table -> its (8, 8) steps

APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_GREY, _RGB, _YCC = 1, 2, 3  # libjpeg's J_COLOR_SPACE
# JFIF 1.02: luma and chroma from R, G, B (ITU-R BT.601, full range)
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_MOST = 1023  # of a coefficient of 8-bit samples (T.81, table F.2)
_SPILL = 1  # px that interpolated chroma reaches over the edge of a block
_BATCH = 4096  # MCUs that are transformed together
_ICC_BYTES = 65_519  # of a profile in one segment (ICC.1:2010, B.4)


class JpegEditError(FaceSwapError):
    """This JPEG cannot be changed in place; the text says why, as a clause."""


def edit_jpeg(
    data: bytes,
    old: NDArray[np.uint8],
    new: NDArray[np.uint8],
    *,
    markers: Sequence[Marker] = (),
) -> bytes:
    """The JPEG with the changed pixels in it, checked by decoding it.

    Args:
        data: a whole JPEG file. What stands behind its first picture is left out.
        old: its pixels as Pillow decodes them, not turned: (H, W) grey or (H, W, 3) RGB.
        new: the pixels wanted, of the same shape.
        markers: what is written in front of the picture, beside what decoding needs (JFIF and
            Adobe segments, which are taken over).

    Returns:
        A JPEG file that decodes to ``old`` everywhere but in the blocks where ``new`` differs and
        in the pixel around them, and in the blocks to ``new`` as well as the file's quantisation
        can.

    Raises:
        JpegEditError: with the reason; encode the picture again then.
    """
    try:
        import jpegio
    except ImportError as error:
        raise JpegEditError("the package pyjpegio, which keeps blocks, is not here") from error
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.jpg"), Path(folder, "after.jpg")
        try:
            before.write_bytes(data)
            jpeg = jpegio.read(str(before))
            touched = _change(jpeg, _tables(jpeg, data), old, new)
            needed = [(m["type"], m["data"]) for m in jpeg.markers if _decides(m)]
            first = [each for each in needed if each[0] == APP0]
            rest = [each for each in needed if each[0] != APP0]
            jpeg.markers = [
                {"type": kind, "data": body} for kind, body in (*first, *markers, *rest)
            ]
            jpeg.optimize_coding = True  # tables made for one picture lack codes for another
            for index, part in enumerate(jpeg.comp_info):  # not set if it has scans of its own
                part.dc_tbl_no = part.ac_tbl_no = min(index, 1)
            jpeg.write(str(after))
            result = after.read_bytes()
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            reason = " ".join(str(error).replace("[JSTRUCT]", "").split())
            raise JpegEditError(f"its blocks cannot be kept ({reason})") from error
    _check(result, old, touched)
    return result


def icc_markers(profile: bytes) -> list[Marker]:
    """A colour profile as the APP2 segments of a JPEG (ICC.1:2010, annex B.4)."""
    parts = [profile[at : at + _ICC_BYTES] for at in range(0, len(profile), _ICC_BYTES)]
    return [
        (APP2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part)
        for number, part in enumerate(parts, 1)
    ]


def _decides(marker: dict[str, Any]) -> bool:
    """Whether colours are decoded by this segment: JFIF without a thumbnail, Adobe."""
    body = marker["data"]
    if marker["type"] == APP0:
        return bool(body.startswith(b"JFIF\0") and body[12:14] in (b"", b"\0\0"))
    return bool(marker["type"] == APP14 and body.startswith(b"Adobe"))


def _tables(jpeg: DecompressedJpeg, data: bytes) -> Tables:
    """The quantisation tables by number; jpegio lists those that exist, in ascending order."""
    with PIL.Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        numbers = sorted(getattr(image, "quantization", ()))
    if len(numbers) != len(jpeg.quant_tables):
        raise JpegEditError("its quantisation tables change between scans")
    return dict(zip(numbers, jpeg.quant_tables, strict=True))


def _change(
    jpeg: DecompressedJpeg, tables: Tables, old: NDArray[np.uint8], new: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Add the difference to the coefficients; the (H, W) pixels of the MCUs it lies in."""
    colours = jpeg.jpeg_color_space
    if colours not in (_GREY, _RGB, _YCC) or len(jpeg.comp_info) != (1 if old.ndim == 2 else 3):
        raise JpegEditError("its colours are neither grey, RGB nor YCbCr")
    if (jpeg.image_height, jpeg.image_width) != old.shape[:2] or jpeg.data_precision != 8:
        raise JpegEditError("it is not stored as it is shown")
    tall, wide = jpeg.max_v_samp_factor, jpeg.max_h_samp_factor
    for part in jpeg.comp_info:
        if tall % part.v_samp_factor or wide % part.h_samp_factor:
            raise JpegEditError("its chroma is subsampled by a fraction")
    height, width = old.shape[:2]
    side_y, side_x = 8 * tall, 8 * wide  # of an MCU, px
    changed = (old != new).reshape(height, width, -1).any(2)
    rows, columns = -(-height // side_y), -(-width // side_x)
    padded = np.zeros((rows * side_y, columns * side_x), bool)
    padded[:height, :width] = changed
    hit = padded.reshape(rows, side_y, columns, side_x).any((1, 3))
    at = np.argwhere(hit)
    for start in range(0, len(at), _BATCH):
        _change_mcus(jpeg, tables, at[start : start + _BATCH], old, new)
    return hit.repeat(side_y, 0).repeat(side_x, 1)[:height, :width]


def _change_mcus(
    jpeg: DecompressedJpeg,
    tables: Tables,
    at: NDArray[np.int64],  # (M, 2) row and column of each MCU
    old: NDArray[np.uint8],
    new: NDArray[np.uint8],
) -> None:
    tall, wide = jpeg.max_v_samp_factor, jpeg.max_h_samp_factor
    # behind the edges of the picture the last difference goes on, as encoders pad
    y = np.minimum(at[:, :1] * (8 * tall) + np.arange(8 * tall), old.shape[0] - 1)[:, :, None]
    x = np.minimum(at[:, 1:] * (8 * wide) + np.arange(8 * wide), old.shape[1] - 1)[:, None]
    delta = (new[y, x].astype(np.float32) - old[y, x]).reshape(len(at), 8 * tall, 8 * wide, -1)
    if jpeg.jpeg_color_space == _YCC:
        delta = delta @ _TO_YCC.T
    for index, part in enumerate(jpeg.comp_info):
        v, h = part.v_samp_factor, part.h_samp_factor
        plane = delta[..., index].reshape(len(at), 8 * v, tall // v, 8 * h, wide // h).mean((2, 4))
        blocks = plane.reshape(len(at), v, 8, h, 8).transpose(0, 1, 3, 2, 4)  # (M, v, h, 8, 8)
        steps = _COSINES @ blocks @ _COSINES.T / tables[part.quant_tbl_no]
        held = jpeg.coef_arrays[index]
        grid = held.reshape(held.shape[0] // 8, 8, held.shape[1] // 8, 8).swapaxes(1, 2)
        row = (at[:, :1] * v + np.arange(v))[:, :, None] + np.zeros((1, 1, h), np.int64)
        column = (at[:, 1:] * h + np.arange(h))[:, None] + np.zeros((1, v, 1), np.int64)
        inside = (row < grid.shape[0]) & (column < grid.shape[1])
        inside &= (plane.reshape(len(at), v, 8, h, 8) != 0).any((2, 4))
        row, column, steps = row[inside], column[inside], steps[inside]
        grid[row, column] = np.clip(np.rint(grid[row, column] + steps), -_MOST, _MOST)


def _cosines() -> NDArray[np.float32]:
    """The orthonormal transform of T.81, A.3.3, as a matrix: row = frequency."""
    at = np.arange(8)
    matrix = np.cos((2 * at + 1) * at[:, None] * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


_COSINES = _cosines()


def _check(data: bytes, old: NDArray[np.uint8], touched: NDArray[np.bool_]) -> None:
    """Decode the result and compare what should not have changed."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            now = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise JpegEditError(f"the result cannot be read ({error})") from error
    if now.shape != old.shape:
        raise JpegEditError("the result has another shape")
    differs = (now != old).reshape(*old.shape[:2], -1).any(2)
    near = touched.copy()
    for axis in (0, 1):
        for step in (-_SPILL, _SPILL):
            moved = np.roll(near, step, axis)
            edge = [slice(None), slice(None)]
            edge[axis] = slice(0, _SPILL) if step > 0 else slice(-_SPILL, None)
            moved[tuple(edge)] = False
            near = near | moved
    if (differs & ~near).any():
        raise JpegEditError("pixels far from the faces would have changed")
