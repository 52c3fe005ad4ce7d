"""Small pictures of faces for sheets, kept as JPEG so that ten thousand fit in memory."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from faceswap.ops.geometry import align
from faceswap.ops.topology import five_points

THUMB = 112  # px, side
_MARGIN = 1.25


def cut(
    frame: Tensor,  # (3, H, W) uint8
    mesh: Tensor,  # (478, 3) float, frame pixels
) -> Tensor:
    """The face in its place, ``(3, T, T) uint8`` on the CPU."""
    at = align(five_points(mesh[None]), THUMB, template="ghost_frontal", margin=_MARGIN)
    first = torch.zeros(1, dtype=torch.int64, device=frame.device)
    crop = at.crop(frame[None], first, padding="reflection")[0]
    return (crop * 255).round().byte().cpu()


def grey(faces: int) -> Tensor:
    """What stands where there is nothing to show, ``(3, T, faces * T) uint8``."""
    return torch.full((3, THUMB, THUMB * faces), 128, dtype=torch.uint8)


def pack(
    picture: Tensor,  # (3, H, W) uint8, on the CPU
) -> bytes:
    """As JPEG."""
    out = BytesIO()
    array = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    PIL.Image.fromarray(array).save(out, "JPEG", quality=92)
    return out.getvalue()


def unpack(data: bytes) -> Tensor:
    """``(3, H, W) uint8`` again."""
    with PIL.Image.open(BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
