"""`faceswap evaluate`: swaps made or found, measured, told."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceswap.config import SwapConfig
from faceswap.errors import ConfigError, MediaError
from faceswap.evaluate import report as text
from faceswap.evaluate.collect import Collected, collect
from faceswap.evaluate.extract import Instruments, load_instruments
from faceswap.evaluate.figures import draw
from faceswap.evaluate.protocol import Pairing, Triple, faceforensics, pair_folders, read_triples
from faceswap.evaluate.table import difference
from faceswap.media.output import replacing

if TYPE_CHECKING:
    from faceswap.swap import Swapper

Make = Callable[[Triple], None]
_log = logging.getLogger("faceswap")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What to measure, with what, and where the report goes.

    Exactly one of ``sources`` with ``targets``, ``triples``, ``faceforensics``, or a ``compare`` of
    two lists.
    """

    output: Path
    """Folder of the report; swaps that are made go to ``swaps`` in it."""
    sources: Path | None = None
    """Folder of photos, each of one person."""
    targets: Path | None = None
    """Folder of photos or clips."""
    triples: Path | None = None
    """CSV list: source, target, swapped[, person]."""
    faceforensics: Path | None = None
    """Folder of the FaceForensics++ data set."""
    method: str | None = None
    """Folder of manipulated clips to measure; None: swaps are made."""
    pairs: Path | None = None
    """JSON list of pairs as in the data set's ``splits``."""
    compression: str = "c23"
    """Of the data set's clips: raw, c23, c40."""
    compare: tuple[str, str] | None = None
    """Two packs, swapper files, or CSV lists, side by side."""
    config: SwapConfig = field(default_factory=SwapConfig)
    """How swaps are made; its device is also what measures."""
    extractors: tuple[str, ...] = ()
    """``NAME=FILE[@SIZE]``, see `faceswap.evaluate.extract`."""
    pairing: Pairing = "cross"
    """Every source onto every target, or the first onto the first and so on."""
    limit: int | None = None
    """At most so many swaps, by chance."""
    frames: int = 10
    """Frames of a clip that faces are measured in, evenly spaced."""
    track: int = 100
    """Frames from a clip's start that jitter, drift and flicker are taken over."""
    seed: int = 0
    """Of the choice of pairs and of the bootstrap."""
    overwrite: bool = False
    """Whether a report that is there may be replaced."""

    def __post_init__(self) -> None:
        if (self.sources is None) != (self.targets is None):
            raise ConfigError("--sources and --targets go together")
        ways = [self.sources, self.triples, self.faceforensics]
        lists = self.compare is not None and all(_is_list(side) for side in self.compare)
        if sum(way is not None for way in ways) + lists != 1:
            raise ConfigError(
                "say what to measure, in one way: --sources with --targets, --triples, "
                "--faceforensics, or --compare of two CSV lists"
            )
        if self.compare is not None and not lists:
            if any(_is_list(side) for side in self.compare):
                raise ConfigError("--compare: two packs or swapper files, or two CSV lists")
            if self.triples is not None or self.method is not None:
                raise ConfigError("--compare of packs makes swaps: give --sources and --targets")
        for name in ("frames", "track", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; it has to be at least 1")


@dataclass(frozen=True, slots=True)
class Side:
    """One list of swaps, and how they come about."""

    name: str
    folder: Path  # of its pictures
    triples: list[Triple]
    config: SwapConfig | None  # None: the swaps are there


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
    folder = prepare(options)
    sides = plan(options)
    if tools is None:
        tools = load_instruments(options.extractors, options.config.device)
    began = time.perf_counter()
    found: list[Collected] = []
    told: list[dict[str, Any]] = []
    warnings: list[str] = []
    for side in sides:
        side.folder.mkdir(parents=True, exist_ok=True)
        makes = None if side.config is None else (make or make_with_pack)(side)

        def step(number: int, triple: Triple, side: Side = side) -> None:
            progress(f"{side.name}: {number + 1} of {len(side.triples)}, {triple.swapped.name}")

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
                "swaps_per_second": len(side.triples) / seconds,
                "pictures": {k: [(inside / p).as_posix() for p in v] for k, v in pictures.items()},
            }
        )
    report = {
        "faceswap": _version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 3),
        "device": str(tools.device),
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


