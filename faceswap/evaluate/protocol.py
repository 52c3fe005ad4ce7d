"""Which swaps are measured: folders, lists, and the layout of FaceForensics++."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.media.output import IMAGE_EXTENSIONS

Pairing = Literal["cross", "zip"]
VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".gif", ".wmv", ".mpg")
COLUMNS = ("source", "target", "swapped")


@dataclass(frozen=True, slots=True)
class Triple:
    """A swap: whose face, onto whom, and what came out."""

    source: Path
    target: Path
    swapped: Path  # for swaps that are yet to be made: where they will be
    person: str  # who the source shows; sources of one person are one identity

    @property
    def clip(self) -> bool:
        """Whether the target is a video."""
        return is_clip(self.target)


def is_clip(path: Path) -> bool:
    """Whether a file is a video, by its name."""
    return path.suffix.lower() not in IMAGE_EXTENSIONS


def read_triples(path: str | os.PathLike[str]) -> list[Triple]:
    """Swaps from a CSV list: source, target, swapped, and optionally person.

    A first line with these names is taken as header. Relative paths start at the list's folder.
    Without ``person`` each source file is an identity of its own.

    Raises:
        MissingMediaError: no such list, or files that it names are not there.
        MediaError: it cannot be read as CSV.
        ConfigError: a line with too few or too many columns, or nothing in it; a photo swapped
            into a clip.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except FileNotFoundError as error:
        raise MissingMediaError(f"There is no list {str(path)!r}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{str(path)!r} cannot be read as a CSV list: {error}") from error
    if lines and tuple(cell.strip().lower() for cell in lines[0][1][:3]) == COLUMNS:
        lines = lines[1:]
    if not lines:
        raise ConfigError(
            f"{str(path)!r} names no swaps; a line is: source,target,swapped[,person]"
        )
    triples = []
    for number, row in lines:
        cells = [cell.strip() for cell in row]
        if len(cells) not in (3, 4) or not all(cells[:3]):
            raise ConfigError(
                f"{str(path)!r}, line {number}: expected source,target,swapped[,person], got "
                f"{len([cell for cell in cells if cell])} columns"
            )
        source, target, swapped = (path.parent / cell for cell in cells[:3])
        if is_clip(target) != is_clip(swapped):
            raise ConfigError(
                f"{str(path)!r}, line {number}: the target and the swapped file have to be both "
                "photos or both clips"
            )
        person = cells[3] if len(cells) == 4 and cells[3] else cells[0]
        triples.append(Triple(source, target, swapped, person))
    check_files([p for t in triples for p in (t.source, t.target, t.swapped)])
    return triples


def check_files(paths: Sequence[Path]) -> None:
    """Refuse, before any work, a list of files that are not all there."""
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        named = ", ".join(repr(str(path)) for path in missing[:3])
        raise MissingMediaError(f"{len(missing)} files are missing: {named}{more}")


