"""``faceswap bench train``: images a second of a training, on photos made for it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from faceswap import weights
from faceswap.bench.machine import describe, machine, peak_memory, wait_for
from faceswap.bench.material import photo, rule_made
from faceswap.config import SwapConfig
from faceswap.errors import ConfigError
from faceswap.faces.identity import DEFAULT_SIDE
from faceswap.models import build, save_model
from faceswap.ops.geometry import align
from faceswap.swap import Swapper, choose_device
from faceswap.train.config import LiteConfig, RunConfig, SwapRunConfig
from faceswap.train.feed import step_seed
from faceswap.train.parallel import ALONE
from faceswap.train.run import build_task

_EMBEDDING = 256
SIZE, MARGIN = 320, 1.25  # of the prepared crops, as configs/aei_2blk.yaml wants them
_PEOPLE, _PHOTOS = 32, 4  # a shape model of the lite swapper takes 64 faces or more


def bench_train(config: RunConfig, *, steps: int = 5, device: str = "auto") -> dict[str, Any]:
    """Time steps of a training on synthetic prepared data, after one that does not count.

    Args:
        config: of a task aei, distill, swapper, mesh or identity; ``data`` is replaced.
        steps: how many are timed.
        device: as in settings.

    Returns:
        ``images_per_second`` (also ``fps``), ``stages`` in ms a step (``data`` is the time a
        step waits for its photos, ``step`` the rest), ``waits`` (the share of data),
        ``stand_ins``, peak memory, ``machine``.

    Raises:
        ConfigError: a task of another kind.
    """
    if not isinstance(config, (LiteConfig, SwapRunConfig)):  # the rest want pictures of their own
        known = "aei, distill, swapper, mesh and identity"
        raise ConfigError(f"bench train: tasks {known} can be timed, not {config.task}")
    where = choose_device(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_ins = ["data: one photo in many colours"]
        given: dict[str, Any] = {"data": str(folder / "data"), "init": ()}
        if isinstance(config, SwapRunConfig):
            encoders = (_encoder(each, folder, stand_ins) for each in config.encoders)
            given["encoders"] = tuple(encoders)
        write_prepared(folder / "data")
        config = config.model_copy(update=given)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        task = build_task(config, where, ALONE)
        network = task.networks[task.ema]
        random = torch.Generator()
        waiting, stepping = [], []
        for step in range(steps + 1):
            random.manual_seed(step_seed(config.seed, step))
            began, waited = time.perf_counter(), task.wait.seconds
            task.step(step, random)
            wait_for(where)
            if step:
                waiting.append(task.wait.seconds - waited)
                stepping.append(time.perf_counter() - began)
    data, whole = statistics.median(waiting), statistics.median(stepping)
    return {
        "machine": machine(where),
        "task": config.task,
        "precision": getattr(config, "precision", "fp32"),
        "batch_size": config.batch_size,
        "size": int(getattr(network, "size", DEFAULT_SIDE)),
        "stand_ins": stand_ins,
        "images_per_second": config.batch_size / whole,
        "fps": config.batch_size / whole,
        "stages": {"data": 1000 * data, "step": 1000 * (whole - data)},
        "waits": {"device_for_data": data / whole},
        **peak_memory(where),
    }


def _encoder(name: str, folder: Path, stand_ins: list[str]) -> str:
    """An identity encoder that is here: itself, or its network with weights made by a rule."""
    if Path(name).is_file() or weights.present(name):
        return name
    entry = weights.entry(name)
    stand_ins.append(f"{name}: not here; the same network with weights made by a rule")
    path = folder / f"{name}.safetensors"
    model = rule_made(build(entry.arch, **entry.args))
    return str(save_model(path, model, entry.arch, dict(entry.args)))


def write_prepared(folder: Path) -> Path:
    """A folder as `faceswap prepare` makes it: one photo, in other colours for each face.

    Points differ by noise and embeddings are made up, so that every task finds what it needs.
    """
    folder.mkdir(parents=True)
    swapper = Swapper.from_config(SwapConfig(device="cpu"))
    frames = photo(1)[None]
    faces = swapper.detect(frames)
    mesh = swapper.dense(frames, faces)
    alignment = align(faces.points, SIZE, template="ghost_frontal", margin=MARGIN)
    crop = alignment.crop(frames, faces.frame)[0]
    count = _PEOPLE * _PHOTOS
    random = torch.Generator().manual_seed(0)
    tint = torch.rand(count, 3, 1, 1, generator=random) + 0.5
    images: Tensor = (crop[None] * tint * 255).clamp(0, 255).byte()
    points = alignment.points(faces.points)[:1]
    dense = torch.cat(
        [alignment.points(mesh[..., :2]), mesh[..., 2:] * alignment.scale[:, None, None]], -1
    )[:1]
    shard = {
        "image": images.contiguous(),
        "points": points.expand(count, -1, -1).contiguous(),
        "mesh": dense + 0.5 * torch.randn(count, *dense.shape[1:], generator=random),
        "embedding": torch.randn(count, _EMBEDDING, generator=random),
    }
    save_file(shard, folder / "shard-00000.safetensors")
    names = [(person, photo) for person in range(_PEOPLE) for photo in range(_PHOTOS)]
    index = {
        "size": SIZE,
        "template": "ghost_frontal",
        "margin": MARGIN,
        "shards": ["shard-00000.safetensors"],
        "names": [f"{person}/{number}" for person, number in names],
        "people": [f"person-{person}" for person, _ in names],
        "scale": [1.0] * count,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def format_train_bench(result: dict[str, Any]) -> str:
    """The result of `bench_train` as text."""
    vram = result["peak_vram_mib"]
    lines = [
        f"{describe(result['machine'])}",
        *result["stand_ins"],
        f"task {result['task']} at {result['size']} px, batch {result['batch_size']}, "
        f"{result['precision']}: {result['images_per_second']:.2f} images/s",
        f"ms a step: data {result['stages']['data']:.1f}, the rest {result['stages']['step']:.1f}; "
        f"waiting for data {result['waits']['device_for_data']:.1%}",
        f"peak memory {result['peak_rss_mib']} MiB"
        + ("" if vram is None else f", of the GPU {vram} MiB"),
    ]
    return "\n".join(lines)
