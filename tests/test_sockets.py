"""Shadow around the eyes goes by the target's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from faceswap.ops.sockets import keep_sockets, lift_sockets, sockets_of
from faceswap.ops.topology import BROW_LEFT, BROW_RIGHT, EYE_LEFT, EYE_RIGHT
from faceswap.types import GUIDE_CHANNELS, Guide

SIDE = 128
EYES = ((44.0, 56.0), (84.0, 56.0))
UNDER = (..., slice(63, 66), slice(42, 47))  # 3 px under a lid's edge
IRIS = (..., slice(55, 58), slice(43, 46))
BROW = (..., slice(43, 46), slice(42, 47))
CHEEK = (..., slice(92, 100), slice(40, 50))


def mesh() -> torch.Tensor:
    """Eyes 18 x 8 px, brows 12 px above them; other points lie far away."""
    out = torch.full((1, 478, 3), 120.0)
    for outlines, above, half in (
        ((EYE_LEFT, EYE_RIGHT), 0.0, 4.0),
        ((BROW_LEFT, BROW_RIGHT), 12, 2),
    ):
        for outline, (x, y) in zip(outlines, EYES, strict=True):
            angle = torch.arange(len(outline)) / len(outline) * 2 * math.pi
            ring = torch.stack([x + 9 * angle.cos(), y - above + half * angle.sin()], 1)
            out[0, list(outline), :2] = ring
    return out


def face(depth: float, light: tuple[float, float, float]) -> torch.Tensor:
    """Skin of one colour, darker by ``depth`` around the eyes."""
    out = torch.tensor(light).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE).clone()
    out[..., 40:74, 28:100] *= 1 - depth
    return out


def lifted(own: float, theirs: float) -> tuple[torch.Tensor, torch.Tensor]:
    light = (0.8, 0.6, 0.5)
    image = face(own, light)
    field = torch.tensor(light).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    target = torch.nn.functional.interpolate(face(theirs, light), size=(64, 64), mode="area")
    return image, lift_sockets(image, sockets_of(mesh(), target, mesh(), field, SIDE))


@pytest.mark.parametrize(
    ("own", "theirs", "left"), [(0.4, 0.05, 0.17), (0.6, 0.0, 0.3), (0.4, 0.2, 0.32)]
)
def test_deep_shadow_becomes_nearly_the_targets(own: float, theirs: float, left: float) -> None:
    image, out = lifted(own, theirs)
    share = (out / torch.tensor([0.8, 0.6, 0.5]).view(1, 3, 1, 1))[UNDER]
    assert 1 - float(share.mean()) == pytest.approx(left, abs=0.03)
    assert float(share.std()) < 0.03  # of the light's hue
    for place in (IRIS, BROW, CHEEK):
        assert torch.allclose(out[place], image[place], atol=0.02)


@pytest.mark.parametrize(("own", "theirs"), [(0.1, 0.0), (0.0, 0.5), (0.5, 0.5), (0.0, 0.0)])
def test_what_is_as_bright_as_the_target_stays(own: float, theirs: float) -> None:
    image, out = lifted(own, theirs)
    assert torch.allclose(out, image, atol=2e-3)


def test_a_generator_does_not_darken_what_the_guide_has_lifted() -> None:
    light = torch.tensor([0.8, 0.6, 0.5]).view(1, 3, 1, 1)
    sockets = sockets_of(
        mesh(), light.expand(1, 3, 64, 64), mesh(), light.expand(1, 3, 64, 64), SIDE
    )
    swapped, region = face(0.4, (0.8, 0.6, 0.5)), torch.ones(1, 1, SIDE, SIDE)
    region[..., 64:] = 0.0
    maps = {name: torch.zeros(1, n, SIDE, SIDE) for name, n in GUIDE_CHANNELS.items()}
    guide = Guide.of({**maps, "region": region}.values())
    assert torch.equal(keep_sockets(swapped, guide), swapped)
    out = keep_sockets(swapped, replace(guide, sockets=sockets))
    assert float((out / light)[UNDER].mean()) == pytest.approx(0.88, abs=0.03)
    assert torch.equal(out[..., 64:], swapped[..., 64:])
    assert torch.allclose(out[CHEEK], swapped[CHEEK], atol=1e-3)
