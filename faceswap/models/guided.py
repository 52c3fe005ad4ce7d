"""GuidedAEINet: AEI-Net small enough for a CPU, with warp guidance.

The same three parts as AEI-Net (FaceShifter, Li et al. 2019): a U-Net encoder of attribute maps,
an identity embedding, and AAD blocks that mix them. Three things make it small:

* **Guidance** (`faceswap.ops.guide`): the source's face, already warped into the target's pose and
  lit by its low frequencies, is one more input of the attribute encoder and the starting point of
  the output.
* **The target's own face never enters.** Inside the face region the network sees the target only
  through a strong low-pass, through its eyes and the mouth's interior and through landmarks. It
  cannot copy the target's identity, so two photos of one person are ground truth for it.
* **AAD blocks up to 32 px, pixel shuffle above.** The output is a gate and a residual at low
  resolution; they are applied to guide and target at *their* resolution, so a network of 128 px
  gives sharp crops of 256 or 512 px.

It can grow: ``extra_layers`` and ``mapping`` add parts that change nothing until they are trained,
so that a network with them goes on from the weights of one without (`init` in a training).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.aad import AADResBlock
from faceswap.models.attributes import initialise
from faceswap.types import GUIDE_CHANNELS, Guide

MESH_POINTS = 478
LIGHTNESS, COLOUR = 0.35, 0.02  # how far the residual may change a pixel
BROAD = 0.06  # how far it may change the mean of a dozen pixels
RIM = 10  # pixels from the region's edge, over which the residual fades in
INPUTS = 11  # channels the encoder sees: base 3, guide 3, region, mouth, trust, points, irises


def _conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(cout),
        nn.LeakyReLU(0.1, inplace=True),
    )


class GuidedAEINet(nn.Module):
    """AEI-Net with warp guidance.

    Args:
        widths: channels of the encoder at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side.
        embedding_size: D.
        num_blocks: AAD layers a block.
        size: side S the network works at; inputs may be any multiple of it.
        shape_rank: size of the shape model's basis.
        extra_layers: AAD layers of a further residual block behind each of the others, and of one
            at half the side; 0: there are none.
        mapping: width of a hidden layer that the embedding goes through first, beside itself
            (StyleGAN's mapping network, Karras et al. 2019, as a residual); 0: it does not.
    """

    NEW_PARTS = ("extra", "mapping")  # these change nothing until they are trained
    shape_mean: Tensor
    shape_basis: Tensor
    shape_expression: Tensor
    engine: Callable[[Guide, Tensor], tuple[Tensor, Tensor]] | None = None  # runs `gates` instead

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (32, 64, 128, 192, 192),
        embedding_size: int = 256,
        num_blocks: int = 1,
        size: int = 128,
        shape_rank: int = 64,
        extra_layers: int = 0,
        mapping: int = 0,
    ) -> None:
        super().__init__()
        self.size = size
        self.embedding_size = embedding_size
        w2, w4, w8, w16, w32 = widths
        self.stem = _conv(INPUTS * 4, w2, 3)
        self.down = nn.ModuleList(
            [_conv(w2, w4, 4, 2), _conv(w4, w8, 4, 2), _conv(w8, w16, 4, 2), _conv(w16, w32, 4, 2)]
        )
        self.up = nn.ModuleList([_conv(w32, w16, 3), _conv(2 * w16, w8, 3), _conv(2 * w8, w4, 3)])
        self.start = nn.Linear(embedding_size, w32 * 16)

        def block(cin: int, cout: int, attribute: int, layers: int = num_blocks) -> AADResBlock:
            return AADResBlock(
                cin,
                cout,
                attribute_channels=attribute,
                embedding_size=embedding_size,
                num_blocks=layers,
            )

        self.blocks = nn.ModuleList(
            [
                block(w32, w16, w32),
                block(w16, w8, 2 * w16),
                block(w8, w4, 2 * w8),
                block(w4, w4, 2 * w4),
            ]
        )
        self.to_half = nn.Sequential(nn.Conv2d(w4, 4 * w2, 3, padding=1), nn.PixelShuffle(2))
        self.fuse = _conv(2 * w2, w2, 3)
        self.head = nn.Sequential(nn.Conv2d(w2, 16, 3, padding=1), nn.PixelShuffle(2))
        # The shape model of the guidance travels with the weights (`faceswap.ops.guide`).
        self.register_buffer("shape_mean", torch.zeros(MESH_POINTS, 3))
        self.register_buffer("shape_basis", torch.zeros(shape_rank, 3 * MESH_POINTS))
        self.register_buffer("shape_expression", torch.zeros(shape_rank, shape_rank))
        initialise(self.start)
        with torch.no_grad():
            first = self.head[0]
            assert isinstance(first, nn.Conv2d)
            assert first.bias is not None
            first.weight.mul_(0.1)
            first.bias.zero_()
            first.bias[:4] = 1.5  # the gate opens to the guide
        self.extra = nn.ModuleList()
        if extra_layers:
            sizes = ((w16, w32), (w8, 2 * w16), (w4, 2 * w8), (w4, 2 * w4), (w2, w2))
            for width, attribute in sizes:
                further = block(width, width, attribute, extra_layers)
                last = further.add_blocks[-1]
                assert isinstance(last, nn.Conv2d)
                nn.init.zeros_(last.weight)
                self.extra.append(further)
        self.mapping: nn.Sequential | None = None
        if mapping:
            out = nn.Linear(mapping, embedding_size)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.mapping = nn.Sequential(nn.Linear(embedding_size, mapping), nn.LeakyReLU(0.1), out)

    def attributes(self, target: Guide) -> tuple[Tensor, ...]:
        """Attribute maps of the guided target, coarse to fine: 1/32, 1/16, 1/8, 1/4, 1/2."""
        parts = (
            target.base * 2 - 1,
            target.image * 2 - 1,
            target.region,
            target.mouth,
            target.trust,
            target.points,
        )
        maps = [self.stem(F.pixel_unshuffle(torch.cat(parts, 1), 2))]
        for down in self.down:
            maps.append(down(maps[-1]))
        out = [maps[-1]]
        for up, skip in zip(self.up, (maps[3], maps[2], maps[1]), strict=True):
            out.append(torch.cat([up(_double(out[-1])), skip], 1))
        return (*out, maps[0])

    def gates(self, guide: Guide, identity: Tensor) -> tuple[Tensor, Tensor]:
        """The network proper, at its own side.

        Args:
            guide: at side ``size``.
            identity: ``(N, D)`` embedding as the pack's encoder gives it.

        Returns:
            gate ``(N, 1, S, S)`` in [0, 1], share of the guide against the base, and residual
            ``(N, 3, S, S)`` in [-0.4, 0.4], mostly grey, no broad shadow, and nothing near the
            region's edge: colour, light and the seam come from guide and base.
        """
        maps = self.attributes(guide)
        identity = F.normalize(identity) * self.embedding_size**0.5
        if self.mapping is not None:
            identity = identity + self.mapping(identity)
        h = self.start(identity).unflatten(1, (-1, 4, 4))
        side = self.size // 32  # of the coarsest map; as a number, ONNX needs it
        h = F.interpolate(h, size=(side, side), mode="bilinear", align_corners=True)
        for index, (block, attribute) in enumerate(zip(self.blocks, maps[:-1], strict=True)):
            h = block(h if index == 0 else _double(h), attribute, identity)
            if self.extra:
                h = self.extra[index](h, attribute, identity)
        h = self.fuse(torch.cat([self.to_half(h), maps[-1]], 1))
        if self.extra:
            h = self.extra[-1](h, maps[-1], identity)
        out = self.head(h).float()
        # A pixel shuffle leaves a pattern of two pixels; a gate has nothing to say at that scale.
        out = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1)
        residual = torch.tanh(out[:, 1:])
        grey = residual.mean(1, keepdim=True)
        residual = LIGHTNESS * grey + COLOUR * (residual - grey)
        residual = residual - _excess(residual)
        return torch.sigmoid(out[:, :1]) * (1 - guide.mouth), residual * _inner(guide.region)

    def forward(self, target: Tensor, identity: Tensor, guide: Guide) -> Tensor:
        """The swapped crop.

        Args:
            target: ``(N, 3, R, R)`` float in [0, 1], R any multiple of ``size``.
            identity: ``(N, D)`` source embedding.
            guide: at side R.

        Returns:
            ``(N, 3, R, R)`` in [0, 1]; equals the target wherever ``guide.region`` is 0.
        """
        side = target.shape[-1]
        gates = self.gates if self.engine is None else self.engine
        gate, residual = gates(_resized(guide, self.size), identity)
        if side != self.size:
            gate, residual = (
                F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
                for x in (gate, residual)
            )
        # The target's eyes are what they should be already; a network would only blur them.
        gate, residual = gate + guide.eyes * (1 - gate), residual * (1 - guide.eyes)
        face = guide.base + gate * (guide.image - guide.base) + residual
        return (target + guide.region * (face - target)).clamp(0, 1)


def _inner(region: Tensor) -> Tensor:
    """The region without its rim, where a residual would paint streaks at the temples."""
    wide = _box(F.pad(region, (RIM, RIM, RIM, RIM), mode="replicate"), 2 * RIM + 1)
    return ((wide - 0.7) / 0.3).clamp(0, 1).square() * region


def _excess(residual: Tensor) -> Tensor:
    """What is broad and strong in a residual: shadows that the guide has no reason for."""
    broad = _box(_box(F.pad(residual, (8, 8, 8, 8), mode="replicate"), 9), 9)
    return broad - broad.clamp(-BROAD, BROAD)


def _box(x: Tensor, side: int) -> Tensor:
    """Mean of each whole window, by rows and then columns: a window of 21 is 42 sums, not 441."""
    return F.avg_pool2d(F.avg_pool2d(x, (1, side), 1), (side, 1), 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _resized(guide: Guide, size: int) -> Guide:
    if guide.image.shape[-1] == size:
        return guide
    mode = "area" if guide.image.shape[-1] > size else "bilinear"
    parts: dict[str, Any] = {
        name: F.interpolate(getattr(guide, name), size=(size, size), mode=mode)
        for name in GUIDE_CHANNELS
    }
    return replace(guide, **parts)
