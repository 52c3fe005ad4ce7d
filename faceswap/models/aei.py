"""AEI-Net, the generator: attributes of the target, identity of the source, one new face.

Networks of FaceShifter (Li et al. 2019) in GHOST's form (Groshev et al., "GHOST - A New Face
Swap Approach for Image and Video Domains", IEEE Access 2022). At size 256 and width 1.0 the
state dict has exactly the keys and shapes of the published GHOST files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from faceswap.models.aad import AADResBlock, Injection
from faceswap.models.attributes import (
    EncoderKind,
    initialise,
    make_encoder,
    scaled,
    upsample,
)


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

    def forward(
        self,
        attributes: tuple[Tensor, ...],  # L maps (N, C_k, 2**(k+1), 2**(k+1)), coarse to fine
        identity: Tensor,  # (N, D) raw embedding
    ) -> Tensor:
        """The face, ``(N, 3, S, S)`` in [-1, 1]."""
        h: Tensor = self.up1(identity[..., None, None])
        for i, attribute in enumerate(attributes, 1):
            h = getattr(self, f"AADBlk{i}")(h if i == 1 else upsample(h), attribute, identity)
        return torch.tanh(h)


class AEINet(nn.Module):
    """Swaps one aligned face: ``(target, identity) -> swapped``.

    Args:
        attribute_encoder: "unet" (GHOST's choice), "linknet", "resnet" or "fpn".
        num_blocks: AAD steps in each block of the generator, 1 to 3.
        embedding_size: D of the identity embedding.
        size: crop side S in pixels: 32, 64, 128, 256 or 512.
        width: factor on all inner channels (steps of 8, at least 8).
        identity_injection: "adain" (GHOST's), "adaconv" or "attention", see `AADLayer`.

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
    ) -> None:
        super().__init__()
        if num_blocks not in (1, 2, 3):
            raise ValueError(f"num_blocks: expected 1, 2 or 3, got {num_blocks}")
        if not 0 < width <= 4:
            raise ValueError(f"width: expected a factor in (0, 4], got {width}")
        self.size, self.embedding_size = size, embedding_size
        self.encoder = make_encoder(attribute_encoder, size, width=width)
        self.generator = Generator(
            self.encoder.channels,
            num_blocks=num_blocks,
            embedding_size=embedding_size,
            width=width,
            injection=identity_injection,
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

    def generate(
        self,
        attributes: tuple[Tensor, ...],  # as `attributes` returns them
        identity: Tensor,  # (N, D) float, raw (not normalised) embedding
    ) -> Tensor:
        """The swapped face ``(N, 3, S, S)`` float32 in [0, 1]."""
        if identity.ndim != 2 or identity.shape[1] != self.embedding_size:
            expected = f"(N, {self.embedding_size})"
            raise ValueError(f"AEINet identity: expected {expected}, got {tuple(identity.shape)}")
        face: Tensor = self.generator(attributes, identity.to(self._dtype))
        return (face.float() + 1) / 2

    def forward(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
        identity: Tensor,  # (N, D) float, raw (not normalised) embedding; (1, D) serves all N
    ) -> Tensor:
        """The target's face with the other identity, ``(N, 3, S, S)`` float32 in [0, 1]."""
        return self.generate(self.attributes(target), identity.expand(len(target), -1))

    @property
    def _dtype(self) -> torch.dtype:
        return self.generator.up1.weight.dtype
