"""Skin and hair of a drawn face, whose mesh is the mean of real ones."""

from __future__ import annotations

import pytest
import torch

from faceswap.models import load_model
from faceswap.ops.draw import signed_distance
from faceswap.ops.guide import make_guide
from faceswap.ops.shape import ShapeModel
from faceswap.ops.skin import GRID, find_skin
from faceswap.ops.topology import EYE_LEFT, FACE_OVAL

SIDE = 128
SKIN = torch.tensor([0.75, 0.55, 0.45])
HAIR = torch.tensor([0.15, 0.1, 0.08])


def mean_face() -> torch.Tensor:
    """The shape model's mean, upright in a crop of 128, ``(1, 478, 3)``."""
    mean = load_model("lite-swapper").shape_mean
    assert isinstance(mean, torch.Tensor)
    return (mean * 34 + 66)[None]


def drawing(mesh: torch.Tensor, *, fringe: bool, light: float = 1.0) -> torch.Tensor:
    """An oval of skin with dark eyes on grey, with or without hair down to over the brows."""
    oval = signed_distance(mesh[:, list(FACE_OVAL), :2], SIDE)[0, 0] > 0
    picture = torch.full((3, SIDE, SIDE), 0.5)
    picture[:, oval] = SKIN[:, None] * light
    eye = signed_distance(mesh[:, list(EYE_LEFT), :2], SIDE)[0, 0] > 0
    picture[:, eye] = 0.1
    if fringe:
        brows = int(mesh[0, [105, 334], 1].min()) - 4
        hair = oval.clone()
        hair[brows:] = False
        picture[:, hair] = HAIR[:, None]
    return picture[None]


def at(field: torch.Tensor, mesh: torch.Tensor, point: int) -> float:
    x, y = ((mesh[0, point, :2] + 0.5) * GRID / SIDE - 0.5).round().long().tolist()
    return float(field[0, 0, y, x])


def test_a_fringe_is_hair_and_cheeks_are_bare_skin() -> None:
    mesh = mean_face()
    skin = find_skin(drawing(mesh, fringe=True), mesh)
    for forehead in (151, 108, 337):
        assert at(skin.hair, mesh, forehead) > 0.8
        assert at(skin.bare, mesh, forehead) < 0.2
    for cheek in (50, 280, 4):
        assert at(skin.hair, mesh, cheek) < 0.05
        assert at(skin.bare, mesh, cheek) > 0.9
    assert at(skin.bare, mesh, 468) < 0.1  # an iris
    assert float(skin.bare[0, 0, 1].max()) == 0  # outside the face


def test_without_a_fringe_the_forehead_is_skin() -> None:
    mesh = mean_face()
    skin = find_skin(drawing(mesh, fringe=False), mesh)
    assert at(skin.hair, mesh, 151) < 0.1
    assert at(skin.bare, mesh, 151) > 0.9


def _guides(
    source: torch.Tensor,
    target: torch.Tensor,
    mesh: torch.Tensor,
    source_mesh: torch.Tensor | None = None,
):
    net = load_model("lite-swapper")
    model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
    own = mesh if source_mesh is None else source_mesh
    return make_guide(model, source, own, target, mesh)[0]


def test_the_sources_fringe_does_not_come_along() -> None:
    mesh = mean_face()
    source, target = drawing(mesh, fringe=True), drawing(mesh, fringe=False)
    guide = _guides(source, target, mesh)
    x, y = mesh[0, 151, :2].round().long().tolist()
    assert float((guide.image[0, :, y, x] - SKIN).abs().max()) < 0.08
    assert float(guide.region[0, 0, y, x]) > 0.5  # the outline passes just above


def test_the_targets_fringe_stays() -> None:
    mesh = mean_face()
    source, target = drawing(mesh, fringe=False), drawing(mesh, fringe=True)
    guide = _guides(source, target, mesh)
    x, y = mesh[0, 151, :2].round().long().tolist()
    assert float(guide.region[0, 0, y, x]) < 0.2


