"""The fixed protocol that swapper weights are compared by (scripts/score_swaps.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import score_swaps
from test_guide import round_head

from faceswap.errors import NoFaceError
from faceswap.models import load_model
from faceswap.ops.shape import ShapeModel
from faceswap.train.data import Crops
from faceswap.train.label import Recogniser


def crops(people: str, held: str) -> Crops:
    """One row a letter of ``people``; those in ``held`` are held back."""
    count = len(people)
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, int] = {}
    names = []
    for person in people:
        seen[person] = seen.get(person, 0) + 1
        names.append(f"{person}/{seen[person]}.jpg")
    return Crops(
        images=(torch.zeros(count, 3, 32, 32, dtype=torch.uint8),),
        points=torch.rand(count, 5, 2, generator=generator),
        mesh=torch.rand(count, 478, 3, generator=generator),
        embedding=None,
        identity=torch.tensor([sorted(set(people)).index(p) for p in people]),
        held_back=torch.tensor([p in held for p in people]),
        names=tuple(names),
        size=32,
        template="ghost_frontal",
        margin=1.6,
    )


def test_pairs_are_of_people_held_back_who_are_two():
    data = crops("aabbccdefgaz", held="abdefg")
    pairs = score_swaps.choose_pairs(data, people=5, targets=2)
    assert sorted(data.names[i][0] for i in pairs.source.tolist()) == ["a", "b"]
    assert pairs.who.tolist() == [0, 0, 1, 1]
    assert (data.identity[pairs.gallery] == data.identity[pairs.source]).all()
    assert (pairs.gallery != pairs.source).all()
    assert (data.identity[pairs.target] != data.identity[pairs.source[pairs.who]]).all()
    assert data.held_back[pairs.target].all()
    assert set(pairs.target.tolist()) & {6, 7, 8, 9}  # people of one photo are targets


def test_pairs_depend_on_names_only():
    data = crops("aabbccddeefg", held="abcdefg")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    mixed = Crops(
        images=(data.images[0][order],),
        points=data.points[order],
        mesh=data.mesh[order],
        embedding=None,
        identity=9 - data.identity[order],
        held_back=data.held_back[order],
        names=tuple(data.names[i] for i in order.tolist()),
        size=32,
        template="ghost_frontal",
        margin=1.6,
    )
    a, b = (score_swaps.choose_pairs(each, people=3, targets=2) for each in (data, mixed))

    def said(data: Crops, rows: torch.Tensor) -> list[str]:
        return [data.names[i] for i in rows.tolist()]

    assert said(data, a.source) == said(mixed, b.source)
    assert said(data, a.gallery) == said(mixed, b.gallery)
    assert said(data, a.target) == said(mixed, b.target)
    assert a.who.tolist() == b.who.tolist()


def test_pairs_need_two_people():
    with pytest.raises(NoFaceError, match="1 held-back people with two photos"):
        score_swaps.choose_pairs(crops("aabcd", held="abcd"), people=5, targets=1)


def test_files_of_one_name_are_told_apart():
    files = ["runs/a/swapper.safetensors", "runs/b/swapper.safetensors"]
    assert score_swaps._called(files[0], files) == "a/swapper.safetensors"
    assert score_swaps._called("lite-swapper", files) == "lite-swapper"


def test_scores_of_target_and_of_source_pasted():
    """A target left as it is has the target's identity and no error; another face has both."""
    data = crops("aabbcd", held="abcd")
    generator = torch.Generator().manual_seed(1)
    data.images[0].copy_(torch.randint(256, data.images[0].shape, generator=generator))
    pairs = score_swaps.choose_pairs(data, people=2, targets=1)
    shown = {data.images[0][i].float().mean().item(): data.mesh[i] for i in range(len(data))}

    def labeler(photos, points):
        """Knows each picture by its mean."""
        return torch.stack([shown[p.float().mean().item()] for p in photos]), torch.ones(
            len(photos)
        )

    def encode(crops: torch.Tensor) -> torch.Tensor:
        return crops.flatten(1) - 0.5

    shape = score_swaps.ShapeModel(torch.rand(478, 3), torch.eye(2, 1434), torch.eye(2))
    encoder = Recogniser(encode, 112)  # type: ignore[arg-type]
    scorer = score_swaps.Scorer(data, pairs, labeler, {"e": encoder}, shape)
    same = scorer(data.pixels(pairs.target))
    torch.testing.assert_close(same["cos_target e"], torch.ones(2).double(), rtol=0, atol=1e-5)
    for name in ("pose", "expression", "gaze", "mouth_opening", "border_tone"):
        assert same[name].nan_to_num(0).max() < 1e-4, name
    assert same["top1 e"].tolist().count(100.0) < 2
    pasted = scorer(data.pixels(pairs.source[pairs.who]))
    torch.testing.assert_close(pasted["cos_source e"], torch.ones(2).double(), rtol=0, atol=1e-5)
    assert pasted["top1 e"].tolist() == [100.0, 100.0]
    another = scorer(data.pixels(pairs.gallery[pairs.who]))
    torch.testing.assert_close(another["cos_other e"], torch.ones(2).double(), rtol=0, atol=1e-5)
    assert another["top1_other e"].tolist() == [100.0, 100.0]
    assert pasted["shape"].abs().max() < 1e-4
    assert pasted["expression"].min() > 1
    assert same["lost"].tolist() == [0.0, 0.0]


def test_a_lost_face_is_a_failure_of_identity():
    data = crops("aabbcd", held="abcd")
    pairs = score_swaps.choose_pairs(data, people=2, targets=1)

    def labeler(photos, points):
        there = torch.tensor([float(p.sum()) - 1 for p in photos])  # nothing in a black picture
        return data.mesh[: len(photos)], there

    data.images[0].fill_(9)
    encoder = Recogniser(lambda crops: crops.flatten(1) + 0.1, 112)  # type: ignore[arg-type]
    shape = score_swaps.ShapeModel(torch.rand(478, 3), torch.eye(2, 1434), torch.eye(2))
    scorer = score_swaps.Scorer(data, pairs, labeler, {"e": encoder}, shape)
    values = scorer(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert values["lost"].tolist() == [100.0, 100.0]
    assert values["top1 e"].tolist() == [0.0, 0.0]
    assert values["cos_source e"].isnan().all()
    assert values["pose"].isnan().all()


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
