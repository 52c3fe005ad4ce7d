"""Both landmark-adaptive masks: GHOST's against cv2, ours against closed forms and its promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faceswap.models import load_model
from faceswap.models.guided import GuidedAEINet
from faceswap.ops import topology
from faceswap.ops.mask import Response, adaptive_mask, adaptive_parameters, ghost_mask, render_mask
from faceswap.ops.outline import (
    DIRECTIONS,
    TOPOLOGIES,
    Topology,
    hull_pixels,
    hull_radius,
    outline,
)

SIZE = 224
RIGHT, DOWN, LEFT, UP = (k * DIRECTIONS // 4 for k in range(4))
BROWS_L, LIDS_L = [43, 48, 49, 51, 50], [35, 41, 40, 42, 39]
BROWS_R, LIDS_R = [102, 103, 104, 105, 101], [89, 95, 94, 96, 93]
# the jaw of the 106 points, from the left temple over the chin (0) to the right temple
JAW = [1, *range(9, 17), *range(2, 9), 0, *range(24, 17, -1), *range(32, 24, -1), 17]


def face106(width: float = 78.0, x: float = 112.0) -> Tensor:
    """106 points of an upright face, half as wide as `width`, as a drawing: ``(1, 106, 2)``."""
    points = torch.tensor([x, 120.0]).repeat(106, 1)
    turn = torch.linspace(math.pi, 0, len(JAW))  # left over below to right
    points[JAW] = torch.stack((x + width * turn.cos(), 90 + 110 * turn.sin()), 1)
    for brows, lids, side in ((BROWS_L, LIDS_L, -1), (BROWS_R, LIDS_R, 1)):
        along = torch.linspace(-0.28, 0.28, 5) * width
        points[brows] = torch.stack((x + side * 0.5 * width + along, 75 - 0 * along), 1)
        points[lids] = torch.stack((x + side * 0.5 * width + along, 95 - 0 * along), 1)
    return points[None]


def face478(width: float = 75.0, height: float = 95.0, size: int = SIZE) -> Tensor:
    """478 points whose oval is an ellipse about the middle of the crop."""
    points = torch.full((478, 2), (SIZE - 1) / 2)
    oval = TOPOLOGIES[478].outline
    turn = torch.arange(len(oval)) * (2 * math.pi / len(oval)) - math.pi / 2
    points[list(oval)] += torch.stack((width * turn.cos(), height * turn.sin()), 1)
    return ((points + 0.5) * (size / SIZE) - 0.5)[None]


def circle(radius: float, size: int = SIZE) -> Tensor:
    turn = torch.arange(720) * (2 * math.pi / 720)
    return (size - 1) / 2 + radius * torch.stack((turn.cos(), turn.sin()), -1)[None]


# --- hulls ---


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(5, 60), count=st.integers(3, 106))
def test_hull_pixels_equal_cv2(seed: int, spread: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.randn(1, count, 2, generator=generator) * spread + 112).clamp(0, 223).trunc()
    theirs = np.zeros((SIZE, SIZE), np.uint8)
    corners = cv2.convexHull(points[0].numpy().astype(np.int32))
    cv2.fillConvexPoly(theirs, corners, 1)
    ours = hull_pixels(points, SIZE)[0, 0].numpy()
    assert np.array_equal(ours, theirs)


def test_hull_of_points_in_one_place_or_in_a_line() -> None:
    assert hull_pixels(torch.full((1, 5, 2), 9.0), 16).sum() <= 1
    line = torch.tensor([[[2.0, 5.0], [12.0, 5.0], [7.0, 5.0]]])
    assert hull_pixels(line, 16).sum() == 11


def test_hull_radius_of_a_square() -> None:
    square = torch.tensor([[[1.0, 1.0], [9.0, 1.0], [9.0, 9.0], [1.0, 9.0], [4.0, 5.0]]])
    radius = hull_radius(square, torch.tensor([[5.0, 5.0]]))[0]
    angle = torch.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
    torch.testing.assert_close(radius, 4 / torch.maximum(angle.cos().abs(), angle.sin().abs()))


def test_hull_radius_ignores_the_order_of_points_and_what_lies_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 40, 2, generator=generator) * 30
    shuffled = points[:, torch.randperm(40, generator=generator)]
    more = torch.cat((shuffled, points * 0.5), 1)
    centre = torch.zeros(2, 2)
    torch.testing.assert_close(hull_radius(more, centre), hull_radius(points, centre))


def test_outline_raises_the_brows_and_ignores_depth() -> None:
    face = face106()
    contour = outline(face)
    assert contour.shape == (1, 43, 2)
    assert contour[..., 1].min().item() == pytest.approx(75 - 20)
    deep = torch.cat((face, torch.randn(1, 106, 1)), -1)
    assert torch.equal(outline(deep), contour)
    with pytest.raises(
        ValueError, match=r"no topology for 68 landmarks, expected one of \[106, 478"
    ):
        outline(torch.zeros(1, 68, 2))
    triangle = Topology(outline=(0, 1, 2), brows=(), eyes=(), raised=0.0)
    assert outline(torch.zeros(1, 68, 2), triangle).shape == (1, 3, 2)


# --- the mask of GHOST ---


def ghost_by_cv2(swapped: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same table with cv2, for one face."""
    shift = swapped[:, 0] - target[:, 0]
    offset = max(shift[[1, 2, 13]].sum(), -shift[[17, 18, 29]].sum())
    if offset > 6:
        kernel, sigma_x, sigma_y, brow = 15, 15, 10, 2.7
    elif offset > 3:
        kernel, sigma_x, sigma_y, brow = 10, 10, 8, 2.0
    elif offset < -3:
        kernel, sigma_x, sigma_y, brow = -5, 5, 10, 0.5
    else:
        kernel, sigma_x, sigma_y, brow = 5, 5, 5, 2.0
    points = swapped.astype(np.int32)
    for brows, lids in ((BROWS_L, LIDS_L), (BROWS_R, LIDS_R)):
        points[brows] = points[brows] + 0.5 * brow * (points[brows] - points[lids])
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 255)
    square = np.ones((abs(kernel), abs(kernel)), np.uint8)
    mask = cv2.erode(mask, square) if kernel > 0 else cv2.dilate(mask, square)
    clear = 2 * sigma_y
    mask[:clear] = mask[-clear:] = 0
    mask[:, :clear] = mask[:, -clear:] = 0
    return cv2.GaussianBlur(mask, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y) / 255


