"""Make docs/before-after.jpg from the example photos: python scripts/make_readme_picture.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from faceswap import Swapper, swap_image
from faceswap.media.image import write_image

ROOT = Path(__file__).parent.parent
SIDE = 360  # px of each panel
VIEWS = {"source": (180, 40, 400, 260), "target": (95, 0, 355, 260)}  # x0 y0 x1 y1


def panel(picture: Image.Image, view: str) -> np.ndarray:
    return np.asarray(picture.crop(VIEWS[view]).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def main() -> None:
    examples = ROOT / "examples"
    source, target = examples / "source.jpg", examples / "target.jpg"
    report = swap_image(Swapper.from_pack("lite"), source, target)
    assert report.image is not None
    swapped = Image.fromarray(report.image.permute(1, 2, 0).numpy())
    panels = [
        panel(Image.open(source), "source"),
        panel(Image.open(target), "target"),
        panel(swapped, "target"),
    ]
    pixels = torch.from_numpy(np.hstack(panels)).permute(2, 0, 1)
    write_image(ROOT / "docs" / "before-after.jpg", pixels, quality=90, overwrite=True)


if __name__ == "__main__":
    main()
