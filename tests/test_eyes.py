"""The target's eyes between the swapped face's lids (faceswap.ops.eyes)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from faceswap.ops import eyes
from faceswap.ops.draw import signed_distance
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT

SIDE = 256
SKIN = 0.6
PLACES = {EYE_LEFT: (85.0, 110.0), EYE_RIGHT: (171.0, 110.0)}
IRIS = 9.0


def mesh(look: float = 0.0, *, move: float = 0.0, open: float = 0.45) -> Tensor:
    """A mesh with two eyes of 48 px, whose irises stand ``look`` px right of the middle."""
    points = torch.full((1, 478, 3), -50.0)
    for lids, iris in ((EYE_LEFT, IRIS_LEFT), (EYE_RIGHT, IRIS_RIGHT)):
        x, y = PLACES[lids]
        for i, row in enumerate(lids):
            a = 2 * math.pi * i / 16
            points[0, row] = torch.tensor(
                [x + move - 24 * math.cos(a), y - 24 * open * math.sin(a), 0]
            )
        points[0, iris[0]] = torch.tensor([x + move + look, y, 0])
        for i, row in enumerate(iris[1:]):
            a = math.pi / 2 * i
            points[0, row] = points[0, iris[0]] + IRIS * torch.tensor([math.cos(a), math.sin(a), 0])
    return points


def face(points: Tensor, *, iris: tuple[float, float, float]) -> Tensor:
    """Skin of .6 with white eyes and flat irises, ``(1, 3, SIDE, SIDE)``."""
    picture = torch.full((1, 3, SIDE, SIDE), 0.6)
    axis = torch.arange(SIDE, dtype=torch.float32)
    for lids, rows in ((EYE_LEFT, IRIS_LEFT), (EYE_RIGHT, IRIS_RIGHT)):
        inside = signed_distance(points[:, list(lids), :2], SIDE) > 0
        x, y = points[0, rows[0], :2]
        disc = ((axis - x) ** 2 + (axis[:, None] - y) ** 2).sqrt() < IRIS
        picture = torch.where(inside, torch.tensor(0.95), picture)
        picture = torch.where(inside & disc, torch.tensor(iris).view(1, 3, 1, 1), picture)
    return picture


def dark_middle(picture: Tensor, x: float, y: float) -> float:
    """Where along the eye about (x, y) the darkness is, px right of its middle."""
    row = 0.95 - picture[0, :, int(y) - 3 : int(y) + 4, int(x) - 18 : int(x) + 19].mean((0, 1))
    dark = row.clamp_min(0)
    return float((dark * (torch.arange(37) - 18)).sum() / dark.sum())


def with_eyes(image: Tensor, shape: Tensor, target: Tensor, target_mesh: Tensor) -> Tensor:
    light = torch.full((len(image),), SKIN)
    return eyes.with_eyes(image, shape, target, target_mesh, light)[0]


BLUE, BROWN = (0.25, 0.35, 0.4), (0.3, 0.2, 0.1)


def test_skin_stays_to_the_bit_and_eyes_look_where_the_target_does():
    there, here = mesh(look=10), mesh(look=0)
    target, image = face(there, iris=BROWN), face(here, iris=BROWN)
    shape = mesh(look=10)
    out = with_eyes(image, shape, target, there)
    for lids in (EYE_LEFT, EYE_RIGHT):
        assert dark_middle(image, *PLACES[lids]) == pytest.approx(0, abs=0.7)
        assert dark_middle(out, *PLACES[lids]) == pytest.approx(10, abs=1.5)
    lids = [signed_distance(shape[:, list(eye), :2], SIDE) for eye in (EYE_LEFT, EYE_RIGHT)]
    outside = torch.maximum(*lids) < -2
    assert torch.equal(out[:, :, outside[0, 0]], image[:, :, outside[0, 0]])


def test_eyes_go_with_the_swapped_lids():
    there = mesh(look=-6)
    target = face(there, iris=BROWN)
    shape = mesh(look=-6, move=12, open=0.4)
    out = with_eyes(face(shape, iris=BROWN), shape, target, there)
    for x, y in PLACES.values():
        assert dark_middle(out, x + 12, y) == pytest.approx(-6, abs=1.5)


def test_irises_take_the_sources_colour_and_the_white_does_not():
    there = mesh()
    out = with_eyes(face(there, iris=BLUE), there, face(there, iris=BROWN), there)
    for x, y in PLACES.values():
        middle = out[0, :, int(y), int(x)]
        assert float(middle[2]) > float(middle[0]) + 0.05  # .2 less before
        white = out[0, :, int(y), int(x) + 17]
        torch.testing.assert_close(white, torch.full((3,), 0.95), atol=0.03, rtol=0)


def test_no_iris_is_painted_where_there_is_none():
    """Its points are a guess where a face looks far to the side: then the eye stays as it is."""
    there = mesh(look=13)
    target = face(there, iris=BROWN)
    guessed = mesh(look=-6)
    plain = with_eyes(target, guessed, target, guessed)
    out = with_eyes(face(guessed, iris=BLUE), guessed, target, guessed)
    for x, y in PLACES.values():
        eye = np.s_[0, :, int(y) - 4 : int(y) + 5, int(x) - 16 : int(x) + 17]
        torch.testing.assert_close(out[eye], plain[eye], atol=0.02, rtol=0)


def test_closed_eyes_show_nothing():
    there, shape = mesh(), mesh(open=0.0)
    image = torch.full((1, 3, SIDE, SIDE), 0.6)
    assert torch.equal(with_eyes(image, shape, face(there, iris=BROWN), there), image)


def test_a_batch_is_its_faces_one_by_one():
    meshes = torch.cat([mesh(look=5), mesh(look=-8)])
    targets = torch.cat([face(meshes[i : i + 1], iris=BROWN) for i in (0, 1)])
    shapes = torch.cat([mesh(look=5, move=4), mesh(look=-8, open=0.3)])
    images = torch.cat([face(shapes[i : i + 1], iris=BLUE) for i in (0, 1)])
    both = with_eyes(images, shapes, targets, meshes)
    for i in (0, 1):
        rows = slice(i, i + 1)
        alone = with_eyes(images[rows], shapes[rows], targets[rows], meshes[rows])
        torch.testing.assert_close(both[rows], alone, atol=1e-5, rtol=0)


def test_an_eye_that_squints_or_would_be_stretched_stays_the_sources():
    image = torch.full((1, 3, SIDE, SIDE), 0.6)
    narrow = mesh(open=0.14)
    assert torch.equal(with_eyes(image, mesh(open=0.2), face(narrow, iris=BROWN), narrow), image)
    half = mesh(open=0.25)
    assert torch.equal(with_eyes(image, mesh(open=0.45), face(half, iris=BROWN), half), image)
    assert not torch.equal(with_eyes(image, mesh(open=0.28), face(half, iris=BROWN), half), image)


def test_eyes_behind_dark_glass_are_not_shown():
    there = mesh()
    image = torch.full((1, 3, SIDE, SIDE), 0.6)
    assert torch.equal(with_eyes(image, there, torch.full_like(image, 0.1), there), image)


def test_an_eye_without_an_iris_is_shown_only_where_it_is_clear():
    """A dim eye whose iris cannot be told from the white looks blank."""
    there = mesh()
    image = torch.full((1, 3, SIDE, SIDE), SKIN)
    changed = {}
    for depth in (0.16, 0.4):  # of the lower half; contrast of .13 and .33 of the skin
        target = image.clone()
        for lids in (EYE_LEFT, EYE_RIGHT):
            inside = signed_distance(there[:, list(lids), :2], SIDE) > -2
            lower = inside & (torch.arange(SIDE)[:, None] > PLACES[lids][1])
            target = torch.where(inside, torch.tensor(0.5), target)
            target = torch.where(lower, torch.tensor(0.5 - depth), target)
        changed[depth] = float((with_eyes(image, there, target, there) - image).abs().amax())
    assert changed[0.16] < 0.1
    assert changed[0.4] > 0.4


def test_eyes_are_both_the_targets_or_both_the_sources():
    there = mesh()
    image = face(there, iris=BLUE)
    target = face(there, iris=BROWN)
    x, y = (int(v) for v in PLACES[EYE_RIGHT])
    target[..., y - 14 : y + 15, x - 30 : x + 31] = 0.1  # dark glass before one eye
    assert torch.equal(with_eyes(image, there, target, there), image)


def test_an_eye_beside_a_shut_one_is_shown():
    there, wink = mesh(), mesh()
    lids = list(EYE_RIGHT)
    wink[0, lids, 1] = PLACES[EYE_RIGHT][1]
    image = torch.full((1, 3, SIDE, SIDE), SKIN)
    out = with_eyes(image, wink, face(wink, iris=BROWN), wink)
    changed = (out != image).any(1)[0]
    assert changed[:, : SIDE // 2].any()
    assert not changed[:, SIDE // 2 :].any()
    assert torch.equal(
        out[..., : SIDE // 2],
        with_eyes(image, there, face(there, iris=BROWN), there)[..., : SIDE // 2],
    )


def test_an_iris_that_is_hard_to_tell_takes_the_colour_that_the_other_does():
    there = mesh()
    image = face(there, iris=BLUE)
    pale = (0.93, 0.92, 0.91)
    target, both = face(there, iris=BROWN), face(there, iris=pale)
    half = SIDE // 2
    target[..., half:] = both[..., half:]
    for picture in (target, both):  # a lid's shadow, so that it is clear that there is an eye
        eye = picture[..., 98:105, :]
        eye[eye > SKIN + 0.1] = 0.3
    x, y = (int(v) for v in PLACES[EYE_RIGHT])
    red, _, blue = with_eyes(image, there, target, there)[0, :, y + 3, x]
    assert float(blue - red) > 0.05
    red, _, blue = with_eyes(image, there, both, there)[0, :, y + 3, x]
    assert float(blue - red) < 0.02
