"""The ghost packs' way through the pipeline, with small networks of the same kinds.

The published files are not here; what is tested is that their kinds of network, landmarks, crop
and mask work together. The networks themselves are held to golden outputs elsewhere.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from faceswap import weights
from faceswap.config import SwapConfig
from faceswap.faces.identity import IdentityEncoder
from faceswap.faces.select import Selection
from faceswap.models.aei import AEINet
from faceswap.models.identity import IdentityNet
from faceswap.swap import Swapper
from faceswap.types import Faces

EYES = torch.tensor(
    [[220.0, 200.0], [300.0, 200.0], [260.0, 245.0], [228.0, 290.0], [292.0, 290.0]]
)


class OneFace:
    """A detector that sees one face in every frame that is not black."""

    threshold = 0.5

    def with_threshold(self, threshold: float) -> OneFace:
        return self

    def __call__(self, frames: Tensor) -> Faces:
        seen = torch.nonzero(frames.flatten(1).float().mean(1) > 1)[:, 0]
        n = len(seen)
        box = torch.tensor([[170.0, 130.0, 350.0, 340.0]]).repeat(n, 1)
        return Faces(seen, box, EYES.repeat(n, 1, 1), torch.ones(n))


def landmarks_106(frames: Tensor, faces: Faces) -> Tensor:
    """Jaw on an ellipse about the five points, brows above the eyes, the rest at the nose."""
    n = len(faces)
    centre = faces.points.mean(1)
    unit = (faces.points[:, 1] - faces.points[:, 0]).norm(dim=1)[:, None]
    out = faces.points[:, 2:3].repeat(1, 106, 1)
    angle = torch.arange(33) / 32 * math.pi
    jaw = torch.stack([angle.cos() * 1.1, 0.2 + angle.sin() * 1.3], 1)
    out[:, :33] = centre[:, None] + jaw * unit[:, None]
    for brows, eyes, eye in (
        ((43, 48, 49, 51, 50), (35, 41, 40, 42, 39), 0),
        ((102, 103, 104, 105, 101), (89, 95, 94, 96, 93), 1),
    ):
        for k, (brow, lid) in enumerate(zip(brows, eyes, strict=True)):
            along = torch.tensor([(k - 2) * 0.12, 0.0])
            out[:, lid] = faces.points[:, eye] + along * unit
            out[:, brow] = out[:, lid] + torch.tensor([0.0, -0.35]) * unit
    assert out.shape == (n, 106, 2)
    return torch.cat([out, torch.zeros(n, 106, 1)], 2)


def ghost(**settings: object) -> Swapper:
    torch.manual_seed(0)
    encoder = IdentityNet(widths=(8, 8, 8), depths=(1, 1, 1), embedding_size=512)
    generator = AEINet("unet", 2, size=64, width=0.125, embedding_size=512)
    return Swapper(
        SwapConfig.model_validate({"pack": "ghost-2", "device": "cpu", **settings}),
        pack=weights.pack("ghost-2"),
        detector=OneFace(),
        landmarks=landmarks_106,
        encoder=IdentityEncoder(encoder.eval()),
        generator=generator.eval(),
        device=torch.device("cpu"),
    )


def frames(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(40, 200, (n, 3, 480, 520), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [None, "ghost", "adaptive"])
def test_a_plain_generator_swaps_under_either_mask(kind: str | None) -> None:
    swapper = ghost(mask={"kind": kind})
    pictures = frames()
    pictures[1] = 0
    person = swapper.identify([pictures[2]])
    assert person.crop is None, "a plain generator takes no texture"
    assert person.embedding.shape == (1, 512)
    result = swapper(pictures, person, Selection())
    assert result.faces.frame.tolist() == [0, 2]
    assert torch.equal(result.frames[1], pictures[1])
    changed = (result.frames[0].int() - pictures[0].int()).abs().amax(0) > 0
    rows, columns = torch.nonzero(changed).unbind(1)
    assert changed.float().mean() > 0.02
    assert rows.min() > 60
    assert rows.max() < 420
    assert columns.min() > 110
    assert columns.max() < 410


def test_crops_are_the_originals_and_the_mask_is_the_adaptive_one() -> None:
    swapper = ghost()
    assert swapper.pack.template == "ghost"
    assert swapper.pack.mask == "adaptive"


def test_the_embedding_enters_raw() -> None:
    swapper = ghost()
    seen = []
    forward = swapper.generator.forward

    def spy(target: Tensor, identity: Tensor) -> Tensor:
        seen.append(identity)
        return forward(target, identity)

    swapper.generator.forward = spy  # type: ignore[method-assign]
    person = swapper.identify([frames(1)[0]])
    swapper(frames(2), person, Selection())
    torch.testing.assert_close(seen[0], person.embedding.expand(2, -1))
    assert (person.embedding.norm() - 1).abs() > 0.05, "not normalised"


def test_missing_files_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"faceswap weights fetch ghost-2"):
        Swapper.from_pack("ghost-2")
