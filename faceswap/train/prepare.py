"""From photos to a training set: `prepare`.

Photos are worked off in parts of a few hundred, each written when it is done, by one or several
processes; a run that was killed goes on with the parts that are missing. At the end the parts are
looked at together (copies, strangers) and become the shards that `load_crops` reads.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from faceswap.errors import ConfigError, NoFaceError
from faceswap.train.clean import copies, strangers
from faceswap.train.data import INDEX
from faceswap.train.disk import write_json, write_whole, writing
from faceswap.train.part import TEMPLATE, Job, PrepareOptions, make_part
from faceswap.train.photos import Photo, crowds, find_photos
from faceswap.train.shards import SHEET, write_shards, write_sheet

__all__ = ["PrepareOptions", "PrepareReport", "prepare"]

PART = 256  # photos a part
PARTS, SETTINGS, REPORT = "parts", "settings.json", "report.json"
_log = logging.getLogger("faceswap")


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What became of the photos."""

    folder: str
    photos: int
    kept: int
    people: int
    dropped: dict[str, int]  # reason -> photos
    seconds: float
    warnings: tuple[str, ...] = ()


def prepare(
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    flat: Sequence[Path] = (),
    device: str = "cpu",
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> PrepareReport:
    """Make a training set of photos.

    Each photo gives at most one face (`label.main_face`). `out` receives shards and an index
    (`load_crops`), ``report.json`` with what was dropped and why, and a contact sheet. Called again
    after a stop it goes on.

    Args:
        sources: folders and tars, see `find_photos`.
        out: a folder of its own.
        options: crops, filters, teachers.
        flat: more sources, whose folders are not people.
        device: where the networks run.
        workers: processes.
        report: receives a line for each finished part.

    Raises:
        MissingMediaError, MediaError: see `find_photos`.
        ConfigError: `out` holds a finished set, or parts made with other settings.
        NoFaceError: no face in any photo passed.
    """
    began = time.monotonic()
    options = options or PrepareOptions()
    if (out / INDEX).exists():
        raise ConfigError(f"{out}: already prepared; name another folder or remove it")
    photos = find_photos(sources, flat)
    warnings = [
        f"{person}: a folder of more than a thousand photos; if they are not all of one person, "
        "give it with --flat"
        for person in crowds(photos)
    ]
    for warning in warnings:
        _log.warning(warning)
    parts = _open_parts(out, options, photos)
    todo = [
        (str(path), photos[i * PART : (i + 1) * PART], options, device)
        for i, path in enumerate(parts)
        if not path.exists()
    ]
    report(f"{len(photos)} photos, {len(parts) - len(todo)} of {len(parts)} parts are there")
    for done, path in enumerate(_work(todo, workers), len(parts) - len(todo) + 1):
        report(f"part {done} of {len(parts)}: {Path(path).name}, {time.monotonic() - began:.0f} s")
    try:
        index, dropped = _join(parts, out, options)
    except NoFaceError:  # nothing of it is of use: leave nothing behind
        shutil.rmtree(out / PARTS)
        if not any(out.iterdir()):
            out.rmdir()
        raise
    counts = dict(Counter(reason.split(":")[0] for reason in dropped.values()))
    summary = PrepareReport(
        str(out),
        len(photos),
        len(index["names"]),
        len(set(index["people"])),
        counts,
        round(time.monotonic() - began, 1),
        tuple(warnings),
    )
    with writing(out / SHEET):
        write_sheet(out, index["shards"][0])
    about = {**asdict(summary), "options": asdict(options), "photos_dropped": dropped}
    write_json(out / REPORT, about)
    write_whole(out / INDEX, json.dumps(index))  # last, as it says that the set is finished
    shutil.rmtree(out / PARTS)
    return summary


def _open_parts(out: Path, options: PrepareOptions, photos: list[Photo]) -> list[Path]:
    """Paths of all parts, and a check that those already there were made like this."""
    folder = out / PARTS
    parts = [folder / f"part-{i:06d}.safetensors" for i in range(math.ceil(len(photos) / PART))]
    settings = {"options": asdict(options), "photos": [p.name for p in photos], "part": PART}
    note = folder / SETTINGS
    begun = any(folder.glob("part-*"))  # else it came to nothing, such as by a mistyped teacher
    if begun and (not note.exists() or json.loads(note.read_text()) != settings):
        raise ConfigError(
            f"{out}: begun with other photos or settings; go on with those, or remove the folder"
        )
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(settings))
    return parts


def _work(jobs: list[Job], workers: int) -> Iterator[str]:
    """Make the parts, in this process or in several; yields the files as they are done."""
    if workers == 1 or len(jobs) < 2:
        yield from map(make_part, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        yield from pool.map(make_part, jobs)


def _join(
    parts: list[Path], out: Path, options: PrepareOptions
) -> tuple[dict[str, Any], dict[str, str]]:
    """Shards from all parts; their index, and the reason by dropped photo."""
    about: dict[str, list[Any]] = {"names": [], "people": [], "scale": []}
    dropped: dict[str, str] = {}
    hashes, embeddings = [], []
    for path in parts:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            for key, column in about.items():
                column.extend(json.loads(metadata[key]))
            dropped.update(json.loads(metadata["dropped"]))
            if json.loads(metadata["names"]):
                hashes.append(file.get_tensor("hash"))
                embeddings.append(file.get_tensor("embedding"))
    if not hashes:
        counts = Counter(reason.split(":")[0] for reason in dropped.values())
        reasons = ", ".join(f"{times} {reason}" for reason, times in counts.most_common())
        raise NoFaceError(f"no usable face in {len(dropped)} photos: {reasons}")
    again = copies(torch.cat(hashes))
    other = strangers(torch.cat(embeddings), about["people"], least=options.min_similarity)
    for i, name in enumerate(about["names"]):
        if again[i]:
            dropped[name] = "duplicate"
        elif other[i]:
            dropped[name] = f"stranger: not like the others of {about['people'][i]}"
    keep = ~(again | other)
    kept = torch.nonzero(keep)[:, 0].tolist()
    if not kept:
        raise NoFaceError(
            f"all {len(keep)} faces are duplicates or unlike others of their folder; if folders "
            "are not people, give them with --flat"
        )
    index = {
        "size": options.size,
        "template": TEMPLATE,
        "margin": options.margin,
        "shards": write_shards(parts, keep, out),
        **{key: [column[i] for i in kept] for key, column in about.items()},
    }
    return index, dropped
