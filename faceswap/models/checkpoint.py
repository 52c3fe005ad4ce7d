"""Weight files: what is in one, which network it is of, and writing our own.

Our files are safetensors with metadata ``{"arch": NAME, "args": JSON, "card": JSON}``. Plain
torch state dicts (.pth, .pt) are read with ``weights_only=True``, so that no file can run code,
and recognised by their keys.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faceswap.errors import MissingWeightError, WeightError

LISTED = 3  # keys an error names before it only counts the rest


@dataclass(frozen=True)
class Checkpoint:
    """The content of one weight file."""

    path: Path
    state: dict[str, Tensor]  # state dict as stored
    arch: str = ""  # architecture name, "" when neither metadata nor keys tell
    args: dict[str, Any] = field(default_factory=dict)  # of its constructor
    card: dict[str, Any] = field(default_factory=dict)  # what the author says of it
    title: str = ""  # what the keys look like, in words


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file, or a plain torch state dict of any other suffix.

    Raises:
        MissingWeightError: there is no such file.
        WeightError: the file is damaged, holds code, or is no state dict.
    """
    if not path.is_file():
        raise MissingWeightError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".onnx":
        raise WeightError(f"{path}: an ONNX file; expected .safetensors or a torch state dict")
    state = _read_pickle(path)
    arch, args, title = recognise(state)
    return Checkpoint(path, state, arch=arch, args=args, title=title)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        args, card = (json.loads(metadata.get(name, "{}")) for name in ("args", "card"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightError(f"{path}: damaged or not a safetensors file ({error})") from error
    guess, guessed_args, title = recognise(state)
    if "arch" not in metadata:
        return Checkpoint(path, state, arch=guess, args=guessed_args, title=title)
    return Checkpoint(path, state, arch=metadata["arch"], args=args, card=card, title=title)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise WeightError(
                f"{path}: holds Python code ({code[1]}), not only tensors, and is not opened; "
                "get a plain state dict or a .safetensors file"
            ) from error
        raise WeightError(
            f"{path}: damaged or not a torch state dict; a pickle of other things is not opened"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error) as error:
        if "torchscript" in str(error).lower():
            raise WeightError(f"{path}: holds a TorchScript program and is not opened") from error
        raise WeightError(f"{path}: damaged or not a torch file") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightError(
            f"{path}: expected a state dict (names to tensors), got {_describe(state)}; "
            "store model.state_dict() alone"
        )
    return {str(key): value for key, value in state.items()}


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return "a dict of " + ", ".join(str(key) for key in list(content)[:5])
    return f"a {type(content).__name__}"


def recognise(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], str]:
    """Tell from the keys what a state dict is of: ``(arch, args, title)``; arch "" if unknown."""
    if "generator.up1.weight" in state and "encoder.conv1.0.weight" in state:
        return _recognise_aei(state)
    if "generator.up1.weight" in state and "encoder.conv0.weight" in state:
        return _recognise_aei(state)
    if "layer0.0.weight" in state and "layer2.17.weight" in state:
        return "discriminator", {}, "GHOST discriminator"
    if "layer3.29.conv1.weight" in state and "features.weight" in state:
        return "iresnet100", {}, "ArcFace iresnet100"
    return "", {}, f"unknown network of {len(state)} tensors{_first_keys(list(state))}"


def _recognise_aei(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], str]:
    levels = sum(key.endswith(".add_blocks.0.conv_h.bias") for key in state)
    blocks = sum(f"generator.AADBlk1.add_blocks.{3 * i}.conv_h.bias" in state for i in range(9))
    if "encoder.conv0.weight" in state:
        encoder = "resnet"
    elif "encoder.lateral1.weight" in state:
        encoder = "fpn"
    else:  # a concatenated skip doubles what the second step up takes in
        first, second = (state.get(f"encoder.deconv{i}.deconv.weight") for i in (1, 2))
        doubled = first is not None and second is not None and second.shape[0] > first.shape[1]
        encoder = "unet" if doubled else "linknet"
    finest = state.get(f"generator.AADBlk{levels}.add_blocks.2.weight")
    injection = "adain"
    if "generator.AADBlk1.add_blocks.0.kernels.fc_bias.bias" in state:
        injection = "adaconv"
    elif "generator.AADBlk1.add_blocks.0.attention.query.bias" in state:
        injection = "attention"
    args = {
        "attribute_encoder": encoder,
        "num_blocks": blocks,
        "embedding_size": state["generator.up1.weight"].shape[0],
        "size": 1 << levels,
        "width": finest.shape[1] / 64 if finest is not None else 1.0,
        "identity_injection": injection,
    }
    title = f"AEI-Net generator, {encoder}, {blocks} AAD blocks, {1 << levels} px"
    return "aei", args, title


def _first_keys(keys: list[str]) -> str:
    return f" ({', '.join(keys[:LISTED])} ...)" if keys else ""


def fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights into the model, every key and shape exactly.

    Raises:
        WeightError: names the first missing, unexpected and wrong-shaped keys and what the file
            looks like.
    """
    wanted, found = model.state_dict(), checkpoint.state
    problems = []
    for word, keys in (
        ("missing", [key for key in wanted if key not in found]),
        ("unexpected", [key for key in found if key not in wanted]),
        ("wrong shape", _misshapen(wanted, found)),
    ):
        if keys:
            rest = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            problems.append(f"{word} {', '.join(keys[:LISTED])}{rest}")
    if problems:
        what = f"{checkpoint.path}: does not fit {checkpoint.arch or type(model).__name__}"
        raise WeightError(f"{what}, it looks like {checkpoint.title}: {'; '.join(problems)}")
    model.load_state_dict(found, strict=True)


def _misshapen(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]


def save_model(
    path: Path | str,
    model: nn.Module,
    arch: str,
    args: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model's weights as one safetensors file that `load_model` reads alone.

    Matrices and kernels are stored in fp16; vectors (biases, norm statistics), which are small
    and may leave fp16's range, and any tensor that fp16 cannot hold stay in fp32. The file is
    written to ``PATH.part`` and renamed, so an older file survives a full disk or a kill.

    Raises:
        WeightError: the file cannot be written.
    """
    path = Path(path)
    state = {key: _compact(value) for key, value in model.state_dict().items()}
    metadata = {
        "arch": arch,
        "args": json.dumps(dict(args or {})),
        "card": json.dumps(dict(card or {})),
    }
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        rights = part.stat().st_mode
        save_file(state, part, metadata=metadata)
        part.chmod(rights)  # safetensors leaves files that nobody else may read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise WeightError(f"{path}: cannot be written ({error})") from error
    return path


def _compact(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    if value.is_floating_point():
        half = value.half()
        fits = value.ndim >= 2 and bool(torch.isfinite(half).all())
        value = half if fits else value.float()
    return value.clone(memory_format=torch.contiguous_format)
