"""The photos a training set is made of: which there are, whose they are, and their pixels.

A photo lies in a folder or in an uncompressed tar, and its person is the folder it lies in, as in
VGGFace2 (``n000002/0001_01.jpg``), LFW or CelebA sorted by identity. Photos that lie at the top,
in a collection named as flat, or in one of the folders CelebA-HQ comes in, are each a person of
their own, unless CelebA's identity list lies beside them.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import PIL
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from faceswap.errors import MediaError, MissingMediaError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CROWD = 1000  # photos of one person that are suspicious: rather a folder of many people
# Folders in which CelebA and CelebA-HQ are distributed; none of them is a person.
FLAT_FOLDERS = frozenset(
    {"celeba-hq-img", "img_align_celeba", "img_celeba", "male", "female", "data1024x1024"}
)
_IDENTITIES = "identity_CelebA.txt"  # lines "000001.jpg 2880"
_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"  # columns: index in CelebA-HQ, index, CelebA file
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, EOFError)


@dataclass(frozen=True, slots=True)
class Photo:
    """Where one photo lies, and whose it is."""

    name: str  # collection/path, unique in a training set
    person: str  # collection/folder, or the name itself
    path: str  # the file, or the tar it is in
    offset: int = 0  # bytes into the tar
    size: int = -1  # bytes; -1: to the end


def find_photos(sources: Sequence[Path], flat: Sequence[Path] = ()) -> list[Photo]:
    """Every photo of some folders and tars, sorted by name.

    Numbered collections (``lfw-0.tar``, ``lfw-1.tar``) share their people.

    Args:
        sources: folders and uncompressed tars.
        flat: more of them, whose folders are not people.

    Raises:
        MissingMediaError: one of them does not exist.
        MediaError: a tar that cannot be read, or a source without a photo.
    """
    photos: list[Photo] = []
    for source in [*sources, *flat]:
        found = list(_in_tar(source) if source.is_file() else _in_folder(source))
        if not found:
            raise MediaError(f"{source}: no photo in it ({', '.join(SUFFIXES)})")
        photos.extend(_with_people(found, source, flat=source in flat))
    names = Counter(photo.name for photo in photos)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None:
        raise MediaError(f"{twice} comes twice; give folders and tars different names")
    return sorted(photos, key=lambda photo: photo.name)


def crowds(photos: Iterable[Photo]) -> list[str]:
    """People with so many photos that their folder rather holds many people."""
    return [p for p, times in Counter(photo.person for photo in photos).items() if times > CROWD]


def _in_folder(folder: Path) -> Iterator[Photo]:
    if not folder.is_dir():
        raise MissingMediaError(f"{folder}: no such folder or tar")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield Photo(path.relative_to(folder).as_posix(), "", str(path))


def _in_tar(path: Path) -> Iterator[Photo]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    name = member.name.removeprefix("./")
                    yield Photo(name, "", str(path), member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise MediaError(
            f"{path}: not a plain tar ({error}); a compressed one has to be unpacked first"
        ) from error


def _with_people(found: list[Photo], source: Path, *, flat: bool) -> Iterator[Photo]:
    collection = source.stem if source.is_file() else source.resolve().name
    group = re.sub(r"-\d+$", "", collection)
    known = {} if source.is_file() else _celeba_identities(source)
    for photo in found:
        name = f"{collection}/{photo.name}"
        folder = PurePosixPath(photo.name).parent
        alone = flat or folder.name.lower() in FLAT_FOLDERS or folder == PurePosixPath(".")
        person = name if alone else f"{group}/{folder}"
        number = known.get(PurePosixPath(photo.name).name)
        if alone and number is not None:
            person = f"{group}/{number}"
        yield Photo(name, person, photo.path, photo.offset, photo.size)


def _celeba_identities(folder: Path) -> dict[str, str]:
    """File name -> CelebA's identity number, where its lists lie in the folder; else empty."""
    path = folder / _IDENTITIES
    if not path.is_file():
        return {}
    identity = dict(line.split()[:2] for line in path.read_text().splitlines() if line.strip())
    mapping = folder / _MAPPING
    if not mapping.is_file():
        return identity
    rows = [line.split() for line in mapping.read_text().splitlines()[1:] if line.strip()]
    for index, _, original in rows:
        if original in identity:
            for suffix in (".jpg", ".png"):
                identity[index + suffix] = identity[original]
    return identity


def decode(photo: Photo) -> Tensor:
    """The pixels, upright, ``(3, H, W) uint8`` RGB.

    Raises:
        MediaError: missing, damaged, or no photo.
    """
    try:
        with open(photo.path, "rb") as file:
            file.seek(photo.offset)
            data = file.read(photo.size)
        with PIL.Image.open(BytesIO(data)) as image:
            upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
            samples = bytearray(upright.tobytes())
    except PIL.UnidentifiedImageError as error:  # its text has an address in memory
        raise MediaError(f"{photo.name}: no picture, or a damaged one") from error
    except (*_DAMAGE, PIL.Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"{photo.name}: {reason}") from error
    pixels = torch.frombuffer(samples, dtype=torch.uint8)
    return pixels.view(upright.height, upright.width, 3).permute(2, 0, 1).contiguous()
