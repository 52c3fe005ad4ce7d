"""Pictures of a report: sheets of the best, median and worst swaps, histograms, curves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faceswap.evaluate.collect import Collected
from faceswap.evaluate.protocol import Triple
from faceswap.evaluate.table import CLIP_MEASURES, MEASURES, Row
from faceswap.evaluate.thumbs import unpack
from faceswap.media.image import write_image

SHOWN = 4  # swaps each of the best, the median and the worst
_ROOM = {"left": 0.13, "right": 0.97, "bottom": 0.18, "top": 0.95}  # of the axes in a figure
GAP = 12  # px between the three groups
NO_MATPLOTLIB = (
    "histograms and curves were left out: matplotlib is not installed; "
    "get it with: pip install 'faceswap[report]'"
)


def draw(
    found: Collected, triples: Sequence[Triple], folder: Path, *, names: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Draw everything there is to see of these measures.

    Args:
        found: what was measured.
        triples: the swaps.
        folder: of the report; pictures go to ``sheets``, ``histograms`` and ``curves`` in it.
        names: measures.

    Returns:
        Measure -> paths relative to the folder, and warnings.
    """
    pictures: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        rows = ranked(found, name)
        if len(rows) < 2 or rows[0].values[name] == rows[-1].values[name]:
            continue
        path = _place(folder, "sheets", name)
        write_image(path, sheet(found, triples, picked(rows)), overwrite=True)
        pictures[name].append(path.relative_to(folder).as_posix())
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return pictures, [NO_MATPLOTLIB]
    for name in names:
        values = found.table.column(name)
        values = values[values.isfinite()]
        if len(values) > 1 and bool((values != values[0]).any()):
            figure = Figure(figsize=(5, 3))
            axes = figure.subplots(gridspec_kw=_ROOM)
            axes.hist(values.numpy(), bins=min(40, max(5, int(math.sqrt(len(values)) * 2))))
            axes.axvline(values.mean().item(), color="black", linewidth=1)
            axes.set_xlabel(label(name))
            axes.set_ylabel("clips" if name in CLIP_MEASURES else "faces")
            pictures[name].append(_save(figure, folder, "histograms", name))
        curves = {n: c[name] for n, c in found.curves.items() if name in c}
        if curves:
            figure = Figure(figsize=(8, 3))
            axes = figure.subplots(gridspec_kw=_ROOM)
            for number, curve in list(curves.items())[:10]:
                axes.plot(curve.numpy(), linewidth=1, label=triples[number].swapped.name)
            axes.set_xlabel("frame")
            axes.set_ylabel(label(name))
            axes.legend(fontsize="x-small")
            pictures[name].append(_save(figure, folder, "curves", name))
    return pictures, []


def label(name: str) -> str:
    """A measure with its unit."""
    unit = MEASURES[name].unit
    return f"{name} ({unit})" if unit else name


def ranked(found: Collected, name: str) -> list[Row]:
    """Rows that have the measure, best first."""
    better = MEASURES[name].better
    rows = [r for r in found.table.rows(name) if math.isfinite(r.values.get(name, math.nan))]
    if better == "1":
        return sorted(rows, key=lambda row: abs(row.values[name] - 1))
    return sorted(rows, key=lambda row: row.values[name], reverse=better == "higher")


def picked(rows: Sequence[Row]) -> list[list[Row]]:
    """Best, median and worst of ranked rows, each from its third; fewer if there are not enough.

    Frames of one clip look alike: each swap is shown once in each group, where there are enough.
    """
    third = max(1, len(rows) // 3)
    low = (len(rows) - third) // 2
    best, worst = list(rows[:third]), list(rows[-third:])
    middle = sorted(range(low, low + third), key=lambda i: abs(i - len(rows) // 2))
    place = {id(row): i for i, row in enumerate(rows)}
    groups = (best, [rows[i] for i in middle], worst[::-1])
    return [sorted(_of_swaps(group), key=lambda row: place[id(row)]) for group in groups]


def _of_swaps(rows: Sequence[Row]) -> list[Row]:
    """The first `SHOWN`, those of swaps that are not among them yet before others."""
    first: dict[int, Row] = {}
    for row in rows:
        first.setdefault(row.triple, row)
    others = [row for row in rows if first[row.triple] is not row]
    return [*first.values(), *others][:SHOWN]


def sheet(found: Collected, triples: Sequence[Triple], groups: list[list[Row]]) -> Tensor:
    """Three groups of columns, each column source over target over swapped, ``(3, H, W) uint8``."""
    at = {(row.triple, row.frame): i for i, row in reversed([*enumerate(found.table.faces)])}
    first = {row.triple: i for i, row in reversed([*enumerate(found.table.faces)])}
    parts = []
    for group in groups:
        for row in group:
            i = at.get((row.triple, row.frame), first[row.triple])
            source = unpack(found.sources[triples[row.triple].source])
            parts.append(torch.cat((source, *unpack(found.thumbs[i]).chunk(2, dim=2)), 1))
        parts.append(torch.full((3, parts[0].shape[1], GAP), 255, dtype=torch.uint8))
    return torch.cat(parts[:-1], 2)


def _place(folder: Path, kind: str, name: str) -> Path:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    return folder / kind / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.png"


def _save(figure: Any, folder: Path, kind: str, name: str) -> str:
    path = _place(folder, kind, name)
    figure.savefig(path, dpi=100)
    return path.relative_to(folder).as_posix()
