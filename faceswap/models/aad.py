"""AAD: the layers that mix attribute and identity into the picture (FaceShifter, section 3.1).

Li et al., "FaceShifter: Towards High Fidelity And Occlusion Aware Face Swapping", 2019, as
GHOST builds them: scale is a plain factor, without the usual "1 +".
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.attributes import initialise

Injection = Literal["adain", "adaconv", "attention"]


class AdaptiveKernels(nn.Module):
    """Identity branch "adaconv": a filter per channel, predicted from the embedding.

    Chandran et al., "Adaptive Convolutions for Structure-Aware Style Transfer", CVPR 2021: where
    AdaIN predicts one factor per channel, AdaConv predicts a k x k depthwise kernel and a bias,
    so that identity can also move and sharpen structure. Their pointwise kernels are left out:
    the 3x3 convolution after each AAD layer mixes channels.

    The sum over shifts is written out instead of a grouped convolution with N * C groups, so
    that the batch size is not baked in (ONNX, compile).
    """

    def __init__(self, channels: int, embedding_size: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.fc_kernel = nn.Linear(embedding_size, channels * kernel * kernel)
        self.fc_bias = nn.Linear(embedding_size, channels)

    def forward(
        self,
        h: Tensor,  # (N, C, H, W) instance-normalised activation
        identity: Tensor,  # (N, D)
    ) -> Tensor:
        """The identity branch, ``(N, C, H, W)``."""
        k, (height, width) = self.kernel, h.shape[-2:]
        kernels = self.fc_kernel(identity).unflatten(1, (-1, k * k))[..., None, None]
        out: Tensor = self.fc_bias(identity)[..., None, None]
        padded = F.pad(h, [k // 2] * 4, mode="replicate")
        for shift in range(k * k):
            y, x = divmod(shift, k)
            out = out + kernels[:, :, shift] * padded[..., y : y + height, x : x + width]
        return out


class IdentityAttention(nn.Module):
    """Identity branch "attention": each position asks the embedding for the part it needs.

    The embedding becomes T tokens; a position's query is compared with each token (Vaswani et
    al. 2017, scaled dot product) and gets the mixture of the tokens' scales and shifts, so these
    differ between, say, eyes and mouth. With one token it is AdaIN.
    """

    def __init__(
        self, channels: int, embedding_size: int, *, tokens: int = 8, depth: int = 32
    ) -> None:
        super().__init__()
        self.tokens, self.depth = tokens, depth
        self.fc_tokens = nn.Linear(embedding_size, tokens * depth)
        self.query = nn.Conv2d(channels, depth, 1)
        self.fc1 = nn.Linear(depth, channels)
        self.fc2 = nn.Linear(depth, channels)

    def forward(
        self,
        h: Tensor,  # (N, C, H, W) instance-normalised activation
        identity: Tensor,  # (N, D)
    ) -> Tensor:
        """The identity branch, ``(N, C, H, W)``."""
        tokens = self.fc_tokens(identity).unflatten(1, (self.tokens, self.depth))  # (N, T, d)
        query = self.query(h).flatten(2)  # (N, d, HW)
        weight = torch.softmax(tokens @ query * self.depth**-0.5, dim=1)  # (N, T, HW)
        scale = (self.fc1(tokens).transpose(1, 2) @ weight).view_as(h)
        shift = (self.fc2(tokens).transpose(1, 2) @ weight).view_as(h)
        out: Tensor = scale * h + shift
        return out


class AADLayer(nn.Module):
    """Adaptive attentional denormalisation.

    With h the instance-normalised activation, a the attribute map, z the identity embedding::

        A = conv1(a) * h + conv2(a)          attribute, per pixel
        I = fc1(z) * h + fc2(z)              identity, per channel ("adain")
        M = sigmoid(conv_h(h))               one mask per picture
        out = (1 - M) * A + M * I

    "adaconv" and "attention" replace I (`AdaptiveKernels`, `IdentityAttention`).
    """

    def __init__(
        self,
        channels: int,
        attribute_channels: int,
        *,
        embedding_size: int,
        injection: Injection = "adain",
    ) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.conv1 = nn.Conv2d(attribute_channels, channels, 1)
        self.conv2 = nn.Conv2d(attribute_channels, channels, 1)
        self.injection = injection
        if injection == "adain":
            self.fc1 = nn.Linear(embedding_size, channels)
            self.fc2 = nn.Linear(embedding_size, channels)
        elif injection == "adaconv":
            self.kernels = AdaptiveKernels(channels, embedding_size)
        elif injection == "attention":
            self.attention = IdentityAttention(channels, embedding_size)
        else:
            raise ValueError(
                f"identity_injection: expected adain, adaconv or attention, got {injection!r}"
            )
        self.conv_h = nn.Conv2d(channels, 1, 1)
        self.apply(initialise)
        if injection == "attention":  # almost-zero tokens would leave every query without choice
            nn.init.normal_(self.attention.fc_tokens.weight, std=embedding_size**-0.5)

    def forward(
        self,
        h: Tensor,  # (N, C, H, W) activation
        attribute: Tensor,  # (N, A, H, W) attribute map of this level
        identity: Tensor,  # (N, D) raw embedding
    ) -> Tensor:
        """The next activation, ``(N, C, H, W)``."""
        exact = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
        h = self.norm(exact).to(h.dtype)  # fp32 statistics: 2x2 maps have four values each
        kept = self.conv1(attribute) * h + self.conv2(attribute)
        if self.injection == "adain":
            scale, shift = self.fc1(identity), self.fc2(identity)
            put = scale[..., None, None] * h + shift[..., None, None]
        elif self.injection == "adaconv":
            put = self.kernels(h, identity)
        else:
            put = self.attention(h, identity)
        mask = torch.sigmoid(self.conv_h(h))
        out: Tensor = kept + mask * (put - kept)
        return out


class AADResBlock(nn.Module):
    """``num_blocks`` times AAD, ReLU, 3x3 convolution, and a shortcut (GHOST's AAD_ResBlk).

    Only the last convolution changes the width; where it does, the shortcut is one AAD, ReLU,
    convolution of its own, else the input itself.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        attribute_channels: int,
        embedding_size: int,
        num_blocks: int,
        injection: Injection = "adain",
    ) -> None:
        super().__init__()

        def step(width: int) -> list[nn.Module]:
            aad = AADLayer(
                cin, attribute_channels, embedding_size=embedding_size, injection=injection
            )
            conv = nn.Conv2d(cin, width, 3, padding=1, bias=False)
            initialise(conv)
            return [aad, nn.ReLU(), conv]

        widths = [cin] * (num_blocks - 1) + [cout]
        self.add_blocks = nn.Sequential(*(part for width in widths for part in step(width)))
        self.last_add_block = nn.Sequential(*step(cout)) if cin != cout else None

    def forward(
        self,
        h: Tensor,  # (N, cin, H, W) activation
        attribute: Tensor,  # (N, A, H, W) attribute map of this level
        identity: Tensor,  # (N, D) raw embedding
    ) -> Tensor:
        """The next activation, ``(N, cout, H, W)``."""
        shortcut = h
        if self.last_add_block is not None:
            shortcut = _run(self.last_add_block, h, attribute, identity)
        return shortcut + _run(self.add_blocks, h, attribute, identity)


def _run(steps: nn.Sequential, h: Tensor, attribute: Tensor, identity: Tensor) -> Tensor:
    for part in steps:
        h = part(h, attribute, identity) if isinstance(part, AADLayer) else part(h)
    return h
