"""Score a restorer on photos held back from training, and on a clip.

python scripts/score_restorer.py data/sharp --features ../shared/teachers/facemesh.ts 192 \
    --encoder ../shared/teachers/mobilefacenet.ts 112 --encoder ../shared/teachers/omz_reid.ts 128 \
    --clip face.jpg clip.mp4

The folder is the one the restorer was trained from; a photo is held back by a hash of its name.
Prints the figures of weights/README.md as JSON. What is compared: the damaged photo as it is; it
under the unsharp mask that suits it best of three; it restored. The damage is what training uses
("mixed"), or half the side and bicubically back ("half": here the input is what bicubic
interpolation gives). Feature distance is LPIPS (Zhang et al. 2018) without learned weights, over
activations of a TorchScript network that should have taken no part in training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap import Swapper
from faceswap.config import VideoConfig
from faceswap.media.reader import VideoReader
from faceswap.models import load_model
from faceswap.models.restorer import Restorer
from faceswap.ops.color import luma
from faceswap.ops.geometry import Alignment, align
from faceswap.ops.topology import five_points
from faceswap.train.config import RestorerRunConfig
from faceswap.train.data import load_crops
from faceswap.train.losses import feature_loss, ssim_loss
from faceswap.train.pairs import look
from faceswap.train.restorer import Views
from faceswap.train.wear import draw_wear, filter_each, kernels, worsen
from faceswap.video import swap_video

PART = 16
UNSHARP = (0.4, 0.8, 1.5)  # amounts that are tried
TAPS = 4  # activations of a feature network that are compared
_ACTIVATIONS = ("aten::relu", "aten::where", "aten::prelu")


def load_features(file: str, side: int) -> Callable[[Tensor], list[Tensor]]:
    """Inner activations of a TorchScript network, spread over its depth.

    The graph is copied and given other outputs; the network itself has no name for them.
    """
    graph = torch.jit.freeze(torch.jit.load(file).eval()).graph.copy()
    nodes = [node for node in graph.nodes() if node.kind() in _ACTIVATIONS]
    # The last third is a summary of the face; detail lives before.
    chosen = [nodes[round(i * (len(nodes) * 2 / 3) / TAPS)] for i in range(TAPS)]
    for _ in range(len(list(graph.outputs()))):
        graph.eraseOutput(0)
    for node in chosen:
        graph.registerOutput(node.output())
    graph.makeMultiOutputIntoTuple()
    graph.eraseInput(0)  # the module, of which a frozen graph needs nothing
    run = torch._C._create_function_from_graph("taps", graph)

    def features(images: Tensor) -> list[Tensor]:
        return list(run(F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)))

    return features


def unsharp(images: Tensor, amount: float) -> Tensor:
    """The unsharp mask of picture editors, radius 1 px."""
    one = torch.ones(len(images))
    return (images + amount * (images - filter_each(images, kernels(one)))).clamp(0, 1)


def half(images: Tensor) -> Tensor:
    """Half the side by area, back bicubically."""
    small = F.avg_pool2d(images, 2)
    return F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)


def score_photos(
    views: Views,
    net: Restorer,
    judges: dict[str, Callable[[Tensor], list[Tensor]]],
    encoders: dict[str, tuple[nn.Module, int]],
    *,
    count: int,
    side: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """condition -> candidate -> measure, the mean over photos."""
    windows = views.windows(views.held[:count], side)
    truth, points = views.show(windows), windows.points
    wear = draw_wear(len(truth), side, views.config.damage, torch.Generator().manual_seed(7))
    damaged = {"mixed": worsen(truth, wear), "half": half(truth)}
    return {
        condition: {
            name: _measure(made, truth, points, judges, encoders)
            for name, made in _candidates(given, truth, net).items()
        }
        for condition, given in damaged.items()
    }


def _candidates(given: Tensor, truth: Tensor, net: Restorer) -> dict[str, Tensor]:
    masks = [unsharp(given, amount) for amount in UNSHARP]
    best = min(masks, key=lambda made: float((made - truth).square().mean()))
    restored = torch.cat([net(part) for part in given.split(PART)])
    return {"input": given, "unsharp": best, "restored": restored}


def _measure(
    made: Tensor,
    truth: Tensor,
    points: Tensor,
    judges: dict[str, Callable[[Tensor], list[Tensor]]],
    encoders: dict[str, tuple[nn.Module, int]],
) -> dict[str, float]:
    error = (made - truth).square().flatten(1).mean(1).clamp_min(1e-8)
    out = {
        "psnr": float(-10 * error.log10().mean()),
        "ssim": 1 - float(ssim_loss(made, truth, torch.ones(len(made), dtype=torch.bool))),
    }
    parts = list(zip(made.split(PART), truth.split(PART), points.split(PART), strict=True))
    for name, features in judges.items():
        apart = [float(feature_loss(features(a), features(b))) * len(a) for a, b, _ in parts]
        out[f"distance {name}"] = sum(apart) / len(made)
    for name, (encoder, size) in encoders.items():
        alike = [
            F.cosine_similarity(encoder(look(a, at, size)), encoder(look(b, at, size)))
            for a, b, at in parts
        ]
        out[f"cosine {name}"] = float(torch.cat(alike).mean())
    return out


def score_clip(
    source: str, clip: str, seconds: float, restorer: str, side: int
) -> dict[str, float]:
    """Shimmer: second differences over time of the face, unrestored and restored.

    The face is cut out of the original, the swapped and the restored clip by one and the same
    alignment, the landmarks of the original, so that it stands still. Flicker is the mean absolute
    second difference of its brightness (of 255), detail that of neighbouring pixels: a sharper
    picture that moves a little changes more, so flicker is given per detail too.
    """
    plain = VideoConfig.model_validate({"device": "cpu", "end": seconds})
    sharp = {"enabled": True, "weights": restorer, "min_size": 0}
    configs = {
        "swapped": plain,
        "restored": VideoConfig.model_validate({**plain.model_dump(), "restorer": sharp}),
    }
    original = _frames(clip, seconds)
    swapper = Swapper.from_config(plain, video=True)
    faces = swapper.detect(original)
    first = torch.stack(
        [torch.nonzero(faces.frame == i)[0, 0] for i in range(len(original))]
    )  # the clips for this have one face, in every frame
    mesh = swapper.landmarks(original, faces[first])
    at = align(five_points(mesh).contiguous(), side, template="ghost_frontal")
    out = _flicker("target", original, at)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            file = Path(folder) / f"{name}.mkv"
            lossless = {"encode": {**config.encode.model_dump(), "codec": "ffv1"}}
            config = VideoConfig.model_validate({**config.model_dump(), **lossless})
            swap_video(Swapper.from_config(config, video=True), source, clip, file)
            out |= _flicker(name, _frames(str(file), seconds), at)
    return out


def _frames(clip: str, seconds: float) -> Tensor:
    with VideoReader(clip, None, seconds) as reader:
        return torch.cat([batch.frames for batch in reader])


def _flicker(name: str, frames: Tensor, at: Alignment) -> dict[str, float]:
    crops = luma(at.crop(frames, torch.arange(len(frames)))) * 255
    edge = crops.shape[-1] // 4
    face = crops[..., edge:-edge, edge:-edge]
    flicker = float(face.diff(n=2, dim=0).abs().mean())
    detail = float(face.diff(dim=-1).abs().mean() + face.diff(dim=-2).abs().mean()) / 2
    return {
        f"flicker {name}": flicker,
        f"detail {name}": detail,
        f"flicker/detail {name}": flicker / detail,
    }


def _networks(given: Sequence[Sequence[str]] | None) -> dict[str, tuple[str, int]]:
    return {Path(file).stem: (file, int(side)) for file, side in given or []}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--restorer", default="lite-restorer", help="name or file")
    network = {"nargs": 2, "action": "append", "metavar": ("FILE", "SIDE")}
    parser.add_argument("--features", help="TorchScript network to compare in", **network)
    parser.add_argument("--encoder", help="TorchScript recogniser", **network)
    parser.add_argument("--clip", nargs=2, metavar=("SOURCE", "CLIP"), help="one face, talking")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the clip")
    parser.add_argument("--count", type=int, default=96, help="photos")
    parser.add_argument("--side", type=int, default=224, help="of the views")
    options = parser.parse_args()
    net = load_model(options.restorer)
    assert isinstance(net, Restorer)
    config = RestorerRunConfig(data=str(options.data), sides=(options.side,), min_sharpness=0.35)
    result: dict[str, object] = {
        "photos": score_photos(
            Views(load_crops(options.data), config, torch.device("cpu")),
            net,
            {name: load_features(*each) for name, each in _networks(options.features).items()},
            {
                name: (torch.jit.load(file).eval(), side)
                for name, (file, side) in _networks(options.encoder).items()
            },
            count=options.count,
            side=options.side,
        )
    }
    if options.clip:
        result["clip"] = score_clip(*options.clip, options.seconds, options.restorer, options.side)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
