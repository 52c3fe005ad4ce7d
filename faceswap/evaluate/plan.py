"""What `faceswap evaluate` is asked for, and the lists of swaps that follow from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from faceswap.config import EncodeConfig, SwapConfig, VideoConfig
from faceswap.errors import ConfigError, MediaError
from faceswap.evaluate.protocol import Pairing, Triple, faceforensics, pair_folders, read_triples

LOSSLESS = EncodeConfig(codec="ffv1", audio=False)
CONSTANT_RATE = {"raw": 0, "c23": 23, "c40": 40}  # of H.264 (Roessler et al., ICCV 2019, section 3)


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
    config: SwapConfig = field(default_factory=VideoConfig)
    """How swaps are made; its device is also what measures. If its ``encode`` says nothing, clips
    are written without loss, or as the data set's are, so that the measures are the swap's."""
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
        return [Side(name, folder, triples, making(options) if made else None)]
    sides = []
    for letter, what in zip("ab", options.compare, strict=True):
        inside = folder / letter
        if _is_list(what):
            sides.append(Side(what, inside, read_triples(what), None))
            continue
        file = os.path.sep in what or Path(what).suffix != ""
        change = {"swapper": what} if file else {"pack": what}
        config = making(options).model_copy(update=change)
        sides.append(Side(what, inside, _triples(options, inside / "swaps"), config))
    return [sides[0], _in_order_of(sides[0], sides[1])]


def making(options: EvaluateOptions) -> VideoConfig:
    """The settings that swaps are made with, clips among them."""
    config = options.config
    if not isinstance(config, VideoConfig):
        config = VideoConfig(**config.model_dump())
    if config.encode != EncodeConfig():
        return config
    encode = LOSSLESS
    if options.faceforensics is not None:
        encode = EncodeConfig(crf=CONSTANT_RATE[options.compression], audio=False)
    return config.model_copy(update={"encode": encode})


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


def _is_list(side: str) -> bool:
    return side.lower().endswith(".csv")


def _side_name(config: SwapConfig) -> str:
    return config.swapper or config.pack
