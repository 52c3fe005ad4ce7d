"""``faceswap bench image``: photos, warm and cold, stage by stage."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faceswap.bench.machine import describe, machine, peak_memory, time_command
from faceswap.bench.material import photo
from faceswap.bench.packs import load_swapper
from faceswap.config import SwapConfig
from faceswap.faces.select import Selection
from faceswap.media.image import write_image
from faceswap.photo import swap_image
from faceswap.swap import Swapper


@dataclass(frozen=True, slots=True)
class ImageBench:
    """Warm seconds for one photo with so many faces."""

    faces: int
    seconds: float  # median of the whole call, reading and writing included
    stages: dict[str, float]  # median seconds by stage
    swapped: int


def bench_image(config: SwapConfig, *, repeats: int = 5) -> dict[str, Any]:
    """Time photos of 1920x1080 with 1 and 4 faces, warm, and the whole command, cold.

    Args:
        config: pack, device, precision and the rest.
        repeats: warm runs to take the median of, after one that does not count.

    Returns:
        ``machine``, ``startup`` (seconds of ``--help``), ``cold`` (seconds of the whole command;
        None where weights are absent), ``photos`` (a list of `ImageBench` as dicts), ``fps`` and
        ``stages`` (ms) of photos with one face, ``stand_ins`` and peak memory.
    """
    swapper, stand_ins = load_swapper(config)
    photos = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.png"
        write_image(source, photo(1))
        for count in (1, 4):
            target = Path(folder) / f"target{count}.png"
            write_image(target, photo(count))
            photos.append(asdict(_time_photo(swapper, source, target, count, repeats)))
        peak = peak_memory(swapper.device)
        cold = None
        if not stand_ins:
            command = f"image {source} {folder}/target1.png -o {folder}/out.png -q --overwrite"
            chosen = f"--pack {config.pack} --device {config.device}"
            cold = time_command([*command.split(), *chosen.split()])
    one = photos[0]
    return {
        "machine": machine(swapper.device),
        "pack": config.pack,
        "stand_ins": stand_ins,
        "startup": time_command(["--help"]),
        "cold": cold,
        "fps": 1 / one["seconds"],
        "stages": {name: 1000 * seconds for name, seconds in one["stages"].items()},
        "photos": photos,
        **peak,
    }


def _time_photo(
    swapper: Swapper, source: Path, target: Path, faces: int, repeats: int
) -> ImageBench:
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    swapped = 0
    for run in range(repeats + 1):
        began = time.perf_counter()
        report = swap_image(
            swapper,
            source,
            target,
            target.with_name("out.png"),
            overwrite=True,
            # One face is what a plain command does; everybody's costs a second, closer look.
            select=Selection(all_faces=faces > 1),
        )
        if run:  # the first warms caches up
            totals.append(time.perf_counter() - began)
            for stage, seconds in report.seconds.items():
                stages.setdefault(stage, []).append(seconds)
        swapped = report.faces_swapped
    medians = {stage: statistics.median(values) for stage, values in stages.items()}
    return ImageBench(faces, statistics.median(totals), medians, swapped)


def format_image_bench(result: dict[str, Any]) -> str:
    """The result of `bench_image` as a table for a terminal or a README."""
    cold = "not measured" if result["cold"] is None else f"{result['cold']:.2f} s"
    lines = [
        f"{describe(result['machine'])}; pack {result['pack']}",
        *result["stand_ins"],
        f"start-up (--help) {result['startup']:.2f} s, whole command cold {cold}, "
        f"peak memory {result['peak_rss_mib']} MiB",
        "",
        "| 1920x1080, faces | s per photo, warm | by stage |",
        "| --- | --- | --- |",
    ]
    for row in result["photos"]:
        stages = ", ".join(f"{k} {v:.2f}" for k, v in row["stages"].items() if k != "total")
        lines.append(f"| {row['faces']} | {row['seconds']:.2f} | {stages} |")
    return "\n".join(lines)
