"""Which prepared photos show real glasses, although nobody has said so.

Glasses have a bar across the nose, where bare skin is smooth: that is a weak sign. Recognisers know
glasses without having been asked, so a logistic regression on their embeddings, taught by the weak
sign and taken from people it was not fitted to, makes a good one of it (self-training, cross-fitted
by person).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.occlude import near_face
from faceswap.ops.color import luma
from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.geometry import align
from faceswap.ops.topology import BROW_LEFT, BROW_RIGHT, five_points
from faceswap.train.data import Crops, cut, map_points
from faceswap.train.occluders import Head

_SIDE = 96  # px, of the crops that are looked at
_PART = 256
_BETWEEN, _TIP, _CORNERS = 9, 5, (133, 362)  # brows' middle, nose's tip, inner corners of the eyes
_ROWS, _COLUMNS = 24, 7  # of the strip across the nose
_HALF_WIDTH, _DOWN = 0.22, 0.75  # its extent, in distances of the corners and lengths of the nose
_STEPS = 3  # rows, half the thickness of a bar
_BARS = ((_STEPS, -_STEPS), (None, -2 * _STEPS), (2 * _STEPS, None))  # it, above it, below
_FOLDS, _ROUNDS = 5, 3
_SURE, _FREE = 0.93, 0.65  # ranks from which, and up to which, the sign is believed
# Where glasses are, in distances of the outer corners of the eyes: across, up, down, towards us.
_ACROSS, _UP, _BELOW, _BEFORE = 0.85, 0.3, 0.5, 0.2
_TURNED = 0.85  # of a head's width, from which on it looks into the camera
_LEAST = 0.3  # probability that something of a face's glasses must reach
_RIM, _SKIN = 0.35, 0.12  # against the clearest there: from which on, and up to which, it is known
_CLEAR = 0.005  # share of the picture that is the clearest
_CLEARLY, _HARDLY = 0.6, 0.1  # the same by themselves
_BROW = 0.012  # of the side, how far brows reach beyond their outline


def glasses_score(data: Crops) -> Tensor:
    """How much each photo looks as if the person wore glasses, ``(M,) float32``, any scale."""
    bar = torch.cat([_bar(data, part) for part in torch.arange(len(data)).split(_PART)])
    sign = _rank(_rank(bar).mean(1, keepdim=True))[:, 0]
    if data.embedding is None or len(data) < 50 * _FOLDS:
        return sign
    score = sign
    for _ in range(_ROUNDS):
        score = _standard(_learned(data, score)) + 0.7 * _standard(sign)
    return score


def real_glasses(
    probability: Tensor,  # (N, 1, S, S) in [0, 1], by a network that has seen drawn ones only
    mesh: Tensor,  # (N, 478, 3) float32, px
) -> tuple[Tensor, Tensor]:
    """What covers these wearers' faces, ``(N, 1, S, S)`` 0 or 1, and how far that is known.

    A network is unsure of thin rims unlike those it was taught with, but surer of them than of the
    skin beside them: so they count against the clearest of what it sees about the eyes. Where that
    is not clear either, or the head is turned away, nothing is known; what lies elsewhere before
    the face is taken as it is seen.
    """
    about, frontal = _about(mesh, probability.shape[-1])
    level = clearest(probability, mesh).view(-1, 1, 1, 1)
    share = probability / level.clamp_min(_LEAST)
    usable = (level > _LEAST) & frontal.view(-1, 1, 1, 1)
    # Elsewhere, and on brows, which are not unlike a rim, only what is clear by itself counts.
    plain = ~about | _brows(mesh, probability.shape[-1])
    covered = torch.where(plain, probability > _CLEARLY, share > _RIM)
    known = covered | torch.where(plain, probability < _HARDLY, share < _SKIN)
    return covered.float(), (known & (usable | ~about)).float()


def _brows(mesh: Tensor, size: int) -> Tensor:
    """Where brows are, ``(N, 1, S, S) bool``."""
    both = [mesh[:, constant(rows, mesh.device), :2] for rows in (BROW_LEFT, BROW_RIGHT)]
    one, other = outline_distance(torch.cat(both), size // 2, size).chunk(2)
    return torch.maximum(one, other) > -_BROW * size


def clearest(
    probability: Tensor,  # (N, 1, S, S) in [0, 1]
    mesh: Tensor,  # (N, 478, 3) float32, px
) -> Tensor:
    """What the clearest pixels about the eyes come up to, ``(N,)`` in [0, 1]: are there glasses?"""
    size = probability.shape[-1]
    seen = probability * near_face(mesh, size) * _about(mesh, size)[0]
    return seen.flatten(1).topk(max(1, round(_CLEAR * size * size))).values[:, -1]


def _about(mesh: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where glasses are, ``(N, 1, S, S) bool``, and who is not turned away, ``(N,) bool``."""
    head = Head.of(mesh)
    across, down = head.plane(size, mesh.new_full((len(mesh),), -_BEFORE))
    inside = (across.abs() < _ACROSS) & (down > -_UP) & (down < _BELOW)
    return inside[:, None], head.frontal > _TURNED


