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
from torch import Tensor

from faceswap.errors import ConfigError, MediaError, NoFaceError
from faceswap.faces.detect import PHOTO_SIDES, CenterFaceDetector
from faceswap.ops.geometry import align, transform
from faceswap.ops.topology import five_points
from faceswap.train import label
from faceswap.train.clean import copies, perceptual_hash, sharpness, strangers
from faceswap.train.data import INDEX, cut
from faceswap.train.disk import write_json, write_whole, writing
from faceswap.train.photos import Photo, crowds, decode, find_photos
from faceswap.train.shards import SHEET, Part, write_part, write_shards, write_sheet

TEMPLATE = "ghost_frontal"
PART = 256  # photos a part
BATCH = 32  # faces a forward pass of the labelling networks
PARTS, SETTINGS, REPORT = "parts", "settings.json", "report.json"
_APART = 0.45  # detector and mesh may differ by this share of the eye distance
_log = logging.getLogger("faceswap")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What a training set is made to look like."""

    size: int = 224  # px, crop side S
    margin: float = 1.6  # how much wider than the template's view a crop is, room for jitter
    min_size: int = 250  # px, shorter side of a photo (GHOST's article drops smaller ones)
    min_sharpness: float = 0.15  # of `clean.sharpness`; 0 keeps all
    min_similarity: float = 0.2  # cosine to the person's other photos; -1 keeps all
    mesh_teacher: str = ""  # TorchScript FaceMesh; empty: the pack's landmarks
    iris_teacher: str = ""  # TorchScript Iris, goes with it
    identity_teacher: str = ""  # TorchScript or weight file; empty: the pack's encoder
    threads: int = 1  # of torch, a process

    def __post_init__(self) -> None:
        if self.size < 32 or self.margin < 1:
            raise ConfigError(f"size {self.size}, margin {self.margin}: at least 32 and 1")
        if bool(self.mesh_teacher) != bool(self.iris_teacher):
            raise ConfigError("--mesh-teacher and --iris-teacher go together")


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


@dataclass(frozen=True, slots=True)
class _Tools:
    """The networks of one process."""

    device: torch.device
    detector: CenterFaceDetector
    labeler: label.MeshLabeler
    recogniser: label.Recogniser


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


Job = tuple[str, list[Photo], PrepareOptions, str]  # file to write, photos, settings, device


def _work(jobs: list[Job], workers: int) -> Iterator[str]:
    """Make the parts, in this process or in several; yields the files as they are done."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_make_part, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        yield from pool.map(_make_part, jobs)


_loaded: dict[tuple[PrepareOptions, str], _Tools] = {}  # the networks, once a process


def _tools(options: PrepareOptions, device: str) -> _Tools:
    key = (options, device)
    if key not in _loaded:
        where = torch.device(device)
        detector = CenterFaceDetector(sides=PHOTO_SIDES)
        detector.model.to(where).eval()
        labeler: label.MeshLabeler = (
            label.TeacherLabeler(
                label.load_script(Path(options.mesh_teacher), where),
                label.load_script(Path(options.iris_teacher), where),
            )
            if options.mesh_teacher
            else label.PackLabeler(where)
        )
        from faceswap import weights

        name = options.identity_teacher or weights.pack(label.PACK).identity
        _loaded.clear()
        _loaded[key] = _Tools(where, detector, labeler, label.load_recogniser(name, where))
    return _loaded[key]


def _make_part(job: Job) -> str:
    """Label the photos of one part and write it."""
    path, photos, options, device = job
    torch.set_num_threads(options.threads)
    tools = _tools(options, device)
    part = Part([], [], [], [], {})
    waiting: list[tuple[Photo, Tensor, Tensor]] = []
    for photo in photos:
        try:
            pixels = decode(photo).to(tools.device)
        except MediaError as error:
            part.dropped[photo.name] = f"unreadable: {str(error).removeprefix(f'{photo.name}: ')}"
            continue
        height, width = pixels.shape[1:]
        if min(height, width) < options.min_size:
            part.dropped[photo.name] = f"small: {width}x{height}"
            continue
        faces = tools.detector(pixels[None])
        row = label.main_face(faces, height, width)
        if row is None:
            part.dropped[photo.name] = "no face"
            continue
        waiting.append((photo, pixels, faces.points[row]))
        if len(waiting) == BATCH:
            _label(waiting, part, options, tools)
            waiting = []
    if waiting:
        _label(waiting, part, options, tools)
    write_part(Path(path), part)
    return path


@torch.no_grad()
def _label(
    faces: list[tuple[Photo, Tensor, Tensor]],  # photo, (3, H, W) uint8, (5, 2) points
    part: Part,
    options: PrepareOptions,
    tools: _Tools,
) -> None:
    """Crop and label a batch of faces, and add to the part those that pass."""
    pixels = [each[1] for each in faces]
    points = torch.stack([each[2] for each in faces])
    mesh, presence = tools.labeler(pixels, points)
    five = five_points(mesh).contiguous()
    alignment = align(five, options.size, template=TEMPLATE, margin=options.margin)
    crops = label.cut_each(pixels, alignment).mul(255).round().byte()
    own, seen = transform(alignment.matrix, points), transform(alignment.matrix, five)
    apart = (own - seen).abs().amax((1, 2)) / ((seen[:, 0] - seen[:, 1]).norm(dim=1) + 10)
    detail = sharpness(crops, options.margin)
    scale = alignment.scale
    dense = torch.cat(
        [transform(alignment.matrix, mesh[..., :2]), mesh[..., 2:] * scale[:, None, None]], -1
    )
    side = tools.recogniser.size
    views = cut(crops, align(own, side, template="arcface").matrix, side)
    columns = {
        "image": crops,
        "points": own,
        "mesh": dense,
        "embedding": tools.recogniser(views),
        "hash": perceptual_hash(crops),
    }
    columns = {name: column.cpu() for name, column in columns.items()}
    for i, (photo, _, _) in enumerate(faces):
        if float(presence[i]) < 0 or float(apart[i]) > _APART:
            part.dropped[photo.name] = "unsure: detector and landmarks disagree"
        elif float(detail[i]) < options.min_sharpness:
            part.dropped[photo.name] = f"blurred: {float(detail[i]):.3f}"
        else:
            part.rows.append({name: column[i] for name, column in columns.items()})
            part.names.append(photo.name)
            part.people.append(photo.person)
            part.scale.append(round(float(scale[i]), 5))


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
