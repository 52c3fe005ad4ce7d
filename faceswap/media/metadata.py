"""What a photo carries beside its samples, made fit for a photo that has been changed.

In the EXIF block two bytes are changed in place (the rotation, once it is applied) and everything
else is kept, maker notes included, because a block that is parsed and written again loses what the
parser does not know. The thumbnail goes: it shows the face from before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import PIL.ExifTags
import PIL.Image
from PIL.JpegImagePlugin import get_sampling

_ORIENTATION = 0x0112
_STRIP_OFFSET, _STRIP_BYTES = 0x0111, 0x0117
_JPEG_OFFSET, _JPEG_BYTES = 0x0201, 0x0202
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_SUB_DIRECTORIES = (PIL.ExifTags.IFD.Exif, PIL.ExifTags.IFD.GPSInfo)
# Of a TIFF file's own directory, what describes the photo and not the file.
_DESCRIPTION = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)


@dataclass(frozen=True, slots=True)
class JpegCoding:
    """How a JPEG was quantised: written the same way, what did not change comes out the same."""

    tables: tuple[tuple[int, ...], ...]  # 64 steps each, in Pillow's order (by row)
    sampling: int  # Pillow's number: 0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A whole JPEG, so that only the blocks of it that change need be coded again."""

    data: bytes = field(repr=False)
    orientation: int  # 1 to 8: how its samples lie against the upright photo


@dataclass(frozen=True, slots=True)
class Metadata:
    """What stands in a photo file beside its samples; empty = nothing."""

    exif: bytes = b""  # b"Exif\0\0" + TIFF structure, orientation 1, no thumbnail
    icc: bytes = b""  # profile of the samples, which are not converted
    xmp: bytes = b""  # packet
    xmp_extension: tuple[bytes, ...] = ()  # whole APP1 bodies of a JPEG's longer XMP
    dpi: tuple[float, float] | None = None
    jpeg: JpegCoding | None = None  # if the samples came out of a JPEG whose grid still fits
    file: JpegFile | None = None  # if the samples are those of a grey or colour JPEG, upright


def read_metadata(image: PIL.Image.Image) -> tuple[Metadata, int]:
    """The metadata of a photo that Pillow has decoded, and the orientation still to be applied.

    Raises:
        ValueError, and what Pillow's parsers raise: the EXIF data is damaged.
    """
    if image.format == "TIFF":
        raw = _tiff_exif(image)
    else:
        raw = image.info.get("exif") or b""
        if not raw and len(image.getexif()):  # the old text form in PNG
            raw = image.getexif().tobytes()
    exif, orientation = upright_exif(raw) if raw else (b"", 1)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if not xmp and image.format == "TIFF":
        xmp = getattr(image, "tag_v2", {}).get(700, b"")
    segments = getattr(image, "applist", ())
    dpi = image.info.get("dpi")
    metadata = Metadata(
        exif=exif,
        icc=image.info.get("icc_profile") or b"",
        xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp),
        xmp_extension=tuple(body for _, body in segments if body.startswith(_EXTENDED_XMP)),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
        jpeg=_jpeg_coding(image, orientation),
    )
    return metadata, orientation


def _jpeg_coding(image: PIL.Image.Image, orientation: int) -> JpegCoding | None:
    tables = getattr(image, "quantization", None)
    if not tables or image.mode not in ("RGB", "L") or sorted(tables) != list(range(len(tables))):
        return None
    sampling = get_sampling(image)
    if sampling < 0:
        return None
    if orientation != 1 and (sampling == 1 or any(side % 16 for side in image.size)):
        return None  # turned, its blocks would not lie on the grid any more
    steps = [tables[key] for key in sorted(tables)]
    if orientation >= 5:  # rows and columns change places
        steps = [[table[8 * x + y] for y in range(8) for x in range(8)] for table in steps]
    return JpegCoding(tuple(tuple(table) for table in steps), sampling)


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """An EXIF block with orientation 1 and no thumbnail, and the orientation it had.

    Args:
        exif: TIFF structure, with or without ``Exif\\0\\0`` before it.

    Returns:
        The block with ``Exif\\0\\0``, and the orientation, 1 to 8 (EXIF 2.32, 4.6.4 A).

    Raises:
        ValueError: the block is damaged.
    """
    return _reoriented(exif, 1)


def turned_exif(exif: bytes, orientation: int) -> bytes:
    """The EXIF block of `upright_exif` for samples that do not lie upright; raises as that."""
    return _reoriented(exif, orientation)[0] if exif else exif


def _reoriented(exif: bytes, new: int) -> tuple[bytes, int]:
    """The block without thumbnail and with another orientation, and the one that it had."""
    body = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = {b"II": "<", b"MM": ">"}.get(bytes(body[:2]))
    if order is None:
        raise ValueError("EXIF block without byte order")
    orientation = 1
    try:
        (first,) = struct.unpack_from(order + "I", body, 4)
        for tag, entry in _entries(body, order, first):
            if tag == _ORIENTATION:
                (orientation,) = struct.unpack_from(order + "H", body, entry + 8)
                struct.pack_into(order + "HH", body, entry + 8, new, 0)
        (count,) = struct.unpack_from(order + "H", body, first)
        link = first + 2 + 12 * count
        (second,) = struct.unpack_from(order + "I", body, link)
        if second:
            _erase_thumbnail(body, order, second)
            struct.pack_into(order + "I", body, link, 0)
    except struct.error as error:
        raise ValueError(f"EXIF block cut short: {error}") from error
    return b"Exif\0\0" + bytes(body), orientation if 1 <= orientation <= 8 else 1


def _entries(body: bytearray, order: str, start: int) -> list[tuple[int, int]]:
    """(tag, offset of its 12-byte entry) of the directory at ``start``."""
    (count,) = struct.unpack_from(order + "H", body, start)
    offsets = [start + 2 + 12 * i for i in range(count)]
    return [(struct.unpack_from(order + "H", body, at)[0], at) for at in offsets]


def _erase_thumbnail(body: bytearray, order: str, start: int) -> None:
    values = {
        tag: struct.unpack_from(order + "I", body, entry + 8)[0]
        for tag, entry in _entries(body, order, start)
    }
    for offset, length in ((_JPEG_OFFSET, _JPEG_BYTES), (_STRIP_OFFSET, _STRIP_BYTES)):
        if offset in values and length in values:
            begin = min(values[offset], len(body))
            end = min(begin + values[length], len(body))
            body[begin:end] = bytes(end - begin)


def _tiff_exif(image: PIL.Image.Image) -> bytes:
    """The EXIF block of an opened TIFF file, whose tags lie among those of the file itself."""
    tags = image.getexif()
    exif = PIL.Image.Exif()
    for tag in _DESCRIPTION:
        if tag in tags:
            exif[tag] = tags[tag]
    for directory in _SUB_DIRECTORIES:
        values = tags.get_ifd(directory)
        if values:
            exif[directory] = values
    return exif.tobytes() if len(exif) else b""