def _bar(data: Crops, rows: Tensor) -> Tensor:
    """Strength of a bar and of an edge across the nose, ``(n, 2)``, shares of the brightness."""
    matrix = align(five_points(data.mesh[rows]), _SIDE, template=data.template).matrix
    grey = luma(cut(data.read(rows), matrix, _SIDE))
    grey = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mesh = map_points(data.mesh[rows], matrix)[..., :2]
    down = mesh[:, _TIP] - mesh[:, _BETWEEN]
    across = mesh[:, _CORNERS[1]] - mesh[:, _CORNERS[0]]
    u = torch.linspace(0, _DOWN, _ROWS).view(1, -1, 1, 1)
    v = torch.linspace(-_HALF_WIDTH, _HALF_WIDTH, _COLUMNS).view(1, 1, -1, 1)
    places = mesh[:, None, None, _BETWEEN] + u * down[:, None, None] + v * across[:, None, None]
    strip = F.grid_sample(grey, places * (2 / (_SIDE - 1)) - 1, align_corners=True)
    profile = strip[:, 0].mean(2)
    middle, above, below = (profile[:, a:b] for a, b in _BARS)
    bar = (2 * middle - above - below).abs().amax(1)
    edge = (profile[:, 2:] - profile[:, :-2]).abs().amax(1)
    return torch.stack([bar, edge], 1) / profile.mean(1, keepdim=True).clamp_min(0.1)


def _learned(data: Crops, score: Tensor) -> Tensor:
    """A logistic regression on the embeddings, of who scores high, for people left out of it."""
    assert data.embedding is not None
    features = F.normalize(data.embedding)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    rank = _rank(score[:, None])[:, 0]
    known = (rank > _SURE) | (rank < _FREE)
    out = torch.zeros(len(data))
    for fold in range(_FOLDS):
        mine = data.identity % _FOLDS == fold
        out[mine] = _fit(features[known & ~mine], rank[known & ~mine] > _SURE)(features[mine])
    return out


def _fit(features: Tensor, is_so: Tensor) -> torch.nn.Module:
    """Logistic regression with both classes weighed alike."""
    line = torch.nn.Linear(features.shape[1], 1)
    torch.nn.init.zeros_(line.weight)
    truth = is_so.float()
    balance = (1 - truth).sum() / truth.sum().clamp_min(1)
    optimizer = torch.optim.LBFGS(line.parameters(), max_iter=60)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = line(features)[:, 0]
        out = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=balance)
        out = out + 2e-3 * line.weight.square().sum()
        out.backward()
        return out

    with torch.enable_grad():
        optimizer.step(loss)
    line.requires_grad_(False)
    return torch.nn.Sequential(line, torch.nn.Flatten(0))


def _rank(values: Tensor) -> Tensor:
    """Each column's ranks in [0, 1)."""
    return values.argsort(0).argsort(0).float() / len(values)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp_min(1e-6)