def media_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Photos and clips in a folder and below it, by name.

    Raises:
        MissingMediaError: no such folder, or nothing in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingMediaError(f"There is no folder {str(root)!r}")
    known = (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise MissingMediaError(f"There is no photo or clip in {str(root)!r}")
    return found


def pair_folders(
    sources: str | os.PathLike[str],
    targets: str | os.PathLike[str],
    output: Path,
    *,
    pairing: Pairing = "cross",
    limit: int | None = None,
    seed: int = 0,
) -> list[Triple]:
    """Swaps to be made of two folders.

    Args:
        sources: photos, each a person of its own.
        targets: photos or clips.
        output: folder the swaps go to.
        pairing: "cross": every source onto every target (a file never onto itself); "zip": the
            first source onto the first target and so on, by name.
        limit: take this many of them by chance.
        seed: of that chance.

    Raises:
        MissingMediaError: a folder that is missing or holds nothing.
        ConfigError: ``zip`` of folders of different length; a clip as source; nothing to pair.
    """
    ours, theirs = media_in(sources), media_in(targets)
    for path in ours:
        if is_clip(path):
            raise ConfigError(f"{str(path)!r}: a source is a photo; move clips out of the folder")
    if pairing == "zip":
        if len(ours) != len(theirs):
            raise ConfigError(
                f"{os.fspath(sources)!r} holds {len(ours)} files and {os.fspath(targets)!r} "
                f"{len(theirs)}; pairing by order needs as many of both"
            )
        pairs = list(zip(ours, theirs, strict=True))
    else:
        pairs = [(s, t) for s in ours for t in theirs if not s.samefile(t)]
    if not pairs:
        raise ConfigError(f"{os.fspath(sources)!r} and {os.fspath(targets)!r} give no pair")
    if limit is not None and limit < len(pairs):
        pairs = sorted(random.Random(seed).sample(pairs, limit))
    return [planned(s, t, output, str(s)) for s, t in pairs]


def planned(source: Path, target: Path, output: Path, person: str) -> Triple:
    """A swap that is yet to be made; its name tells what it is of."""
    suffix = ".mkv" if is_clip(target) else ".png"  # both can hold it without loss
    where = f"{hash_of(source, target):08x}"
    return Triple(source, target, output / f"{source.stem}__{target.stem}.{where}{suffix}", person)


def hash_of(source: Path, target: Path) -> int:
    """Tells apart files of one name in different folders; the same in every run."""
    text = f"{source.resolve()}\n{target.resolve()}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def faceforensics(
    root: str | os.PathLike[str],
    method: str | None,
    output: Path,
    *,
    compression: str = "c23",
    pairs: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[Triple]:
    """Swaps of the FaceForensics++ layout (Roessler et al., ICCV 2019).

    ``original_sequences/youtube/c23/videos/000.mp4`` are the originals and
    ``manipulated_sequences/METHOD/c23/videos/000_003.mp4`` is 000 with the face of 003.

    Args:
        root: folder of the data set.
        method: folder of manipulated clips to measure; None: swaps are made with the pack.
        output: folder that such swaps go to.
        compression: "raw", "c23" or "c40".
        pairs: JSON list of pairs as the data set's ``splits/test.json``; each pair counts both
            ways. Without it all clips of ``method``.
        limit: take the first so many.

    Raises:
        MissingMediaError: the folders or clips are not there.
        ConfigError: neither ``method`` nor ``pairs``; a list that is none.
    """
    base = Path(root)
    originals = base / "original_sequences" / "youtube" / compression / "videos"
    if not originals.is_dir():
        raise MissingMediaError(
            f"{str(base)!r} is not laid out as FaceForensics++: there is no {str(originals)!r}"
        )
    made = base / "manipulated_sequences" / (method or "") / compression / "videos"
    if pairs is not None:
        names = [name for a, b in _read_pairs(Path(pairs)) for name in ((a, b), (b, a))]
    elif method:
        stems = [p.stem.split("_") for p in sorted(made.glob("*_*.mp4"))]
        names = [(stem[0], stem[1]) for stem in stems if len(stem) == 2]
        if not names:
            raise MissingMediaError(f"There is no clip TARGET_SOURCE.mp4 in {str(made)!r}")
    else:
        raise ConfigError("FaceForensics++: name a method to measure, or a list of pairs to swap")
    triples = []
    for target, source in names[:limit]:
        paths = originals / f"{source}.mp4", originals / f"{target}.mp4"
        if method:
            triples.append(Triple(*paths, made / f"{target}_{source}.mp4", source))
        else:
            triples.append(Triple(*paths, output / f"{target}_{source}.mp4", source))
    check_files([p for t in triples for p in (t.source, t.target)])
    if method:
        check_files([t.swapped for t in triples])
    return triples


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(a), str(b)) for a, b in rows]
    except FileNotFoundError as error:
        raise MissingMediaError(f"There is no list {str(path)!r}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f'{str(path)!r}: expected a JSON list [["071", "054"], ...]') from error
