"""Warp guidance against closed forms, and the shape model against faces made by a rule."""

from __future__ import annotations

import math

import pytest
import torch

from faceswap.models import load_model
from faceswap.ops.draw import dots, signed_distance
from faceswap.ops.gaze import look_along
from faceswap.ops.guide import make_guide
from faceswap.ops.lids import close_lids, opening
from faceswap.ops.shape import ShapeModel, fit_pose, fit_shape_model
from faceswap.ops.skin import find_skin
from faceswap.ops.smooth import average, resized
from faceswap.ops.spline import thin_plate_grid
from faceswap.ops.topology import (
    EYE_LEFT,
    EYE_RIGHT,
    FACE,
    INNER_LIPS,
    IRIS_LEFT,
    IRIS_RIGHT,
    five_points,
)

POINTS = 478


def round_head(seed: int = 0) -> torch.Tensor:
    """Points on the front of an ellipsoid, the oval and the lips where a face has them."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(POINTS, 2, generator=generator) * 1.4 - 0.7
    angle = torch.arange(36) / 36 * 2 * math.pi
    xy[list(FACE)] = torch.stack([angle.sin(), -1.2 * angle.cos()], 1) * 0.95
    angle = torch.arange(20) / 20 * 2 * math.pi
    xy[list(INNER_LIPS)] = torch.stack([-angle.cos() * 0.3, 0.5 - angle.sin() * 0.1], 1)
    z = -(1.45 - xy[:, 0] ** 2 - (xy[:, 1] / 1.2) ** 2).clamp_min(0).sqrt()
    return torch.cat([xy, z[:, None]], 1)


def turn(yaw: float, pitch: float = 0.0) -> torch.Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    about_y = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    c, s = math.cos(pitch), math.sin(pitch)
    return torch.tensor([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]]) @ about_y


def model_with(expression: torch.Tensor, basis: torch.Tensor) -> ShapeModel:
    mean = round_head()
    return ShapeModel(mean - mean[:468].mean(0), basis, expression)


def orthonormal(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(3 * POINTS, rows, generator=generator))[0].T.contiguous()


def test_pose_of_a_moved_shape_is_found() -> None:
    mean = round_head()
    wanted = turn(0.4, -0.2)
    at = torch.tensor([[60.0, 70.0, 3.0]])
    scale, rotation, place = fit_pose((40.0 * mean @ wanted.T + at)[None], mean)
    assert scale.item() == pytest.approx(40.0, rel=1e-4)
    torch.testing.assert_close(rotation[0], wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(place[0], at, atol=1e-2, rtol=0)


def test_all_expression_gives_the_target_and_none_gives_the_source_in_its_pose() -> None:
    basis = orthonormal(6)
    source = round_head() * 50 + 64
    shift = (torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.2, 0.4]]) @ basis).view(POINTS, 3)
    target = (round_head() + shift) @ turn(0.3).T * 45 + 60
    everything = model_with(torch.eye(6), basis).compose(source[None], target[None])
    torch.testing.assert_close(everything[0], target, atol=1e-2, rtol=0)
    nothing = model_with(torch.zeros(6, 6), basis).compose(source[None], target[None])
    scale, rotation, place = fit_pose(target[None], model_with(torch.eye(6), basis).mean)
    plain = (nothing - place) @ rotation / scale[:, None, None]
    moved = (target[None] - place) @ rotation / scale[:, None, None]
    own = (plain - moved)[0].flatten() @ basis.T  # what was taken out lies in the basis
    assert own.norm() > 0.3
    kept = model_with(torch.zeros(6, 6), basis).compose(source[None], target[None], identity=0.0)
    torch.testing.assert_close(kept[0], target, atol=1e-2, rtol=0)


def test_shape_model_tells_people_from_expressions() -> None:
    generator = torch.Generator().manual_seed(3)
    mean, basis = round_head(), orthonormal(2)
    who = torch.randn(60, 1, generator=generator).repeat_interleave(4, 0) * 0.8
    how = torch.randn(240, 1, generator=generator) * 0.8
    offsets = (torch.cat([who, how], 1) @ basis).view(240, POINTS, 3)
    person = torch.arange(60).repeat_interleave(4)
    model = fit_shape_model(mean + offsets, person, rank=4)
    source = mean + (torch.tensor([[1.0, -1.0]]) @ basis).view(POINTS, 3)
    target = mean + (torch.tensor([[-1.0, 1.0]]) @ basis).view(POINTS, 3)
    mixed = model.compose(source[None], target[None])[0]
    code = (mixed - mean).flatten() @ basis.T
    assert code[0] > 0.6, "the person is the source"
    assert code[1] > 0.6, "the expression is the target's"


def test_points_face_away_when_the_head_turns() -> None:
    mean = round_head()
    model = model_with(torch.eye(2), orthonormal(2))
    left = mean[:, 0] < -0.5
    ahead = model.facing((mean * 40 + 64)[None])[0]
    turned = model.facing((mean @ turn(0.8).T * 40 + 64)[None])[0]
    other = model.facing((mean @ turn(-0.8).T * 40 + 64)[None])[0]
    assert ahead[mean[:, :2].abs().amax(1) < 0.3].min() > 0.5
    assert (turned[left].mean() - other[left].mean()).abs() > 0.5


def test_thin_plate_reproduces_an_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 20, 2, generator=generator) * 60
    source = target * 0.9 + torch.tensor([5.0, -3.0])
    grid = thin_plate_grid(target, source, torch.ones(1, 20), size=64, cells=64)
    y, x = 40, 17
    found = (grid[0, y, x] + 1) * 63 / 2
    wanted = torch.tensor([0.9 * x + 5.0, 0.9 * y - 3.0])
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


def test_thin_plate_passes_through_trusted_points_only() -> None:
    axis = torch.tensor([8.0, 24.0, 40.0, 56.0])
    target = torch.cartesian_prod(axis, axis)[None]
    source = target.clone()
    source[0, 5] += torch.tensor([4.0, 0.0])
    weight = torch.ones(1, 16)
    x, y = (int(v) for v in target[0, 5])
    trusted = thin_plate_grid(target, source, weight, size=64, cells=64, stiffness=1e-5)
    weight[0, 5] = 1e-6
    ignored = thin_plate_grid(target, source, weight, size=64, cells=64, stiffness=1e-5)
    assert (trusted[0, y, x, 0] + 1) * 63 / 2 == pytest.approx(x + 4, abs=0.1)
    assert (ignored[0, y, x, 0] + 1) * 63 / 2 == pytest.approx(x, abs=0.4)


def test_signed_distance_of_a_square() -> None:
    square = torch.tensor([[[10.0, 10.0], [20.0, 10.0], [20.0, 20.0], [10.0, 20.0]]])
    distance = signed_distance(square, 32)[0, 0]
    assert distance[15, 15] == pytest.approx(5.0, abs=1e-4)
    assert distance[15, 12] == pytest.approx(2.0, abs=1e-4)
    assert distance[15, 25] == pytest.approx(-5.0, abs=1e-4)
    assert distance[24, 23] == pytest.approx(-5.0, abs=1e-4)  # 3-4-5 from the corner


def test_average_keeps_a_constant_and_ignores_what_does_not_count() -> None:
    image = torch.full((1, 3, 64, 64), 0.25)
    image[..., 32:] = 0.9
    weight = torch.ones(1, 1, 64, 64)
    weight[..., 32:] = 0
    smooth = average(image, weight, sigma=0.05)
    torch.testing.assert_close(
        smooth[..., :24], torch.full((1, 3, 64, 24), 0.25), atol=2e-3, rtol=0
    )


def test_average_falls_back_on_the_prior_where_nothing_counts() -> None:
    image = torch.full((1, 1, 64, 64), 0.25)
    weight = torch.zeros(1, 1, 64, 64)
    weight[..., :8] = 1
    prior = torch.full((1, 1, 1, 1), 0.7)
    smooth = average(image, weight, sigma=0.05, prior=prior, trust=0.01)
    assert smooth[0, 0, 32, 2] == pytest.approx(0.25, abs=0.01)
    assert smooth[0, 0, 32, 60] == pytest.approx(0.7, abs=1e-4)


def test_a_dot_lies_where_its_point_is_and_none_outside() -> None:
    image = dots(torch.tensor([[[10.0, 20.0], [-50.0, 3.0]]]), 32)
    y, x = divmod(int(image.flatten().argmax()), 32)
    assert (x, y) == (10, 20)
    assert image[0, 0, :5].sum() == 0


def _face(side: int) -> torch.Tensor:
    mean = load_model("lite-swapper").shape_mean
    assert isinstance(mean, torch.Tensor)
    return ((mean * 34 + 66) * side / 128)[None]


@pytest.mark.parametrize("side", [128, 256])
def test_swapping_a_face_with_itself_guides_to_itself(side: int) -> None:
    unit = side / 128
    net = load_model("lite-swapper")
    model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
    mesh = ((model.mean * 34 + 66) * unit)[None]
    # Skin lit from one side and from above.
    across, down = torch.linspace(0.5, 1, side), torch.linspace(1, 0.8, side)
    skin = torch.tensor([0.8, 0.6, 0.5]).view(3, 1, 1)
    picture = (skin * across * down[:, None])[None].contiguous()
    guide, shape = make_guide(model, picture, mesh, picture, mesh)
    torch.testing.assert_close(shape, mesh, atol=0.05, rtol=0)
    # The rim of a source is replaced by smooth skin, which this is not.
    core = resized(find_skin(picture, mesh).core, side)[0, 0] > 0.999
    inside = (guide.region[0, 0] > 0.99) & core
    assert inside.float().mean() > 0.1
    assert (guide.image - picture).abs()[0][:, inside].max() < 0.05
    outside = guide.region[0, 0] == 0
    assert outside.any()
    assert torch.equal(guide.base[0][:, outside], picture[0][:, outside])


def test_irises_go_where_the_target_looks_and_lids_stay() -> None:
    mesh = _face(128)
    looking = mesh.clone()
    looking[:, list(IRIS_LEFT + IRIS_RIGHT), 0] += 2.5
    axis = torch.linspace(-1, 1, 128)
    plain = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
    grid = look_along(plain, looking, mesh)
    moved = (grid - plain)[0] * 63.5
    for iris in (468, 473):
        x, y = looking[0, iris, :2].round().long().tolist()
        torch.testing.assert_close(moved[y, x], torch.tensor([-2.5, 0.0]), atol=0.3, rtol=0)
    for corner in (33, 133, 362, 263, 4):
        x, y = looking[0, corner, :2].round().long().tolist()
        assert moved[y, x].norm() < 0.7
    # Left of one, right of the other: the order of places is kept, so nothing is torn or folded.
    assert grid[0, :, :, 0].diff(dim=1).min() > 0


def test_an_iris_goes_no_farther_than_it_can() -> None:
    mesh = _face(128)
    looking = mesh.clone()
    looking[:, list(IRIS_LEFT), 0] += 40
    axis = torch.linspace(-1, 1, 128)
    plain = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
    width = float((mesh[0, 33, :2] - mesh[0, 133, :2]).norm())
    moved = (look_along(plain, looking, mesh) - plain).norm(dim=-1).max() * 63.5
    assert moved < 0.3 * width + 0.1


def test_five_points_are_seen_from_left_to_right() -> None:
    mesh = torch.zeros(1, POINTS, 3)
    mesh[0, [33, 133, 159, 145], 0] = -1.0
    mesh[0, [362, 263, 386, 374], 0] = 1.0
    mesh[0, 61, 0], mesh[0, 291, 0] = -0.5, 0.5
    assert five_points(mesh)[0, :, 0].tolist() == [-1.0, 1.0, 0.0, -0.5, 0.5]


def _squinting(mesh: torch.Tensor, left: float, right: float) -> torch.Tensor:
    """The mesh with its lids that far apart, in eye widths."""
    out = mesh.clone()
    for eye, wanted in ((EYE_LEFT, left), (EYE_RIGHT, right)):
        upper, lower = list(eye[1:8]), list(eye[:8:-1])
        middle = (mesh[:, upper] + mesh[:, lower]) / 2
        factor = wanted / float(opening(mesh, eye))
        for lid in (upper, lower):
            out[:, lid] = middle + factor * (mesh[:, lid] - middle)
    return out


@pytest.mark.parametrize(
    ("left", "right", "closed"),
    [
        (0.14, 0.15, (True, True)),
        (0.14, 0.16, (True, True)),  # one of them measured wider
        (0.25, 0.25, (False, False)),  # narrow, and open
        (0.13, 0.30, (True, False)),  # a wink
    ],
)
def test_lids_close_with_the_targets(left: float, right: float, closed: tuple[bool, bool]) -> None:
    mean = load_model("lite-swapper").shape_mean
    assert isinstance(mean, torch.Tensor)
    face = (mean * 34 + 66)[None]
    shape, target = _squinting(face, 0.3, 0.3), _squinting(face, left, right)
    found = close_lids(shape, target)
    for eye, shut in zip((EYE_LEFT, EYE_RIGHT), closed, strict=True):
        if shut:
            assert 0.02 < float(opening(found, eye)) < 0.08
        else:
            assert torch.equal(found[:, list(eye)], shape[:, list(eye)])
    others = [i for i in range(478) if i not in EYE_LEFT + EYE_RIGHT]
    assert torch.equal(found[:, others], shape[:, others])


def test_lids_close_smoothly() -> None:
    mean = load_model("lite-swapper").shape_mean
    assert isinstance(mean, torch.Tensor)
    shape = _squinting((mean * 34 + 66)[None], 0.3, 0.3)
    openings = []
    for wide in torch.linspace(0.13, 0.2, 36).tolist():
        found = close_lids(shape, _squinting(shape, wide, wide))
        openings.append(float(opening(found, EYE_LEFT)))
    steps = torch.tensor(openings).diff()
    assert steps.min() >= -1e-4
    assert steps.max() < 0.03  # no leap between a narrow eye and a closed one
    assert openings[0] < 0.05
    assert openings[-1] > 0.29
