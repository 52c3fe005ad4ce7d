"""AEI-Net, the generator: attributes of the target, identity of the source, one new face.

Networks of FaceShifter (Li et al. 2019) in GHOST's form (Groshev et al., "GHOST - A New Face
Swap Approach for Image and Video Domains", IEEE Access 2022). At size 256 and width 1.0 the
state dict has exactly the keys and shapes of the published GHOST files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.aad import AADResBlock, Injection
from faceswap.models.attributes import (
    EncoderKind,
    initialise,
    make_encoder,
    scaled,
    upsample,
)

_MASK_WIDTH = 16  # channels of the mask head


class Generator(nn.Module):
    """From the identity embedding as a 2x2 picture up to SxS, an AAD block at each level."""

    def __init__(
        self,
        attribute_channels: tuple[int, ...],
        *,
        num_blocks: int,
        embedding_size: int,
        width: float,
        injection: Injection,
        mask_head: bool = False,
    ) -> None:
        super().__init__()
        self.levels = len(attribute_channels)
        inner = [scaled(min(64 << i, 1024), width) for i in range(self.levels)][::-1]
        self.up1 = nn.ConvTranspose2d(embedding_size, inner[0], 2)
        initialise(self.up1)
        for i, (cin, cout, channels) in enumerate(
            zip(inner, [*inner[1:], 3], attribute_channels, strict=True), 1
        ):
            block = AADResBlock(
                cin,
                cout,
                attribute_channels=channels,
                embedding_size=embedding_size,
                num_blocks=num_blocks,
                injection=injection,
            )
            self.add_module(f"AADBlk{i}", block)
        if mask_head:
            self.mask = nn.Sequential(
                nn.Conv2d(inner[-1], _MASK_WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(_MASK_WIDTH, 1, 3, padding=1),
            )
            self.mask.apply(initialise)

    def forward(
        self,
        attributes: tuple[Tensor, ...],  # L maps (N, C_k, 2**(k+1), 2**(k+1)), coarse to fine
        identity: Tensor,  # (N, D) raw embedding
    ) -> tuple[Tensor, Tensor | None]:
        """The face ``(N, 3, S, S)`` in [-1, 1], and logits of its mask ``(N, 1, S, S)`` if any."""
        h = self._begin(identity)
        for i, attribute in enumerate(attributes, 1):
            h = h if i == 1 else upsample(h)
            before, h = h, getattr(self, f"AADBlk{i}")(h, attribute, identity)
        mask = self.mask(before) if hasattr(self, "mask") else None
        return torch.tanh(h), mask

    def _begin(self, identity: Tensor) -> Tensor:
        """``up1`` of the embedding as a picture of one pixel, ``(N, C, 2, 2)``.

        As the matrix product that it is: on CUDA torch.compile expects another memory layout of
        the gradient than that convolution's backward gives for a single pixel.
        """
        weight, bias = self.up1.weight, self.up1.bias
        assert bias is not None
        flat = F.linear(identity, weight.flatten(1).t(), bias.repeat_interleave(4))
        first: Tensor = flat.unflatten(1, weight.shape[1:])
        return first


class AEINet(nn.Module):
    """Swaps one aligned face: ``(target, identity) -> swapped``.

    Args:
        attribute_encoder: "unet" (GHOST's choice), "linknet", "resnet" or "fpn".
        num_blocks: AAD steps in each block of the generator, 1 to 3.
        embedding_size: D of the identity embedding.
        size: crop side S in pixels: 32, 64, 128, 256 or 512.
        width: factor on all inner channels (steps of 8, at least 8).
        identity_injection: "adain" (GHOST's), "adaconv" or "attention", see `AADLayer`.
        mask_head: whether the generator also predicts a soft mask of the face, outside of which
            the target shows (as hyperswap does). The other weights keep their names.

    Raises:
        ValueError: an argument outside these.
    """

    def __init__(
        self,
        attribute_encoder: EncoderKind = "unet",
        num_blocks: int = 2,
        *,
        embedding_size: int = 512,
        size: int = 256,
        width: float = 1.0,
        identity_injection: Injection = "adain",
        mask_head: bool = False,
    ) -> None:
        super().__init__()
        if num_blocks not in (1, 2, 3):
            raise ValueError(f"num_blocks: expected 1, 2 or 3, got {num_blocks}")
        if not 0 < width <= 4:
            raise ValueError(f"width: expected a factor in (0, 4], got {width}")
        self.size, self.embedding_size, self.mask_head = size, embedding_size, mask_head
        self.encoder = make_encoder(attribute_encoder, size, width=width)
        self.generator = Generator(
            self.encoder.channels,
            num_blocks=num_blocks,
            embedding_size=embedding_size,
            width=width,
            injection=identity_injection,
            mask_head=mask_head,
        )

    def attributes(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
    ) -> tuple[Tensor, ...]:
        """Attribute maps of the target, coarse (2x2) to fine (SxS)."""
        if target.ndim != 4 or target.shape[1:] != (3, self.size, self.size):
            expected = f"(N, 3, {self.size}, {self.size})"
            raise ValueError(f"AEINet target: expected {expected}, got {tuple(target.shape)}")
        maps: tuple[Tensor, ...] = self.encoder((target * 2 - 1).to(self._dtype))
        return maps

    def render(
        self,
        attributes: tuple[Tensor, ...],  # as `attributes` returns them
        identity: Tensor,  # (N, D) float, raw (not normalised) embedding
    ) -> tuple[Tensor, Tensor | None]:
        """The face alone and the logits of its mask.

        Returns:
            ``(N, 3, S, S)`` float32 in [0, 1], and ``(N, 1, S, S)`` float32, None without a head.
        """
        if identity.ndim != 2 or identity.shape[1] != self.embedding_size:
            expected = f"(N, {self.embedding_size})"
            raise ValueError(f"AEINet identity: expected {expected}, got {tuple(identity.shape)}")
        face, mask = self.generator(attributes, identity.to(self._dtype))
        return (face.float() + 1) / 2, None if mask is None else mask.float()

    def generate(
        self,
        attributes: tuple[Tensor, ...],  # as `attributes` returns them
        identity: Tensor,  # (N, D) float, raw (not normalised) embedding
        target: Tensor | None = None,  # (N, 3, S, S) float in [0, 1]; a mask head needs it
    ) -> Tensor:
        """The swapped face ``(N, 3, S, S)`` float32 in [0, 1]."""
        face, mask = self.render(attributes, identity)
        if mask is None:
            return face
        if target is None:
            raise ValueError("AEINet.generate: a network with a mask head needs the target")
        return blend(face, mask, target)

    def forward(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
        identity: Tensor,  # (N, D) float, raw (not normalised) embedding; (1, D) serves all N
    ) -> Tensor:
        """The target's face with the other identity, ``(N, 3, S, S)`` float32 in [0, 1]."""
        attributes = self.attributes(target)
        return self.generate(attributes, identity.expand(len(target), -1), target)

    @property
    def _dtype(self) -> torch.dtype:
        return self.generator.up1.weight.dtype


def blend(
    face: Tensor,  # (N, 3, S, S) float in [0, 1]
    mask: Tensor,  # (N, 1, S, S) float, logits
    target: Tensor,  # (N, 3, S, S) float in [0, 1]
) -> Tensor:
    """What a network with a mask head shows: the face where its mask is, else the target."""
    return torch.lerp(target.to(face.dtype), face, mask.sigmoid())
