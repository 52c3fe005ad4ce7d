"""Blending and colour: exact ends, order of painting, and Lab against skimage."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faceswap.ops.blend import alpha_blend, laplacian_blend, paint, paint_order
from faceswap.ops.color import color_statistics, from_lab, match_color, to_lab, transfer_color
from faceswap.ops.geometry import Alignment


def pictures(n: int, size: int = 48, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def disc(size: int, radius: float) -> Tensor:
    i = torch.arange(size) - (size - 1) / 2
    return ((i.square()[:, None] + i.square()).sqrt() < radius).float()[None, None]


# --- order and alpha ---


def test_paint_order_is_smallest_first_and_keeps_ties() -> None:
    assert paint_order(torch.tensor([5.0, 2.0, 5.0, 9.0, 2.0])).tolist() == [1, 4, 0, 2, 3]


def test_the_larger_of_two_overlapping_faces_is_on_top() -> None:
    frames = torch.zeros(2, 3, 60, 60, dtype=torch.uint8)
    large = torch.tensor([[0.5, 0.0, -5.0], [0.0, 0.5, -5.0]])  # 32 px of the frame
    small = torch.tensor([[2.0, 0.0, -40.0], [0.0, 2.0, -40.0]])  # 8 px, inside the large one
    crops = torch.stack((torch.full((3, 16, 16), 1.0), torch.full((3, 16, 16), 0.2)))
    ones = torch.ones(2, 1, 16, 16)
    frame = torch.tensor([1, 1])
    alignment = Alignment(torch.stack((large, small)), 16)
    pasted = paint(frames, frame, alignment, crops, ones)
    assert pasted[1, 0, 23, 23] == 255
    as_given = alignment.paste(frames, frame, crops, ones)
    assert as_given[1, 0, 23, 23] == 51
    assert not pasted[0].any()


def test_crops_in_a_list_are_pasted_as_in_one_tensor() -> None:
    frames = (255 * pictures(2)).byte()
    crops, mask = pictures(5, seed=1), pictures(5, seed=2)[:, :1]
    at = torch.arange(5.0)[:, None, None] * torch.tensor([[0.1, 0.0, -4.0], [0.0, 0.1, 3.0]])
    alignment = Alignment(torch.eye(2, 3) + at, 48)
    frame = torch.tensor([0, 1, 1, 0, 1])
    whole = paint(frames, frame, alignment, crops, mask)
    assert (whole != frames).any()
    assert torch.equal(paint(frames, frame, alignment, [*crops], [*mask]), whole)


def test_alpha_blend_is_exact_at_its_ends() -> None:
    under, over = pictures(2).split(1)
    ones = torch.ones(1, 1, 48, 48)
    assert torch.equal(alpha_blend(under, over, 0 * ones), under)
    assert torch.equal(alpha_blend(under, over, ones), over)
    torch.testing.assert_close(alpha_blend(under, over, 0.25 * ones), 0.75 * under + 0.25 * over)


# --- by frequency ---


@settings(max_examples=15, deadline=None)
@given(height=st.integers(16, 50), width=st.integers(16, 50), levels=st.integers(1, 4))
def test_laplacian_blend_gives_either_picture_back(height: int, width: int, levels: int) -> None:
    under, over = (p[..., :height, :width] for p in pictures(2, 50).split(1))
    ones = torch.ones(1, 1, height, width)
    torch.testing.assert_close(laplacian_blend(under, over, 0 * ones, levels=levels), under)
    torch.testing.assert_close(laplacian_blend(under, over, ones, levels=levels), over)


def test_laplacian_blend_softens_a_step_of_tone_but_keeps_detail_sharp() -> None:
    stripes = (torch.arange(64) % 2) * 0.1
    under = torch.full((1, 1, 64, 64), 0.2)
    over = 0.6 + stripes.expand(1, 1, 64, 64)
    mask = disc(64, 20)
    row = laplacian_blend(under, over, mask)[0, 0, 32]
    # tone: nowhere a step like that of the mask; detail: full right inside, none right outside
    tone = 0.5 * (row[1:] + row[:-1])
    assert tone.diff().abs().max() < 0.15
    assert alpha_blend(under, over, mask)[0, 0, 32].diff().abs().max() > 0.35
    assert row[28:36].diff().abs().min() > 0.07
    assert row[:6].diff().abs().max() < 0.02


def test_laplacian_blend_refuses_more_levels_than_fit() -> None:
    under, over = pictures(2, 16).split(1)
    with pytest.raises(ValueError, match="5 levels do not fit a side of 16"):
        laplacian_blend(under, over, disc(16, 4), levels=5)
    with pytest.raises(ValueError, match="0 levels"):
        laplacian_blend(under, over, disc(16, 4), levels=0)


# --- colour ---


def test_lab_equals_skimage_and_leads_back() -> None:
    rgb = pictures(1)
    ours = to_lab(rgb)[0].permute(1, 2, 0).numpy()
    theirs = skimage.color.rgb2lab(rgb[0].permute(1, 2, 0).numpy())
    assert np.abs(ours - theirs).max() < 2e-3
    torch.testing.assert_close(from_lab(to_lab(rgb)), rgb, atol=1e-4, rtol=0)
    whole = (rgb * 255).round().byte()
    torch.testing.assert_close(to_lab(whole), to_lab(whole.float() / 255))


def test_statistics_are_those_of_the_pixels_under_the_mask() -> None:
    rgb, mask = pictures(2), disc(48, 15).expand(2, 1, 48, 48)
    statistics = color_statistics(rgb, mask)
    inside = to_lab(rgb).flatten(2)[:, :, mask[0, 0].flatten() > 0]  # (2, 3, pixels)
    expected = torch.stack((inside.mean(-1), inside.std(-1, unbiased=False)), 1)
    torch.testing.assert_close(statistics, expected, atol=1e-3, rtol=1e-4)


def test_matched_crops_have_the_reference_statistics() -> None:
    crops = 0.3 + 0.3 * pictures(2, seed=1)
    reference = 0.35 + 0.25 * pictures(2, seed=2) * torch.tensor([1.2, 1.0, 0.8])[:, None, None]
    mask = disc(48, 18).expand(2, 1, 48, 48)
    wanted = color_statistics(reference, mask)
    matched = color_statistics(match_color(crops, reference, mask), mask)
    torch.testing.assert_close(matched, wanted, atol=0.05, rtol=0)
    half = color_statistics(match_color(crops, reference, mask, strength=0.5), mask)
    between = 0.5 * (color_statistics(crops, mask) + wanted)
    torch.testing.assert_close(half[:, 0], between[:, 0], atol=0.05, rtol=0)


def test_match_leaves_alone_what_needs_nothing_or_says_nothing() -> None:
    crops, other = pictures(1), pictures(1, seed=3)
    mask = disc(48, 18)
    for same in (
        match_color(crops, other, mask, strength=0.0),
        match_color(crops, crops, mask),
        match_color(crops, other, torch.zeros_like(mask)),  # an empty mask measures nothing
    ):
        torch.testing.assert_close(same, crops, atol=1e-4, rtol=0)


def test_contrast_of_a_flat_crop_does_not_explode() -> None:
    flat = torch.full((1, 3, 48, 48), 0.5) + 1e-3 * pictures(1)
    matched = match_color(flat, pictures(1, seed=4), torch.ones(1, 1, 48, 48))
    assert matched.std((2, 3)).max() < 3e-3  # at most doubled, give or take Lab's bend


def test_smoothed_statistics_can_be_handed_in() -> None:
    crops, reference, mask = pictures(1), pictures(1, seed=5), disc(48, 18)
    own, wanted = color_statistics(crops, mask), color_statistics(reference, mask)
    torch.testing.assert_close(
        transfer_color(crops, own, wanted), match_color(crops, reference, mask)
    )


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_strength_is_a_fraction(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        match_color(pictures(1), pictures(1), disc(48, 9), strength=strength)
