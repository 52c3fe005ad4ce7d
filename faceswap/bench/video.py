"""``faceswap bench video``: a clip end to end, where the time goes, and who waits for whom."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from faceswap.bench.machine import describe, machine, peak_memory
from faceswap.bench.material import photo, write_clip
from faceswap.bench.packs import load_swapper
from faceswap.config import VideoConfig
from faceswap.media.image import write_image
from faceswap.video import swap_video

RATE = 25  # frames per second of the clip
_WARM = 1.0  # seconds of the clip swapped beforehand
_NO_STAGE = ("total", "wait_decode", "wait_encode")
_FIRST_FRAME = """
import sys, time
began = time.perf_counter()
from faceswap.config import VideoConfig
from faceswap.swap import Swapper
from faceswap.video import swap_video
source, clip, output, settings = sys.argv[1:]
config = VideoConfig.model_validate_json(settings)
def progress(done, total, swapped):
    print(time.perf_counter() - began, flush=True)
swapper = Swapper.from_config(config, video=True)
swap_video(swapper, source, clip, output, all_faces=True, progress=progress)
"""


def bench_video(
    config: VideoConfig,
    *,
    size: tuple[int, int] = (720, 1280),  # (h, w)
    seconds: float = 15.0,
    faces: int = 1,
    first_frame: bool = True,
) -> dict[str, Any]:
    """Swap every face of a clip made for it, H.264 in and out, after a warm-up.

    Args:
        config: pack, device, batch size and the rest.
        size: of the frames.
        seconds: length of the clip.
        faces: heads that sway in it.
        first_frame: also time a fresh process until its first frame goes to the encoder.

    Returns:
        ``fps`` and ``faces_per_second`` over the whole call, the reading of source and clip and
        the joining of the file included; ``stages`` in ms a frame (``decode`` and ``encode`` run
        in threads of their own, and so does each of several devices); ``waits``, the share of the
        time in which reader, device thread and writer had nothing to do; ``load`` and
        ``first_frame`` in seconds; peak memory;
        ``stand_ins`` for absent weights; ``machine``.
    """
    began = time.perf_counter()
    swapper, stand_ins = load_swapper(config, video=True)
    load = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, clip, warm = folder / "source.png", folder / "clip.mp4", folder / "warm.mp4"
        write_image(source, photo(1))
        write_clip(clip, faces, size=size, frames=max(3, round(seconds * RATE)), rate=RATE)
        write_clip(warm, faces, size=size, frames=max(3, round(_WARM * RATE)), rate=RATE)
        fresh = None
        if first_frame and not stand_ins:
            fresh = _first_frame(source, warm, folder / "first.mp4", config)
        swap_video(swapper, source, warm, folder / "w.mp4", config=config, all_faces=True)
        if swapper.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(swapper.device)  # of several, the first is reported
        report = swap_video(swapper, source, clip, folder / "o.mp4", config=config, all_faces=True)
    total = report.seconds["total"]
    return {
        "machine": machine(swapper.device),
        "devices": report.device,
        "pack": config.pack,
        "precision": str(swapper.dtype).removeprefix("torch."),
        "stand_ins": stand_ins,
        "size": f"{size[1]}x{size[0]}",
        "faces": faces,
        "frames": report.frames,
        "faces_swapped": report.faces_swapped,
        "seconds": total,
        "fps": report.frames / total,
        "faces_per_second": report.faces_swapped / total,
        "stages": {
            stage: 1000 * spent / report.frames
            for stage, spent in report.seconds.items()
            if stage not in _NO_STAGE
        },
        "waits": shares(report.seconds),
        "load": load,
        "first_frame": fresh,
        **peak_memory(swapper.device),
    }


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Of a clip's total time, the share in which each thread had nothing to do.

    Args:
        seconds: of a `VideoReport`. The reader is idle when it does not decode, the writer when
            it does not encode; the device thread when it waits for the one or the other.
    """
    total = seconds["total"]
    return {
        "reader": max(0.0, 1 - seconds.get("decode", 0.0) / total),
        "device_for_reader": seconds.get("wait_decode", 0.0) / total,
        "device_for_writer": seconds.get("wait_encode", 0.0) / total,
        "writer": max(0.0, 1 - seconds.get("encode", 0.0) / total),
    }


def _first_frame(source: Path, clip: Path, output: Path, config: VideoConfig) -> float:
    """Seconds from the start of Python until a fresh process has its first frame swapped."""
    command = [sys.executable, "-c", _FIRST_FRAME, str(source), str(clip), str(output)]
    run = subprocess.run(
        [*command, config.model_dump_json()], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(run.stdout.splitlines()[0])


def format_video_bench(result: dict[str, Any]) -> str:
    """The result of `bench_video` as text for a terminal or a README."""
    stages = ", ".join(f"{name} {spent:.1f}" for name, spent in result["stages"].items())
    waits = result["waits"]
    vram = result["peak_vram_mib"]
    first = result["first_frame"]
    lines = [
        f"{describe(result['machine'])}; pack {result['pack']}, {result['precision']}"
        + (f", on {result['devices']}" if "," in result["devices"] else ""),
        *result["stand_ins"],
        f"{result['frames']} frames of {result['size']} with {result['faces']} face(s): "
        f"{result['fps']:.1f} frames/s, {result['faces_per_second']:.1f} faces/s",
        f"ms a frame: {stages}",
        f"waiting: reader {waits['reader']:.0%}, writer {waits['writer']:.0%}, device thread "
        f"{waits['device_for_reader']:.0%} for the reader and {waits['device_for_writer']:.0%} "
        "for the writer",
        f"models loaded in {result['load']:.2f} s"
        + ("" if first is None else f", first frame of a fresh process after {first:.2f} s"),
        f"peak memory {result['peak_rss_mib']} MiB"
        + ("" if vram is None else f", of the GPU {vram} MiB"),
    ]
    return "\n".join(lines)
