"""Is everything here that a swap needs, and if not, what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from dataclasses import dataclass

from faceswap import weights
from faceswap.errors import MediaError, WeightError
from faceswap.manifest import Pack


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `examine`."""

    name: str
    ok: bool
    text: str  # what was found, or what is wrong and what to do
    needed: bool = True  # False: the default pack swaps photos without it


def examine() -> list[Finding]:
    """Python, torch, CUDA, ffmpeg, JPEG and every pack, in this order."""
    python = Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    folder = Finding("weights", True, f"fetched ones lie in {weights.where()}")
    packs = [_pack(each) for each in weights.packs().values()]
    return [python, *_torch(), _ffmpeg(), _jpeg(), folder, *packs]


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        return [Finding("torch", False, f"cannot be loaded ({reason}); reinstall it")]
    found = Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    if torch.cuda.is_available():
        names = [
            f"cuda:{index} {torch.cuda.get_device_name(index)}"
            for index in range(torch.cuda.device_count())
        ]
        return [found, Finding("cuda", True, ", ".join(names), needed=False)]
    return [found, Finding("cuda", False, f"no: {_why_no_cuda()}", needed=False)]


def _why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA; install one that is to use a GPU"
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).split(". ")[0].split("\n")[0]
    return "no GPU can be seen; look at nvidia-smi and at CUDA_VISIBLE_DEVICES"


def _ffmpeg() -> Finding:
    from faceswap.media.binary import find_ffmpeg

    try:
        path = find_ffmpeg()
        run = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60)
    except MediaError as error:
        return Finding("ffmpeg", False, f"{error} (for video only)", needed=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("ffmpeg", False, f"{path} does not run: {error}", needed=False)
    version = run.stdout.split(" Copyright")[0].removeprefix("ffmpeg version ").strip()
    return Finding("ffmpeg", run.returncode == 0, f"{path} {version}", needed=False)


def _jpeg() -> Finding:
    if importlib.util.find_spec("jpegio") is None:  # finds without importing
        text = "encoded again when swapped: there is no pyjpegio here, which keeps its blocks"
        return Finding("jpeg", False, text, needed=False)
    return Finding("jpeg", True, "blocks that are not swapped are kept bit for bit", needed=False)


def _pack(pack: Pack) -> Finding:
    name, needed = f"pack {pack.name}", pack.name == "lite"
    missing = [each for each in pack.weights if not weights.present(each)]
    cure = "reinstall faceswap" if needed else f"faceswap weights fetch {pack.name}"
    if missing:
        return Finding(name, False, f"misses {', '.join(missing)}; {cure}", needed)
    try:
        for each in pack.weights:
            weights.resolve(each)  # reads through what it has not seen before
    except WeightError as error:
        return Finding(name, False, f"{error}; {cure}", needed)
    return Finding(name, True, "complete", needed)
