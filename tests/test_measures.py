"""Each measure on a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from faceswap.evaluate import intervals, measures, pixels, temporal
from faceswap.ops import topology
from faceswap.ops.shape import ShapeModel
from faceswap.ops.topology import FACE_OVAL


def rotation(axis: int, degrees: float) -> Tensor:
    """A turn about x, y or z, (3, 3)."""
    t = math.radians(degrees)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    out = torch.eye(3)
    out[a, a] = out[b, b] = math.cos(t)
    out[a, b], out[b, a] = -math.sin(t), math.sin(t)
    return out


@pytest.fixture
def face() -> Tensor:
    """A made-up mean face (478, 3): eye corners at x = -3, -1, 1, 3, so the eye distance is 4."""
    mesh = torch.randn(478, 3, generator=torch.Generator().manual_seed(5))
    places = {
        33: (-3, 0, 0), 133: (-1, 0, 0), 159: (-2, -0.4, 0), 145: (-2, 0.4, 0), 468: (-2, 0, 0),
        362: (1, 0, 0), 263: (3, 0, 0), 386: (2, -0.4, 0), 374: (2, 0.4, 0), 473: (2, 0, 0),
        13: (0, 3, 0), 14: (0, 3, 0), 61: (-1.5, 3, 0), 291: (1.5, 3, 0),
    }  # fmt: skip
    for index, place in places.items():
        mesh[index] = torch.tensor(place, dtype=torch.float32)
    return mesh


def posed(face: Tensor) -> Tensor:
    """The face somewhere in a picture, turned by 20 degrees and 10 px a unit: (1, 478, 3)."""
    return (10 * face @ rotation(1, 20).T + torch.tensor([100.0, 80.0, 0.0]))[None]


def changed(mesh: Tensor, moves: dict[int, tuple[float, float, float]]) -> Tensor:
    """The face with single points moved."""
    mesh = mesh.clone()
    for index, move in moves.items():
        mesh[..., index, :] += torch.tensor(move)
    return mesh


# ---------------------------------------------------------------- identity


def test_cosine():
    a = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-2.0, 0.0]])
    assert measures.cosine(a, b).tolist() == pytest.approx([0, math.sqrt(0.5), -1])


def test_retrieval_rank_counts_sources_not_rows():
    gallery = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0], [-1.0, 0.0]])
    owner = torch.tensor([7, 7, 3, 5])  # two photos of source 7
    swapped = torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1], [0.0, -1.0]])
    wanted = torch.tensor([7, 3, 5, 3])
    # Nearest to (1, .1): 7 (both rows), then 3, then 5. To (0, -1): 5 (0), 7 (0), then 3 (-1).
    assert measures.retrieval_rank(swapped, wanted, gallery, owner).tolist() == [1, 2, 3, 3]


def test_retrieval_rank_of_an_encoder_that_sees_nothing():
    same = torch.ones(4, 8)
    rank = measures.retrieval_rank(same, torch.arange(4), same, torch.arange(4))
    assert rank.tolist() == [4, 4, 4, 4]


def test_retrieval_rank_needs_the_source():
    with pytest.raises(ValueError, match="no row in the gallery"):
        measures.retrieval_rank(
            torch.ones(1, 2), torch.tensor([9]), torch.ones(1, 2), torch.tensor([0])
        )


# ---------------------------------------------------------------- pose


def test_pose_error_is_the_angle_between_the_poses(face):
    target = posed(face)
    middle = target.new_tensor([100.0, 80.0, 0.0])
    for axis, degrees in ((0, 3.0), (1, -12.0), (2, 30.0)):
        turned = (target - middle) @ rotation(axis, degrees).T + middle
        error = measures.pose_error(target, turned, face)
        assert error.angle.item() == pytest.approx(abs(degrees), abs=1e-3)
        assert error.shift.item() == pytest.approx(0, abs=1e-3)
        assert error.scale.item() == pytest.approx(0, abs=1e-3)


def test_pose_error_of_place_and_size(face):
    target = posed(face)
    # 40 px is the eye distance: a move of (3, 4) px is 12.5 % of it. z is not seen.
    error = measures.pose_error(target, target + torch.tensor([3.0, 4.0, 9.0]), face)
    assert error.shift.item() == pytest.approx(12.5, rel=1e-4)
    assert error.angle.item() == pytest.approx(0, abs=1e-3)
    middle = target.new_tensor([100.0, 80.0, 0.0])
    error = measures.pose_error(target, (target - middle) * 1.25 + middle, face)
    assert error.scale.item() == pytest.approx(25, rel=1e-4)


def test_euler_angles_go_by_axis(face):
    assert measures.euler(rotation(1, 25.0)[None])[0].tolist() == pytest.approx([25, 0, 0])
    assert measures.euler(rotation(0, -10.0)[None])[0].tolist() == pytest.approx([0, -10, 0])
    assert measures.euler(rotation(2, 40.0)[None])[0].tolist() == pytest.approx([0, 0, 40])
    both = rotation(2, 5.0) @ rotation(1, 15.0) @ rotation(0, 10.0)
    assert measures.euler(both[None])[0].tolist() == pytest.approx([15, 10, 5], abs=1e-4)


def test_a_moving_mouth_is_no_pose(face):
    lips = dict.fromkeys(topology.OUTER_LIPS + topology.INNER_LIPS, (0.0, 2.0, 0.0))
    error = measures.pose_error(posed(face), posed(changed(face, lips)), face)
    assert error.angle.item() == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------- expression, gaze


def test_expression_error_is_free_of_pose(face):
    count = len(measures.FEATURES)
    smile = changed(face, {61: (-0.4, -0.3, 0.0), 291: (0.4, -0.3, 5.0)})
    turned = 3 * posed(smile) @ rotation(0, 15).T
    # Two of the points moved by 0.5 in the frontal plane, of an eye distance of 4.
    expected = 100 * 2 * 0.5 / count / 4
    assert measures.expression_error(posed(face), turned, face).item() == pytest.approx(
        expected, rel=1e-3
    )
    assert measures.expression_error(posed(face), posed(face), face).item() == 0


def test_separated_expression_leaves_out_the_face_shape(face):
    smile, wide = torch.zeros(478, 3), torch.zeros(478, 3)
    smile[[61, 291]] = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    wide[[172, 397]] = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    basis = torch.stack((smile.flatten(), wide.flatten()))
    model = ShapeModel(
        face, basis / basis.norm(dim=1, keepdim=True), torch.diag(torch.tensor([1.0, 0.0]))
    )
    both = face + 0.4 * smile + 0.3 * wide
    value = measures.separated_expression_error(posed(face), posed(both), model)
    assert value.item() == pytest.approx(100 * 2 * 0.4 / len(measures.FEATURES) / 4, rel=1e-3)
    value = measures.separated_expression_error(posed(face), posed(face + 0.3 * wide), model)
    assert value.item() == pytest.approx(0, abs=1e-4)


def test_openings(face):
    wide = changed(face, {14: (0.0, 0.8, 0.6), 159: (0.0, 0.2, 0.0)})
    assert measures.mouth_opening(posed(face)).item() == pytest.approx(0, abs=1e-3)
    assert measures.mouth_opening(posed(wide)).item() == pytest.approx(25, rel=1e-4)  # 1 of 4
    assert measures.eye_opening(posed(wide))[0].tolist() == pytest.approx([30, 40], rel=1e-4)


def test_gaze_error(face):
    # The right eye's iris moves right by 0.4 of an eye's width of 2: sin t = 0.2 / 0.4.
    looks = changed(face, {473: (0.4, 0.0, 0.0)})
    error = measures.gaze_error(posed(face), posed(looks), face)
    assert error.angle.item() == pytest.approx(30 / 2, rel=1e-3)  # mean of both eyes
    assert error.shift.item() == pytest.approx(20 / 2, rel=1e-3)
    position = measures.iris_position(posed(looks), face)[0]
    assert position.flatten().tolist() == pytest.approx([0, 0, 0.2, 0], abs=1e-4)


def test_gaze_of_closed_eyes_is_not_measured(face):
    wink = changed(face, {159: (0.0, 0.35, 0.0), 145: (0.0, -0.35, 0.0)})
    looks = changed(wink, {473: (0.4, 0.0, 0.0), 468: (0.4, 0.0, 0.0)})
    error = measures.gaze_error(posed(wink), posed(looks), face)
    assert error.angle.item() == pytest.approx(30, rel=1e-3)  # of the open eye alone
    asleep = changed(wink, {386: (0.0, 0.35, 0.0), 374: (0.0, -0.35, 0.0)})
    assert measures.gaze_error(posed(asleep), posed(asleep), face).angle.isnan().all()


# ---------------------------------------------------------------- shape


def test_shape_error(face):
    a, b = measures.SHAPE_PAIRS[0]
    assert not {a, b} & {i for pair in measures.SHAPE_PAIRS[1:13] for i in pair}
    wide = face.clone()
    pairs = [pair for pair in measures.SHAPE_PAIRS if pair in ((33, 133),)]
    assert pairs == [(33, 133)]  # a pair whose points are in no other
    wide[33] += face[33] - face[133]  # twice as long
    # One of 15 logs grows by ln 2, all lose ln 2 / 15: mean |.| = (14/15 + 14 * 1/15) / 15 ln 2.
    expected = 100 * math.log(2) * 2 * (14 / 15) / 15
    assert measures.shape_error(posed(wide), 2 * posed(face)).item() == pytest.approx(
        expected, rel=1e-3
    )
    assert measures.shape_error(posed(face), 5 * posed(face)).item() == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------- pixels


def test_outside_change_sees_one_pixel():
    target = torch.zeros(3, 10, 20, dtype=torch.uint8)
    swapped = target.clone()
    box, eye = torch.tensor([[4.0, 4.0, 6.0, 6.0]]), torch.tensor([2.0])
    # Grown by 1.2 px: columns and rows 3 to 7, so 200 - 25 pixels are outside.
    swapped[:, 3:8, 3:8] = 200
    assert pixels.outside_change(target, swapped, box, eye) == (0, 0)
    swapped[1, 3, 8] = 7
    share, mean = pixels.outside_change(target, swapped, box, eye)
    assert share == pytest.approx(100 / 175)
    assert mean == pytest.approx(7 / 175 / 3)


def test_outside_of_a_face_that_fills_the_picture():
    frame = torch.zeros(3, 8, 8, dtype=torch.uint8)
    values = pixels.outside_change(
        frame, frame, torch.tensor([[0.0, 0.0, 7.0, 7.0]]), torch.ones(1)
    )
    assert all(math.isnan(value) for value in values)


def round_face(size: int, radius: float) -> Tensor:
    """A mesh whose outline is a circle in the middle of the crop, eyes 40 px apart."""
    mesh = torch.zeros(1, 478, 3)
    angle = torch.arange(36) / 36 * 2 * math.pi
    middle = (size - 1) / 2
    mesh[0, list(FACE_OVAL), 0] = middle + radius * angle.sin()
    mesh[0, list(FACE_OVAL), 1] = middle - radius * angle.cos()
    mesh[0, [33, 133], 0] = middle - 20
    mesh[0, [362, 263], 0] = middle + 20
    return mesh


def test_outline_is_in_eye_distances():
    distance = pixels.outline(round_face(192, 60), 192)[0, 0]
    assert distance[96, 116].item() == pytest.approx((60 - 20.5) / 40, abs=0.02)
    assert distance[96, 191].item() == pytest.approx((60 - 95.5) / 40, abs=0.02)


def test_border_tone_is_the_step_the_swap_added():
    distance = pixels.outline(round_face(192, 60), 192)
    inside = distance > 0
    target = torch.full((1, 3, 192, 192), 0.5)
    target = torch.where(inside, 0.6, target)  # the target has a step of its own
    assert pixels.border_tone(target, target, distance).item() == pytest.approx(0, abs=1e-4)
    swapped = torch.where(inside, 0.4, target)
    # Grey g has L = 116 f(Y) - 16; Y by the sRGB curve: .6 -> 63.2, .4 -> 42.4.
    y6, y4 = ((0.6 + 0.055) / 1.055) ** 2.4, ((0.4 + 0.055) / 1.055) ** 2.4
    expected = 116 * (y6 ** (1 / 3) - y4 ** (1 / 3))
    assert pixels.border_tone(target, swapped, distance).item() == pytest.approx(expected, rel=1e-3)


def test_blur_ratio():
    noise = torch.rand(1, 1, 192, 192, generator=torch.Generator().manual_seed(0))
    target = (0.25 + noise / 2).expand(1, 3, 192, 192)
    distance = pixels.outline(round_face(192, 60), 192)
    assert pixels.blur_ratio(target, target, distance).item() == pytest.approx(1)
    half = torch.where(distance > 0, 0.25 + noise / 4, target)
    assert pixels.blur_ratio(target, half, distance).item() == pytest.approx(0.5, rel=1e-3)
    # A whole picture with half the contrast is as sharp as before, relative to itself.
    assert pixels.blur_ratio(target, target / 2, distance).item() == pytest.approx(1, rel=1e-3)


def test_frechet_distance_of_two_gaussians():
    # Along each axis: means 0 and 3, variances 1 and 4: 9 + (1 - 2)^2; second axis equal.
    a = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) * math.sqrt(3 / 4)
    b = a * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])
    assert pixels.frechet_distance(a, b) == pytest.approx(10, abs=1e-5)
    assert pixels.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="2 rows"):
        pixels.frechet_distance(a[:1], b)


def test_kernel_distance():
    # D = 1: k(x, y) = (xy + 1)^3. a = {0, 1}: k(0, 1) = 1. b = {1, 2}: k(1, 2) = 27.
    # Between: k(0, .) = 1, 1; k(1, 1) = 8, k(1, 2) = 27; mean 37 / 4. 1 + 27 - 37 / 2 = 9.5.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert pixels.kernel_distance(a, b) == pytest.approx(9.5)


# ---------------------------------------------------------------- clips


def test_jitter_is_what_the_swap_added(face):
    steps = torch.tensor([0.0, 3.0, 1.0, 5.0, 9.0])  # the target shakes as it likes
    target = posed(face) + steps[:, None, None] * torch.tensor([1.0, 0.5, 0.0])
    everywhere = torch.ones(5, dtype=torch.bool)
    drift = torch.arange(5.0)[:, None, None] * torch.tensor([2.0, 0.0, 0.0])
    smooth = temporal.jitter(target, target + 7 + drift, everywhere)
    assert smooth[1:-1].tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert smooth[[0, -1]].isnan().all()
    jump = torch.zeros(5, 1, 3)
    jump[2, 0, 1] = 1.0  # one frame is 1 px off: second differences 1, 2, 1
    eye = measures.eye_distance(posed(face)[..., :2]).item()
    value = temporal.jitter(target, target + jump, everywhere)
    assert value[1:-1].tolist() == pytest.approx([100 / eye, 200 / eye, 100 / eye], rel=1e-3)
    hole = torch.tensor([True, True, True, True, False])
    assert temporal.jitter(target, target, hole).isnan().tolist() == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_identity_drift():
    # Two frames at +60 and -60 degrees from their mean: 1 - cos 60.
    embedding = torch.tensor([[1.0, math.sqrt(3)], [2.0, -2 * math.sqrt(3)], [9.0, 9.0]])
    value = temporal.identity_drift(embedding, torch.tensor([True, True, False]))
    assert value[:2].tolist() == pytest.approx([0.5, 0.5])
    assert value[2].isnan()


def test_flicker_is_in_the_band_and_free_of_the_target():
    target = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) / 2
    band = torch.zeros(3, 1, 8, 8)
    band[:, :, :4] = 1
    swapped = target + 0.1
    everywhere = torch.ones(3, dtype=torch.bool)
    value = temporal.flicker(target, swapped, band, everywhere)
    assert value[1:].tolist() == pytest.approx([0, 0], abs=1e-4)
    swapped[1, :, :2] += 10 / 255  # half of the band, one frame: on and off again
    swapped[2, :, 4:] += 0.3  # outside the band
    value = temporal.flicker(target, swapped, band, everywhere)
    assert value[1:].tolist() == pytest.approx([5, 5], rel=1e-3)
    assert value[0].isnan()


# ---------------------------------------------------------------- intervals


def test_interval_of_independent_values():
    values = torch.randn(400, generator=torch.Generator().manual_seed(2)) + 5
    units = (torch.arange(400),)
    got = intervals.estimate(values, units)
    assert got.mean == pytest.approx(values.mean().item(), rel=1e-5)
    # Normal theory: 1.96 / sqrt(400) = 0.098 either side.
    assert got.high - got.mean == pytest.approx(0.098, abs=0.02)
    assert got.mean - got.low == pytest.approx(0.098, abs=0.02)
    assert (got.measured, got.unmeasured) == (400, 0)


def test_interval_is_as_wide_as_the_units_demand():
    """Ten clips of forty equal frames are ten values, not four hundred."""
    clips = torch.randn(10, generator=torch.Generator().manual_seed(3)).repeat_interleave(40)
    clip = torch.arange(10).repeat_interleave(40)
    width = {}
    for name, unit in (("frames", torch.arange(400)), ("clips", clip)):
        got = intervals.estimate(clips, (unit,))
        width[name] = got.high - got.low
    assert width["clips"] / width["frames"] == pytest.approx(math.sqrt(40), rel=0.25)


def test_unmeasured_values_are_counted():
    values = torch.tensor([1.0, math.nan, 3.0])
    got = intervals.estimate(values, (torch.arange(3),))
    assert (got.mean, got.median, got.measured, got.unmeasured) == (2, 2, 2, 1)
    empty = intervals.estimate(torch.full((2,), math.nan), (torch.arange(2),))
    assert math.isnan(empty.mean)
    assert (empty.measured, empty.unmeasured) == (0, 2)
    one = intervals.estimate(torch.tensor([4.0]), (torch.zeros(1, dtype=torch.int64),))
    assert one.mean == 4
    assert math.isnan(one.low)


@pytest.mark.parametrize(
    ("source", "target", "drawn"),
    [
        ([0, 0, 1, 1], [0, 1, 0, 1], ["source", "target"]),  # crossed
        ([0, 1, 2, 3], [0, 1, 2, 3], ["source"]),  # pairs
        ([0, 0, 1, 1], [0, 1, 2, 3], ["source"]),  # targets hang on sources
        ([0, 1, 2, 3], [0, 0, 1, 1], ["target"]),
        ([0, 0, 0, 0], [0, 1, 2, 3], ["target"]),  # one source
        ([0, 0, 0, 0], [0, 0, 0, 0], ["target"]),
    ],
)
def test_factors(source, target, drawn):
    units = {"source": torch.tensor(source), "target": torch.tensor(target)}
    got = intervals.factors(units["source"], units["target"])
    assert [unit.tolist() for unit in got] == [units[name].tolist() for name in drawn]
