"""`faceswap evaluate`: swaps made or found, measured, told."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faceswap.evaluate import report as text
from faceswap.evaluate.collect import Collected, collect
from faceswap.evaluate.extract import Instruments, load_instruments
from faceswap.evaluate.figures import draw
from faceswap.evaluate.plan import EvaluateOptions, Side, making, plan, prepare
from faceswap.evaluate.protocol import Triple, is_clip
from faceswap.evaluate.table import difference
from faceswap.evaluate.visit import frames_of, spaced
from faceswap.media.output import replacing

Make = Callable[[Triple], None]
_log = logging.getLogger("faceswap")


def run_evaluation(
    options: EvaluateOptions,
    *,
    tools: Instruments | None = None,
    make: Callable[[Side], Make] | None = None,
    progress: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Measure swaps and write ``report.json``, ``report.md``, ``rows.csv`` and pictures.

    Args:
        options: what to measure.
        tools: what measures; None: the lite pack's networks and the options' extractors.
        make: gives what makes the swaps of a side; None: the pack that it names.
        progress: told one line after each swap.

    Returns:
        What ``report.json`` holds; NaN is there null. `faceswap.evaluate.report.as_text` makes a
        table of it.

    Raises:
        ConfigError: options that cannot be, lists that do not fit together.
        MediaError: files that are not there; the report exists.
        WeightError: a network that is not there.
    """
    sides = plan(options)
    if tools is None:
        tools = load_instruments(options.extractors, options.config.device)
    # All there is to load is loaded here: what is missing is said before hours of work.
    makers = [(make or make_with_pack)(side) if side.config else None for side in sides]
    folder = prepare(options)
    began = time.perf_counter()
    found: list[Collected] = []
    told: list[dict[str, Any]] = []
    warnings: list[str] = []
    for side, makes in zip(sides, makers, strict=True):
        side.folder.mkdir(parents=True, exist_ok=True)
        done = itertools.count(1)

        def step(triple: Triple, side: Side = side, done: Iterator[int] = done) -> None:
            progress(f"{side.name}: {next(done)} of {len(side.triples)}, {triple.swapped.name}")

        start = time.perf_counter()
        one = collect(
            tools, side.triples, makes, frames=options.frames, track=options.track, step=step
        )
        seconds = time.perf_counter() - start
        pictures, missing = draw(one, side.triples, side.folder, names=one.table.names())
        text.write_rows(side.folder / "rows.csv", one, side.triples)
        found.append(one)
        warnings += [line for line in missing if line not in warnings]
        inside = side.folder.relative_to(folder)
        told.append(
            {
                "name": side.name,
                **text.describe(one, side.triples, seed=options.seed),
                "seconds": round(seconds, 3),
                "seconds_swapping": round(one.made_in, 3),
                "images": one.images,
                "images_per_second": round(one.images / (seconds - one.made_in), 3),
                "pictures": {k: [(inside / p).as_posix() for p in v] for k, v in pictures.items()},
            }
        )
    report = {
        "faceswap": _version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 3),
        "device": str(tools.device),
        "threads": torch.get_num_threads(),
        "instruments": tools.about,
        "protocol": _protocol(options),
        "notes": notes(options, tools, found) + warnings,
        "sides": told,
    }
    if len(found) == 2:
        gaps = difference(found[0].table, found[1].table, seed=options.seed)
        report["difference"] = {name: asdict(gap) for name, gap in gaps.items()}
    for line in warnings:
        _log.warning(line)
    with replacing(folder / "report.md") as part:
        part.write_text(text.as_markdown(report), encoding="utf-8")
    with replacing(folder / "report.json") as part:
        text.write_json(part, report)
    return report


def make_with_pack(side: Side) -> Make:
    """Makes the swaps of a side with the pack and settings it names."""
    from faceswap.photo import swap_image
    from faceswap.swap import Swapper
    from faceswap.video import swap_video

    assert side.config is not None
    config = side.config
    kinds = {triple.clip for triple in side.triples}  # clips are searched at other resolutions
    swappers = {clip: Swapper.from_config(config, video=clip) for clip in sorted(kinds)}

    def make(triple: Triple) -> None:
        swapper = swappers[triple.clip]
        triple.swapped.parent.mkdir(parents=True, exist_ok=True)
        source: Path | Tensor = triple.source
        if is_clip(triple.source):  # FaceForensics++: the middle frame shows who it is
            _, (frames,) = next(frames_of([triple.source], spaced(triple.source, 1)))
            source = frames[0]
        swap = swap_video if triple.clip else swap_image
        swap(swapper, source, triple.target, triple.swapped, overwrite=True)

    return make


def notes(options: EvaluateOptions, tools: Instruments, found: list[Collected]) -> list[str]:
    """What a reader of the numbers has to know."""
    lines = []
    if "(pack lite)" in tools.about.get("identity", ""):
        lines.append(
            "id_* are taken with the encoder that also drives the lite pack, which favours that "
            "pack; name another with --extractor identity=FILE to compare tools"
        )
    made = options.triples is None and options.method is None
    if made and any(one.table.clips for one in found):
        encode = making(options).encode.model_dump(exclude_defaults=True, exclude={"audio"})
        how = ", ".join(f"{name} {value}" for name, value in encode.items())
        lossless = encode == {"codec": "ffv1"}
        lines.append(
            f"clips were written with {how}"
            + ("" if lossless else "; outside_* and blur_ratio hold what that lost")
        )
    people = min((one.people for one in found), default=0)
    if people:
        lines.append(
            f"id_retrieval is a choice among {people} people: guessing finds the right one in "
            f"{100 / people:.3g} % (top 1) and {min(500 / people, 100):.3g} % (top 5)"
        )
    if not any(one.sets for one in found):
        lines.append("fid and kid are left out: they need --extractor features=FILE")
    else:
        lines.append(
            "fid and kid compare the swapped faces with their targets, in the features of "
            f"{tools.about.get('features', 'the network given')}; they are of "
            f"{min(one.crops for one in found)} pairs of crops, and small sets make fid too large"
        )
    return lines


def _protocol(options: EvaluateOptions) -> dict[str, Any]:
    """The options that matter for the numbers, as JSON can hold them."""
    kept = ("sources", "targets", "triples", "faceforensics", "method", "pairs", "pairing")
    out: dict[str, Any] = {
        name: str(value) for name in kept if (value := getattr(options, name)) is not None
    }
    out["frames of a clip"] = options.frames
    out["frames of a track"] = options.track
    out["seed"] = options.seed
    if options.limit is not None:
        out["limit"] = options.limit
    return out


def _version() -> str:
    try:
        return version("faceswap")
    except PackageNotFoundError:  # run from a bare checkout
        return "(source tree)"
