"""The conventions of DESIGN.md, each with what the wrong one would give.

Geometry that is off by half a pixel or has its axes swapped still looks plausible; these tests
use pictures in which the difference is a number.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faceswap.ops.color import to_lab
from faceswap.ops.geometry import TEMPLATES, Alignment, align, fit_similarity, rotate90, transform
from faceswap.ops.mask import render_mask
from faceswap.ops.outline import DIRECTIONS, hull_radius

ONE = torch.zeros(1, dtype=torch.int64)


def ramp(height: int, width: int) -> Tensor:
    """Frames whose red is x / 256, green y / 256, blue 0."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x / 256, y / 256, torch.zeros_like(x)))[None]


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


def test_convention_points_are_x_y() -> None:
    alignment = Alignment(matrix([1.0, 0.0, -100.0], [0.0, 1.0, -20.0]), 8)
    crop = alignment.crop(ramp(64, 200), ONE) * 256
    torch.testing.assert_close(crop[0, :2, 0, 0], torch.tensor([100.0, 20.0]))
    # as (y, x) the corner would lie at (20, 100), below a frame 64 px high: black
    assert crop[0, 0, 0, 0] != 20
    corner = alignment.points(torch.tensor([[[100.0, 20.0]]]))
    torch.testing.assert_close(corner, torch.zeros(1, 1, 2))


def test_convention_pixel_centres_are_at_integers() -> None:
    frames = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    identity = Alignment(matrix([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), 16)
    assert torch.equal((identity.crop(frames, ONE) * 255).round().byte(), frames)
    # with centres at half integers a shift by a whole pixel would read between pixels
    one_right = Alignment(matrix([1.0, 0.0, -1.0], [0.0, 1.0, 0.0]), 16)
    shifted = (one_right.crop(frames, ONE) * 255).round().byte()
    assert torch.equal(shifted[..., :15], frames[..., 1:])


def test_convention_matrices_map_frame_to_crop() -> None:
    points = TEMPLATES["arcface"] * 4 + 30  # a large face far from the origin
    fitted, _ = fit_similarity(points, TEMPLATES["arcface"])
    torch.testing.assert_close(transform(fitted, points), TEMPLATES["arcface"])
    assert fitted[0, 0, 0].item() == pytest.approx(0.25)  # crop -> frame would be 4
    left_by_ten = Alignment(matrix([1.0, 0.0, -10.0], [0.0, 1.0, 0.0]), 4)
    crop = left_by_ten.crop(ramp(32, 32), ONE) * 256
    assert crop[0, 0, 0, 0].item() == pytest.approx(10)  # crop -> frame would give -10: black


def test_convention_warps_align_corners() -> None:
    # twice the size about the middle of a 5 px frame: the ends of the crop are at 1 and 3
    alignment = Alignment(matrix([2.0, 0.0, -2.0], [0.0, 2.0, -2.0]), 5)
    row = alignment.crop(ramp(5, 5), ONE)[0, 0, 2] * 256
    torch.testing.assert_close(row, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))
    # the same grid read with align_corners=False stretches it: 0.75 instead of 1
    grid = torch.linspace(-0.5, 0.5, 5)
    wrong = torch.nn.functional.grid_sample(
        ramp(5, 5)[:, :1],
        torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)[None],
        align_corners=False,
    )
    assert wrong[0, 0, 2, 0].item() * 256 == pytest.approx(0.75)


def test_convention_scaling_keeps_edges_not_centres() -> None:
    alignment = Alignment(matrix([1.0, 0.0, -10.0], [0.0, 1.0, -10.0]), 8)
    at = torch.tensor([[[10.0, 17.0]]])  # the first and the last pixel of the crop
    scaled = alignment.scaled(2).points(at)
    torch.testing.assert_close(scaled, torch.tensor([[[0.5, 14.5]]]))
    # c * s would give 0 and 14: everything half a large pixel up and to the left
    plain = alignment.crop(ramp(32, 32), ONE)
    pooled = torch.nn.functional.avg_pool2d(alignment.scaled(2).crop(ramp(32, 32), ONE), 2)
    torch.testing.assert_close(pooled, plain)


def test_convention_templates_scale_by_their_edges() -> None:
    points = TEMPLATES["ghost_frontal"] * 2 + 40
    placed = align(points, 224, template="ghost_frontal").points(points)
    expected = (TEMPLATES["ghost_frontal"] + 0.5) * 2 - 0.5
    torch.testing.assert_close(placed, expected, atol=1e-3, rtol=0)
    # template * 2 would differ by half a pixel
    assert (placed - TEMPLATES["ghost_frontal"] * 2).abs().min() > 0.49


def test_convention_five_points_are_as_seen_in_the_picture() -> None:
    for template in TEMPLATES.values():
        left_eye, right_eye, nose, mouth_left, mouth_right = template.unbind(1)
        # "left" is the smaller x; the subject's own left would be the larger
        assert (left_eye[:, 0] < right_eye[:, 0]).all()
        assert (mouth_left[:, 0] < mouth_right[:, 0]).all()
        assert (left_eye[:, 1] < nose[:, 1]).all()
        assert (nose[:, 1] < mouth_left[:, 1]).all()


def test_convention_sizes_are_h_w_and_turns_are_those_of_rot90() -> None:
    corner = torch.tensor([6.0, 0.0])  # top right of a picture 5 high and 7 wide
    # counter-clockwise by a quarter it becomes the top left; with (w, h) x would be off by 2
    assert rotate90(corner, 1, (5, 7)).tolist() == [0.0, 0.0]


def test_convention_frames_are_uint8_and_crops_are_floats_up_to_one() -> None:
    frames = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    identity = Alignment(matrix([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), 8)
    crops = identity.crop(frames, ONE)
    assert crops.dtype == torch.float32
    torch.testing.assert_close(crops, torch.ones(1, 3, 8, 8))  # 255 if it were not rescaled
    pasted = identity.paste(frames, ONE, crops * 0.5, torch.ones(1, 1, 8, 8))
    assert pasted.dtype == torch.uint8
    assert pasted[0, 0, 4, 4] == 128  # 127.5, rounded to even; truncation would give 127


def test_convention_colour_is_rgb() -> None:
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1.0
    # sRGB red has L 53.24, a 80.09, b 67.20; read as BGR it would be blue, with b -107.86
    torch.testing.assert_close(
        to_lab(red)[0, :, 0, 0], torch.tensor([53.24, 80.09, 67.20]), atol=0.02, rtol=0
    )


def test_convention_directions_run_from_x_to_y() -> None:
    diamond = torch.tensor([[[40.0, 32.0], [32.0, 48.0], [24.0, 32.0], [32.0, 30.0]]])
    radius = hull_radius(diamond, torch.tensor([[32.0, 32.0]]))[0]
    quarter = DIRECTIONS // 4
    # k = K / 4 points down, as y does: 16, where upwards it is 2
    torch.testing.assert_close(radius[::quarter], torch.tensor([8.0, 16.0, 8.0, 2.0]))
    angle = torch.arange(DIRECTIONS) * (2 * torch.pi / DIRECTIONS)
    circle = 32 + 14 * torch.stack((angle.cos(), angle.sin()), -1)[None]
    parameters = torch.full((1, DIRECTIONS, 2), 0.05)
    parameters[:, :, 0] = 0.0
    parameters[:, quarter - 4 : quarter + 5, 0] = 0.15
    mask = render_mask(circle, parameters, 64)[0, 0]
    assert mask[50, 32] > 0.9  # grown downwards,
    assert mask[14, 32] == 0.0  # not upwards
