"""Pictures a run leaves behind, to be looked at."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from faceswap.media.image import write_image


def save_sheet(path: Path, rows: list[Tensor], *, synthetic: bool = False) -> None:
    """A contact sheet.

    Args:
        path: a PNG.
        rows: of ``(N, 3, S, S)`` float in [0, 1], one below the other.
        synthetic: it shows swapped or restored faces, and says so.
    """
    lines = [torch.cat(list(row.detach().float().cpu()), dim=2) for row in rows]
    sheet = torch.cat(lines, dim=1).clamp(0, 1).mul(255).round().byte()
    if synthetic:
        write_image(path, sheet, overwrite=True)
    else:
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
