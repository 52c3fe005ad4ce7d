"""Convolutions for inference: batch norms folded in, and small maps as one matrix product.

A convolution with a megabyte of weights on a map of 2x2 to 8x8 pixels is bound by reading the
weights. oneDNN reorders them on every call, which costs up to six times the product itself
(1024 to 1024 channels at 4x4, one EPYC core: 20 to 43 ms against 9 ms); unfold and one matrix
product read them once, in the order in which they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models import attributes, iresnet

SMALL_MAP_ROWS = 256  # output positions in a batch up to which the matrix product wins
BIG_KERNEL = 1 << 20  # weights from which reordering them is felt

_BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d)
_Conv = (nn.Conv2d, nn.ConvTranspose2d)

# which batch norm takes the output of which convolution, beside those that follow in a Sequential
NORM_AFTER: Mapping[type[nn.Module], tuple[tuple[str, str], ...]] = {
    attributes.Deconv: (("deconv", "bn"),),
    attributes.Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    attributes.ResNetEncoder: (("conv0", "bn0"), ("conv1", "bn1")),
    iresnet.Block: (("conv1", "bn2"), ("conv2", "bn3")),
    iresnet.IResNet: (("conv1", "bn1"),),
}


def fold_batch_norms(model: nn.Module) -> None:
    """Put every batch norm that follows a convolution into its weights, in place (eval only)."""
    for module in list(model.modules()):
        pairs = NORM_AFTER.get(type(module), ())
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            pairs = tuple(pairwise(names))
        for conv_name, norm_name in pairs:
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            if isinstance(conv, _Conv) and isinstance(norm, _BatchNorm):
                _fold(conv, norm)
                setattr(module, norm_name, nn.Identity())


@torch.no_grad()
def _fold(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    factor = norm.weight.double() * torch.rsqrt(variance.double() + norm.eps)
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    before = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - mean.double()) * factor
    weight = conv.weight.double() * factor.view(shape)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


class SmallMapConv2d(nn.Module):
    """The same convolution; on the CPU a matrix product where the map is small."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W) -> (N, cout, H', W')``."""
        n, _, *size = x.shape
        assert not isinstance(self.padding, str)
        height, width = (
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(
                size, self.padding, self.kernel, self.stride, strict=True
            )
        )
        if x.device.type != "cpu" or n * height * width > SMALL_MAP_ROWS:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        patches = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        rows = F.linear(patches.mT, self.weight.flatten(1), self.bias)  # (N, H'W', cout)
        out: Tensor = rows.mT.unflatten(2, (height, width))
        return out


class SmallMapConvTranspose2d(nn.Module):
    """The same transposed convolution; on the CPU a matrix product where the map is small."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W) -> (N, cout, H', W')``."""
        n, _, *size = x.shape
        assert not isinstance(self.padding, str)
        if x.device.type != "cpu" or n * size[0] * size[1] > SMALL_MAP_ROWS:
            return F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding)
        side = tuple(
            (length - 1) * stride - 2 * pad + kernel
            for length, pad, kernel, stride in zip(
                size, self.padding, self.kernel, self.stride, strict=True
            )
        )
        patches = (x.flatten(2).mT @ self.weight.flatten(1)).mT  # (N, cout*k*k, HW)
        out = F.fold(patches, side, self.kernel, padding=self.padding, stride=self.stride)
        return out if self.bias is None else out.add_(self.bias[:, None, None])


def small_map(conv: nn.Module) -> nn.Module:
    """The small-map twin of a plain convolution with many weights; other modules as they are."""
    if not isinstance(conv, _Conv) or conv.weight.numel() < BIG_KERNEL:
        return conv
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if not plain or isinstance(conv.padding, str):
        return conv
    if isinstance(conv, nn.Conv2d):
        return SmallMapConv2d(conv)
    return SmallMapConvTranspose2d(conv) if conv.output_padding == (0, 0) else conv
