"""Networks run by onnxruntime give what torch gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from faceswap.config import SwapConfig
from faceswap.faces.engine import CenterFaceEngine
from faceswap.media.image import read_image
from faceswap.models import load_model
from faceswap.models.engine import GatesEngine, MeshEngine
from faceswap.models.guided import GuidedAEINet
from faceswap.models.mesh import MeshNet
from faceswap.swap import Swapper
from faceswap.types import GUIDE_CHANNELS, Guide

COUNTS = [1, 3]  # the example has two rows: no number of them may be fixed in the file


def made_up(channels: int, side: int, count: int) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", COUNTS)
@torch.no_grad()
def test_landmarks(count: int) -> None:
    net = load_model("lite-landmarks")
    assert isinstance(net, MeshNet)
    crops = made_up(3, net.size, count)
    points, presence = MeshEngine(net)(crops)
    expected, there = net(crops)
    assert points.shape == expected.shape
    assert (points - expected).abs().max() < 1e-3  # px
    assert (presence - there).abs().max() < 1e-4


@pytest.mark.parametrize(("count", "side"), [(1, 128), (3, 256)])
@torch.no_grad()
def test_swapper(count: int, side: int) -> None:
    net = load_model("lite-swapper")
    assert isinstance(net, GuidedAEINet)
    guide = Guide.of(made_up(channels, side, count) for channels in GUIDE_CHANNELS.values())
    target, identity = made_up(3, side, count).flip(2), made_up(1, 16, count).view(count, 256)
    expected = net(target, identity, guide)
    assert (expected - target).abs().mean() > 0.05  # it does something to them
    net.engine = GatesEngine(net)
    net.gates = None  # type: ignore[assignment,method-assign]  # it is the engine that runs
    assert (net(target, identity, guide) - expected).abs().max() < 1e-5


def test_clips_go_by_it_on_a_cpu_and_photos_do_not() -> None:
    config = SwapConfig(device="cpu")
    for swapper, fast in (  # what is used in every frame
        (Swapper.from_config(config, video=True), True),
        (Swapper.from_config(config), False),
        (Swapper.from_config(config.model_copy(update={"engine": "onnxruntime"})), True),
        (Swapper.from_config(config.model_copy(update={"engine": "torch"}), video=True), False),
        # Nobody asks for half precision to get fp32.
        (Swapper.from_config(config.model_copy(update={"precision": "bf16"}), video=True), False),
    ):
        assert isinstance(swapper.generator, GuidedAEINet)
        assert isinstance(swapper.generator.engine, GatesEngine) == fast
        assert isinstance(swapper.landmarks.model, MeshEngine) == fast  # type: ignore[attr-defined]
        detector = swapper.detector
        assert isinstance(detector.engine, CenterFaceEngine) == fast  # type: ignore[attr-defined]


def test_a_swap_is_the_same_picture() -> None:
    folder = Path(__file__).parent.parent / "examples"
    source, target = (read_image(folder / f"{name}.jpg").pixels for name in ("source", "target"))
    made = []
    for engine in ("torch", "onnxruntime"):
        swapper = Swapper.from_config(SwapConfig(device="cpu", engine=engine))
        people = swapper.identify([source])
        result = swapper(target[None], people, lambda faces, _: torch.zeros_like(faces.frame))
        assert len(result.faces) == 1
        made.append(result.frames.int())
    assert (made[0] - target).abs().max() > 50
    apart = (made[0] - made[1]).abs()
    assert apart.max() <= 2  # of 255; points that differ by 1e-4 px move an edge by as much
    assert (apart > 0).float().mean() < 0.01
