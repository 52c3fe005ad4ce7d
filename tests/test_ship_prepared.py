"""A prepared folder in small parts, and made again from them (scripts/ship_prepared.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import synthetic
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import ship_prepared

from faceswap.errors import MediaError
from faceswap.train.data import load_crops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = synthetic.prepared(tmp_path_factory.mktemp("ship") / "data", people=12, photos=3)
    (shard,) = out.glob("*.safetensors")
    tensors = load_file(shard)
    random = torch.Generator().manual_seed(0)
    tensors["embedding"] = torch.randn(36, 16, generator=random)
    smooth = torch.rand(36, 3, 4, 4, generator=random)
    side = tensors["image"].shape[-1]
    images = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bilinear")
    tensors["image"] = (images * 255).byte()
    save_file(tensors, shard)
    return out


def test_what_is_unpacked_is_what_was_packed(folder, tmp_path):
    ship_prepared.pack(folder, tmp_path / "parts", part_mib=1, quality=90)
    ship_prepared.unpack(tmp_path / "parts", tmp_path / "again")
    before, after = load_crops(folder), load_crops(tmp_path / "again")
    assert after.names == before.names
    assert torch.equal(after.identity, before.identity)
    assert torch.equal(after.points, before.points)
    torch.testing.assert_close(after.mesh, before.mesh, atol=0.05, rtol=0)
    assert torch.cosine_similarity(after.embedding, before.embedding).min() > 0.999
    seen, _ = before.split()
    gap = after.pixels(seen).float() - before.pixels(seen).float()
    assert gap.abs().mean() < 4
    assert before.pixels(seen).float().std() > 30


def test_faces_held_back_stay_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ship_prepared, "SHEET", 1)
    ship_prepared.pack(folder, tmp_path / "parts", part_mib=1, quality=90)
    ship_prepared.unpack(tmp_path / "parts", tmp_path / "again")
    data = load_crops(folder)
    black = load_crops(tmp_path / "again").pixels(torch.arange(len(data))).amax((1, 2, 3)) == 0
    held = int(data.held_back.sum())
    assert held > 1
    assert int(black.sum()) == held - 1
    assert not black[~data.held_back].any()


def test_a_missing_part_is_told(folder, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    monkeypatch.setattr(ship_prepared, "encoded", lambda crop, quality: bytes(2**18))
    ship_prepared.pack(folder, parts, part_mib=1, quality=90)
    assert len(list(parts.glob("part-*"))) > 4
    (parts / "part-02.bin").unlink()
    monkeypatch.setattr(
        ship_prepared, "decoded", lambda data, size: torch.zeros(3, size, size).byte().numpy()
    )
    with pytest.raises(MediaError, match="a part misses"):
        ship_prepared.unpack(parts, tmp_path / "again")
