"""Peak memory of `faceswap video` by the length of the clip.

    python scripts/video_memory.py --seconds 10 600            # puppets in place of networks
    python scripts/video_memory.py --seconds 10 60 --pack lite --rate 10

Each clip is swapped in a process of its own, which reports the most memory it ever held (ru_maxrss;
ffmpeg is a process of its own and not counted). With puppets, which find coloured squares and
paint on them, everything that reads, holds, tracks, writes and joins frames runs as it always does,
and ten minutes are affordable; with --pack the networks run too. The clips are made by ffmpeg from
one that is two seconds long: the astronaut of scikit-image, or a square, gliding over grey.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from puppets import Puppeteer, write_clip

from faceswap.config import VideoConfig
from faceswap.media.binary import find_ffmpeg
from faceswap.swap import Swapper
from faceswap.types import Faces
from faceswap.video import swap_video

LOOP_SECONDS = 2
SIZE = (720, 1280)


class QuickPuppeteer(Puppeteer):
    """Looks at every eighth pixel each way, so that a large frame takes a millisecond."""

    def detect(self, frames: Tensor, *, unsure: float = 1.0, consecutive: bool = False) -> Faces:
        small = super().detect(frames[:, :, ::8, ::8])
        return Faces(small.frame, small.box * 8, small.points * 8, small.score)


def face(second: float, *, real: bool) -> Tensor:
    """A frame ``(3, 720, 1280) uint8``."""
    frame = torch.full((3, *SIZE), 90, dtype=torch.uint8)
    left = round(200 + 500 * second / LOOP_SECONDS)
    if real:
        from skimage import data

        person = torch.from_numpy(data.astronaut()[0:512, 0:512].copy()).permute(2, 0, 1)
        frame[:, 100:612, left : left + 512] = person
    else:
        frame[:, 200:500, left : left + 300] = torch.tensor([220, 30, 30])[:, None, None]
    return frame


def make_clip(path: Path, seconds: int, rate: int, *, real: bool) -> None:
    """A clip that repeats one of two seconds."""
    loop = path.with_name(f"loop-{rate}.mp4")
    if not loop.exists():
        frames = [face(i / rate, real=real) for i in range(LOOP_SECONDS * rate)]
        write_clip(loop, frames, rate=rate)
    command = [find_ffmpeg(), "-v", "error", "-y", "-stream_loop", "-1", "-i", str(loop)]
    subprocess.run([*command, "-t", str(seconds), "-c", "copy", str(path)], check=True)


def measure(clip: Path, pack: str | None) -> None:
    """Swap one clip and print what it took."""
    config = VideoConfig(pack=pack or "lite", encode={"preset": "ultrafast"})
    if pack is None:
        swapper: Swapper | QuickPuppeteer = QuickPuppeteer(config)
    else:
        swapper = Swapper.from_config(config, video=True)
    source = torch.full((3, 64, 64), 127, dtype=torch.uint8)
    if pack is not None:
        from skimage import data

        source = torch.from_numpy(data.astronaut()[:250, 100:350].copy()).permute(2, 0, 1)
    began = time.process_time()
    report = swap_video(
        swapper, source, clip, clip.with_name("out.mp4"), config=config, overwrite=True
    )
    print(
        json.dumps(
            {
                "frames": report.frames,
                "swapped": report.faces_swapped,
                "peak_mb": round(report.peak_mb or 0, 1),
                "cpu_s": round(time.process_time() - began, 1),
                "wall_s": round(report.seconds["total"], 1),
            }
        )
    )


def main() -> None:
    """Measure all lengths; the exit code says whether the longest is within 10 % of the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 600])
    parser.add_argument("--rate", type=int, default=25, help="frames per second")
    parser.add_argument("--pack", help="run these networks instead of puppets")
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)  # of a measuring process
    chosen = parser.parse_args()
    if chosen.clip is not None:
        measure(chosen.clip, chosen.pack)
        return
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in chosen.seconds:
            clip = Path(folder) / f"{seconds}.mp4"
            make_clip(clip, seconds, chosen.rate, real=chosen.pack is not None)
            command = [sys.executable, __file__, "--clip", str(clip)]
            command += ["--pack", chosen.pack] if chosen.pack else []
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            entry = json.loads(said)
            peaks.append(entry["peak_mb"])
            print(f"{seconds} s at {chosen.rate} fps: {said.strip()}", flush=True)
    ratio = peaks[-1] / peaks[0]
    print(f"peak of the last over that of the first: {ratio:.3f}")
    sys.exit(ratio > 1.1)


if __name__ == "__main__":
    main()