@pytest.mark.parametrize("narrower", [-6.0, -1.5, -0.9, 0.0, 0.9, 1.5, 1.9, 2.5, 8.0])
def test_ghost_mask_equals_the_original(narrower: float) -> None:
    target = face106(78)
    swapped = face106(78 - narrower) + 0.3 * torch.randn(
        1, 106, 2, generator=torch.Generator().manual_seed(7)
    )
    ours = ghost_mask(swapped, target)[0, 0].numpy()
    theirs = ghost_by_cv2(swapped[0].numpy(), target[0].numpy())
    assert np.abs(ours - theirs).max() < 1.5 / 255


def test_ghost_mask_takes_the_row_of_each_face() -> None:
    target = face106().expand(4, -1, -1)
    swapped = torch.cat([face106(78 - n) for n in (-6, 0, 1.5, 8)])
    together = ghost_mask(swapped, target)
    for i in range(4):
        torch.testing.assert_close(together[i], ghost_mask(swapped[i : i + 1], target[:1])[0])
    area = together.sum((1, 2, 3))
    assert (area.diff() < 0).all()  # wide, equal, narrow, narrower


def test_ghost_mask_uses_the_larger_of_the_two_sides() -> None:
    # moved to the right by 3: the left jaw line is 9 px further in, the right one further out
    moved, still = ghost_mask(face106(x=115.0), face106()), ghost_mask(face106(), face106())
    assert moved.sum() < 0.9 * still.sum()


