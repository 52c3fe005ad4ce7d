"""Score the lite pack's networks on people held back from training.

python scripts/score_lite.py data/prepared --encoder ../shared/teachers/omz_reid.ts 128

The prepared folder is the one the networks were trained from: a person is held back by a hash of
their name (`faceswap.train.data.is_held_back`). Prints the figures of weights/README.md as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models import load_model
from faceswap.models.guided import GuidedAEINet
from faceswap.models.mesh import MARGIN, TEMPLATE
from faceswap.ops.geometry import align
from faceswap.ops.guide import ShapeModel, make_guide
from faceswap.ops.topology import five_points
from faceswap.train.data import Crops, cut, load_crops, map_points

PART = 32


def score_landmarks(data: Crops, net: nn.Module, count: int = 300) -> dict[str, float]:
    """Error against the teacher's labels in % of the distance of the eye centres."""
    rows = torch.nonzero(data.held_back)[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]
    truth = data.mesh[rows][..., :2]
    eyes = five_points(truth)
    unit = (eyes[:, 0] - eyes[:, 1]).norm(dim=-1)
    at = align(data.points[rows], net.size, template=TEMPLATE, margin=MARGIN)
    views = cut(data.pixels(rows), at.matrix, net.size)
    found = torch.cat([net(part)[0] for part in views.split(PART)])
    error = (at.inverse_points(found[..., :2]) - truth).norm(dim=-1).mean(1) / unit * 100
    return {"faces": len(rows), "mean_%": float(error.mean()), "median_%": float(error.median())}


def score_identity(data: Crops, net: nn.Module) -> dict[str, float]:
    """Verification on LFW people held back, and agreement with the teacher's embeddings."""
    by_person: dict[int, list[int]] = {}
    for row in torch.nonzero(data.held_back)[:, 0].tolist():
        if data.names[row].startswith("lfw"):
            by_person.setdefault(int(data.identity[row]), []).append(row)
    same = [p for v in by_person.values() for p in zip(v[:8:2], v[1:8:2], strict=False)]
    first = [v[0] for v in by_person.values()]
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0)).tolist()
    other = [(first[i], first[j]) for i, j in itertools.pairwise(order)][: len(same)]
    rows = torch.tensor(sorted({row for pair in same + other for row in pair}))
    place = {row: i for i, row in enumerate(rows.tolist())}
    at = align(data.points[rows], net.size, template="arcface").matrix
    parts = zip(rows.split(PART), at.split(PART), strict=True)
    embedding = torch.cat([net(cut(data.pixels(r), m, net.size)) for r, m in parts])
    unit = F.normalize(embedding)

    def cosine(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.stack([unit[place[a]] @ unit[place[b]] for a, b in pairs])

    yes, no = cosine(same), cosine(other)
    steps = torch.linspace(-0.2, 0.95, 300)
    scores = torch.stack([((yes > t).float().mean() + (no <= t).float().mean()) / 2 for t in steps])
    best = int(scores.argmax())
    assert data.embedding is not None
    return {
        "pairs": len(same) + len(other),
        "accuracy": float(scores[best]),
        "threshold": float(steps[best]),
        "same_mean": float(yes.mean()),
        "other_mean": float(no.mean()),
        "agreement": float(F.cosine_similarity(embedding, data.embedding[rows]).mean()),
    }


def score_swapper(
    data: Crops, net: GuidedAEINet | None, encoder: nn.Module, side: int, people: int = 40
) -> dict[str, float]:
    """Identity of swaps between held-back people; `net` None scores the bare warp."""
    by_person: dict[int, list[int]] = {}
    for row in torch.nonzero(data.held_back)[:, 0].tolist():
        by_person.setdefault(int(data.identity[row]), []).append(row)
    chosen = sorted((v for v in by_person.values() if len(v) > 1), key=lambda v: v[0])
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1)).tolist()
    chosen = [chosen[i] for i in order[:people]]
    source = torch.tensor([v[0] for v in chosen])
    gallery = torch.tensor([v[-1] for v in chosen])
    target = torch.tensor([v[len(v) // 2] for v in chosen]).roll(7)
    size = 128
    base = align(five_points(data.mesh), size, template="ghost_frontal").matrix
    lite = net or load_model("lite-swapper")
    assert isinstance(lite, GuidedAEINet)
    model = ShapeModel(lite.shape_mean, lite.shape_basis, lite.shape_expression)

    def view(rows: Tensor) -> tuple[Tensor, Tensor]:
        return cut(data.pixels(rows), base[rows], size), map_points(data.mesh[rows], base[rows])

    def embed(images: Tensor, mesh: Tensor) -> Tensor:
        at = align(five_points(mesh), side, template="arcface").matrix
        crops = cut(images, at, side)
        return F.normalize(torch.cat([encoder(part) for part in crops.split(PART)]))

    (xs, ms), (xt, mt) = view(source), view(target)
    guide, shape = make_guide(model, xs, ms, xt, mt)
    assert data.embedding is not None
    swapped = guide.region * guide.image + (1 - guide.region) * xt
    if net is not None:
        swapped = net(xt, data.embedding[source], guide)
    es, et, ey, eg = embed(xs, ms), embed(xt, mt), embed(swapped, shape), embed(*view(gallery))
    right = torch.arange(len(source))
    return {
        "people": len(source),
        "cosine_source": float((ey * es).sum(1).mean()),
        "cosine_target": float((ey * et).sum(1).mean()),
        "top1_other_photo": float(((ey @ eg.T).argmax(1) == right).float().mean()),
        "top1_source_photo": float(((ey @ es.T).argmax(1) == right).float().mean()),
        "ceiling_cosine": float((es * eg).sum(1).mean()),
        "ceiling_top1": float(((es @ eg.T).argmax(1) == right).float().mean()),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument(
        "--encoder",
        nargs=2,
        action="append",
        metavar=("FILE", "SIDE"),
        help="TorchScript recogniser for the swapper's scores, and its crop side",
    )
    options = parser.parse_args()
    data = load_crops(options.data)
    result: dict[str, object] = {
        "landmarks": score_landmarks(data, load_model("lite-landmarks")),
        "identity": score_identity(data, load_model("lite-identity")),
    }
    swapper = load_model("lite-swapper")
    assert isinstance(swapper, GuidedAEINet)
    for file, side in options.encoder or []:
        encoder = torch.jit.load(file).eval()
        for name, net in (("warp", None), ("swapper", swapper)):
            key = f"{name} by {Path(file).stem}"
            result[key] = score_swapper(data, net, encoder, int(side))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
