"""What makes a photo a poor source, in words: a swap cannot show what its source does not."""

from __future__ import annotations

import torch
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.shape import fit_pose
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT, five_points

_TURNED = 40.0  # degrees to the side, from which on half of a face is made up
_NARROW = 24.0  # px between the eyes, under which a face has hardly any detail
_CUT = 0.04  # share of a face's outline and features that may be outside of the photo
_HIDDEN = 0.35  # share of the eyes behind something; rims and reflections hide less


def shortcomings(
    mesh: Tensor,  # (1, 478, 3) float32, px of the photo
    mean: Tensor,  # (478, 3) float32, `ShapeModel.mean`
    size: tuple[int, int],  # height and width of the photo
    *,
    hidden: float = 0.0,  # share of the eyes that something lies before, see `hidden_eyes`
) -> list[str]:
    """What is wrong with a source face, each as the end of a sentence; nothing if it is fine."""
    found = []
    turn = fit_pose(mesh, mean)[1][0]
    yaw = float(torch.rad2deg(torch.asin(turn[2, 0].clamp(-1, 1)).abs()))
    if yaw > _TURNED:
        found.append(f"is turned by about {5 * round(yaw / 5)} degrees")
    eyes = five_points(mesh)[0, :2]
    apart = float((eyes[0] - eyes[1]).norm())
    if apart < _NARROW and yaw <= _TURNED:  # a turned head's are near each other
        found.append(f"is small ({apart:.0f} px between the eyes)")
    xy = mesh[0, :, :2]
    limit = xy.new_tensor([size[1] - 1, size[0] - 1])
    outside = ((xy < 0) | (xy > limit)).any(1).float().mean()
    if float(outside) > _CUT:
        found.append("is cut off by the edge of the photo")
    if hidden > _HIDDEN:
        found.append("has its eyes covered")
    return found


def hidden_eyes(
    covered: Tensor,  # (1, 1, S, S) in [0, 1], what lies before the face
    mesh: Tensor,  # (1, 478, 3) float32, px of the crop
) -> float:
    """Share of the eyes' pixels behind dark glasses, hands, hair; 0 where there are none."""
    side = covered.shape[-1]
    open_ = [
        (outline_distance(mesh[:, constant(eye, mesh.device), :2], 64, side) > 0).float()
        for eye in (EYE_LEFT, EYE_RIGHT)
    ]
    eyes = torch.maximum(*open_)
    return float((covered * eyes).sum() / eyes.sum().clamp_min(1))
