"""Every loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from faceswap.train import losses
from faceswap.train.config import AeiConfig, AeiLosses
from faceswap.train.identity import distillation_loss
from faceswap.train.mesh import mesh_loss


def picture(value: float, n: int = 1, side: int = 4) -> torch.Tensor:
    return torch.full((n, 3, side, side), value)


def close(loss: torch.Tensor, expected: float) -> None:
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_masked_l1_counts_the_region_only():
    swapped, target = picture(0.5), picture(0.25)
    target[..., 2:] = 9.0
    region = torch.zeros(1, 1, 4, 4)
    region[..., :2] = 1
    close(losses.masked_l1(swapped, target, region), 0.25)


def test_gradient_loss_sees_edges_not_brightness():
    ramp = torch.arange(4.0).expand(1, 3, 4, 4)
    whole = torch.ones(1, 1, 4, 4)
    close(losses.gradient_loss(ramp, ramp + 5, whole), 0.0)
    close(losses.gradient_loss(ramp, 3 * ramp, whole), 2.0)  # |1 - 3| across, 0 down


def test_outline_loss_of_a_ramp_that_no_known_picture_has():
    """Gradient a inside; a/2 and 5a/6 in the two columns at each side, where values repeat."""
    a, side = 0.01, 16
    ramp = (a * torch.arange(float(side))).expand(1, 3, side, side)
    whole, flat = torch.ones(1, 1, side, side), picture(0.5, side=side)
    loss = losses.outline_loss(ramp, [flat, flat], whole, inside=1.0)
    assert float(loss) == pytest.approx((side - 4 + 2 * (1 / 2 + 5 / 6)) * a / side, rel=0.01)
    close(losses.outline_loss(ramp, [flat, ramp + 0.2], whole, inside=1.0), 0.0)
    close(losses.outline_loss(flat, [ramp], whole, inside=1.0), 0.0)


def test_outline_loss_looks_inside_the_region_near_its_edge():
    """An edge 3 px from it counts, one in the middle only as far as ``inside`` says."""

    def loss(column: int, inside: float) -> float:
        region = torch.zeros(1, 1, 64, 64)
        region[..., 16:48] = 1
        swapped = picture(0.5, side=64)
        swapped[..., column:] = 0.7
        flat = picture(0.5, side=64)
        return float(losses.outline_loss(swapped, [flat], region, reach=0.125, inside=inside))

    assert loss(19, 0.0) > 0.01
    assert loss(32, 0.0) == 0.0
    assert loss(8, 0.0) == 0.0, "outside of the region the target shows"
    assert 0 < loss(32, 0.25) < loss(32, 0.5)


def test_identity_loss_of_equal_orthogonal_and_opposite():
    source = torch.tensor([[2.0, 0], [1, 0], [1, 0]])
    swapped = torch.tensor([[5.0, 0], [0, 3], [-1, 0]])
    close(losses.identity_loss(swapped, source), (0 + 1 + 2) / 3)


def test_leak_loss_forgives_a_little_likeness():
    swapped = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    close(losses.leak_loss(swapped, target), 0.9 / 3)


def test_retrieval_is_a_softmax_over_everybody():
    gallery = torch.eye(3)
    swapped = torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    mine = 0.6 / 0.1
    other = math.log(1 + math.exp(0.8 / 0.1) + math.exp(mine))
    sure = math.log(math.exp(10) + 2) - 10
    close(
        losses.retrieval_loss(swapped, gallery, torch.tensor([0, 0]), temperature=0.1),
        (sure + other - mine) / 2,
    )


def test_distillation_sees_directions_and_the_angles_between_them():
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [2.0, 2.0]])  # the second one is 45 degrees off
    direction, relation = distillation_loss(student, teacher)
    close(direction, (1 - math.sqrt(0.5)) / 2)
    close(relation, 0.5)  # cosines 0 and sqrt(1/2), both ways; the diagonal does not count


def test_mesh_loss_in_eye_distances():
    target = torch.zeros(1, 478, 3)
    target[:, 263, 0] = 10.0  # eye distance 10
    loss, error = mesh_loss(target + torch.tensor([1.0, 2, 10]), target, torch.ones(478))
    close(loss, (1 + 2 + 0.3 * 10) / 10)
    close(error, math.sqrt(5) / 10)
    target[:, 152, 1] = 50.0  # a profile: the face's height counts, 0.4 of it
    loss, _ = mesh_loss(target + torch.tensor([1.0, 2, 10]), target, torch.ones(478))
    close(loss, 6 / 20)


def test_points_loss_in_eye_distances_and_features_weigh_more():
    wanted = torch.zeros(1, 478, 3)
    wanted[:, 263, 0] = 10.0  # eye distance 10
    close(losses.points_loss(wanted + torch.tensor([3.0, 4.0, 100.0]), wanted), 5 / 10)
    total = 478 + len(set(losses.FEATURES)) + 3 * 10
    for row, weight in ((4, 1), (159, 2), (13, 2), (70, 2), (468, 4)):  # nose, lid, lip, brow, iris
        found = wanted.clone()
        found[:, row, 0] += 4.0
        rest = 1e-3 * (total - weight) / 10  # the root is taken a thousandth off zero
        close(losses.points_loss(found, wanted), (weight * 4 / 10 + rest) / total)
    wanted[:, 152, 1] = 50.0  # a profile: the face's height counts, 0.4 of it
    close(losses.points_loss(wanted + torch.tensor([3.0, 4.0, 0.0]), wanted), 5 / 20)


def test_tone_loss_is_the_difference_of_means():
    swapped, target, whole = (picture(value, side=8) for value in (0.5, 0.2, 1.0))
    close(losses.tone_loss(swapped, target, whole[:, :1]), 0.3)


FAKE = [torch.tensor([[[[2.0, 0.5]]]]), torch.tensor([[[[-1.0]]]])]
REAL = [torch.tensor([[[[0.0, 3.0]]]]), torch.tensor([[[[2.0]]]])]


def test_hinge_by_scale():
    close(losses.hinge_generator(FAKE), -1.25 + 1)
    close(losses.hinge_attack(FAKE), (0 + 0.5) / 2 + 2)
    # real: (1 + 0) / 2 + 0; fake: (3 + 1.5) / 2 + 0
    close(losses.hinge_discriminator(REAL, FAKE), 0.5 * (0.5 + 2.25))


def test_attribute_loss_in_both_forms():
    target = [torch.full((1, 2, 2, 2), 2.0), torch.full((1, 1, 4, 4), 1.0)]
    swapped = [torch.full((1, 2, 2, 2), 1.0), torch.full((1, 1, 4, 4), 4.0)]
    close(losses.attribute_loss(swapped, target, form="original"), 0.5 * (1 + 9))
    close(losses.attribute_loss(swapped, target), 0.5 * (1 / 4 + 9 / 1))


def test_attribute_loss_cannot_be_lowered_by_shrinking_the_target():
    """The trap of the original: its gradient pulls the target's maps too."""
    for form, pulled in (("original", True), ("normalised", False)):
        target = torch.ones(1, 1, 2, 2, requires_grad=True)
        losses.attribute_loss([2 * torch.ones(1, 1, 2, 2)], [target], form=form).sum()
        loss = losses.attribute_loss([2 * target.detach().requires_grad_()], [target], form=form)
        loss.backward()
        assert (target.grad is not None) == pulled


