"""The pipeline with fused networks makes the pictures that plain ones make, on real photos."""

from pathlib import Path

import pytest
import torch
from test_fused import lively

from faceswap.config import SwapConfig
from faceswap.faces.identity import IdentityEncoder
from faceswap.faces.landmarks import MeshLandmarker
from faceswap.faces.select import Selection
from faceswap.media.image import read_image
from faceswap.models import build, load_model, save_model
from faceswap.models.fused import FusedAEINet
from faceswap.swap import Swapper, merge

PHOTOS = Path(__file__).parent.parent / "examples"
CROP = 1e-3  # of [0, 1], the tolerance for the generator
FRAME = 1  # of 255: what rounds the other way


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    return [read_image(PHOTOS / name).pixels for name in ("source.jpg", "target.jpg")]


def plain_twin(swapper: Swapper, generator: torch.nn.Module) -> Swapper:
    """The same pipeline with the networks as they are written."""
    pack = swapper.pack
    return Swapper(
        swapper.config,
        pack=pack,
        detector=swapper.detector,
        landmarks=MeshLandmarker(load_model(pack.landmarks)),
        encoder=IdentityEncoder(load_model(pack.identity), mirrored=swapper.encoder.mirrored),
        generator=generator,
        occlusion=swapper.occlusion,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def small_ghost(tmp_path_factory) -> Path:
    """An AEI-Net of the ghost kind, two AAD blocks, thin, for lite's embeddings."""
    args = {"size": 128, "width": 0.125, "embedding_size": 256, "num_blocks": 2}
    path = tmp_path_factory.mktemp("ghost") / "thin.safetensors"
    return save_model(path, lively(build("aei", **args)), "aei", args)


def test_ghost_generator_is_fused_and_makes_the_same_frames(small_ghost, photos):
    config = SwapConfig(swapper=str(small_ghost), device="cpu", precision="fp32")
    fast = Swapper.from_config(config)
    assert isinstance(fast.generator, FusedAEINet)
    slow = plain_twin(fast, load_model(small_ghost))
    source, target = photos
    crops = {}
    for name, swapper in (("fast", fast), ("slow", slow)):
        person = swapper.identify([source])
        frames = target[None]
        result = swapper(frames, person, Selection())
        assert (result.source >= 0).sum() == 1
        _, at = swapper._align(frames, result.faces, swapper.generator.size)
        given = at.crop(frames, result.faces.frame)
        with torch.no_grad():
            crops[name] = swapper._unguided(given, person, torch.zeros(1, dtype=torch.int64))
        crops[name, "frame"] = result.frames
    assert crops["slow"].std() > 0.05, "there is something to compare"
    assert (crops["fast"] - crops["slow"]).abs().max() < CROP
    difference = (crops["fast", "frame"].int() - crops["slow", "frame"].int()).abs()
    assert difference.max() <= FRAME
    assert (crops["fast", "frame"] != target).any(), "and it is not the target"


def test_lite_with_folded_norms_makes_the_same_frames(photos):
    fast = Swapper.from_config(SwapConfig(device="cpu", precision="fp32"))
    slow = plain_twin(fast, load_model(fast.pack.swapper))
    source, target = photos
    person, plain_person = fast.identify([source]), slow.identify([source])
    cosine = torch.cosine_similarity(person.embedding, plain_person.embedding)
    assert float(cosine) > 0.99999
    frames = torch.stack([target, target.flip(2)])
    ours = fast(frames, person, Selection()).frames
    theirs = slow(frames, plain_person, Selection()).frames
    difference = (ours.int() - theirs.int()).abs().float()
    assert difference.max() <= 3, "points a few thousandths of a pixel off at a sharp edge"
    assert difference.mean() < 0.01


def test_what_depends_on_the_source_is_computed_once(small_ghost, photos, monkeypatch):
    swapper = Swapper.from_config(SwapConfig(swapper=str(small_ghost), device="cpu"))
    source, target = photos
    asked = []
    plain = FusedAEINet.condition

    def counted(self, identity):
        asked.append(len(identity))
        return plain(self, identity)

    monkeypatch.setattr(FusedAEINet, "condition", counted)
    people = merge([swapper.identify([source]), swapper.identify([target])])
    frames = torch.stack([target, source[:, :512, :512]])
    faces = swapper.detect(frames)
    for _ in range(3):
        swapper.replace(frames, faces, people, torch.arange(len(faces)) % 2)
    assert asked == [2], "both people at once, for all frames"
    other = swapper.identify([source])
    swapper.replace(frames, faces, other, torch.zeros(len(faces), dtype=torch.int64))
    assert asked == [2, 1]


def test_each_face_gets_its_own_source(small_ghost, photos):
    """Rows of the cached terms follow the faces, not the other way round."""
    swapper = Swapper.from_config(SwapConfig(swapper=str(small_ghost), device="cpu"))
    source, target = photos
    people = merge([swapper.identify([source]), swapper.identify([target])])
    crops = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = swapper._unguided(crops, people, torch.tensor([1, 0, 1]))
        for row, who in enumerate((1, 0, 1)):
            face = crops[row : row + 1]
            right, wrong = (
                swapper._unguided(face, people, torch.tensor([k])) for k in (who, 1 - who)
            )
            # 1e-3 is what fused networks may differ by; a batch of three rounds otherwise than one.
            torch.testing.assert_close(mixed[row : row + 1], right, atol=1e-3, rtol=0)
            assert (mixed[row : row + 1] - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_has_a_way_back(small_ghost, photos, precision):
    config = SwapConfig(swapper=str(small_ghost), device="cpu", precision=precision)
    swapper = Swapper.from_config(config)
    exact = Swapper.from_config(config.model_copy(update={"precision": "fp32"}))
    person = swapper.identify([photos[0]])
    row = torch.zeros(1, dtype=torch.int64)
    crops = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        half, full = (each._unguided(crops, person, row) for each in (swapper, exact))
        assert half.dtype == torch.float32
        assert 0 < (half - full).abs().mean() < 0.02
        assert swapper._half is not None
        swapper._half.generator.up1.weight.fill_(float("nan"))
        swapper._conditions[True].clear()
        again = swapper._unguided(crops, person, row)
    assert swapper.reruns == 1
    torch.testing.assert_close(again, full)
