"""A swapper without networks, for tests of everything around them: people are coloured squares.

Red, green and blue squares with black eyes, nose and mouth on a grey background are three people;
a swap paints a face white (the first source) or yellow (the second). Finding them takes
milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from faceswap import weights
from faceswap.config import VideoConfig
from faceswap.media.writer import Encoding, VideoWriter
from faceswap.types import Faces, Identities, SwapResult, VideoInfo

PEOPLE = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220)}
PAINT = torch.tensor([[255, 255, 255], [240, 230, 40]], dtype=torch.uint8)
FIVE = torch.tensor([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]])
BASE = Fraction(1, 12800)
Drawn = Sequence[tuple[str, float, float, float]]  # person, x, y, side


def draw(people: Drawn, size: tuple[int, int] = (72, 128), background: int = 90) -> Tensor:
    """A frame ``(3, H, W) uint8``; who comes later stands in front."""
    height, width = size
    frame = np.full((height, width, 3), background, np.uint8)
    for name, x, y, side in people:
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = min(width, round(x + side)), min(height, round(y + side))
        frame[y0:y1, x0:x1] = PEOPLE[name]
    return torch.from_numpy(frame).permute(2, 0, 1).contiguous()


def write_clip(
    path: Path, frames: Sequence[Tensor], *, pts: Sequence[int] | None = None, rate: int = 25
) -> Path:
    """A clip of these frames, lossless enough for the colours to survive."""
    height, width = frames[0].shape[1:]
    info = VideoInfo(
        width=width,
        height=height,
        rate=Fraction(rate),
        time_base=BASE,
        frames=len(frames),
        duration=len(frames) / rate,
        color_space="bt709",
        color_range="tv",
    )
    ticks = pts or [round(i / rate / BASE) for i in range(len(frames))]
    encoding = Encoding(preset="ultrafast", crf=4)
    if path.suffix in (".gif", ".webp", ".apng"):
        encoding = Encoding()
    with VideoWriter(path, info, encoding=encoding) as out:
        out.write(torch.stack(list(frames)), ticks)
    return path


class Puppeteer:
    """Behaves as `faceswap.swap.Swapper` does, as far as a video is concerned."""

    def __init__(self, config: VideoConfig | None = None, *, slow: float = 0.0) -> None:
        self.config = config or VideoConfig()
        self.pack = weights.pack("lite")
        self.device = torch.device("cpu")
        self.detector = SimpleNamespace(threshold=0.5)
        self.encoder = SimpleNamespace(size=8, embed=self._embed_crops)
        self.seconds: dict[str, float] = {}
        self.twins: tuple[Puppeteer, ...] = ()
        self.occlusion = None
        self.slow = slow  # seconds a batch
        self.asked = 0  # faces whose identity was asked for
        self.colors = torch.tensor(list(PEOPLE.values()), dtype=torch.float32)

    def detect(self, frames: Tensor, *, unsure: float = 1.0, consecutive: bool = False) -> Faces:
        rows = []
        for b, frame in enumerate(frames):
            for color in self.colors:
                near = (frame.float() - color[:, None, None]).abs().amax(0) < 60
                ys, xs = near.any(1).nonzero()[:, 0], near.any(0).nonzero()[:, 0]
                if near.sum() >= 40:
                    rows.append((b, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        if not rows:
            return Faces.empty()
        table = torch.tensor(rows, dtype=torch.float32)
        box = table[:, 1:]
        points = box[:, None, :2] + FIVE * (box[:, None, 2:] - box[:, None, :2])
        return Faces(table[:, 0].long(), box, points, torch.full((len(rows),), 0.9))

    def _embed_crops(self, crops: Tensor) -> Tensor:
        self.asked += len(crops)
        mean = crops[:, :, 3:5, 3:5].mean((2, 3)) * 255
        return torch.eye(3)[torch.cdist(mean, self.colors).argmin(1)]

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        self.asked += len(faces)
        rows = []
        for b, box in zip(faces.frame.tolist(), faces.box.long().tolist(), strict=True):
            x0, y0, x1, y1 = box
            patch = frames[b, :, max(y0, 0) : y1, max(x0, 0) : x1].flatten(1).float()
            distance = torch.cdist(patch.T, self.colors)
            share = (distance < 90).float().mean(0)
            rows.append(share / share.norm().clamp_min(1e-6))
        return torch.stack(rows) if rows else torch.zeros(0, 3)

    def identify(
        self,
        photos: Sequence[Tensor],
        name: str = "source",
        *,
        face: int | None = None,
        names: Sequence[str] = (),
    ) -> Identities:
        return Identities((name,), torch.zeros(1, 3))

    def landmarks(self, frames: Tensor, faces: Faces) -> Tensor:
        grid = torch.rand(478, 3, generator=torch.Generator().manual_seed(0))
        for index, point in ((33, 0), (133, 0), (159, 0), (145, 0)):
            grid[index, :2] = FIVE[point]
        for index in (362, 263, 386, 374):
            grid[index, :2] = FIVE[1]
        grid[4, :2], grid[61, :2], grid[291, :2] = FIVE[2], FIVE[3], FIVE[4]
        side = faces.box[:, 2:] - faces.box[:, :2]
        xy = faces.box[:, None, :2] + grid[None, :, :2] * side[:, None]
        return torch.cat([xy, grid[None, :, 2:].expand(len(faces), 478, 1)], 2)

    dense = landmarks

    def __call__(
        self, frames: Tensor, identities: Identities, choose: Callable[..., Tensor]
    ) -> SwapResult:
        faces = self.detect(frames)
        wanted = getattr(choose, "needs_embedding", False) and len(faces)
        source = choose(faces, self.embed(frames, faces) if wanted else None)
        chosen, opacity = faces[source >= 0], torch.ones(int((source >= 0).sum()))
        out = self.replace(frames, chosen, identities, source[source >= 0], opacity=opacity)
        return SwapResult(out, faces, source)

    def sides(self, extent: Tensor) -> Tensor:
        return torch.full_like(extent, 128, dtype=torch.int64)

    def replace(
        self,
        frames: Tensor,
        faces: Faces,
        identities: Identities,
        source: Tensor,
        *,
        opacity: Tensor,
        mesh: Tensor | None = None,
        side: Tensor | None = None,
        covered: Tensor | None = None,
        look: Tensor | None = None,
        settle: object = None,
    ) -> Tensor:
        time.sleep(self.slow)
        out = frames.clone()
        centre = faces.points.mean(1).round().long().tolist()
        for b, (x, y), k, share in zip(
            faces.frame.tolist(), centre, source.tolist(), opacity.tolist(), strict=True
        ):
            old = out[b, :, y - 4 : y + 4, x - 4 : x + 4].float()
            new = torch.lerp(old, PAINT[k].float()[:, None, None].expand_as(old), share)
            out[b, :, y - 4 : y + 4, x - 4 : x + 4] = new.round().byte()
        return out


def painted(frame: Tensor) -> dict[str, int]:
    """How many pixels of a frame each paint covers."""
    return {
        name: int(((frame.float() - PAINT[k].float()[:, None, None]).abs().amax(0) < 50).sum())
        for k, name in enumerate(("white", "yellow"))
    }


def painted_at(frame: Tensor, x: float, y: float, side: float) -> str:
    """Paint on the middle of a face: white, yellow or nothing."""
    cx, cy = round(x + side / 2), round(y + 0.55 * side)
    found = painted(frame[:, max(0, cy - 3) : cy + 3, max(0, cx - 3) : cx + 3])
    best = max(found, key=lambda name: found[name])
    return best if found[best] >= 12 else ""
