"""Benchmarks anyone can repeat: they build their own pictures and say what machine this is.

Times are medians of a few runs in one process; only ratios within one run mean much on a shared
machine. The face is scikit-image's astronaut (NASA, public domain).
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faceswap.config import SwapConfig
from faceswap.faces.select import Selection
from faceswap.media.image import write_image
from faceswap.photo import swap_image
from faceswap.swap import Swapper

PHOTO = (1080, 1920)  # h, w
FACE_SIDE = 400  # px, of the pasted head; its face is about 190 px wide


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
        ``machine``, ``startup`` (seconds of ``--help``), ``cold`` (seconds of the whole command),
        ``photos`` (a list of `ImageBench` as dicts) and ``peak_rss_mib``.
    """
    swapper = Swapper.from_config(config)
    photos = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.png"
        write_image(source, _photo(1))
        for count in (1, 4):
            target = Path(folder) / f"target{count}.png"
            write_image(target, _photo(count))
            photos.append(asdict(_time_photo(swapper, source, target, count, repeats)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cold = _time_command(
            f"image {source} {folder}/target1.png -o {folder}/out.png -q --overwrite "
            f"--pack {config.pack} --device {config.device}"
        )
    return {
        "machine": machine(swapper.device),
        "pack": config.pack,
        "startup": _time_command("--help"),
        "cold": cold,
        "photos": photos,
        "peak_rss_mib": round(peak),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def _photo(faces: int) -> torch.Tensor:
    """A 1920x1080 picture with so many faces, ``(3, 1080, 1920) uint8``."""
    from skimage import data

    height, width = PHOTO
    ramp = np.linspace(60, 180, width, dtype=np.float32)
    canvas = np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2).astype(np.uint8)
    head = torch.from_numpy(data.astronaut()[0:256, 96:352].copy()).permute(2, 0, 1)[None].float()
    head = torch.nn.functional.interpolate(head, size=(FACE_SIDE, FACE_SIDE), mode="bicubic")
    pixels = head[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    for i in range(faces):
        x, y = 60 + i * (FACE_SIDE + 50), 300 + 60 * (i % 2)
        canvas[y : y + FACE_SIDE, x : x + FACE_SIDE] = pixels if i % 2 == 0 else pixels[:, ::-1]
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()


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
            select=Selection(all_faces=True),
        )
        if run:  # the first warms caches up
            totals.append(time.perf_counter() - began)
            for stage, seconds in report.seconds.items():
                stages.setdefault(stage, []).append(seconds)
        swapped = report.faces_swapped
    medians = {stage: statistics.median(values) for stage, values in stages.items()}
    return ImageBench(faces, statistics.median(totals), medians, swapped)


def _time_command(arguments: str) -> float:
    """Wall seconds of a fresh ``faceswap`` process, the faster of two."""
    runs = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "faceswap", *arguments.split()],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        runs.append(time.perf_counter() - began)
    return min(runs)


def format_image_bench(result: dict[str, Any]) -> str:
    """The result of `bench_image` as a table for a terminal or a README."""
    where = result["machine"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, {where['device']}, torch {where['torch']}, "
        f"load {where['load']}, {where['date']}; pack {result['pack']}",
        f"start-up (--help) {result['startup']:.2f} s, whole command cold {result['cold']:.2f} s, "
        f"peak memory {result['peak_rss_mib']} MiB",
        "",
        "| 1920x1080, faces | s per photo, warm | by stage |",
        "| --- | --- | --- |",
    ]
    for photo in result["photos"]:
        stages = ", ".join(f"{k} {v:.2f}" for k, v in photo["stages"].items() if k != "total")
        lines.append(f"| {photo['faces']} | {photo['seconds']:.2f} | {stages} |")
    return "\n".join(lines)