@pytest.mark.parametrize("size", [112, 256, 448])
def test_ghost_mask_at_another_size_is_the_same_picture(size: int) -> None:
    swapped, target = face106(76), face106()
    scale = size / SIZE
    moved = ghost_mask((swapped + 0.5) * scale - 0.5, (target + 0.5) * scale - 0.5, size)
    back = torch.nn.functional.interpolate(moved, (SIZE, SIZE), mode="bilinear", antialias=True)
    assert moved.shape == (1, 1, size, size)
    assert (back - ghost_mask(swapped, target)).abs().max() < 0.02


def test_ghost_mask_needs_a_layout_it_knows() -> None:
    with pytest.raises(ValueError, match=r"or two \(N, 478, 2\), got \(1, 68, 2\)"):
        ghost_mask(torch.zeros(1, 68, 2), torch.zeros(1, 68, 2))
    with pytest.raises(ValueError, match=r"got \(1, 478, 2\) and \(1, 106, 2\)"):
        ghost_mask(torch.zeros(1, 478, 2), torch.zeros(1, 106, 2))


# How far along the jaw, in sixteenths from ear to chin, the mesh has its points (mean face).
MESH_STEPS = [0.0, 1.5, 3.1, 4.7, 6.6, 8.3, 9.7, 11.2, 12.3, 13.5, 14.7, 16.0]


def face106_as_mesh(width: float = 78.0, x: float = 112.0) -> Tensor:
    """The drawing of `face106` in the 478 points."""
    points = torch.tensor([x, 120.0]).repeat(478, 1)
    half = torch.tensor(MESH_STEPS) * (math.pi / 32)
    turn = torch.cat((half, (math.pi - half[:-1]).flip(0)))  # from the right over below to the left
    points[list(topology.JAW)] = torch.stack((x + width * turn.cos(), 90 + 110 * turn.sin()), 1)
    same, mesh = face106(width, x)[0], TOPOLOGIES[478]
    points[list(mesh.brows)] = same[BROWS_L + BROWS_R]
    points[list(mesh.eyes)] = same[LIDS_L + LIDS_R]
    for low, high in ((topology.BROW_LEFT, BROWS_L), (topology.BROW_RIGHT, BROWS_R)):
        points[list(low[5:])] = same[high] + torch.tensor([0.0, 5.0])  # their lower edges
    points[[10, 151]] = torch.tensor([x, 5.0])  # a hairline, of which 106 points know nothing
    return points[None]


@pytest.mark.parametrize("narrower", [-6.0, 0.0, 1.5, 8.0])  # one of each row of the table
def test_ghost_mask_of_a_mesh_is_that_of_the_original_layout(narrower: float) -> None:
    ours = ghost_mask(face106_as_mesh(78 - narrower), face106_as_mesh(78))
    theirs = ghost_mask(face106(78 - narrower), face106(78))
    apart = (ours - theirs).abs()
    # a polygon of 23 instead of 33 points, within the blur; another row differs by tens of pixels
    assert apart.mean() < 0.004
    assert (ours.sum() / theirs.sum() - 1).abs() < 0.01
    other = ghost_mask(face106(78 - narrower), face106(60 if narrower == 8 else 83))
    assert (ours - other).abs().mean() > 2 * apart.mean()


def test_jaw_of_the_mesh_stands_where_the_mask_was_drawn_for() -> None:
    assert topology.JAW[0] == 356
    assert topology.JAW[11] == 152  # the chin
    assert topology.JAW[-1] == 127
    for point, mirrored, wanted in zip(
        topology.JAW_WIDTH_LEFT, topology.JAW_WIDTH_RIGHT, (0, 9, 5), strict=True
    ):
        place = topology.JAW.index(mirrored)
        assert topology.JAW[-1 - place] == point
        assert abs(MESH_STEPS[place] - wanted) < 0.75  # sixteenths of the way from ear to chin


