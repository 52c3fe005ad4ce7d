"""Photos in and out: what is not swapped comes out as it went in.

Pillow reads the containers and their metadata, cv2 the samples of 16-bit colour. The networks get
8-bit RGB; the samples of a grey or 16-bit photo are kept beside it and only what changed is put
into them.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import BinaryIO

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import torch
from torch import Tensor

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.media.encode import (
    DEEP_FORMATS,
    FORMATS,
    XMP_HEADER,
    Samples,
    eight_bit,
    encode,
    with_alpha,
)
from faceswap.media.jpeg import APP1, JpegEditError, edit_jpeg, icc_markers
from faceswap.media.metadata import (
    JpegFile,
    Metadata,
    read_metadata,
    turned_exif,
    upright_exif,
)
from faceswap.media.output import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from faceswap.media.output import check_output as check_output
from faceswap.media.output import replacing
from faceswap.media.provenance import Provenance, sidecar, xmp_packet

MAX_PIXELS = 200_000_000  # as many as the largest phone sensors have; 600 MB as RGB
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_JPEGS = ("JPEG", "MPO")
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_TURNED_BACK = (0, 1, 2, 3, 4, 5, 8, 7, 6)  # orientation -> the one that undoes it
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_MAX_JPEG_XMP = 65_502  # bytes of a packet in one APP1 segment (XMP specification part 3, 1.1.3)
# What Pillow's decoders raise on damaged files, apart from OSError.
_DAMAGE = (SyntaxError, ValueError, LookupError, TypeError, OverflowError, EOFError, struct.error)
_OPENING = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A photo: 8-bit pixels to work on, and everything needed to write it again."""

    pixels: Tensor  # (3, H, W) uint8 RGB, upright
    alpha: Tensor | None = None  # (1, H, W) uint8, not multiplied into the pixels
    stored: Samples | None = None  # grey (H, W), or 16-bit (H, W, 3|4) RGB(A); None = the pixels
    metadata: Metadata = field(default_factory=Metadata)  # EXIF upright and without thumbnail
    format: str = ""  # Pillow's name: JPEG, PNG, ...
    path: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[0] != 3 or self.pixels.dtype != torch.uint8:
            raise ValueError(
                f"Image.pixels: expected (3, H, W) torch.uint8, got {tuple(self.pixels.shape)} "
                f"{self.pixels.dtype}"
            )


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a photo, upright, with its metadata.

    JPEG, PNG, WebP, TIFF, BMP, GIF; 8 or 16 bits; RGB, grey, palette, CMYK (converted to sRGB
    through its profile); with or without alpha. Of an animation, the first picture.

    Args:
        path: the file.
        max_pixels: refuse larger pictures, before they are decoded.

    Raises:
        MissingMediaError: there is no such file.
        MediaError: not a photo, damaged, cut short, too large.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file, _open(file, name) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise MediaError(
                    f"{name!r} has {width}x{height} pixels ({width * height / 1e6:.0f} million), "
                    f"more than the accepted {max_pixels / 1e6:.0f} million; make it smaller first"
                )
            return _decode(image, file, name)
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MissingMediaError(f"There is no file {name!r}") from error
    except IsADirectoryError as error:
        raise MediaError(f"{name!r} is a folder; give a photo") from error
    except PermissionError as error:
        raise MediaError(f"{name!r} cannot be read: permission denied") from error
    except (OSError, cv2.error, *_DAMAGE) as error:
        reason = " ".join(str(error).split())
        raise MediaError(f"{name!r} is damaged or cut short ({reason})") from error


