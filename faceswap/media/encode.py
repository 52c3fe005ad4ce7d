"""Samples and metadata to the bytes of a photo file.

Pillow encodes what has eight bits. It can write neither 16-bit colour nor EXIF inside compressed
TIFF, so TIFF and 16-bit PNG are put together here; both are a few headers around zlib.
"""

from __future__ import annotations

import functools
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from faceswap.media.metadata import JpegCoding, Metadata
from faceswap.media.provenance import png_with

Samples = NDArray[Any]  # uint8 or uint16
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
DEEP_FORMATS = ("PNG", "TIFF")  # can hold 16 bits a sample
ALPHA_FORMATS = ("PNG", "WEBP", "TIFF")
JPEG_QUALITY = 95
_MARKER_BYTES = 65533  # what one JPEG segment can hold
XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_STRIP_BYTES = 1 << 20
_INCH = 0.0254  # metres


def eight_bit(samples: Samples) -> Samples:
    """16-bit samples as 8-bit ones, rounded (65535 / 257 = 255); 8-bit ones as they are."""
    if samples.dtype == np.uint8:
        return samples
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def with_alpha(
    samples: Samples,  # (H, W), (H, W, 3), or (H, W, 4) uint16 that hold their own alpha
    alpha: Samples,  # (H, W) uint8
    kind: str,
) -> tuple[Samples, bool]:
    """Put alpha behind the colour or, where the format has no room for it, colour on white.

    Returns:
        The samples, and whether anything that shows was put on white.
    """
    there = samples.ndim == 3 and samples.shape[2] == 4
    if kind in ALPHA_FORMATS:
        return samples if there else np.dstack([samples, alpha]), False
    colour = samples[..., :3] if there else samples
    flattened = bool((alpha < 255).any())
    if flattened:
        share = (alpha / np.float32(255)).reshape(*alpha.shape, *[1] * (colour.ndim - 2))
        colour = np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(colour), flattened


def encode(samples: Samples, kind: str, metadata: Metadata, quality: int | None) -> bytes:
    """The file's bytes.

    Args:
        samples: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGBA; uint16
            only for PNG and TIFF.
        kind: a value of `FORMATS`.
        metadata: put in where the format has room; BMP has none.
        quality: 1 to 100 for JPEG (then without chroma subsampling; default: `_quantised_like`)
            and WebP (default: lossless).

    Raises:
        ValueError: metadata that the format cannot hold (EXIF beyond 64 KiB in JPEG).
    """
    if kind == "TIFF":
        return _tiff(samples, metadata)
    if samples.dtype == np.uint16:
        return _deep_png(samples, metadata)
    image = PIL.Image.fromarray(samples) if samples.ndim != 3 or samples.shape[2] != 2 else None
    if image is None:
        planes = (PIL.Image.fromarray(np.ascontiguousarray(samples[..., i])) for i in (0, 1))
        image = PIL.Image.merge("LA", tuple(planes))
    options: dict[str, object] = {"exif": metadata.exif, "icc_profile": metadata.icc}
    options = {key: value for key, value in options.items() if value}
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    stream = BytesIO()
    if kind == "JPEG":
        if len(metadata.exif) > _MARKER_BYTES:
            raise ValueError("EXIF data too long for a JPEG file")
        coding = metadata.jpeg if quality is None and image.mode in ("RGB", "L") else None
        if coding is not None:
            options |= _quantised_like(coding)
        else:
            options |= {"quality": quality or JPEG_QUALITY, "subsampling": 0}
        extra = b"".join(
            b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
            for body in (XMP_HEADER + metadata.xmp, *metadata.xmp_extension)
        )
        image.save(stream, "JPEG", extra=extra, **options)
        return stream.getvalue()
    if kind == "WEBP":
        image = image.convert("RGBA" if "A" in image.mode else "RGB")
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
        image.save(stream, "WEBP", method=4, xmp=metadata.xmp, **options)
        return stream.getvalue()
    image.save(stream, kind, **options)
    data = stream.getvalue()
    return png_with(data, metadata.xmp) if kind == "PNG" else data


def _quantised_like(coding: JpegCoding) -> dict[str, object]:
    """Steps that divide those of the JPEG the samples came from.

    Every coefficient it held is then held again without rounding, so blocks that did not change
    come back to a few hundredths of a level (measured on seven photos: 0.002 to 0.15 on average;
    quality 95 with full chroma: 0.09 to 0.83, and a larger file). Where the steps of quality 80
    are finer, so are these, for the sake of the blocks that did change.
    """
    steps = [
        [
            max(d for d in range(1, own + 1) if own % d == 0 and d <= fine)
            for own, fine in zip(table, _fine_steps()[min(index, 1)], strict=True)
        ]
        for index, table in enumerate(coding.tables)
    ]
    return {"qtables": steps, "subsampling": coding.sampling}


@functools.cache
def _fine_steps() -> list[list[int]]:
    """The two tables of libjpeg at quality 80."""
    stream = BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=80)
    with PIL.Image.open(stream) as image:
        assert isinstance(image, JpegImageFile)
        return [image.quantization[0], image.quantization[1]]


def _deep_png(samples: Samples, metadata: Metadata) -> bytes:
    """PNG (W3C PNG specification, third edition) with 16 bits a sample and filter Up."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    rows = samples.astype(">u2").view(np.uint8).reshape(height, width * channels * 2)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]  # modulo 256
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = []
    if metadata.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        x, y = (round(value / _INCH) for value in metadata.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    data += _chunk(b"IDAT", zlib.compress(filtered.tobytes())) + _chunk(b"IEND", b"")
    return png_with(data, metadata.xmp, tuple(chunks))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _tiff(samples: Samples, metadata: Metadata) -> bytes:
    """Deflate-compressed strips behind one directory (TIFF 6.0, Adobe technical notes 2002)."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    bits = samples.itemsize * 8
    rows = max(1, _STRIP_BYTES // (width * channels * samples.itemsize))
    little = samples.astype(samples.dtype.newbyteorder("<"), copy=False)
    strips = [zlib.compress(little[y : y + rows].tobytes()) for y in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if metadata.exif:
        exif = PIL.Image.Exif()
        exif.load(metadata.exif)
        for tag, value in exif.items():
            inner = exif.get_ifd(tag) if tag in (0x8769, 0x8825) else None
            directory[tag] = dict(inner) if inner is not None else value
    directory[256], directory[257] = width, height
    directory[258] = (bits,) * channels
    directory[259] = 8  # Adobe deflate
    directory[262] = 1 if channels < 3 else 2  # black is zero, RGB
    directory[273] = tuple(int(sum(sizes[:i])) for i in range(len(sizes)))
    directory[277], directory[278] = channels, rows
    directory[279] = tuple(sizes)
    if metadata.dpi:
        directory[282], directory[283] = (IFDRational(round(v * 100), 100) for v in metadata.dpi)
        directory[296] = 2  # inch
    if channels in (2, 4):
        directory[338] = 2  # alpha, not multiplied in
    for tag, body, kind in ((700, metadata.xmp, 1), (34675, metadata.icc, 7)):
        if body:
            directory.tagtype[tag] = kind
            directory[tag] = body
    stream = BytesIO()
    directory.save(stream)
    return stream.getvalue() + b"".join(strips)
