"""Alignment, crop and paste against skimage, cv2 and closed forms."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from insightface.utils.face_align import estimate_norm
from torch import Tensor

from faceswap.ops import warp
from faceswap.ops.constant import constant
from faceswap.ops.geometry import (
    TEMPLATES,
    Alignment,
    align,
    compose,
    fit_similarity,
    invert,
    rotate90,
    transform,
)

ONE = torch.zeros(1, dtype=torch.int64)


def view(x: float, y: float, scale: float, degrees: float, size: int) -> Alignment:
    """A crop centred at (x, y) of the frame, turned and scaled."""
    c, s = (f(math.radians(degrees)) * scale for f in (math.cos, math.sin))
    half = (size - 1) / 2
    rows = [[c, -s, half - (c * x - s * y)], [s, c, half - (s * x + c * y)]]
    return Alignment(torch.tensor([rows]), size)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def smooth(height: int, width: int) -> Tensor:
    """Noise without detail finer than 32 px."""
    coarse = noise(height // 32 + 1, width // 32 + 1).float()
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return fine.clamp(0, 255).round().byte()


def ramp(height: int, width: int) -> Tensor:
    """A plane in [0, 1]: bilinear sampling and any symmetric low-pass leave it a plane."""
    x = torch.arange(width) / (width + height)
    y = torch.arange(height)[:, None] / (width + height)
    return (x + y).expand(1, 3, height, width)


# --- the fit ---


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_fit_equals_insightface_for_the_arcface_template() -> None:
    generator = torch.Generator().manual_seed(1)
    points = TEMPLATES["arcface"] * 3 + 100 + 8 * torch.randn(8, 5, 2, generator=generator)
    matrix, _ = fit_similarity(points, TEMPLATES["arcface"])
    for ours, face in zip(matrix, points, strict=True):
        np.testing.assert_allclose(ours, estimate_norm(face.numpy(), 112), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    degrees=st.floats(-180, 180),
    scale=st.floats(0.05, 20),
    x=st.floats(-2000, 2000),
    y=st.floats(-2000, 2000),
    which=st.integers(0, 4),
)
def test_fit_finds_the_similarity_and_the_pose_that_made_the_points(
    degrees: float, scale: float, x: float, y: float, which: int
) -> None:
    truth = view(x, y, scale, degrees, 112)
    points = truth.inverse_points(TEMPLATES["ghost"][which : which + 1])
    matrix, error = fit_similarity(points, TEMPLATES["ghost"])
    back = transform(matrix, points)
    # float32 points at 2000 px, seen at this scale, are no finer than this
    tolerance = 1e-3 + scale * 2e-3
    torch.testing.assert_close(back[0], TEMPLATES["ghost"][which], atol=tolerance, rtol=0)
    assert error.item() < tolerance


def test_fit_never_mirrors() -> None:
    mirrored = TEMPLATES["ghost_frontal"] * torch.tensor([-1.0, 1.0])
    matrix, error = fit_similarity(mirrored, TEMPLATES["ghost_frontal"])
    assert torch.linalg.det(matrix[:, :, :2]).item() > 0
    assert error.item() > 5


def test_fit_is_the_least_squares_optimum() -> None:
    generator = torch.Generator().manual_seed(2)
    template = TEMPLATES["ghost_frontal"]
    points = template * 2 + 10 * torch.randn(1, 5, 2, generator=generator)
    matrix, _ = fit_similarity(points, template)

    def loss(m: Tensor) -> float:
        return (transform(m, points) - template).square().sum().item()

    for step in 1e-3 * torch.randn(20, 4, generator=generator):
        a, b, dx, dy = step.tolist()
        other = matrix + torch.tensor([[[a, -b, 100 * dx], [b, a, 100 * dy]]])
        assert loss(other) > loss(matrix)


def test_profile_templates_mirror_each_other() -> None:
    frontal, profile_left, half_left, half_right, profile_right = TEMPLATES["ghost"]
    swap = [1, 0, 2, 4, 3]  # left eye is the right eye of the mirror image
    for left, right in ((profile_left, profile_right), (half_left, half_right)):
        torch.testing.assert_close(
            left[swap, 0] + right[:, 0], torch.full((5,), 112.413), atol=2e-3, rtol=0
        )
        torch.testing.assert_close(left[swap, 1], right[:, 1])
    assert profile_left[2, 0] < half_left[2, 0] < frontal[2, 0] < half_right[2, 0]


def test_points_in_one_place_still_give_a_matrix_that_can_be_inverted() -> None:
    alignment = align(torch.full((1, 5, 2), 7.0), 112)
    assert alignment.matrix.isfinite().all()
    assert invert(alignment.matrix).isfinite().all()


def test_align_puts_the_points_on_the_template_and_margin_widens_the_view() -> None:
    points = TEMPLATES["ghost_frontal"] * 3 + 50
    tight, wide = align(points, 256), align(points, 256, margin=1.5)
    expected = (TEMPLATES["ghost_frontal"] + 0.5) * 256 / 112 - 0.5
    torch.testing.assert_close(tight.points(points), expected, atol=1e-3, rtol=0)
    middle = torch.full((1, 1, 2), 127.5)
    torch.testing.assert_close(tight.inverse_points(middle), wide.inverse_points(middle))
    torch.testing.assert_close(wide.scale * 1.5, tight.scale)


@pytest.mark.parametrize(
    ("size", "template", "margin"), [(0, "ghost", 1.0), (64, "ghost", 0.0), (64, "ffhq", 1.0)]
)
def test_align_refuses(size: int, template: str, margin: float) -> None:
    with pytest.raises(ValueError, match="align: "):
        align(torch.zeros(1, 5, 2), size, template=template, margin=margin)


def test_alignment_checks_its_matrix() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 2, 3\), got \(2, 3\)"):
        Alignment(torch.zeros(2, 3), 8)
    with pytest.raises(ValueError, match="float32"):
        Alignment(torch.zeros(1, 2, 3, dtype=torch.float64), 8)


def test_points_invert_compose() -> None:
    a, b = view(30, 40, 1.7, 25, 64), view(5, -9, 0.6, -70, 64)
    xy = torch.randn(1, 11, 2, generator=torch.Generator().manual_seed(3)) * 50
    torch.testing.assert_close(a.inverse_points(a.points(xy)), xy, atol=1e-4, rtol=0)
    together = transform(compose(b.matrix, a.matrix), xy)
    torch.testing.assert_close(together, b.points(a.points(xy)), atol=1e-3, rtol=1e-5)
    assert len(a[torch.tensor([False])]) == 0


def test_scaled_needs_whole_pixels() -> None:
    assert view(0, 0, 1, 0, 256).scaled(2).size == 512
    with pytest.raises(ValueError, match="whole crop side"):
        view(0, 0, 1, 0, 255).scaled(0.5)


@pytest.mark.parametrize("turns", range(-3, 5))
def test_rotate90_follows_torch_rot90(turns: int) -> None:
    frame = torch.arange(35).reshape(1, 1, 5, 7)
    turned = torch.rot90(frame, turns, (2, 3))
    xy = torch.tensor([[3, 1], [0, 0], [6, 4]])
    there = rotate90(xy, turns, (5, 7))
    assert torch.equal(turned[0, 0, there[:, 1], there[:, 0]], frame[0, 0, xy[:, 1], xy[:, 0]])
    assert torch.equal(rotate90(there, -turns, (turned.shape[2], turned.shape[3])), xy)


# --- crop ---


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 2.3])
@pytest.mark.parametrize(
    ("padding", "border"),
    [
        ("zeros", cv2.BORDER_CONSTANT),
        ("border", cv2.BORDER_REPLICATE),
        ("reflection", cv2.BORDER_REFLECT_101),
    ],
)
@pytest.mark.parametrize("centre", [(70, 60), (5, 70), (134, -3), (-60, 60)])
def test_crop_equals_cv2(
    scale: float, padding: warp.Padding, border: int, centre: tuple[int, int]
) -> None:
    frames = noise(120, 140)
    alignment = view(*centre, scale, 20, 48)
    ours = alignment.crop(frames, ONE, padding=padding)[0].permute(1, 2, 0) * 255
    picture = frames[0].permute(1, 2, 0).float().numpy()
    theirs = cv2.warpAffine(
        picture, alignment.matrix[0].numpy(), (48, 48), flags=cv2.INTER_LINEAR, borderMode=border
    )
    assert np.abs(ours.numpy() - theirs).max() < 0.5


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.06, 4), degrees=st.floats(-180, 180), x=st.floats(290, 310))
def test_crop_of_a_plane_is_the_plane_at_every_scale(
    scale: float, degrees: float, x: float
) -> None:
    frames = ramp(600, 600)
    alignment = view(x, 305, scale, degrees, 24)
    crop = alignment.crop(frames, ONE)[0, 0]
    v, u = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    expected = alignment.inverse_points(torch.stack((u, v), -1).view(1, -1, 2)).sum(-1) / 1200
    assert (crop.reshape(-1) - expected[0]).abs().max() < 2e-4  # a quarter of a frame pixel


def test_crop_low_passes_before_it_shrinks() -> None:
    stripes = torch.zeros(1, 3, 400, 400, dtype=torch.uint8)
    stripes[..., ::2] = 255
    alignment = view(200.3, 200.3, 0.13, 4, 32)
    crop = alignment.crop(stripes, ONE)
    assert (crop - 0.5).abs().max() < 0.02
    naive = cv2.warpAffine(
        stripes[0].permute(1, 2, 0).numpy(), alignment.matrix[0].numpy(), (32, 32)
    )
    assert naive.std() > 50  # what the stripes alias to without it


def test_sharpness_does_not_jump_where_the_low_pass_sets_in() -> None:
    frames = noise(400, 400)
    scales = np.linspace(0.2, 0.6, 41).tolist()
    contrast = [view(200, 200, s, 7, 48).crop(frames, ONE).std().item() for s in scales]
    steps = np.diff(contrast)
    assert contrast[0] < 0.75 * contrast[-1]
    assert np.abs(steps).max() < 0.12 * contrast[-1]


def test_crop_takes_each_face_from_its_frame_and_leaves_float_frames_in_their_units() -> None:
    frames = torch.stack((torch.full((3, 40, 40), 0.25), torch.full((3, 40, 40), 0.75)))
    matrix = view(20, 20, 1, 0, 8).matrix.expand(3, 2, 3)
    crops = Alignment(matrix.contiguous(), 8).crop(frames, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(crops.mean((1, 2, 3)), torch.tensor([0.75, 0.25, 0.75]))


def test_crop_far_outside_and_of_no_faces() -> None:
    frames = noise(30, 30)
    assert not view(500, -400, 1, 0, 16).crop(frames, ONE).any()
    none = Alignment(torch.zeros(0, 2, 3), 16)
    empty = torch.zeros(0, dtype=torch.int64)
    crops = none.crop(frames, empty)
    assert crops.shape == (0, 3, 16, 16)
    assert torch.equal(none.paste(frames, empty, crops, crops[:, :1]), frames)


# --- paste ---


def test_crop_then_paste_gives_the_frame_back() -> None:
    frames = smooth(200, 240)
    alignment = view(120.4, 100.7, 1.3, 17, 160)
    crops = alignment.crop(frames, ONE)
    pasted = alignment.paste(frames, ONE, crops, torch.ones(1, 1, 160, 160))
    difference = (pasted.int() - frames.int()).abs()
    # second derivatives reach 1.5 / px^2 here, so each bilinear pass may be off by 3 / 8
    assert difference.max() <= 2
    assert difference.sum() > 0  # it did go through the crop


@pytest.mark.parametrize("scale", [0.17, 0.9, 6.0])
def test_paste_leaves_every_other_pixel_alone(scale: float) -> None:
    frames = noise(300, 320).repeat(2, 1, 1, 1)
    alignment = view(160, 140, scale, 30, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 16:50] = 1.0
    pasted = alignment.paste(frames, torch.tensor([1]), torch.full((1, 3, 64, 64), 0.5), mask)
    assert torch.equal(pasted[0], frames[0])
    changed = (pasted[1] != frames[1]).any(0).nonzero().flip(-1).float()
    at = alignment.points(changed[None])[0]
    reach = max(1.0, 2 * scale)  # one crop pixel, or what the low-pass spreads
    assert len(changed)
    assert (at[:, 0] > 16 - reach).all()
    assert (at[:, 0] < 49 + reach).all()
    assert (at[:, 1] > 20 - reach).all()
    assert (at[:, 1] < 43 + reach).all()


def test_paste_equals_a_float_composite_with_cv2() -> None:
    frames = noise(90, 100)
    alignment = view(50, 45, 0.8, -25, 40)
    generator = torch.Generator().manual_seed(5)
    crops = torch.rand(1, 3, 40, 40, generator=generator)
    mask = torch.rand(1, 1, 40, 40, generator=generator)
    layer = torch.cat((crops * mask, mask), 1)[0].permute(1, 2, 0).numpy()
    back = invert(alignment.matrix)[0].numpy()
    warped = cv2.warpAffine(layer, back, (100, 90), flags=cv2.INTER_LINEAR)
    under = frames[0].permute(1, 2, 0).numpy()
    expected = under * (1 - warped[..., 3:]) + 255 * warped[..., :3]
    ours = alignment.paste(frames, ONE, crops, mask)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 0.51  # rounded once


def test_paste_low_passes_a_crop_it_shrinks() -> None:
    frames = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float()
    alignment = view(40.2, 40.4, 256 / 24, 10, 256)
    pasted = alignment.paste(frames, ONE, checks.expand(1, 3, 256, 256), torch.ones(1, 1, 256, 256))
    inside = pasted[0, :, 34:46, 34:46].float()
    assert (inside - 127.5).abs().max() < 3


def test_paste_paints_in_the_given_order() -> None:
    frames = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    matrix = view(20, 20, 1, 0, 16).matrix.expand(2, 2, 3).contiguous()
    crops = torch.stack((torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.6)))
    ones = torch.ones(2, 1, 16, 16)
    pasted = Alignment(matrix, 16).paste(frames, torch.zeros(2, dtype=torch.int64), crops, ones)
    assert pasted[0, 0, 20, 20] == 153


def test_paste_of_an_enlarged_crop_lands_in_the_same_place() -> None:
    frames = torch.zeros(1, 3, 120, 120, dtype=torch.uint8)
    alignment = view(60, 55, 1.1, 33, 64)
    spot = torch.exp(-(((torch.arange(64) - 30.0) / 6) ** 2))
    crop = (spot[:, None] * spot).expand(1, 3, 64, 64)
    large = torch.nn.functional.interpolate(crop, (128, 128), mode="bilinear")
    small_paste = alignment.paste(frames, ONE, crop, torch.ones(1, 1, 64, 64))
    large_paste = alignment.scaled(2).paste(frames, ONE, large, torch.ones(1, 1, 128, 128))
    assert (small_paste.int() - large_paste.int()).abs().max() <= 4


def test_paste_in_bands_is_the_same_and_never_larger_than_a_band(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = noise(500, 500)
    alignment = view(250, 250, 0.1, 12, 32)
    generator = torch.Generator().manual_seed(6)
    crops, mask = torch.rand(1, 3, 32, 32, generator=generator), torch.ones(1, 1, 32, 32)
    whole = alignment.paste(frames, ONE, crops, mask)
    grids = []
    sample = torch.nn.functional.grid_sample

    def spy(image: Tensor, grid: Tensor, *args: object, **kwargs: object) -> Tensor:
        grids.append(grid.numel() // 2)
        return sample(image, grid, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(warp, "_BAND", 4000)
    monkeypatch.setattr(torch.nn.functional, "grid_sample", spy)
    assert torch.equal(alignment.paste(frames, ONE, crops, mask), whole)
    assert len(grids) > 10
    assert max(grids) <= 4000


def test_crop_reads_only_the_rectangle_of_the_face(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    sample = torch.nn.functional.grid_sample

    def spy(image: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(image.shape[-2:])
        return sample(image, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "grid_sample", spy)
    view(900, 500, 2.0, 0, 64).crop(noise(1080, 1920), ONE)
    assert max(seen[0]) <= 64 / 2 + 8


def test_paste_names_what_does_not_fit() -> None:
    alignment = view(20, 20, 1, 0, 16)
    with pytest.raises(ValueError, match=r"expected crops \(1, 3, 16, 16\).*got \(1, 3, 32, 32\)"):
        alignment.paste(noise(40, 40), ONE, torch.ones(1, 3, 32, 32), torch.ones(1, 1, 32, 32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_crop_and_paste_on_cuda_equal_the_cpu() -> None:
    frames = noise(300, 320)
    for scale in (0.15, 0.4, 1.3, 5.0):
        alignment = view(160, 150, scale, 20, 64)
        there = Alignment(alignment.matrix.cuda(), 64)
        crops, mask = alignment.crop(frames, ONE), torch.full((1, 1, 64, 64), 0.7)
        moved = there.crop(frames.cuda(), ONE.cuda())
        torch.testing.assert_close(moved.cpu(), crops, atol=2e-3, rtol=0)
        here = alignment.paste(frames, ONE, 1 - crops, mask)
        pasted = there.paste(frames.cuda(), ONE.cuda(), 1 - crops.cuda(), mask.cuda())
        assert (pasted.cpu().int() - here.int()).abs().max() <= 1


def test_constants_of_equal_numbers_keep_their_types() -> None:
    cpu = torch.device("cpu")
    assert constant((1, 0), cpu).dtype == torch.int64
    assert constant((1.0, 0.0), cpu).dtype == torch.float32
    assert constant(((1.0, 0.0),), cpu).shape == (1, 2)
    assert constant((), cpu).dtype == torch.int64  # an index of nothing
    assert constant((1, 0), cpu) is constant((1, 0), cpu)
