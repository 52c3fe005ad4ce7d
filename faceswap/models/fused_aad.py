"""An AAD block for inference: the same function with less work.

Inside, maps lie as (N, H, W, C). For layer j of a block, with h the instance-normalised
activation, a the attribute map, s and t its scale and shift convolutions, S and T the identity's
scale and shift, m the mask (`faceswap.models.aad.AADLayer`)::

    out = (1 - m) * ((s a) * h + t a) + m * (S * h + T) = u * h + v,
    u = (1 - m) * (s a) + m * S,    v = (1 - m) * (t a) + m * T

* s and t of all layers of a block share their input: one matrix product.
* The first layer and the shortcut's share the instance norm; their last convolutions are one.
* S and T depend on the source alone: `condition` computes them once.
* A 1x1 convolution commutes with bilinear enlargement: a comes before it.
* On the CPU, where large maps are bound by memory, u and v come out of *one* product of the rows
  [(1 - m) a, 1 - m, m] with the matrix [s t; bias; S T]: the mixing costs no pass over the maps.
  The norm's factor goes into that (small) matrix too; the mean is taken away beforehand, since in
  fp32 that loses nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.aad import AADLayer, AADResBlock
from faceswap.models.attributes import upsample
from faceswap.models.fused_conv import small_map

EPS = 1e-5  # of the instance norm
STRIPE = 4096  # pixels mixed at a time on the CPU: 2 MB at 128 channels


class Normal(NamedTuple):
    """An activation and its instance norm, ``(rows - mean) * factor``, not yet applied."""

    rows: Tensor  # (N, H, W, C)
    mean: Tensor  # (N, C)
    factor: Tensor  # (N, C), 1 / standard deviation


class FusedAADBlock(nn.Module):
    """Drop-in for an `AADResBlock` with "adain" layers; inference only."""

    def __init__(self, block: AADResBlock) -> None:
        super().__init__()
        layers = [part for part in block.add_blocks if isinstance(part, AADLayer)]
        convs = [part for part in block.add_blocks if isinstance(part, nn.Conv2d)]
        self.steps = len(layers)
        self.shortcut = block.last_add_block is not None
        if block.last_add_block is not None:
            aad, _, conv = block.last_add_block
            assert isinstance(aad, AADLayer)
            assert isinstance(conv, nn.Conv2d)
            layers.append(aad)
            both = nn.Conv2d(2 * conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
            both.weight = _fixed(torch.cat([convs[-1].weight, conv.weight], 1))
            convs[-1] = both
        self.convs = nn.ModuleList(small_map(conv) for conv in convs)
        self.layers = len(layers)
        self.channels = layers[0].conv_h.in_channels
        pairs = [(layer.conv1, layer.conv2) for layer in layers]
        # rows: attribute channels, then the bias; columns: layer, scale or shift, channel
        weight = torch.cat([conv.weight.flatten(1) for pair in pairs for conv in pair])
        bias = torch.cat([conv.bias for pair in pairs for conv in pair if conv.bias is not None])
        self.attribute = _fixed(torch.cat([weight.T, bias[None]]))
        fcs = [fc for layer in layers for fc in (layer.fc1, layer.fc2)]
        self.identity_weight = _fixed(torch.cat([fc.weight for fc in fcs]))
        self.identity_bias = _fixed(torch.cat([fc.bias for fc in fcs]))
        self.mask_weight = _fixed(torch.cat([layer.conv_h.weight.flatten(1) for layer in layers]))
        self.mask_bias = _fixed(torch.cat([_bias(layer.conv_h) for layer in layers]))

    def condition(
        self,
        identity: Tensor,  # (N, D) raw embedding
    ) -> Tensor:
        """Scale and shift of every layer, ``(N, layers, 2, C)``; `forward` takes them too."""
        terms = F.linear(identity, self.identity_weight, self.identity_bias)
        return terms.view(-1, self.layers, 2, self.channels)

    def forward(
        self,
        h: Tensor,  # (N, C, H, W) activation
        attribute: Tensor,  # (N, A, H, W), or (N, A, H/2, W/2) of which this level's is enlarged
        identity: Tensor,  # (N, D) raw embedding, or (N, layers, 2, C) from `condition`
    ) -> Tensor:
        """The next activation, ``(N, cout, H, W)``."""
        terms = self.condition(identity) if identity.ndim == 2 else identity
        terms = terms.expand(len(h), -1, -1, -1)
        height, width = h.shape[-2:]
        folded = _bound_by_memory(h) and height * width >= 4 * attribute.shape[1]
        enlarge = attribute.shape[-1] < width
        if folded:
            maps = _rows(upsample(attribute) if enlarge else attribute)
        else:
            maps = self._attribute_terms(_rows(attribute), enlarge=enlarge)
        apply = self._folded if folded else self._merged

        shared = _normal(h)
        joined = None  # last layer and shortcut, side by side
        if self.shortcut:
            joined = h.new_empty(len(h), height, width, 2 * self.channels)
            apply(self.steps, shared, maps, terms, joined[..., self.channels :])
        out = h
        for step, conv in enumerate(self.convs):
            normal = shared if step == 0 else _normal(out)
            if joined is not None and step == self.steps - 1:
                apply(step, normal, maps, terms, joined[..., : self.channels])
                mixed = joined
            else:
                mixed = h.new_empty(len(h), height, width, self.channels)
                apply(step, normal, maps, terms, mixed)
            out = conv(mixed.permute(0, 3, 1, 2))
        return out if self.shortcut else out.add_(h)

    def _attribute_terms(self, rows: Tensor, *, enlarge: bool) -> Tensor:
        """Scale and shift of all layers ``(N, H, W, layers, 2, C)`` from ``(N, H', W', A)``."""
        terms = torch.addmm(self.attribute[-1], rows.flatten(0, 2), self.attribute[:-1])
        terms = terms.view(*rows.shape[:3], -1)
        if enlarge:
            terms = _rows(upsample(terms.permute(0, 3, 1, 2)))
        return terms.view(*terms.shape[:3], self.layers, 2, self.channels)

    def _merged(self, layer: int, normal: Normal, maps: Tensor, terms: Tensor, out: Tensor) -> None:
        h = (normal.rows - normal.mean[:, None, None]) * normal.factor[:, None, None]
        mask = torch.sigmoid(h @ self.mask_weight[layer, :, None] + self.mask_bias[layer])
        put = terms[:, layer, :, None, None]  # (N, 2, 1, 1, C)
        scale = torch.lerp(maps[..., layer, 0, :], put[:, 0], mask)
        shift = torch.lerp(maps[..., layer, 1, :], put[:, 1], mask)
        torch.addcmul(shift, h, scale, out=out).relu_()

    def _folded(self, layer: int, normal: Normal, maps: Tensor, terms: Tensor, out: Tensor) -> None:
        channels = self.channels
        columns = self.attribute[:, 2 * channels * layer : 2 * channels * (layer + 1)]
        for i, factor in enumerate(normal.factor):
            right = torch.cat([columns, terms[i, layer].reshape(1, -1)])
            right[:, :channels] *= factor
            look = self.mask_weight[layer] * factor
            for y in _stripes(*out.shape[1:3]):  # so that what lies between stays in the cache
                centred = normal.rows[i, y] - normal.mean[i]
                mask = (centred @ look).add_(self.mask_bias[layer]).sigmoid_()[..., None]
                kept = 1 - mask
                # [(1 - m) a, 1 - m, m] @ [s t; bias; S T], s and S times the norm's factor
                left = torch.cat([maps[i, y] * kept, kept, mask], 2)
                scale, shift = (left @ right).chunk(2, 2)
                torch.addcmul(shift, centred, scale, out=out[i, y]).relu_()


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _rows(maps: Tensor) -> Tensor:
    """``(N, C, H, W) -> (N, H, W, C)``, dense."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _bound_by_memory(h: Tensor) -> bool:
    return h.device.type == "cpu" and h.dtype in (torch.float32, torch.float64)


def _stripes(height: int, width: int) -> list[slice]:
    step = max(1, STRIPE // width)
    return [slice(top, top + step) for top in range(0, height, step)]


def _normal(h: Tensor) -> Normal:
    rows = _rows(h)
    n, height, width, channels = rows.shape
    if not _bound_by_memory(h):
        variance, mean = torch.var_mean(rows.float(), (1, 2), correction=0)
        return Normal(rows, mean.to(h.dtype), torch.rsqrt(variance + EPS).to(h.dtype))
    # three times as fast as var_mean, which is scalar code
    average = rows.new_full((1, height * width), 1 / (height * width))
    mean = (average @ rows.view(n, -1, channels))[:, 0]
    variance = torch.zeros_like(mean)
    for i in range(n):
        for y in _stripes(height, width):
            square = (rows[i, y] - mean[i]).square_().view(-1, channels)
            variance[i] += (average[:, : len(square)] @ square)[0]
    return Normal(rows, mean, torch.rsqrt(variance + EPS))
