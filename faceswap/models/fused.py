"""`fuse`: the same networks, faster, for inference.

Exact algebra only (outputs agree within rounding): batch norms folded into convolutions, AAD
blocks with shared work (`fused_aad`), small maps as matrix products (`fused_conv`), what depends
on the source alone computed once (`FusedAEINet.condition`), channels_last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from faceswap.models.aad import AADLayer, AADResBlock
from faceswap.models.aei import AEINet
from faceswap.models.attributes import ResNetEncoder, upsample
from faceswap.models.fused_aad import FusedAADBlock
from faceswap.models.fused_conv import fold_batch_norms, small_map


class Condition(NamedTuple):
    """What the generator makes of N identities before it sees any target."""

    start: Tensor  # (N, C, 2, 2) first activation
    terms: tuple[Tensor, ...]  # each block's (N, layers, 2, C), or the embeddings where unfused

    def rows(self, index: Tensor) -> Condition:
        """Of those identities, ``index (M,) int64``, in that order."""
        return Condition(self.start[index], tuple(term[index] for term in self.terms))


class FusedAEINet(nn.Module):
    """What `fuse` makes of an `AEINet`: same calls, plus `condition`."""

    def __init__(self, model: AEINet) -> None:
        super().__init__()
        self.size, self.embedding_size = model.size, model.embedding_size
        self.encoder, self.generator = model.encoder, model.generator

    def condition(
        self,
        identity: Tensor,  # (N, D) float, raw embedding
    ) -> Condition:
        """The identity's part of the work, for any number of targets."""
        identity = identity.to(self._dtype)
        terms = tuple(
            block.condition(identity) if isinstance(block, FusedAADBlock) else identity
            for block in self._blocks
        )
        return Condition(self.generator.up1(identity[..., None, None]), terms)

    def attributes(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
    ) -> tuple[Tensor, ...]:
        """Attribute maps, coarse to fine; the finest may be left for `generate` to enlarge."""
        if target.ndim != 4 or target.shape[1:] != (3, self.size, self.size):
            expected = f"(N, 3, {self.size}, {self.size})"
            raise ValueError(f"AEINet target: expected {expected}, got {tuple(target.shape)}")
        x = (target * 2 - 1).to(self._dtype, memory_format=torch.channels_last)
        if isinstance(self.encoder, ResNetEncoder):
            maps: tuple[Tensor, ...] = self.encoder(x)
            return maps
        maps = self.encoder.distinct(x)
        return (*maps, maps[-1])

    def generate(
        self,
        attributes: tuple[Tensor, ...],  # as `attributes` returns them
        identity: Tensor | Condition,  # (N, D) raw embedding, or its `condition`
    ) -> Tensor:
        """The swapped face ``(N, 3, S, S)`` float32 in [0, 1]."""
        known = identity if isinstance(identity, Condition) else self.condition(identity)
        n = len(attributes[0])
        h = known.start.expand(n, -1, -1, -1)
        for i, (block, attribute, terms) in enumerate(
            zip(self._blocks, attributes, known.terms, strict=True)
        ):
            h = upsample(h) if i else h
            if not isinstance(block, FusedAADBlock) and attribute.shape[-1] < h.shape[-1]:
                attribute = upsample(attribute)
            h = block(h, attribute, terms.expand(n, *terms.shape[1:]))
        return (torch.tanh(h).float() + 1) / 2

    def forward(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
        identity: Tensor | Condition,  # (N, D) raw embedding, or its `condition`; 1 serves all N
    ) -> Tensor:
        """The target's face with the other identity, ``(N, 3, S, S)`` float32 in [0, 1]."""
        return self.generate(self.attributes(target), identity)

    @property
    def _blocks(self) -> list[nn.Module]:
        return [getattr(self.generator, f"AADBlk{i + 1}") for i in range(self.generator.levels)]

    @property
    def _dtype(self) -> torch.dtype:
        return self.generator.up1.weight.dtype


def fuse(model: nn.Module) -> nn.Module:
    """The same function, faster, in eval mode and without gradients.

    Works in place, so that the weights are never in memory twice: use only what it returns.
    Fuse in fp32 and on the device where it will run; change the precision afterwards. An
    `AEINet` becomes a `FusedAEINet`; any other network keeps its class and gets its AAD blocks
    and batch norms fused.
    """
    model.eval().requires_grad_(False)
    fold_batch_norms(model)
    if isinstance(model, AEINet) and model.mask_head:
        return model  # its blocks stay as they are: the mask is taken from between them
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, AADResBlock) and _plain(child):
                setattr(module, name, FusedAADBlock(child))
            elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
                setattr(module, name, small_map(child))
    # On a CPU, an AEINet's big kernels on small maps are better left in the order of the products.
    if not isinstance(model, AEINet) or any(p.is_cuda for p in model.parameters()):
        model.to(memory_format=torch.channels_last)
    return FusedAEINet(model) if isinstance(model, AEINet) else model


def _plain(block: AADResBlock) -> bool:
    return all(m.injection == "adain" for m in block.modules() if isinstance(m, AADLayer))
