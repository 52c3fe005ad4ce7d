"""Averages over windows, by hand and by the plain operation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from faceswap.models import guided
from faceswap.ops.smooth import box


@pytest.mark.parametrize("beyond", [False, True])
def test_a_box_is_the_mean_of_its_window(beyond: bool) -> None:
    images = torch.rand(2, 3, 17, 23, generator=torch.Generator().manual_seed(1))
    plain = F.avg_pool2d(images, 9, 1, 4, count_include_pad=beyond)
    torch.testing.assert_close(box(images, 4, beyond=beyond), plain)
    flat = box(torch.ones(1, 1, 8, 8), 2, beyond=beyond)
    corner = 9 / 25 if beyond else 1.0
    torch.testing.assert_close(flat[0, 0, [0, 4], [0, 4]], torch.tensor([corner, 1.0]))


def test_the_boxes_of_the_swapper_are_the_plain_ones() -> None:
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(guided._box(images, 21), F.avg_pool2d(images, 21, 1))
