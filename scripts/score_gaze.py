"""Does the gaze of swapped faces follow the target, or stay the source's?

    python scripts/score_gaze.py DATA --facemesh facemesh.ts --iris iris.ts --swapper A.safetensors

Faces held back, sharp ones (no LFW), that look at the camera with their head: how far each iris
stands from the middle of its eye, in eye widths, found by the teachers in the target, the source,
the bare warp and the swap. Printed: correlation over pairs with the target's and the source's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from faceswap.models import load_model
from faceswap.models.guided import GuidedAEINet
from faceswap.ops.geometry import align
from faceswap.ops.guide import make_guide
from faceswap.ops.shape import ShapeModel
from faceswap.ops.topology import five_points
from faceswap.train.data import Crops, cut, load_crops, map_points
from faceswap.train.label import TeacherLabeler, load_script

SIDE = 256
PART = 16
CPU = torch.device("cpu")
_EYES = ((468, 33, 133), (473, 362, 263))  # iris, corners
_FACING = 0.3  # of both cheeks at least


def offset(mesh: Tensor) -> Tensor:
    """Mean place of both irises along their eyes, 0 in the middle, in eye widths, ``(N,)``."""
    places = []
    for iris, begin, end in _EYES:
        axis = mesh[:, end, :2] - mesh[:, begin, :2]
        along = ((mesh[:, iris, :2] - mesh[:, begin, :2]) * axis).sum(1) / axis.square().sum(1)
        places.append(along - 0.5)
    return torch.stack(places).mean(0)


def choose(data: Crops, model: ShapeModel, count: int) -> tuple[Tensor, Tensor]:
    """Rows of sources and targets."""
    held = torch.nonzero(data.held_back)[:, 0]
    held = held[[not data.names[row].startswith("lfw") for row in held.tolist()]]
    held = held[model.facing(data.mesh[held])[:, [50, 280]].amin(1) > _FACING]
    generator = torch.Generator().manual_seed(0)
    source, target = (held[torch.randperm(len(held), generator=generator)] for _ in range(2))
    return source[:count], target[:count]


@torch.no_grad()
def main() -> None:
    """Swap, look, compare, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--swapper", default="lite-swapper", help="name or file (%(default)s)")
    parser.add_argument("--facemesh", type=Path, required=True, help="TorchScript")
    parser.add_argument("--iris", type=Path, required=True, help="TorchScript")
    parser.add_argument("--count", type=int, default=100, help="pairs (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, net = load_crops(options.data), load_model(options.swapper)
    assert isinstance(net, GuidedAEINet)
    assert data.embedding is not None
    labeler = TeacherLabeler(load_script(options.facemesh, CPU), load_script(options.iris, CPU))
    model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
    base = align(five_points(data.mesh), SIDE, template="ghost_frontal").matrix
    found: dict[str, list[Tensor]] = {}
    pairs = choose(data, model, options.count)
    for source, target in zip(*(rows.split(PART) for rows in pairs), strict=True):
        xs, xt = (cut(data.pixels(rows), base[rows], SIDE) for rows in (source, target))
        ms, mt = (map_points(data.mesh[rows], base[rows]) for rows in (source, target))
        guide, shape = make_guide(model, xs, ms, xt, mt)
        swapped = net(xt, data.embedding[source], guide)
        warp = xt + guide.region * (guide.image - xt)
        for name, image, mesh in (
            ("source", xs, ms),
            ("target", xt, mt),
            ("warp", warp, shape),
            ("swap", swapped, shape),
        ):
            views = [(view * 255).round().byte() for view in image.clamp(0, 1)]
            found.setdefault(name, []).append(offset(labeler(views, five_points(mesh))[0]))
    at = {name: torch.cat(parts) for name, parts in found.items()}
    result: dict[str, float] = {"pairs": float(len(at["swap"]))}
    for made in ("warp", "swap"):
        for origin in ("target", "source"):
            both = torch.stack([at[made], at[origin]])
            result[f"{made} with {origin}"] = round(float(torch.corrcoef(both)[0, 1]), 3)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
