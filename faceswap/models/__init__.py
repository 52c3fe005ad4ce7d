"""The networks, one file a family, and one way to get any of them: `load_model`.

An architecture is a name in `ARCHITECTURES`; its module is imported when it is first built.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from faceswap.errors import ConfigError, WeightError, unknown
from faceswap.models.checkpoint import Checkpoint, fill, read_checkpoint, save_model

__all__ = ["ARCHITECTURES", "Precision", "build", "load_model", "save_model"]

Precision = Literal["fp32", "fp16", "bf16"]

ARCHITECTURES = {  # name -> module:class
    "aei": "faceswap.models.aei:AEINet",
    "aei_guided": "faceswap.models.guided:GuidedAEINet",
    "centerface": "faceswap.models.centerface:CenterFace",
    "detector": "faceswap.models.detector:FaceDetector",
    "discriminator": "faceswap.models.discriminator:MultiscaleDiscriminator",
    "identity": "faceswap.models.identity:IdentityNet",
    "iresnet100": "faceswap.models.iresnet:IResNet",
    "mesh": "faceswap.models.mesh:MeshNet",
    "occlusion": "faceswap.models.occlusion:OcclusionNet",
    "restorer": "faceswap.models.restorer:Restorer",
}
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build(arch: str, **args: Any) -> nn.Module:
    """A new network with initial weights.

    Args:
        arch: a name in `ARCHITECTURES`.
        args: of its constructor.

    Raises:
        ConfigError: no such architecture, or it takes no such argument or value.
    """
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    module, name = ARCHITECTURES[arch].split(":")
    constructor = getattr(importlib.import_module(module), name)
    known = inspect.signature(constructor).parameters
    for arg in args:
        if arg not in known:
            raise unknown(f"argument of {arch}", arg, known)
    try:
        model: nn.Module = constructor(**args)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{arch}: {error}") from error
    return model


def load_model(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> nn.Module:
    """A network with its weights, in eval mode.

    Args:
        name_or_path: a name of weights.toml, or a path to one of our .safetensors files (which
            say what they are) or to a plain state dict of a published GHOST file (recognised).
        device: where to.
        precision: of the weights; norm layers stay fp32 in half precision.

    Raises:
        MissingWeightError: no such file; the message names the command that gets it.
        WeightError: damaged, holding code, of no known network, or of another one.
    """
    checkpoint = _find(name_or_path)
    if not checkpoint.arch:
        raise WeightError(
            f"{checkpoint.path}: {checkpoint.title}; expected a file of {', '.join(ARCHITECTURES)}"
        )
    try:
        with without_initial_weights():
            model = build(checkpoint.arch, **checkpoint.args)
    except ConfigError as error:
        raise WeightError(f"{checkpoint.path}: {error}") from error
    fill(model, checkpoint)
    return to_precision(model.eval(), precision).to(device)


def _find(name_or_path: str | Path) -> Checkpoint:
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in WEIGHT_SUFFIXES or path.is_file():
        return read_checkpoint(path)
    from faceswap import weights  # reads its table when imported; a path needs none of it

    name = str(name_or_path)
    entry = weights.entry(name)
    if entry.arch not in ARCHITECTURES:
        raise WeightError(f"{name}: no network of faceswap.models reads {entry.file}")
    checkpoint = read_checkpoint(weights.resolve(name))
    if checkpoint.arch and checkpoint.path.suffix == ".safetensors":
        return checkpoint  # it says itself what it is
    return replace(checkpoint, arch=entry.arch, args=dict(entry.args))


NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def to_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """Weights in that precision, in place, except those of norm layers, which stay fp32.

    Batch norm takes half input with fp32 weights as it is; group and layer norm do not, so they
    get their input in fp32 and hand their output on in half.
    """
    dtype = DTYPES[precision]
    model.to(dtype)
    if dtype == torch.float32:
        return model
    for module in model.modules():
        if isinstance(module, NORMS):
            module.float()
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
            module.register_forward_hook(lambda _, args, output: output.to(dtype))
    return model


class without_initial_weights(TorchFunctionMode):  # noqa: N801 (reads as a statement)
    """Context in which new networks keep unset memory instead of drawing initial weights.

    For networks filled right after: 200 million normal numbers take three seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
