"""Identity embeddings: the crop the recogniser gets, the batch, the cosine."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.faces.identity import IdentityEncoder, similarity
from faceswap.models.identity import Halving, IdentityNet, PReLU
from faceswap.ops.geometry import TEMPLATES
from faceswap.train.identity import ranking_loss, toward_people
from faceswap.types import Faces


class Pixels(nn.Module):
    """A recogniser whose embedding is the colours at the five template points of its crop."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.batches: list[int] = []

    def forward(self, crop: Tensor) -> Tensor:
        self.batches.append(len(crop))
        assert crop.shape[1:] == (3, self.size, self.size)
        at = (TEMPLATES["arcface"][0] + 0.5) * self.size / 112 - 0.5
        x, y = at.round().long().unbind(1)
        return crop[:, :, y, x].flatten(1)


COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])


@cache
def scene() -> tuple[Tensor, Faces]:
    """Two frames, three faces: each a set of five coloured discs at its five points."""
    frames = torch.zeros(2, 3, 240, 320, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(240), torch.arange(320), indexing="ij")
    turns = [(0, 1.0, 0.0, 30.0, 20.0), (1, 0.8, 0.6, 150.0, 30.0), (1, 0.6, 0.0, 10.0, 150.0)]
    points = []
    for frame, cos, sin, dx, dy in turns:
        turn = torch.tensor([[cos, -sin], [sin, cos]])
        at = TEMPLATES["arcface"][0] @ turn.T + torch.tensor([dx, dy])
        for (px, py), colour in zip(at.tolist(), COLOURS, strict=True):
            disc = (x - px).square() + (y - py).square() < 25
            frames[frame, :, disc] = colour.to(torch.uint8)[:, None]
        points.append(at)
    stacked = torch.stack(points)
    box = torch.cat((stacked.amin(1), stacked.amax(1)), 1)
    return frames, Faces(torch.tensor([0, 1, 1]), box, stacked, torch.ones(3))


@pytest.mark.parametrize("size", [112, 128])
def test_crop_is_the_arcface_template_in_rgb(size: int) -> None:
    frames, faces = scene()
    embedding = IdentityEncoder(Pixels(size))(frames, faces)
    expected = (COLOURS.T / 255).flatten()
    assert embedding.shape == (3, 15)
    assert embedding.dtype == torch.float32
    assert (embedding - expected).abs().max() < 0.02


def test_all_faces_of_all_frames_go_in_one_pass() -> None:
    frames, faces = scene()
    model = Pixels(112)
    IdentityEncoder(model)(frames, faces)
    assert model.batches == [3]


def test_many_faces_go_in_bounded_passes_and_equal_single_ones() -> None:
    frames, faces = scene()
    model = Pixels(112)
    encoder = IdentityEncoder(model)
    many = faces[torch.arange(75) % 3]
    embedding = encoder(frames, many)
    assert sum(model.batches) == 75
    assert max(model.batches) <= 32
    for row in (0, 40, 74):
        assert torch.equal(embedding[row], encoder(frames, many[torch.tensor([row])])[0])


def test_no_faces_give_an_empty_table_of_the_right_width() -> None:
    frames, _ = scene()
    assert IdentityEncoder(Pixels(112))(frames, Faces.empty()).shape == (0, 15)


def test_embeddings_are_raw_and_carry_no_gradient() -> None:
    class Scaled(nn.Module):
        size = 112

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(7.0))

        def forward(self, crop: Tensor) -> Tensor:
            return crop.mean((2, 3)) * self.gain

    frames, faces = scene()
    embedding = IdentityEncoder(Scaled())(frames + 100, faces)
    assert not embedding.requires_grad
    assert embedding.norm(dim=1).min() > 2  # not brought to length 1


def test_similarity_is_the_cosine_of_every_pair() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(n, 7, generator=generator) * 9 for n in (4, 2))
    table = similarity(a, b)
    for i in range(4):
        for j in range(2):
            expected = (a[i] @ b[j]) / (a[i].norm() * b[j].norm())
            assert table[i, j] == pytest.approx(float(expected), abs=1e-6)
    assert similarity(a, a).diagonal().tolist() == pytest.approx([1.0] * 4)
    assert similarity(torch.zeros(0, 7), b).shape == (0, 2)


def test_ranking_loss_is_the_divergence_of_two_rankings() -> None:
    gallery = torch.eye(2)
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    # Teacher: cosines 1 and 0; student: both 0.7071, so one half each.
    p = 1 / (1 + math.exp(-2.0))
    wanted = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    loss = ranking_loss(student, teacher, gallery, temperature=0.5)
    assert float(loss) == pytest.approx(wanted, abs=1e-5)
    assert float(ranking_loss(3 * teacher, teacher, gallery)) == pytest.approx(0, abs=1e-6)


def test_the_mirror_image_counts_alike() -> None:
    crops = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    encoder = IdentityEncoder(Pixels(112), mirrored=True)
    found = encoder.embed(crops)
    torch.testing.assert_close(found, encoder.embed(crops.flip(3)))
    plain = IdentityEncoder(Pixels(112))
    once, other = plain.embed(crops), plain.embed(crops.flip(3))
    assert not torch.allclose(once, other)
    expected = torch.nn.functional.normalize(once) + torch.nn.functional.normalize(other)
    torch.testing.assert_close(found, expected)


def test_a_person_is_what_their_photos_have_in_common() -> None:
    generator = torch.Generator().manual_seed(5)
    people = F.normalize(torch.randn(2, 32, generator=generator))
    person = torch.tensor([0, 1, 0, 0, 2])
    alone = torch.randn(1, 32, generator=generator)
    photos = torch.cat([people[person[:4]], alone]) * 3
    noisy = photos + torch.randn(5, 32, generator=generator) * 0.3
    noisy[4] = alone[0] * 5
    unit = F.normalize(noisy)
    torch.testing.assert_close(toward_people(noisy, person, 0.0), unit)
    half, whole = (toward_people(noisy, person, share) for share in (0.5, 1.0))
    torch.testing.assert_close(whole[0], whole[2])
    torch.testing.assert_close(whole[[1, 4]], unit[[1, 4]])  # one photo says what it says
    own = [float((each[0] * people[0]).sum()) for each in (unit, half, whole)]
    assert own[0] < own[1] < own[2]
    torch.testing.assert_close(half.norm(dim=1), torch.ones(5))


def test_what_is_written_otherwise_for_training_is_the_same() -> None:
    """PReLU and convolutions of stride 2, whose plain gradients are slow on CPUs."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 10, 10)
    act, half = PReLU(8), Halving(8, 8, 3, 2, 1, groups=8, bias=False)
    with torch.no_grad():
        act.slope.copy_(torch.linspace(-0.5, 1.5, 8))
    for module, side in ((act, 10), (half, 5)):
        with torch.no_grad():
            trained, used = module.train()(x), module.eval()(x)
        assert used.shape == (2, 8, side, side)
        torch.testing.assert_close(trained, used)


def test_an_untrained_network_tells_pictures_apart() -> None:
    """Weights fade nowhere on the way, so that training has something to begin with."""
    torch.manual_seed(0)
    found = F.normalize(IdentityNet(embedding_size=32).eval()(torch.rand(4, 3, 128, 128)))
    assert float((found @ found.T)[0, 1:].max()) < 0.9999
    sizes = IdentityNet(widths=(8, 16), depths=(1, 2), size=64).bottlenecks
    assert sizes == [(8, 32), (8, 16), (16, 8), (16, 8)]
