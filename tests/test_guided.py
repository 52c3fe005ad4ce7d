"""The lite pack's networks keep their promises whatever their weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from faceswap.models import load_model, save_model
from faceswap.models.guided import GuidedAEINet
from faceswap.models.identity import IdentityNet
from faceswap.models.mesh import MeshNet
from faceswap.types import Guide

TINY = {"widths": (8, 8, 12, 16, 16), "embedding_size": 16, "size": 64}


def guide(n: int, side: int) -> Guide:
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int) -> torch.Tensor:
        return torch.rand(n, channels, side, side, generator=generator)

    region = torch.zeros(n, 1, side, side)
    region[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1.0
    return Guide(draw(3), draw(3), region, draw(1), draw(1), draw(2), torch.zeros_like(region))


@pytest.mark.parametrize("side", [64, 128])
def test_eyes_are_shown_as_the_guide_has_them(side: int) -> None:
    net = GuidedAEINet(**TINY).eval()
    plain = guide(2, side)
    eyes = torch.zeros_like(plain.region)
    eyes[..., side // 2 :, :] = 1.0
    target, identity = torch.rand(2, 3, side, side), torch.randn(2, 16)
    with torch.no_grad():
        before, after = (net(target, identity, each) for each in (plain, replace(plain, eyes=eyes)))
    shown = ((eyes == 1) & (plain.region == 1)).expand_as(after)
    torch.testing.assert_close(after[shown], plain.image[shown])
    assert (before[shown] - plain.image[shown]).abs().mean() > 0.01
    rest = (eyes == 0).expand_as(after)
    assert torch.equal(after[rest], before[rest])


@pytest.mark.parametrize("side", [64, 128])
def test_swapped_crop_has_the_side_of_the_target_and_leaves_the_rest_alone(side: int) -> None:
    net = GuidedAEINet(**TINY).eval()
    target = torch.rand(2, 3, side, side)
    with torch.no_grad():
        out = net(target, torch.randn(2, 16), guide(2, side))
    assert out.shape == target.shape
    assert out.min() >= 0
    assert out.max() <= 1
    outside = (guide(2, side).region == 0).expand_as(target)
    assert torch.equal(out[outside], target[outside])
    assert (out[~outside] - target[~outside]).abs().mean() > 0.01


def test_the_targets_own_face_cannot_leak() -> None:
    """Where the region is 1, the target's pixels reach the output through the base alone."""
    net = GuidedAEINet(**TINY).eval()
    hints, identity = guide(1, 64), torch.randn(1, 16)
    inside = (hints.region == 1).expand(1, 3, 64, 64)
    with torch.no_grad():
        one = net(torch.rand(1, 3, 64, 64), identity, hints)
        other = net(torch.rand(1, 3, 64, 64), identity, hints)
    torch.testing.assert_close(one[inside], other[inside], atol=1e-6, rtol=0)  # rounding only


def test_identity_changes_the_face_and_its_length_does_not() -> None:
    net = GuidedAEINet(**TINY).eval()
    with torch.no_grad():
        for block in net.blocks:
            for layer in block.modules():
                if isinstance(layer, torch.nn.Linear):
                    torch.nn.init.normal_(layer.weight, std=0.2)
        target, hints, a = torch.rand(1, 3, 64, 64), guide(1, 64), torch.randn(1, 16)
        same = net(target, a, hints)
        torch.testing.assert_close(net(target, 3 * a, hints), same, atol=1e-5, rtol=0)
        assert (net(target, torch.randn(1, 16), hints) - same).abs().max() > 1e-4


def test_the_residual_leaves_the_regions_rim_alone() -> None:
    net = GuidedAEINet(**TINY).eval()
    head = net.head[0]
    assert isinstance(head, torch.nn.Conv2d)
    assert head.bias is not None
    with torch.no_grad():
        head.bias[4:] = 3.0  # would lighten everywhere
        hints = guide(1, 64)
        _, residual = net.gates(hints, torch.randn(1, 16))
    inside = hints.region[0, 0] == 1
    rows, columns = torch.nonzero(inside.any(1))[:, 0], torch.nonzero(inside.any(0))[:, 0]
    middle = residual[0, 0, rows[len(rows) // 2], columns[len(columns) // 2]]
    assert middle > 0.03
    assert residual[0, 0, rows[0], columns[len(columns) // 2]] < 0.3 * middle


def test_gradient_reaches_every_weight() -> None:
    net = GuidedAEINet(**TINY)
    net(torch.rand(2, 3, 64, 64), torch.randn(2, 16), guide(2, 64)).sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []


def test_mesh_and_identity_shapes_and_round_trip(tmp_path) -> None:
    mesh = MeshNet(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), rank=8, size=64).eval()
    points, presence = mesh(torch.rand(3, 3, 64, 64))
    assert points.shape == (3, 478, 3)
    assert presence.shape == (3,)
    args = {"widths": [8, 8, 8], "depths": [1, 1, 1], "embedding_size": 12, "size": 64}
    encoder = IdentityNet(**args).eval()
    crop = torch.rand(2, 3, 64, 64)
    save_model(tmp_path / "e.safetensors", encoder, "identity", args)
    again = load_model(tmp_path / "e.safetensors")
    assert again(crop).shape == (2, 12)
    torch.testing.assert_close(again(crop), encoder(crop), atol=2e-2, rtol=2e-2)  # fp16 on disk