def test_steps_of_the_jaw_are_those_of_the_mean_face() -> None:
    net = load_model("lite-swapper")
    assert isinstance(net, GuidedAEINet)
    line = net.shape_mean[list(topology.JAW[-12:][::-1]), :2]  # chin to the left ear, turned round
    along = torch.linalg.vector_norm(line.diff(dim=0), dim=1).cumsum(0)
    steps = torch.cat((torch.zeros(1), along / along[-1] * 16))
    assert (steps - torch.tensor(MESH_STEPS)).abs().max() < 0.4


# --- our mask ---


def test_rendered_circle_is_a_smoothstep_of_the_distance() -> None:
    parameters = torch.tensor([-0.02, 0.1]).expand(1, DIRECTIONS, 2)
    mask = render_mask(circle(60), parameters, SIZE)[0, 0]
    i = torch.arange(SIZE) - (SIZE - 1) / 2
    inside = 60 - 0.02 * SIZE - (i.square()[:, None] + i.square()).sqrt()
    t = (0.5 + inside / (0.1 * SIZE)).clamp(0, 1)
    assert (mask - t * t * (3 - 2 * t)).abs().max() < 5e-3


def test_rendered_ellipse_meets_its_outline_and_is_as_steep_as_asked() -> None:
    face = face478(60, 85)
    flat = torch.tensor([0.0, 0.08]).expand(1, DIRECTIONS, 2)
    mask = render_mask(outline(face), flat, SIZE)
    on = face[:, list(TOPOLOGIES[478].outline)]
    grid = on[:, None] * (2 / (SIZE - 1)) - 1
    values = torch.nn.functional.grid_sample(mask, grid, align_corners=True)
    # within half a pixel, what rounding the corners costs at the sharper ends of an ellipse
    assert (values - 0.5).abs().max() < 0.5 * 1.5 / (0.08 * SIZE)
    # the middle of a smoothstep rises by 1.5 per feather, whatever the direction
    dy, dx = torch.gradient(mask[0, 0])
    steep = torch.nn.functional.grid_sample(
        (dx.square() + dy.square()).sqrt()[None, None], grid, align_corners=True
    )
    torch.testing.assert_close(
        steep, torch.full_like(steep, 1.5 / (0.08 * SIZE)), rtol=0.06, atol=0
    )


Draw = Callable[[float], Tensor]
FACES: list[Draw] = [lambda wider: face106(72 + wider), lambda wider: face478(72 + wider)]


