"""What is said of poor source photos, on a head made by a rule."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch

from faceswap import Swapper
from faceswap.faces.source import hidden_eyes, shortcomings
from faceswap.media.image import read_image
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT

PHOTO = Path(__file__).parents[1] / "examples" / "source.jpg"

SIZE = (400, 300)


def head(scale: float = 60.0, yaw: float = 0.0, at: tuple[float, float] = (150.0, 200.0)):
    """A mesh in photo pixels, and the mean that it was made of; eyes 0.8 units apart."""
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(478, 2, generator=generator) * 1.6 - 0.8
    angle = torch.arange(16) / 16 * 2 * math.pi
    ring = torch.stack([-angle.cos() * 0.15, -angle.sin() * 0.06], 1)
    xy[list(EYE_LEFT)] = ring + torch.tensor([-0.4, -0.2])
    xy[list(EYE_RIGHT)] = ring + torch.tensor([0.4, -0.2])
    mean = torch.cat([xy, -(1.3 - xy.square().sum(1, keepdim=True)).clamp_min(0).sqrt()], 1)
    mean = mean - mean[:468].mean(0)
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    turned = mean @ torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]).T
    return (turned * scale + torch.tensor([*at, 0.0]))[None], mean


def test_a_good_face_is_let_pass():
    for yaw in (-35.0, 0.0, 35.0):
        mesh, mean = head(yaw=yaw)
        assert shortcomings(mesh, mean, SIZE) == []


@pytest.mark.parametrize("yaw", [-52.0, 52.0])
def test_a_turned_face_says_how_far(yaw):
    mesh, mean = head(yaw=yaw)
    assert shortcomings(mesh, mean, SIZE) == ["is turned by about 50 degrees"]


def test_a_small_face_says_how_small():
    mesh, mean = head(scale=20.0)
    assert shortcomings(mesh, mean, SIZE) == ["is small (16 px between the eyes)"]


def test_a_face_at_the_edge_is_cut_off():
    """Half of the face is left of the photo, or below it."""
    for at in ((0.0, 200.0), (150.0, 399.0)):
        mesh, mean = head(at=at)
        assert shortcomings(mesh, mean, SIZE) == ["is cut off by the edge of the photo"]


def test_several_at_once():
    mesh, mean = head(scale=20.0, at=(0.0, 200.0))
    found = shortcomings(mesh, mean, SIZE, hidden=0.9)
    assert [each.split(" (")[0] for each in found] == [
        "is small",
        "is cut off by the edge of the photo",
        "has its eyes covered",
    ]


def test_what_hides_the_eyes_is_counted_there_and_nowhere_else():
    mesh, _ = head(at=(150.0, 150.0))
    covered = torch.zeros(1, 1, 300, 300)
    assert hidden_eyes(covered, mesh) == 0
    covered[..., 200:, :] = 1  # a hand before the mouth
    assert hidden_eyes(covered, mesh) == 0
    covered[..., :150] = 1  # everything of the left half
    assert hidden_eyes(covered, mesh) == pytest.approx(0.5, abs=0.05)
    covered[:] = 1
    assert hidden_eyes(covered, mesh) == pytest.approx(1)


def test_a_swapper_says_it_in_one_line(caplog):
    swapper = Swapper.from_pack("lite")
    photo = read_image(PHOTO).pixels
    with caplog.at_level(logging.WARNING, "faceswap"):
        swapper.identify([photo], "whole.jpg")
        assert caplog.messages == []
        faces = swapper.detect(photo[None])
        left = int(faces.points[0, 0, 0])  # the middle of one eye
        swapper.identify([photo[:, :, left:]], "half.jpg")
    assert caplog.messages == [
        "half.jpg: the face is cut off by the edge of the photo; another photo may do better"
    ]