def test_reconstruction_counts_same_person_pairs_only():
    swapped = torch.cat([picture(0.5), picture(0.9), picture(0.0)])
    target = torch.cat([picture(0.3), picture(0.1), picture(0.4)])
    same = torch.tensor([True, False, True])
    close(losses.reconstruction_loss(swapped, target, same), 0.5 * (0.04 + 0.16) / 2)
    close(losses.reconstruction_loss(swapped, target, ~torch.ones(3, dtype=torch.bool)), 0)
    # Two parts with the count of the whole add up to the whole.
    parts = [
        losses.reconstruction_loss(swapped[rows], target[rows], same[rows], count=2)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    close(sum(parts), 0.5 * (0.04 + 0.16) / 2)


def test_heat_maps_are_hills_at_the_points():
    maps = losses.heat_maps(torch.tensor([[[2.5 / 8, 4.5 / 8]]]), side=8, sigma=1.0)
    assert maps.shape == (1, 1, 8, 8)
    assert float(maps[0, 0, 4, 2]) == pytest.approx(1)  # row y, column x
    assert float(maps[0, 0, 5, 4]) == pytest.approx(math.exp(-(1 + 4) / 2))


def test_eye_loss_sums_the_eyes():
    swapped, target = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    swapped[:, 0], swapped[0, 1] = 0.5, 1.0
    close(losses.eye_loss(swapped, target), 0.25 + 0.5)


def mesh_with(iris: tuple[float, float]) -> torch.Tensor:
    """Eyes 10 px wide; the left iris is given, from the left corner, the right one is central."""
    mesh = torch.zeros(1, 478, 3)
    mesh[0, 33, 0], mesh[0, 133, 0] = 0.0, 10.0
    mesh[0, 468, :2] = torch.tensor(iris)
    mesh[0, 362, 0], mesh[0, 263, 0], mesh[0, 473, 0] = 20.0, 30.0, 25.0
    return mesh


def test_gaze_loss_in_eye_widths():
    close(losses.gaze_loss(mesh_with((7.0, 2.0)), mesh_with((5.0, 0.0))), 0.2**2 + 0.2**2)


def test_gaze_loss_does_not_see_where_the_face_is():
    turn = torch.tensor([[0.0, 2, 0], [-2, 0, 0], [0, 0, 2]])
    moved = mesh_with((7.0, 2.0)) @ turn + 40
    close(losses.gaze_loss(moved, mesh_with((7.0, 2.0))), 0)


def test_cycle_loss():
    close(losses.cycle_loss(picture(0.75), picture(0.5)), 0.25)


def test_mask_loss_of_an_undecided_and_a_sure_mask():
    region = torch.tensor([[[[1.0, 0.0]]]])
    close(losses.mask_loss(torch.zeros(1, 1, 1, 2), region), math.log(2))
    close(losses.mask_loss(torch.tensor([[[[30.0, -30.0]]]]), region), 0)
    close(losses.mask_loss(torch.tensor([[[[-3.0, -30.0]]]]), region), math.log1p(math.exp(3)) / 2)


def test_ssim_of_flat_pictures():
    """Without variance only the means count: (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b = picture(0.8, side=16), picture(0.4, side=16)
    same = torch.tensor([True])
    expected = (2 * 0.8 * 0.4 + 1e-4) / (0.64 + 0.16 + 1e-4)
    close(losses.ssim_loss(a, b, same), 1 - expected)
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    close(losses.ssim_loss(noise, noise, same), 0)
    close(losses.ssim_loss(a, b, ~same), 0)


def test_gradient_penalty_of_a_plane():
    """D(x) = 3 * sum x: the gradient is 3 at each of 3 * 4 values."""
    real = torch.rand(2, 3, 2, 2, requires_grad=True)
    judged = [3 * real.sum((1, 2, 3))[:, None, None, None]]
    close(losses.gradient_penalty(judged, real), 0.5 * 9 * 12)


def test_pair_loss_at_the_fence():
    same = torch.tensor([True, False])
    close(losses.pair_loss(torch.zeros(2), same), math.log(2))
    close(losses.pair_loss(torch.tensor([50.0, -50.0]), same), 0)
    close(losses.pair_loss(torch.tensor([-50.0, 50.0]), same), 50)


def test_the_recipe_is_the_articles():
    on = {name: weight for name, weight in AeiLosses().model_dump().items() if weight}
    assert not AeiConfig().model.mask_head
    assert on.pop("mask") == 1  # of a head that is off
    assert on == {"adversarial": 1, "attribute": 10, "identity": 15, "reconstruction": 10}