def test_the_face_takes_the_targets_light() -> None:
    mesh = mean_face()
    source, target = drawing(mesh, fringe=False, light=0.6), drawing(mesh, fringe=False)
    guide = _guides(source, target, mesh)
    for cheek in (50, 280):
        x, y = mesh[0, cheek, :2].round().long().tolist()
        assert float((guide.image[0, :, y, x] - SKIN).abs().max()) < 0.05


def test_dark_eyes_stay_dark_in_bright_light_and_nothing_turns_black_in_dim_light() -> None:
    mesh = mean_face()
    x, y = mesh[0, list(EYE_LEFT), :2].mean(0).round().long().tolist()
    dim, bright = drawing(mesh, fringe=False, light=0.5), drawing(mesh, fringe=False)
    contrast = float(dim[0, 0, y, x] / (0.5 * SKIN[0]))
    image = _guides(dim, bright, mesh).image
    # Half by a factor and half by a sum, as skin is lit, would make it 1.8 times as much.
    assert float(image[0, 0, y, x] / SKIN[0]) < 1.2 * contrast
    image = _guides(bright, dim, mesh).image
    assert float(image[0, :, y, x].min()) > 0.03  # by a sum alone it would be below 0


def test_the_sources_shadow_stays_behind_and_the_targets_comes() -> None:
    mesh = mean_face()
    plain = drawing(mesh, fringe=False)
    middle = int(mesh[0, 4, 0])
    dark = plain.clone()
    dark[..., middle:] *= 0.7  # an edge of shadow down the nose
    beside = [mesh[0, point, :2].round().long().tolist() for point in (100, 329, 142, 371)]
    for source, target in ((dark, plain), (plain, dark), (dark, dark.flip(3))):
        image = _guides(source, target, mesh).image
        for x, y in beside:  # a low-pass alone is off by 0.04 to 0.12 here
            assert float((image[0, :, y, x] - target[0, :, y, x]).abs().max()) < 0.02


def test_pale_sockets_of_a_flushed_face_do_not_turn_white_and_blue() -> None:
    mesh = mean_face()
    target = drawing(mesh, fringe=False)
    source = target.clone()
    flush = torch.tensor([0.85, 0.75, 0.72]).view(3, 1, 1)
    skin = (source[0] - SKIN.view(3, 1, 1)).abs().amax(0) < 1e-3
    source[0, :, skin] = (source[0] * flush)[:, skin]
    sockets = [mesh[0, point, :2].round().long().tolist() for point in (223, 443)]
    for x, y in sockets:  # as bright and pale as the target's skin is
        source[0, :, y - 3 : y + 3, x - 6 : x + 6] = (SKIN * 1.05).view(3, 1, 1)
    image = _guides(source, target, mesh).image
    for x, y in sockets:
        off = image[0, :, y, x] - SKIN
        assert float(off.max() - off.min()) < 0.05  # of another colour
        assert 0.05 < float(off.mean()) < 0.14  # paler still, but not white: it was 0.17


@pytest.mark.parametrize("yaw", [40.0, -40.0])
def test_what_a_turned_head_hides_is_the_mirror_image_of_what_it_shows(yaw: float) -> None:
    mesh = mean_face()
    angle = torch.tensor(yaw) * torch.pi / 180
    cos, sin = angle.cos(), angle.sin()
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    middle = mesh[:, :468].mean(1, keepdim=True)
    turned = (mesh - middle) @ turn.T + middle
    source = torch.full((1, 3, SIDE, SIDE), 1.0) * SKIN.view(1, 3, 1, 1)
    x, y = turned[0, 280 if yaw > 0 else 50, :2].round().long().tolist()
    source[0, :, y - 4 : y + 5, x - 4 : x + 5] = 0.2  # a mark on the cheek that is seen
    image = _guides(source, drawing(mesh, fringe=False), mesh, turned).image
    left, right = (image[0].mean(0) < 0.35).split(SIDE // 2, 1)
    assert left.sum() > 8
    assert right.sum() > 8
