"""Index lists of the MediaPipe FaceMesh topology (468 surface points, then two irises of five)."""

from __future__ import annotations

import torch
from torch import Tensor

from faceswap.ops.constant import constant

MESH_POINTS = 478
SURFACE = 468  # points of the face's surface; the irises after them move with the gaze
# In drawing order; left and right as seen in the picture.
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
# The part that is swapped: the oval, cut half-way between brows and hairline, so that neither the
# source's fringe comes along nor the target's is painted over.
FACE = (
    151, 337, 299, 333, 298, 301, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 71, 68, 104, 69, 108,
)  # fmt: skip
# What has to cover the target's brows: the top of FACE and the brows themselves.
FOREHEAD = (
    *(151, 337, 299, 333, 298, 301, 71, 68, 104, 69, 108),
    *(70, 63, 105, 66, 107, 55, 65, 52, 53, 46, 336, 296, 334, 293, 300, 276, 283, 282, 295, 285),
)
BRIDGE = 168  # of the nose, between the eyes
INNER_LIPS = (
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
)  # fmt: skip
OUTER_LIPS = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
)  # fmt: skip
EYE_LEFT = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
EYE_RIGHT = (362, 398, 384, 385, 386, 387, 388, 466, 263, 249, 390, 373, 374, 380, 381, 382)
BROW_LEFT = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
BROW_RIGHT = (336, 296, 334, 293, 300, 276, 283, 282, 295, 285)
# What moves with an expression, by its outlines.
FEATURES = EYE_LEFT + EYE_RIGHT + BROW_LEFT + BROW_RIGHT + INNER_LIPS + OUTER_LIPS
NOSE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 48, 278, 115, 344)
# The jaw line of layouts such as insightface's 2d106: ear over chin to ear, beginning at the height
# of the eyes' outer corners, where that layout's 33 points begin too.
JAW = FACE_OVAL[7:30]
# What GHOST's mask measures the width by: points 1, 2, 13 and 17, 18, 29 of 2d106. From ear to chin
# they are the 1st, 10th and 6th of 17 evenly spaced points; these are the nearest along the mean
# face's contour (at 0.0, 9.7 and 4.7 of 16 steps, against 0, 9 and 5).
JAW_WIDTH_LEFT, JAW_WIDTH_RIGHT = (127, 136, 132), (356, 365, 361)
# Skin that tells a face's colour: cheeks and the nose's back, away from beard and fringe.
CHEEKS = (
    50, 101, 36, 205, 123, 117, 118, 119, 100, 142, 207, 187,
    280, 330, 266, 425, 352, 346, 347, 348, 329, 371, 427, 411,
    4, 5, 195, 197, 6, 1, 45, 275, 51, 281,
)  # fmt: skip
# From the brows' tops up to the hairline.
UPPER_FOREHEAD = (
    54, 103, 67, 109, 10, 338, 297, 332, 284, 300, 293, 334, 296, 336, 107, 66, 105, 63, 70,
)  # fmt: skip
IRIS_LEFT = (468, 469, 470, 471, 472)
IRIS_RIGHT = (473, 474, 475, 476, 477)


# Control points of warp guidance: what carries shape and expression, a quarter of the mesh.
CONTROL = (
    *FACE_OVAL[::2],
    *EYE_LEFT[::2],
    *EYE_RIGHT[::2],
    *BROW_LEFT[::2],
    *BROW_RIGHT[::2],
    *OUTER_LIPS[::2],
    *INNER_LIPS[::2],
    *NOSE,
    468,
    473,
)


def covering(swapped: Tensor, target: Tensor) -> Tensor:
    """The swapped face's mesh with its forehead wide enough to hide the target's brows.

    A point of the brows or above them is moved out to the target's own and an eighth beyond where
    that is farther from the bridge of the nose; else two pairs of brows would show when the target
    raises theirs.

    Args:
        swapped: ``(N, 478, 2 or 3)`` float32, crop pixels.
        target: of the same shape, same crop.

    Returns:
        ``(N, 478, 2 or 3)`` float32, for outlines only.
    """
    rows = constant(FOREHEAD, swapped.device)
    centre = swapped[:, BRIDGE : BRIDGE + 1, :2]
    own = swapped[:, rows, :2] - centre
    wanted = 1.125 * (target[:, rows, :2] - centre)
    farther = wanted.norm(dim=-1, keepdim=True) > own.norm(dim=-1, keepdim=True)
    out = swapped.clone()
    out[:, rows, :2] = centre + torch.where(farther, wanted, own)
    return out


def five_points(mesh: Tensor) -> Tensor:
    """The five alignment points of a mesh: eye centres, nose tip, mouth corners.

    Args:
        mesh: ``(N, 478, 2 or 3)`` points.

    Returns:
        ``(N, 5, 2)``: eye on the picture's left, eye on its right, nose, mouth left, mouth right.
        An eye centre is the mean of its corners and lid centres, which do not follow the gaze.
    """
    xy = mesh[..., :2]
    left = xy[:, constant((33, 133, 159, 145), xy.device)].mean(1)
    right = xy[:, constant((362, 263, 386, 374), xy.device)].mean(1)
    return torch.stack([left, right, xy[:, 4], xy[:, 61], xy[:, 291]], dim=1)