def prepare(options: EvaluateOptions) -> Path:
    """The report's folder, made if it is not there."""
    folder = Path(options.output)
    if (folder / "report.json").exists() and not options.overwrite:
        raise MediaError(
            f"{str(folder)!r} holds a report already; pass --overwrite to replace it, or choose "
            "another folder with -o"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediaError(f"Cannot make the folder {str(folder)!r}: {reason}") from error
    return folder


def plan(options: EvaluateOptions) -> list[Side]:
    """The lists of swaps to measure: one, or two to compare."""
    folder = Path(options.output)
    if options.compare is None:
        made = options.triples is None and options.method is None
        name = _side_name(options.config) if made else options.method or str(options.triples)
        triples = _triples(options, folder / "swaps")
        return [Side(name, folder, triples, options.config if made else None)]
    sides = []
    for letter, what in zip("ab", options.compare, strict=True):
        inside = folder / letter
        if _is_list(what):
            sides.append(Side(what, inside, read_triples(what), None))
            continue
        file = os.path.sep in what or Path(what).suffix != ""
        change = {"swapper": what} if file else {"pack": what}
        config = options.config.model_copy(update=change)
        sides.append(Side(what, inside, _triples(options, inside / "swaps"), config))
    return [sides[0], _in_order_of(sides[0], sides[1])]


def _in_order_of(a: Side, b: Side) -> Side:
    """Side b with its swaps in the order of a's; they have to be of the same pairs."""
    if len(a.triples) != len(b.triples):
        raise ConfigError(
            f"{a.name} lists {len(a.triples)} swaps and {b.name} {len(b.triples)}; to be compared "
            "they have to be of the same sources and targets"
        )
    mine = {(t.source.resolve(), t.target.resolve()): t for t in b.triples}
    try:
        ordered = [mine[t.source.resolve(), t.target.resolve()] for t in a.triples]
    except KeyError as error:
        source, target = error.args[0]
        raise ConfigError(f"{b.name} has no swap of {str(source)!r} on {str(target)!r}") from error
    return Side(b.name, b.folder, ordered, b.config)


def _triples(options: EvaluateOptions, swaps: Path) -> list[Triple]:
    if options.triples is not None:
        return read_triples(options.triples)
    if options.faceforensics is not None:
        return faceforensics(
            options.faceforensics,
            options.method,
            swaps,
            compression=options.compression,
            pairs=options.pairs,
            limit=options.limit,
        )
    assert options.sources is not None
    assert options.targets is not None
    return pair_folders(
        options.sources,
        options.targets,
        swaps,
        pairing=options.pairing,
        limit=options.limit,
        seed=options.seed,
    )


def make_with_pack(side: Side) -> Make:
    """Makes the swaps of a side with the pack and settings it names."""
    from faceswap.photo import swap_image
    from faceswap.swap import Swapper

    assert side.config is not None
    swappers: dict[bool, Swapper] = {}

    def make(triple: Triple) -> None:
        if triple.clip not in swappers:
            swappers[triple.clip] = Swapper.from_config(side.config, video=triple.clip)
        swapper = swappers[triple.clip]
        triple.swapped.parent.mkdir(parents=True, exist_ok=True)
        if not triple.clip:
            swap_image(swapper, triple.source, triple.target, triple.swapped, overwrite=True)
            return
        from faceswap.clip import swap_video

        swap_video(swapper, triple.source, triple.target, triple.swapped, overwrite=True)

    return make


def notes(options: EvaluateOptions, tools: Instruments, found: list[Collected]) -> list[str]:
    """What a reader of the numbers has to know."""
    lines = []
    if "(pack lite)" in tools.about.get("identity", ""):
        lines.append(
            "id_* are taken with the encoder that also drives the lite pack, which favours that "
            "pack; name another with --extractor identity=FILE to compare tools"
        )
    if not any(one.sets for one in found):
        lines.append("fid and kid are left out: they need --extractor features=FILE")
    else:
        lines.append(
            "fid and kid compare the swapped faces with their targets, in the features of "
            f"{tools.about.get('features', 'the network given')}"
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


def _is_list(side: str) -> bool:
    return side.lower().endswith(".csv")


def _side_name(config: SwapConfig) -> str:
    return config.swapper or config.pack


def _version() -> str:
    try:
        return version("faceswap")
    except PackageNotFoundError:  # run from a bare checkout
        return "(source tree)"
