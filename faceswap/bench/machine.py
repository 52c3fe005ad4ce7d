"""The machine a benchmark ran on, and what of it was used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from faceswap.account import peak_bytes

# Dense half-precision (bf16, fp16 with fp32 sums) peak in TFLOP/s, from NVIDIA's data sheets.
HALF_PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "V100": 125.0}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def describe(where: dict[str, Any]) -> str:
    """`machine` as one line."""
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['device']}, torch {where['torch']}, "
        f"load {where['load']}, {where['date']}"
    )


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """``peak_rss_mib``, the most this process ever held, and ``peak_vram_mib`` on CUDA."""
    held = peak_bytes()
    rss = None if held is None else round(held / 2**20)
    cuda = device.type == "cuda"
    vram = round(torch.cuda.max_memory_allocated(device) / 2**20) if cuda else None
    return {"peak_rss_mib": rss, "peak_vram_mib": vram}


def wait_for(device: torch.device) -> None:
    """Return when everything sent to a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_command(arguments: list[str]) -> float:
    """Wall seconds of a fresh ``faceswap`` process, the faster of two."""
    runs = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "faceswap", *arguments], check=True, stdout=subprocess.DEVNULL
        )
        runs.append(time.perf_counter() - began)
    return min(runs)
