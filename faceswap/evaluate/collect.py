"""Measure every swap of a list, then what needs all of them at once: ID retrieval, FID, KID."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceswap.errors import MediaError, NoFaceError
from faceswap.evaluate import measures, pixels
from faceswap.evaluate.extract import Instruments
from faceswap.evaluate.photos import Photos, look_at_sources
from faceswap.evaluate.protocol import Triple
from faceswap.evaluate.table import Row, Table, numbered
from faceswap.evaluate.visit import Source, Visit, unreadable, visit_clip, visit_failed


@dataclass(slots=True)
class Collected:
    """What was found of a list of swaps."""

    table: Table
    sources: dict[Path, bytes]  # JPEG of each source's face
    thumbs: list[bytes]  # JPEG of target and swapped, for each row of table.faces
    curves: dict[int, dict[str, Tensor]]  # swap -> measure -> (frames,) float, NaN = none
    sets: dict[str, float]  # fid, kid, if there is a network for them
    crops: int  # pairs of crops that went into them
    people: int  # how many were there to be told apart in ID retrieval
    made_in: float  # seconds it took to make the swaps
    images: int  # swapped pictures and frames that were looked at


def collect(
    tools: Instruments,
    triples: Sequence[Triple],
    make: Callable[[Triple], None] | None = None,
    *,
    frames: int = 10,
    track: int = 100,
    step: Callable[[Triple], None] | None = None,
) -> Collected:
    """Measure swaps; what cannot be measured stays in the table, with the reason.

    Args:
        tools: what looks.
        triples: the swaps.
        make: makes one swap; None: they are all there.
        frames: of each clip, evenly spaced, that faces are measured in (FaceForensics++: 10).
        track: frames from the start of each clip that jitter, drift and flicker are taken over.
        step: told after each swap.

    Swaps of one target are taken one after the other, so that it is read and looked at once, and
    photos are looked at several at a time.
    """
    paths = list(dict.fromkeys(triple.source for triple in triples))
    sources = look_at_sources(tools, paths, frames)
    photos = Photos(tools)
    visited: dict[int, Visit] = {}
    spent: dict[int, float] = {}  # seconds it took to make them
    for number in _by_target(triples):
        triple, began = triples[number], time.perf_counter()
        source = sources[triple.source]
        try:
            if make is not None:
                make(triple)
            spent[number] = time.perf_counter() - began
            if triple.clip:
                visited[number] = visit_clip(tools, triple, source, frames=frames, track=track)
            else:
                photos.put(number, triple, source)
        except NoFaceError as error:
            visited[number] = _failed(tools, triple, source, f"not swapped: {error}")
        except MediaError as error:
            visited[number] = unreadable(f"not measured: {error}")
        if photos.full:
            visited |= photos.measure()
        if step is not None:
            step(triple)
    visited |= photos.measure()
    visits = [visited[number] for number in range(len(triples))]
    for number, each in enumerate(visits):
        for row in each.rows:
            row.triple = number
    table = Table(
        numbered([triple.person for triple in triples]),
        numbered([str(triple.target) for triple in triples]),
        [row for each in visits for row in each.rows],
        [_clip_row(number, each) for number, each in enumerate(visits) if triples[number].clip],
    )
    people = _retrieve(table, triples, sources, [x for each in visits for x in each.swapped])
    pairs = [pair for each in visits for pair in each.features]
    return Collected(
        table,
        {path: source.thumb for path, source in sources.items()},
        [thumb for each in visits for thumb in each.thumbs],
        {number: each.curves for number, each in enumerate(visits) if each.curves},
        _set_distances(pairs),
        len(pairs),
        people,
        sum(spent.values()) if make is not None else 0.0,
        sum(each.images for each in visits),
    )


def _by_target(triples: Sequence[Triple]) -> list[int]:
    """Numbers of the swaps, those of one target together, in the order that targets come in."""
    first: dict[Path, int] = {}
    for number, triple in enumerate(triples):
        first.setdefault(triple.target, number)
    return sorted(range(len(triples)), key=lambda number: first[triples[number].target])


def _failed(tools: Instruments, triple: Triple, source: Source, reason: str) -> Visit:
    """A swap that could not be made; if the target cannot be read either, that is the reason."""
    try:
        return visit_failed(tools, triple, source, reason)
    except MediaError as error:
        return unreadable(f"not measured: {error}")


def _clip_row(number: int, found: Visit) -> Row:
    values = {name: float(curve.nanmean()) for name, curve in found.curves.items()}
    reason = next((row.reason for row in found.rows if row.reason), "")
    return Row(number, 0, values, reason)


def _retrieve(
    table: Table,
    triples: Sequence[Triple],
    sources: dict[Path, Source],
    swapped: list[dict[str, Tensor]],  # of each row of table.faces: encoder -> (D,)
) -> int:
    """Put ID retrieval into the rows; needs the faces of all sources, whose number it gives."""
    people = {triple.source: int(table.source[i]) for i, triple in enumerate(triples)}
    known = [(people[path], source.seen) for path, source in sources.items() if len(source.seen)]
    if not known:
        return 0
    owner = torch.cat([torch.full((len(seen),), number) for number, seen in known])
    there = set(owner.tolist())
    for encoder in ("", "cosface"):
        rows = [
            i
            for i, each in enumerate(swapped)
            if encoder in each and int(table.source[table.faces[i].triple]) in there
        ]
        if not rows:
            continue
        own = [seen.embedding if not encoder else seen.extra[encoder] for _, seen in known]
        wanted = torch.stack([table.source[table.faces[i].triple] for i in rows])
        queries = torch.stack([swapped[i][encoder] for i in rows])
        ranks = measures.retrieval_rank(queries, wanted, torch.cat(own).cpu(), owner)
        for i, rank in zip(rows, ranks.tolist(), strict=True):
            values = table.faces[i].values
            if encoder:
                values["ID retrieval"] = 100.0 * (rank == 1)
            else:
                values["id_retrieval"] = 100.0 * (rank == 1)
                values["id_retrieval_5"] = 100.0 * (rank <= 5)
    return len(there)


def _set_distances(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """FID and KID of the swapped crops against their targets'."""
    if len(pairs) < 2:
        return {}
    target, swapped = (torch.stack(column) for column in zip(*pairs, strict=True))
    return {
        "fid": pixels.frechet_distance(target, swapped),
        "kid": pixels.kernel_distance(target, swapped),
    }
