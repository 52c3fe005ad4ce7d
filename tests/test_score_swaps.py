"""What swapper weights are compared against (scripts/score_swaps.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import score_swaps
from test_guide import round_head

from faceswap.models import load_model
from faceswap.ops.shape import ShapeModel


def plain(source, source_mesh, target, target_mesh):
    net = load_model("lite-swapper")
    model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
    guide, shape = score_swaps.plain_guide(model, source, source_mesh, target, target_mesh)
    assert torch.equal(shape, target_mesh)
    return guide


def test_a_thin_plate_warp_takes_pixels_to_the_targets_points_and_its_colours():
    size, mesh = 128, round_head()[None] * 45 + 64
    random = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 16, 16, generator=random) * 0.4 + 0.2
    source = torch.nn.functional.interpolate(texture, size=(size, size), mode="bilinear")
    same = plain(source, mesh, source, mesh)
    face = (same.region == 1).expand(-1, 3, -1, -1)
    assert face.float().mean() > 0.3
    torch.testing.assert_close(same.image[face], source[face], atol=0.01, rtol=0)
    shift = torch.tensor([0.2, 0.1, -0.1]).view(1, 3, 1, 1)
    moved = plain(source.roll(6, 3), mesh + torch.tensor([6.0, 0.0, 0.0]), source + shift, mesh)
    inner = torch.nn.functional.avg_pool2d(same.region, 21, 1, 10) > 0.999
    inner = inner.expand(-1, 3, -1, -1)
    assert inner.float().mean() > 0.1
    torch.testing.assert_close(moved.image[inner], (source + shift)[inner], atol=0.06, rtol=0)
    assert (source.roll(6, 3) - source)[inner].abs().mean() > 0.05  # it had to be moved