def _open(file: BinaryIO, name: str) -> PIL.Image.Image:
    """Pillow's open, without its own size limit, whose message says neither size nor cure."""
    head = file.read(16)
    file.seek(0)
    if not head:
        raise MediaError(f"{name!r} is empty")
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf", b"avi"):
        raise MediaError(f"{name!r} is a HEIC or AVIF photo; save it as JPEG or PNG first")
    with _OPENING:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(file, formats=_READABLE)
        except PIL.UnidentifiedImageError as error:
            raise MediaError(
                f"{name!r} is not a photo that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF)"
            ) from error
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _decode(image: PIL.Image.Image, file: BinaryIO, name: str) -> Image:
    warnings: list[str] = []
    kind = image.format or ""
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1 and kind != "MPO":
        warnings.append(f"{name!r} holds {pictures} pictures; only the first is used")
    deep_colour = _has_16_bits(image, file, name) and image.mode not in _GREY16
    in_file = image.getexif().get(_ORIENTATION, 1) if kind == "TIFF" else 1
    image.load()  # decodes; Pillow turns a TIFF upright here
    try:
        metadata, orientation = read_metadata(image)
    except (OSError, *_DAMAGE):
        metadata, orientation = Metadata(icc=image.info.get("icc_profile") or b""), 1
        warnings.append(f"The EXIF or XMP data of {name!r} is damaged and was left out")
    if kind in _JPEGS and image.mode in ("RGB", "L"):
        file.seek(0)
        metadata = replace(metadata, file=JpegFile(file.read(), orientation))
    if deep_colour:
        samples = _deep_colour(file, kind, name)
        orientation = in_file if kind == "TIFF" else orientation
    elif image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.uint16)
    else:
        if image.mode in ("CMYK", "LAB"):
            warnings.append(f"{name!r} is {image.mode}; the result is sRGB")
            image, metadata = _to_srgb(image, metadata)
        has_alpha = "A" in image.mode.upper() or "transparency" in image.info
        form = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        samples = np.asarray(image.convert(form + "A" if has_alpha else form))
    samples = np.ascontiguousarray(_turn(samples, orientation))
    shown = eight_bit(samples).reshape(*samples.shape[:2], -1)
    channels = shown.shape[2]
    colour = shown[..., [0, 0, 0]] if channels < 3 else shown[..., :3]
    alpha = torch.from_numpy(shown[..., -1].copy())[None] if channels in (2, 4) else None
    if channels == 2:
        samples = np.ascontiguousarray(samples[..., 0])
    return Image(
        pixels=torch.from_numpy(colour.transpose(2, 0, 1).copy()),
        alpha=alpha,
        stored=samples if channels < 3 or samples.dtype == np.uint16 else None,
        metadata=metadata,
        format=kind,
        path=name,
        warnings=tuple(warnings),
    )


def _has_16_bits(image: PIL.Image.Image, file: BinaryIO, name: str) -> bool:
    """Whether the file has 16 bits a sample; Pillow would cut colour to 8 without a word."""
    bits = (16 if image.mode.startswith("I") else 8,)
    if image.mode == "F" or image.mode.startswith("I;32"):
        bits = (32,)
    elif image.format == "PNG":
        at = file.tell()
        file.seek(24)
        bits = (file.read(1)[0],)
        file.seek(at)
    elif image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, bits)
    if max(bits) > 16:
        raise MediaError(f"{name!r} has {max(bits)} bits a sample; save it with 8 or 16 first")
    return max(bits) == 16


def _deep_colour(file: BinaryIO, kind: str, name: str) -> Samples:
    """16-bit colour as it lies in the file, not turned: (H, W, 3|4) uint16 RGB(A)."""
    file.seek(0)
    data = file.read()
    if kind == "TIFF":  # cv2 turns TIFF for some orientations only, so hide the tag from it
        data = upright_exif(data)[0].removeprefix(b"Exif\0\0")
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise MediaError(f"{name!r} holds 16-bit samples in a form that cannot be read")
    order = cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(samples, order), np.uint16)


def _to_srgb(image: PIL.Image.Image, metadata: Metadata) -> tuple[PIL.Image.Image, Metadata]:
    """CMYK or Lab through its own profile if it has a usable one, else by the plain formula."""
    srgb = PIL.ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB" and not metadata.icc:
            profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("LAB"))
        else:
            profile = PIL.ImageCms.ImageCmsProfile(BytesIO(metadata.icc))
        turned = PIL.ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (PIL.ImageCms.PyCMSError, OSError, ValueError):
        turned = None
    return turned or image.convert("RGB"), replace(metadata, icc=b"")


