"""TorchScript recognisers rebuilt: the same answers, in any precision, and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.train.label import load_recogniser
from faceswap.train.script import OpenScript

CPU = torch.device("cpu")


class Converted(nn.Module):
    """Written as converters write: pads and PReLU apart, a gate, two ways that meet."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.deep = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8)
        self.wide, self.gate = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 6, size // 4, bias=False)
        self.slope = nn.Parameter(torch.linspace(-0.3, 0.4, 8).view(1, -1, 1, 1))

    def act(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, x * self.slope)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) * 255 * 0.01 - 1
        x = self.act(self.first(F.pad(x, (0, 1, 0, 1))))
        y = self.wide(self.act(self.deep(F.pad(x, (1, 1, 1, 1)))))
        y = y * torch.sigmoid(self.gate(F.avg_pool2d(y, y.shape[-1])))
        return self.last(F.avg_pool2d(torch.relu(x + y), 2)).flatten(1)


def scripted(module: nn.Module, path: Path, size: int) -> Path:
    torch.jit.trace(module.eval(), torch.rand(2, 3, size, size)).save(str(path))
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    return scripted(Converted(112), tmp_path_factory.mktemp("script") / "who.ts", 112)


def test_the_same_answers_in_any_precision(script):
    crops = torch.rand(20, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    plain = load_recogniser(str(script), CPU)
    expected = plain(crops)
    whole = load_recogniser(str(script), CPU, torch.float32)
    assert (plain.size, whole.size) == (112, 112)
    assert isinstance(whole.model, OpenScript)
    assert {node.kind for node in whole.model.nodes} >= {"Conv", "PRelu"}
    assert not {node.kind for node in whole.model.nodes} & {"Where", "GreaterOrEqual"}
    torch.testing.assert_close(whole(crops), expected, rtol=1e-4, atol=1e-5)
    half = load_recogniser(str(script), CPU, torch.bfloat16)(crops)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole(crops))
    assert float(F.cosine_similarity(half, expected).min()) > 0.999


def test_gradients_reach_the_crop(script):
    crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(2))
    seen = []
    for dtype in (None, torch.float32):
        leaf = crops.clone().requires_grad_()
        load_recogniser(str(script), CPU, dtype).model(leaf).square().sum().backward()
        seen.append(leaf.grad)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x).mean((2, 3))


class Skipping(nn.Module):
    """Takes every other row, which is the same operation as channels in reverse."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, ::2] + 1).flatten(1)


def test_what_is_not_known_stays_a_script(tmp_path):
    with pytest.raises(ConfigError, match="Slice in a TorchScript network is not known here"):
        OpenScript(torch.jit.trace(Skipping(), torch.rand(2, 3, 8, 8)), 8)
    path = scripted(Strange(), tmp_path / "strange.ts", 112)
    with pytest.raises(ConfigError, match="Erf in a TorchScript network is not known here"):
        OpenScript(torch.jit.load(str(path)), 112)
    found = load_recogniser(str(path), CPU, torch.float32)
    assert not isinstance(found.model, OpenScript)
    crops = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(found(crops), torch.erf(crops).mean((2, 3)))
