"""Packs to measure, with stand-ins where their weights are absent.

A network's speed does not depend on its weights. So where a file of a pack is not here, its
network is built with weights made by a rule, or a shipped one takes its place; every result
names these stand-ins.
"""

from __future__ import annotations

import torch
from torch import nn

from faceswap import weights
from faceswap.bench.material import rule_made
from faceswap.config import SwapConfig
from faceswap.errors import ConfigError
from faceswap.faces.detect import PHOTO_FINE, PHOTO_SIDES, VIDEO_SIDES, CenterFaceDetector
from faceswap.faces.engine import CenterFaceEngine
from faceswap.faces.identity import IdentityEncoder
from faceswap.models import ARCHITECTURES, build, load_model
from faceswap.models.aei import AEINet
from faceswap.models.centerface import CenterFace
from faceswap.models.fused import FusedAEINet, fuse
from faceswap.models.guided import GuidedAEINet
from faceswap.swap import (
    GHOST_MASK_SIDE,
    Swapper,
    choose_device,
    load_landmarks,
    per_device,
    use_engine,
)


def network(name: str) -> tuple[nn.Module, str]:
    """A network by name or file, and one line about a stand-in (empty: its own weights).

    Raises:
        ConfigError: nobody knows the name, or what reads its file is no network of ours.
    """
    if name.endswith((".safetensors", ".pth", ".pt")):
        return load_model(name), ""
    if name in ARCHITECTURES and name not in weights.entries():
        return rule_made(build(name)), f"{name}: weights made by a rule, for timing only"
    entry = weights.entry(name)
    if entry.arch not in ARCHITECTURES:
        raise ConfigError(f"{name}: no network of ours reads its file, so it cannot be timed")
    if weights.present(name):
        if entry.arch == "centerface":
            return CenterFace.from_onnx(weights.resolve(name)), ""
        return load_model(name), ""
    model = rule_made(build(entry.arch, **entry.args))
    return model, f"{name}: not here; the same network with weights made by a rule, for timing only"


def load_swapper(config: SwapConfig, *, video: bool = False) -> tuple[Swapper, list[str]]:
    """What `Swapper.from_config` loads, or the like of it, and the stand-ins.

    A detector or landmarks that need a file we do not have are lite's.
    """
    pack = weights.pack(config.pack)
    if all(weights.present(name) for name in pack.weights):
        return Swapper.from_config(config, video=video), []
    first, *more = per_device(config)
    if more:
        swapper, told = load_swapper(first, video=video)
        swapper.twins = tuple(load_swapper(each, video=video)[0] for each in more)
        return swapper, told
    device, told = choose_device(config.device), []
    fast = use_engine(config, device, video=video)
    lite = weights.pack("lite")
    for name, ours in ((pack.detector, lite.detector), (pack.landmarks, lite.landmarks)):
        told.append(f"{name}: stands back for {ours}")
    encoder, line = network(pack.identity)
    told.append(line)
    generator, line = network(config.swapper or pack.swapper)
    told.append(line)
    if not isinstance(generator, (AEINet, GuidedAEINet)):
        raise ConfigError(f"{config.swapper}: holds a {type(generator).__name__}, no swapper")
    fused = fuse(generator.to(device))
    assert isinstance(fused, (FusedAEINet, GuidedAEINet))
    file = weights.resolve(lite.detector)
    detector = CenterFace.from_onnx(file).to(device).eval()
    swapper = Swapper(
        config,
        pack=pack,
        detector=CenterFaceDetector(
            detector,
            sides=config.detector.sides or (VIDEO_SIDES if video else PHOTO_SIDES),
            fine=0 if video else PHOTO_FINE,
            engine=CenterFaceEngine(file) if fast else None,
        ),
        landmarks=load_landmarks(lite, device, fast=fast),
        encoder=IdentityEncoder(
            fuse(encoder.to(device)), template=pack.template, size=GHOST_MASK_SIDE
        ),
        generator=fused,
        device=torch.device(device),
    )
    return swapper, [line for line in told if line]