def _turn(samples: Samples, orientation: int) -> Samples:
    """Apply an EXIF orientation (EXIF 2.32, 4.6.4 A) to (H, W, ...) samples."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


@dataclass(frozen=True, slots=True)
class Written:
    """What there is to say of a file that was written."""

    warnings: tuple[str, ...] = ()  # what the format could not keep
    jpeg: str = ""  # of a JPEG made from a JPEG: "blocks kept", or "encoded again: REASON"


def write_image(
    path: str | os.PathLike[str],
    pixels: Tensor,
    like: Image | None = None,
    *,
    quality: int | None = None,
    overwrite: bool = False,
    provenance: Provenance | None = None,
) -> Written:
    """Write a photo, marked as synthetic, in the format that the name ends in.

    PNG, TIFF, BMP and WebP (unless ``quality`` is given) are lossless: where ``pixels`` equal
    ``like.pixels`` the file holds the very samples that ``like`` was read from. In a JPEG made from
    a JPEG only the blocks are coded anew in which ``pixels`` differ from ``like.pixels``, and the
    samples lie as they lay (with the EXIF orientation they had). Where that cannot be, or
    ``quality`` is given, it is encoded again; other JPEGs have quality 95 and full chroma.

    Into 16-bit samples the *difference* of the 8-bit pixels is added, times 257: unchanged samples
    keep all their bits, and no step appears where a soft mask fades out. Grey photos stay grey:
    changed pixels give their BT.601 luma.

    Args:
        path: ends in one of `IMAGE_EXTENSIONS`.
        pixels: (3, H, W) uint8 RGB.
        like: the photo this was made from, of the same size: gives alpha, bit depth, grey and
            metadata. None: a plain RGB file.
        quality: 1 to 100, for JPEG and WebP, instead of these defaults.
        overwrite: whether ``path`` may exist.
        provenance: the mark to write, by default composite media made with this program.

    Returns:
        Warnings, and how a JPEG came about.

    Raises:
        MediaError: ``path`` cannot or must not be written; nothing is left behind.
        ConfigError: ``quality`` out of range.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError(f"quality is {quality}; it goes from 1 to 100")
    like = Image(pixels) if like is None else like
    if pixels.shape != like.pixels.shape or pixels.dtype != torch.uint8:
        raise ValueError(
            f"pixels: expected {tuple(like.pixels.shape)} torch.uint8, got "
            f"{tuple(pixels.shape)} {pixels.dtype}"
        )
    target = check_output(path, [like.path] if like.path else [], overwrite)
    kind = FORMATS[target.suffix.lower()]
    warnings: list[str] = []
    samples = _merge(pixels, like)
    if samples.dtype == np.uint16 and kind not in DEEP_FORMATS:
        warnings.append(f"{kind} holds 8 bits a sample; the 16 of the input were rounded")
        samples = eight_bit(samples)
    if like.alpha is not None:
        samples, flattened = with_alpha(samples, like.alpha[0].cpu().numpy(), kind)
        if flattened:
            warnings.append(f"{kind} has no transparency; the picture was put on white")
    packet = xmp_packet(provenance or Provenance(), like.metadata.xmp)
    if kind == "JPEG" and len(packet) > _MAX_JPEG_XMP:
        warnings.append("The XMP data of the input is too long for JPEG and was left out")
        packet = xmp_packet(provenance or Provenance())
    exif = like.metadata.exif
    if kind == "JPEG" and len(exif) > 65_533:
        warnings.append("The EXIF data of the input is too long for JPEG and was left out")
        exif = b""
    metadata = replace(like.metadata, exif=exif, xmp=packet)
    data, how = _edited(samples, like, metadata, quality) if kind == "JPEG" else (b"", "")
    data = data or encode(samples, kind, metadata, quality)
    if kind == "BMP":  # the mark first: a file without its mark must not exist
        with replacing(check_output(sidecar(target), [], overwrite, extensions=(".xmp",))) as part:
            part.write_bytes(packet)
    with replacing(target) as part:
        part.write_bytes(data)
    return Written(tuple(warnings), how)


def _edited(
    samples: Samples,  # (H, W) or (H, W, 3) uint8, upright
    like: Image,
    metadata: Metadata,
    quality: int | None,
) -> tuple[bytes, str]:
    """The JPEG that ``like`` was read from with these samples, and what `Written.jpeg` says."""
    if like.format not in _JPEGS:
        return b"", ""
    file = like.metadata.file
    if file is None:
        return b"", "encoded again: its colours are neither grey nor RGB"
    if quality is not None:
        return b"", "encoded again: a quality was asked for"
    old = like.pixels.cpu().numpy().transpose(1, 2, 0) if like.stored is None else like.stored
    back = _TURNED_BACK[file.orientation]
    old, new = (np.ascontiguousarray(_turn(each, back)) for each in (old, samples))
    exif = turned_exif(metadata.exif, file.orientation)
    bodies = [exif, XMP_HEADER + metadata.xmp, *metadata.xmp_extension]
    markers = [(APP1, body) for body in bodies if body]
    try:
        data = edit_jpeg(file.data, old, new, markers=[*markers, *icc_markers(metadata.icc)])
        return data, "blocks kept"
    except JpegEditError as error:
        return b"", f"encoded again: {error}"


def _merge(pixels: Tensor, like: Image) -> Samples:
    """The samples of ``like`` with the changed pixels put in, (H, W) or (H, W, 3|4)."""
    new = pixels.cpu().numpy().transpose(1, 2, 0)
    if like.stored is None:
        return np.ascontiguousarray(new)
    old = like.pixels.cpu().numpy().transpose(1, 2, 0)
    top = int(np.iinfo(like.stored.dtype).max)
    changed = (new != old).any(axis=2)
    merged = like.stored.copy()
    if merged.ndim == 2:
        luma = np.rint(new[changed] @ np.array(_LUMA, np.float32))
        delta = luma.astype(np.int32) - old[changed, 0]
        merged[changed] = np.clip(merged[changed] + delta * (top // 255), 0, top)
        return merged
    delta = new[changed].astype(np.int32) - old[changed]
    merged[changed, :3] = np.clip(merged[changed, :3] + delta * (top // 255), 0, top)
    return merged
