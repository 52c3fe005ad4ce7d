"""`fuse`: the same function as the plain network, whatever the variant, batch and level."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from faceswap.models import build, to_precision
from faceswap.models.aad import AADLayer, AADResBlock
from faceswap.models.attributes import upsample
from faceswap.models.fused import Condition, FusedAEINet, fuse
from faceswap.models.fused_aad import FusedAADBlock
from faceswap.models.fused_conv import (
    SmallMapConv2d,
    SmallMapConvTranspose2d,
    fold_batch_norms,
    small_map,
)

TOLERANCE = 1e-4  # of pixels in [0, 1], fp32


def lively(model: nn.Module) -> nn.Module:
    """Weights as after training: identity with a say, batch norms with statistics of their own."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, mean=1, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def tiny(**args: object) -> nn.Module:
    return lively(build("aei", **{"size": 64, "width": 0.125, "embedding_size": 16, **args}))


def inputs(n: int = 3, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return torch.rand(n, 3, size, size, generator=random), torch.randn(n, 16, generator=random)


@pytest.mark.parametrize(
    ("encoder", "blocks", "injection"),
    [
        *product(("unet", "linknet", "resnet", "fpn"), (1, 2, 3), ("adain",)),
        ("unet", 2, "adaconv"),
        ("unet", 2, "attention"),
    ],
)
@torch.inference_mode()
def test_generator_is_the_same_function(encoder, blocks, injection):
    plain = tiny(attribute_encoder=encoder, num_blocks=blocks, identity_injection=injection)
    fused = fuse(copy.deepcopy(plain))
    assert isinstance(fused, FusedAEINet)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    replaced = any(isinstance(m, FusedAADBlock) for m in fused.modules())
    assert replaced == (injection == "adain")
    target, identity = inputs()
    expected = plain(target, identity)
    assert expected.std() > 0.05
    # random weights magnify rounding: in float64 what is left is the algebra
    exact, double = plain.double(), (target.double(), identity.double())
    fused_exact = fuse(copy.deepcopy(exact))
    torch.testing.assert_close(fused_exact(*double), exact(*double), atol=1e-6, rtol=0)
    if injection == "adain":
        swapped = fused(target, fused.condition(identity))
        torch.testing.assert_close(swapped, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_condition_serves_any_faces_in_any_order():
    plain = tiny()
    fused = fuse(copy.deepcopy(plain))
    target, identity = inputs()
    condition = fused.condition(identity[:2])
    assert isinstance(condition, Condition)
    source = torch.tensor([1, 0, 1])
    torch.testing.assert_close(
        fused(target, condition.rows(source)),
        plain(target, identity[source]),
        atol=TOLERANCE,
        rtol=0,
    )
    one = condition.rows(torch.tensor([1]))
    torch.testing.assert_close(
        fused(target, one), plain(target, identity[1:2]), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("cout", [8, 16])
@pytest.mark.parametrize("side", [2, 4, 16, 96])
@pytest.mark.parametrize("half", [False, True])
@torch.inference_mode()
def test_block_at_every_size(cout, side, half):
    """2 and 4 px: terms first; 16: rows folded; 96: in several stripes."""
    torch.manual_seed(0)
    block = AADResBlock(16, cout, attribute_channels=12, embedding_size=6, num_blocks=2)
    lively(block)
    # far from zero mean and unit variance, so that the norm's order of operations shows
    h = 5 + 3 * torch.randn(2, 16, side, side)
    a = torch.randn(2, 12, side // 2, side // 2) if half else torch.randn(2, 12, side, side)
    identity = torch.randn(2, 6)
    expected = block(h, upsample(a) if half else a, identity)
    fused = FusedAADBlock(block)
    before = h.clone()
    torch.testing.assert_close(fused(h, a, identity), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(fused(h, a, fused.condition(identity)), fused(h, a, identity))
    assert torch.equal(h, before)


@torch.inference_mode()
def test_layers_share_the_condition_in_the_right_order():
    """Each layer of a block gets its own scale and shift, and the shortcut's come last."""
    block = AADResBlock(4, 2, attribute_channels=3, embedding_size=5, num_blocks=2)
    lively(block)
    layers = [m for m in block.modules() if isinstance(m, AADLayer)]
    identity = torch.randn(2, 5)
    terms = FusedAADBlock(block).condition(identity)
    assert terms.shape == (2, 3, 2, 4)
    for j, layer in enumerate(layers):
        torch.testing.assert_close(terms[:, j, 0], layer.fc1(identity))
        torch.testing.assert_close(terms[:, j, 1], layer.fc2(identity))


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 2e-2)])
@torch.inference_mode()
def test_half_precision_after_fusing(precision, bound):
    plain = tiny()
    fused = to_precision(fuse(copy.deepcopy(plain)), precision)
    target, identity = inputs()
    swapped = fused(target, identity)
    assert swapped.dtype == torch.float32
    expected = plain(target, identity)
    assert (swapped - expected).abs().mean() < bound
    loss = (to_precision(plain, precision)(target, identity) - expected).abs().mean()
    assert (swapped - expected).abs().mean() < 1.5 * loss  # no worse than without fusing


@torch.inference_mode()
def test_iresnet_is_the_same_function():
    plain = lively(
        build("iresnet100", layers=(1, 2, 1, 1), embedding_size=16, width=0.125),
    )
    fused = fuse(copy.deepcopy(plain))
    images = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(fused(images), plain(images), atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_batch_norm_before_the_convolution_is_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    lively(model)
    images = torch.rand(1, 3, 8, 8)
    expected = model(images)
    fold_batch_norms(model)
    assert isinstance(model[0], nn.BatchNorm2d)
    assert isinstance(model[2], nn.Identity)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (1, 1, 0)])
@pytest.mark.parametrize("side", [4, 32])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_small_map_convolutions_are_exact(kernel, stride, padding, side, bias):
    x = torch.randn(2, 5, side, side).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(5, 7, kernel, stride=stride, padding=padding, bias=bias)
    torch.testing.assert_close(SmallMapConv2d(conv)(x), conv(x), atol=1e-5, rtol=1e-5)
    up = nn.ConvTranspose2d(5, 7, kernel, stride=stride, padding=padding, bias=bias)
    torch.testing.assert_close(SmallMapConvTranspose2d(up)(x), up(x), atol=1e-5, rtol=1e-5)


def test_only_plain_big_convolutions_get_the_small_map_twin():
    assert isinstance(small_map(nn.Conv2d(512, 256, 3, padding=1)), SmallMapConv2d)
    assert isinstance(small_map(nn.ConvTranspose2d(512, 256, 4)), SmallMapConvTranspose2d)
    for conv in (
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(1024, 1024, 3, groups=2),
        nn.Conv2d(512, 256, 3, dilation=2),
        nn.Conv2d(512, 256, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
    ):
        assert small_map(conv) is conv
