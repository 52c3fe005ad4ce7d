"""Source embeddings for the guided swapper: of the data, or by the encoder that swaps use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.errors import ConfigError
from faceswap.faces.identity import IdentityEncoder
from faceswap.models import load_model
from faceswap.models.identity import IdentityNet
from faceswap.ops.geometry import align
from faceswap.train.config import SwapperConfig
from faceswap.train.data import Crops
from faceswap.train.judges import disturbed
from faceswap.train.transfer import moved
from faceswap.train.views import Store, View


def class_centres(
    embedding: Tensor,  # (M, D) of photos
    person: Tensor,  # (M,) int64, any number for each person
) -> tuple[Tensor, Tensor]:
    """Unit mean embeddings ``(K, D)`` of K people, and each photo's place among them, ``(M,)``."""
    names, place = torch.unique(person, return_inverse=True)
    unit = F.normalize(embedding)
    sums = unit.new_zeros(len(names), unit.shape[1]).index_add_(0, place, unit)
    return F.normalize(sums), place


@dataclass(frozen=True, slots=True)
class EmbeddingDraw:
    """What the embeddings of n sources are made of; one of the first two is there."""

    embedding: Tensor | None  # (n, D), of the data
    view: View | None  # for the encoder
    noise: Tensor | None  # (n, D), standard normal


@dataclass(frozen=True, slots=True)
class SourceEmbedder:
    """Gives the network the identity embeddings ``(n, D)`` of sources.

    A network that was trained with a teacher's embeddings trusts them; the smaller encoder that
    ships errs more, and what the network paints then is wrong with certainty.
    """

    known: Tensor  # (M, D) of the data
    base: Tensor  # (M, 2, 3) float32, stored crop px -> encoder's
    encoder: IdentityEncoder | None  # in place of what is known
    noise: float
    store: Store

    @classmethod
    def of(
        cls, config: SwapperConfig, data: Crops, store: Store, device: torch.device
    ) -> SourceEmbedder:
        """By the encoder that ``teachers.encoder`` names, or by the data.

        Raises:
            ConfigError: the data hold no embeddings; the encoder is another kind of network, or
                its embeddings are not of the size that the swapper takes.
            MissingWeightError, WeightError: see `load_model`.
        """
        if data.embedding is None:
            raise ConfigError(
                f"{config.data}: no identity embeddings; make it again with faceswap prepare"
            )
        name, encoder, base = config.teachers.encoder, None, torch.zeros(0, 2, 3)
        if name is not None:
            network = load_model(name, device=device).requires_grad_(False)
            if not isinstance(network, IdentityNet):
                raise ConfigError(
                    f"teachers.encoder: {name} is a {type(network).__name__}; name an identity "
                    "network, such as lite-identity, or leave it out"
                )
            if network.embedding_size != data.embedding.shape[1]:
                raise ConfigError(
                    f"teachers.encoder: {name} gives {network.embedding_size} numbers, the data "
                    f"have {data.embedding.shape[1]}; name another"
                )
            encoder = IdentityEncoder(network, mirrored=True)  # as in swaps
            base = align(data.points, encoder.size, template=encoder.template).matrix
        return cls(data.embedding, base, encoder, config.embedding_noise, store)

    def draw(self, rows: Tensor, generator: torch.Generator | None) -> EmbeddingDraw:
        """What is needed of these rows, on the host; without a generator nothing is disturbed."""
        noise = None
        if self.noise and generator is not None:
            noise = torch.randn(len(rows), self.known.shape[1], generator=generator)
        if self.encoder is None:
            return EmbeddingDraw(self.known[rows], None, noise)
        return EmbeddingDraw(None, self.store.still(rows, self.base[rows]), noise)

    def __call__(self, drawn: EmbeddingDraw) -> Tensor:
        """Embeddings ``(n, D) float32``, disturbed by so much of their own size."""
        if drawn.view is None:
            assert drawn.embedding is not None
            embedding = drawn.embedding
        else:
            assert self.encoder is not None
            embedding = self.encoder.embed(self.store.show(drawn.view, self.encoder.size))
        return embedding if drawn.noise is None else disturbed(embedding, drawn.noise, self.noise)

    def of_rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Undisturbed embeddings ``(n, D) float32`` of rows of the data."""
        return self(moved(self.draw(rows, None), device))