def profile(mask: Tensor) -> Tensor:
    """From the middle of the left side to the centre, ``(S // 2,)``."""
    return mask[0, 0, SIZE // 2, : SIZE // 2]


def edge(mask: Tensor) -> tuple[float, float]:
    """Where the left edge of the mask is 1/2, and its width from 0.1 to 0.9, in pixels."""
    rising = profile(mask).numpy()
    at = [float(np.interp(level, rising, np.arange(len(rising)))) for level in (0.1, 0.5, 0.9)]
    return at[1], at[2] - at[0]


@pytest.mark.parametrize("face", FACES)
def test_wider_face_grows_and_sharpens_the_mask(face: Draw) -> None:
    side, width = edge(adaptive_mask(face(0), face(0), SIZE))
    wide_side, wide_width = edge(adaptive_mask(face(8), face(0), SIZE))
    assert wide_side < side - 8  # beyond what the hull itself has grown
    assert wide_width < 0.8 * width
    # all of the swapped face shows, and with it all of the target's face is covered
    assert wide_side < SIZE / 2 - 80


@pytest.mark.parametrize("face", FACES)
def test_narrower_face_shrinks_and_blurs_the_mask(face: Draw) -> None:
    side, width = edge(adaptive_mask(face(0), face(0), SIZE))
    narrow_side, narrow_width = edge(adaptive_mask(face(-8), face(0), SIZE))
    assert narrow_side > side + 8  # further in than the hull itself has gone
    assert narrow_width > 1.5 * width


@pytest.mark.parametrize("face", FACES)
def test_mask_moves_without_jumps_in_the_offset(face: Draw) -> None:
    offsets = torch.arange(-9, 9, 0.1).tolist()
    swapped = torch.cat([face(offset) for offset in offsets])
    masks = adaptive_mask(swapped, face(0).expand(len(offsets), -1, -1), SIZE)
    # an edge 11 px wide, moved by 0.1 px, changes by 0.014 at 1.5 / width; response on top
    assert masks.diff(dim=0).abs().max() < 0.05
    assert (masks.sum((1, 2, 3)).diff() > 0).all()


def test_ghost_mask_does_jump_in_the_offset() -> None:
    offsets = torch.arange(-3, 3, 0.2).tolist()
    masks = ghost_mask(
        torch.cat([face106(72 + offset) for offset in offsets]),
        face106(72).expand(len(offsets), -1, -1),
    )
    assert masks.diff(dim=0).abs().amax((1, 2, 3)).sort().values[-3:].min() > 0.1  # 3 thresholds


def test_each_side_answers_for_itself() -> None:
    target = face478(72, 90)
    swapped = target.clone()
    middle = (SIZE - 1) / 2
    x = swapped[..., 0] - middle
    swapped[..., 0] = middle + torch.where(x > 0, x * 1.12, x * 0.88)
    growth, feather = adaptive_parameters(outline(swapped), outline(target), SIZE)[0].unbind(-1)
    rest = Response()
    assert growth[RIGHT] > rest.growth_rest > growth[LEFT]
    assert feather[RIGHT] < rest.feather_rest < feather[LEFT]


@pytest.mark.parametrize(("side", "axis"), [(DOWN, "chin"), (UP, "forehead")])
def test_chin_and_forehead_count(side: int, axis: str) -> None:
    target = face478(72, 88)
    y = target[..., 1] - (SIZE - 1) / 2
    longer = target.clone()
    longer[..., 1] += torch.where(y > 0 if axis == "chin" else y < 0, 0.1 * y, 0.0)
    there = adaptive_parameters(outline(longer), outline(target), SIZE)[0]
    back = adaptive_parameters(outline(target), outline(longer), SIZE)[0]
    assert there[side, 0] > back[side, 0] + 0.02
    assert there[side, 1] < back[side, 1]


def test_equal_faces_get_the_rest_values_everywhere() -> None:
    contour = outline(face478())
    parameters = adaptive_parameters(contour, contour, SIZE)
    rest = torch.tensor([Response().growth_rest, Response().feather_rest])
    torch.testing.assert_close(parameters, rest.expand_as(parameters))


def test_mask_is_the_same_picture_at_every_size() -> None:
    sizes = (128, 256)
    small, large = (adaptive_mask(face478(70, 90, s), face478(74, 90, s), s) for s in sizes)
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().max() < 0.02


def test_mask_does_not_depend_on_the_company() -> None:
    swapped = torch.cat([face478(70 + i) for i in range(3)])
    target = face478().expand(3, -1, -1)
    together = adaptive_mask(swapped, target, 64)
    alone = torch.cat([adaptive_mask(swapped[i : i + 1], target[:1], 64) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert adaptive_mask(swapped[:0], target[:0], 64).shape == (0, 1, 64, 64)


@settings(max_examples=25, deadline=None)
@given(
    width=st.floats(1, 200), other=st.floats(1, 200), height=st.floats(1, 200), seed=st.integers(0)
)
def test_mask_stays_a_mask_and_fades_to_the_border(
    width: float, other: float, height: float, seed: int
) -> None:
    noise = 3 * torch.randn(1, 478, 2, generator=torch.Generator().manual_seed(seed % 2**31))
    mask = adaptive_mask(face478(width, height) + noise, face478(other, height), SIZE)
    assert mask.isfinite().all()
    assert mask.min() >= 0
    assert mask.max() <= 1
    sides = torch.cat((mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]))
    assert sides.max() < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"growth_narrow": 0.1},
        {"feather_wide": 0.0},
        {"feather_narrow": 0.01},
        {"span": 0.0},
        {"spread": -1.0},
    ],
)
def test_response_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Response: "):
        Response(**wrong)


def test_render_mask_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected parameters \(N, 128, 2\), got \(1, 64, 2\)"):
        render_mask(circle(10), torch.zeros(1, 64, 2), SIZE)
