"""``faceswap bench model``: a network as written against the same network as we run it."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from faceswap import weights
from faceswap.bench.machine import HALF_PEAK, describe, machine, peak_memory, wait_for
from faceswap.bench.packs import network
from faceswap.errors import ConfigError
from faceswap.models import Precision, to_precision
from faceswap.models.aei import AEINet
from faceswap.models.centerface import CenterFace
from faceswap.models.engine import GatesEngine, MeshEngine, OcclusionEngine
from faceswap.models.fused import FusedAEINet, fuse
from faceswap.models.guided import GuidedAEINet
from faceswap.models.mesh import MeshNet
from faceswap.models.occlusion import OcclusionNet
from faceswap.swap import choose_device
from faceswap.types import GUIDE_CHANNELS, Guide

DETECTED = (384, 640)  # (h, w) of the frames a detector is timed on

Inputs = tuple[Any, ...]


def bench_model(
    name: str,
    *,
    batches: Sequence[int] = (1, 4),
    device: str = "auto",
    precision: Precision = "fp32",
    repeats: int = 5,
) -> dict[str, Any]:
    """Time a network, or every network of a pack, as written, fused and by engine, taking turns.

    Args:
        name: a pack (``ghost-2``), a weight name, a weight file, or an architecture.
        batches: batch sizes.
        device: as in settings.
        precision: of both; the plain one keeps PyTorch's default memory format.
        repeats: runs of each, after one that does not count.

    Returns:
        ``networks``, a list of rows (network, batch, ms of both, ``speedup``, ``cpu_speedup`` by
        CPU time, ``fps`` of the fused one in faces or frames, ``max_difference`` of the outputs,
        ``engine_ms`` of the onnxruntime that clips use on a CPU, None where there is none,
        GFLOP each, TFLOP/s and, on cards we know, the share of their half-precision peak),
        ``fps`` and ``stages`` (ms, fused) of the last batch size, ``stand_ins``, ``machine``.

    Raises:
        ConfigError: nobody knows the name.
    """
    where = choose_device(device)
    rows, stand_ins = [], []
    for each in _names(name):
        plain, line = network(each)
        stand_ins += [line] if line else []
        plain.to(where)
        engine = _engine(plain) if where.type == "cpu" and precision == "fp32" else None
        fused = to_precision(fuse(copy.deepcopy(plain)), precision)
        to_precision(plain, precision)
        for batch in batches:
            rows.append({"network": each, **_compare(plain, fused, engine, batch, repeats)})
    last = [row for row in rows if row["batch"] == batches[-1]]
    return {
        "machine": machine(where),
        "precision": precision,
        "stand_ins": stand_ins,
        "networks": rows,
        "fps": last[-1]["fps"],
        "stages": {row["network"]: row["fused_ms"] for row in last},
        **peak_memory(where),
    }


def _names(name: str) -> list[str]:
    """The networks that a name means; of a pack those that run in PyTorch."""
    try:
        pack = weights.pack(name)
    except ConfigError:
        return [name]
    own = [n for n in pack.weights if weights.entry(n).arch]
    return [n for n in own if weights.present(n) or n in (pack.identity, pack.swapper)]


def inputs_of(model: nn.Module, batch: int, device: torch.device) -> Inputs:
    """Seeded inputs of the shapes that the pipeline gives this network."""
    random = torch.Generator().manual_seed(1)

    def noise(channels: int, side: int) -> Tensor:
        return torch.rand(batch, channels, side, side, generator=random).to(device)

    size = int(getattr(model, "size", 112))
    if isinstance(model, CenterFace):
        return (torch.rand(batch, 3, *DETECTED, generator=random).to(device),)
    if isinstance(model, (AEINet, FusedAEINet, GuidedAEINet)):
        one = torch.randn(1, model.embedding_size, generator=random).to(device)
        identity = one.expand(batch, -1)
        if not isinstance(model, GuidedAEINet):
            return noise(3, size), identity
        guide = Guide.of(noise(channels, size) for channels in GUIDE_CHANNELS.values())
        return noise(3, size), identity, guide
    return (noise(3, size),)


def _engine(network: nn.Module) -> Callable[..., Any] | None:
    """What runs this network for clips on a CPU, if not torch; takes what the network takes."""
    if isinstance(network, MeshNet):
        return MeshEngine(network)
    if isinstance(network, OcclusionNet):
        return OcclusionEngine(network)
    if isinstance(network, GuidedAEINet):
        twin = copy.deepcopy(network)
        twin.engine = GatesEngine(twin)
        return twin
    return None


def _compare(
    plain: nn.Module,
    fused: nn.Module,
    engine: Callable[..., Any] | None,
    batch: int,
    repeats: int,
) -> dict[str, Any]:
    device = next(plain.parameters()).device
    given = inputs_of(plain, batch, device)
    better = given
    with torch.inference_mode():
        if isinstance(fused, FusedAEINet):  # what depends on the source alone is done once
            better = (given[0], fused.condition(given[1][:1]))
        half = next(plain.parameters()).dtype
        ours = tuple(x.to(half) if isinstance(x, Tensor) else x for x in given)
        with FlopCounterMode(display=False) as counter:
            expected = _tensors(plain(*ours))
        others = [fused(*better)] + ([engine(*ours)] if engine else [])
        difference = max(
            float((a.float() - b.float()).abs().max())
            for other in others
            for a, b in zip(expected, _tensors(other), strict=True)
        )
        runs: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain(*ours),
            "fused": lambda: fused(*better),
        }
        if engine is not None:
            runs["engine"] = lambda: engine(*ours)
        wall, cpu = _take_turns(runs, device, repeats)
    seconds = wall["fused"] / batch
    flops = counter.get_total_flops() / batch
    return {
        "batch": batch,
        "plain_ms": 1000 * wall["plain"],
        "fused_ms": 1000 * wall["fused"],
        "engine_ms": 1000 * wall["engine"] if engine else None,
        "speedup": wall["plain"] / wall["fused"],
        "cpu_speedup": cpu["plain"] / cpu["fused"] if device.type == "cpu" else None,
        "fps": 1 / seconds,
        "max_difference": difference,
        "gflop": flops / 1e9,  # of the network as written
        "tflops": flops / seconds / 1e12,
        "share_of_peak": _share(flops / seconds / 1e12, device),
    }


def _take_turns(
    runs: dict[str, Callable[[], Any]], device: torch.device, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and CPU seconds of each."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            wait_for(device)
            began, used = time.perf_counter(), time.process_time()
            run()
            wait_for(device)
            if turn:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    middle = statistics.median
    return {k: middle(v) for k, v in wall.items()}, {k: middle(v) for k, v in cpu.items()}


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def _share(tflops: float, device: torch.device) -> float | None:
    """Share of the card's dense half-precision peak; None on others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = [peak for card, peak in HALF_PEAK.items() if card in name]
    return tflops / peaks[0] if peaks else None


def format_model_bench(result: dict[str, Any]) -> str:
    """The result of `bench_model` as a table."""
    lines = [
        f"{describe(result['machine'])}; {result['precision']}",
        *result["stand_ins"],
        "",
        "| network | batch | plain ms | fused ms | times faster (CPU time) | each/s "
        "| onnxruntime ms | max diff |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["networks"]:
        cpu = "" if row["cpu_speedup"] is None else f" ({row['cpu_speedup']:.2f})"
        share = row["share_of_peak"]
        peak = "" if share is None else f", {share:.0%} of peak"
        engine = "" if row["engine_ms"] is None else f"{row['engine_ms']:.1f}"
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['plain_ms']:.1f} | {row['fused_ms']:.1f} "
            f"| {row['speedup']:.2f}{cpu} | {row['fps']:.1f}{peak} | {engine} "
            f"| {row['max_difference']:.1e} |"
        )
    return "\n".join(lines)
