"""Who gets which source: pure functions from faces and embeddings to an assignment.

An assignment is ``(N,) int64``: row i is the identity that face i receives, -1 = left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.errors import ConfigError
from faceswap.faces.identity import similarity
from faceswap.types import Faces


@dataclass(frozen=True, slots=True)
class Match:
    """How well the references were met in one picture, for reports."""

    assignment: Tensor  # (N,) int64
    best: Tensor  # (K,) float32, best cosine of each reference to any face, -1 without faces
    margin: Tensor  # (K,) float32, lead of that face over the best one that is nobody else's, <= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which faces of a picture are to be swapped; the largest if nothing else is said.

    Called with faces and embeddings it gives the assignment, so it is a `Choice` of the pipeline.
    """

    face: int | None = None  # number from the left, 0 = leftmost
    all_faces: bool = False
    references: Tensor | None = None  # (K, D) float32; identity k goes to the face most like it
    threshold: float = 0.3  # least cosine to a reference
    margin: float = 0.0  # how far the best face must be ahead of the second best

    def __post_init__(self) -> None:
        if (self.face is not None) + self.all_faces + (self.references is not None) > 1:
            raise ConfigError(
                "--face, --all-faces and references (--target-ref, --map) exclude each other"
            )

    @property
    def needs_embedding(self) -> bool:
        """Whether embeddings of the target's faces are needed at all."""
        return self.references is not None

    @property
    def needs_everyone(self) -> bool:
        """Whether small faces beside larger ones matter."""
        return self.all_faces or self.face is not None or self.references is not None

    def __call__(self, faces: Faces, embedding: Tensor | None) -> Tensor:
        """The assignment ``(N,) int64``."""
        if self.references is not None:
            if embedding is None:
                return torch.full((len(faces),), -1, dtype=torch.int64, device=faces.frame.device)
            return by_reference(
                faces, embedding, self.references, threshold=self.threshold, margin=self.margin
            ).assignment
        if self.all_faces:
            return torch.zeros(len(faces), dtype=torch.int64, device=faces.frame.device)
        if self.face is not None:
            return by_order(faces, self.face)
        return largest(faces)


def largest(faces: Faces) -> Tensor:
    """Identity 0 to the largest face of each frame, ``(N,) int64``."""
    out = torch.full((len(faces),), -1, dtype=torch.int64, device=faces.frame.device)
    size = faces.size
    for frame in torch.unique(faces.frame).tolist():
        rows = torch.nonzero(faces.frame == frame)[:, 0]
        out[rows[size[rows].argmax()]] = 0
    return out


def by_order(faces: Faces, number: int) -> Tensor:
    """Identity 0 to the ``number``-th face from the left (0 = leftmost) of each frame, ``(N,)``."""
    out = torch.full((len(faces),), -1, dtype=torch.int64, device=faces.frame.device)
    centre = faces.box[:, [0, 2]].mean(1)
    for frame in torch.unique(faces.frame).tolist():
        rows = torch.nonzero(faces.frame == frame)[:, 0]
        if number < len(rows):
            out[rows[centre[rows].argsort()[number]]] = 0
    return out


def by_reference(
    faces: Faces,
    embedding: Tensor,  # (N, D) float32, of the faces
    references: Tensor,  # (K, D) float32
    *,
    threshold: float,  # least cosine
    margin: float = 0.0,  # least lead over the best face that is nobody else's
) -> Match:
    """Each reference to at most one face of a frame and each face to at most one reference.

    Among all one-to-one assignments the one with the largest sum of cosines is taken (Hungarian
    algorithm, Kuhn 1955), and pairs under the threshold or margin are left alone.
    """
    cosine = similarity(embedding, references).cpu()
    k = len(references)
    out = torch.full((len(faces),), -1, dtype=torch.int64)
    best, lead = torch.full((k,), -1.0), torch.full((k,), 2.0)
    frames = faces.frame.cpu()
    for frame in torch.unique(frames).tolist():
        rows = torch.nonzero(frames == frame)[:, 0]
        out[rows], gap = _assign(cosine[rows], threshold, margin)
        top = cosine[rows].amax(0)
        lead = torch.where(top > best, gap, lead)
        best = torch.maximum(best, top)
    return Match(out.to(faces.frame.device), best, lead)


def _assign(
    cosine: Tensor,  # (N, K) float32, faces of one frame against references; N > 0
    threshold: float,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Reference of each face ``(N,) int64`` or -1, and the lead of each reference ``(K,)``.

    The lead of a pair is its cosine minus that of the best other face for the reference, faces
    that are somebody else's left out; without such a face it is 2. An unmet reference leads by
    its best minus its second best face.
    """
    from scipy.optimize import linear_sum_assignment

    # A pair that may not be takes part as worthless, so that it cannot push another out.
    allowed = cosine >= threshold
    worth = torch.where(allowed, cosine - threshold + 1e-6, torch.zeros(()))
    one_to_one = zip(*linear_sum_assignment(worth.numpy(), maximize=True), strict=True)
    pairs = [(int(i), int(j)) for i, j in one_to_one if allowed[i, j]]
    top = cosine.topk(min(2, len(cosine)), dim=0).values
    lead = top[0] - top[1] if len(top) > 1 else torch.full((cosine.shape[1],), 2.0)
    free = torch.ones(len(cosine), dtype=torch.bool)
    free[[i for i, _ in pairs]] = False
    out = torch.full((len(cosine),), -1, dtype=torch.int64)
    for i, j in pairs:
        lead[j] = cosine[i, j] - cosine[free, j].max() if free.any() else 2.0
        if lead[j] >= margin:
            out[i] = j
    return out, lead
