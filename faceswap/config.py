"""Every setting of a swap, checked when it is read: YAML in, ``--set`` on top, YAML out.

`SwapConfig` is what the swap of a picture needs, `VideoConfig` the same and what a clip adds.
``configs/swap.yaml`` and ``configs/video.yaml`` list all of it with the defaults.
Lengths are fractions of the crop's side unless a field says otherwise, so that they mean the same
at every resolution; times are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from faceswap.errors import ConfigError, unknown

Unit = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Length = Annotated[float, Field(ge=0, le=0.5)]  # of the crop's side
Share = Annotated[float, Field(gt=0, lt=1)]
Side = Annotated[int, Field(ge=64)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """A group of settings: frozen, and names that do not exist are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


class DetectorConfig(Settings):
    """Finding faces."""

    threshold: Share | None = None
    """Least score of a face; null: the detector's own."""
    sides: tuple[Side, ...] | None = None
    """Longer sides in pixels that frames are shrunk to for detection, results merged; larger
    finds smaller faces and takes longer. null: the detector's own for photos or for clips."""
    rotate: bool = True
    """Look again at 90, 180 and 270 degrees where nothing is found upright."""
    weights: str | None = None
    """Weight file of your own (`configs/lite_detector.yaml` trains one), or a name, in place of the
    pack's detector."""


class MaskConfig(Settings):
    """Which part of the swapped crop is used, and how it ends."""

    kind: Literal["adaptive", "ghost"] | None = None
    """adaptive: follows the difference of the two faces all around, continuously; ghost: the
    original's table; null: as the pack says."""
    grow: Length = 0.015
    """How far outside the outline the adaptive mask ends where the swapped face covers the
    target's."""
    rest: Annotated[float, Field(ge=-0.5, le=0.5)] = -0.012
    """The same where the two faces agree; negative: inside the outline."""
    shrink: Length = 0.05
    """How far inside the outline it ends where the swapped face is smaller."""
    feather: Annotated[float, Field(gt=0, le=0.5)] = 0.08
    """Width of its edge where the two faces agree."""
    sharpen: Annotated[float, Field(gt=0, le=1)] = 0.625
    """Factor on feather where the swapped face covers the target's."""
    soften: Annotated[float, Field(ge=1, le=5)] = 2.0
    """Factor on feather where the swapped face is smaller."""
    span: Annotated[float, Field(gt=0, le=0.5)] = 0.025
    """Difference of the two outlines at which grow or shrink is reached."""

    @model_validator(mode="after")
    def _ordered(self) -> MaskConfig:
        if not -self.shrink <= self.rest <= self.grow:
            raise ValueError(f"rest ({self.rest:g}) should lie between -shrink and grow")
        return self


class OcclusionConfig(Settings):
    """What lies before the target's face, such as glasses and hands, and stays."""

    enabled: bool | None = None
    """Leave it; null: if the pack names a network for it. In clips what is seen in most of the
    frames around counts, as many as are smoothed over."""
    weights: str | None = None
    """Weight file of your own, or a name, in place of the pack's."""


class BlendConfig(Settings):
    """How the swapped crop is laid over the frame."""

    alpha: Unit = 1.0
    """Share of the swapped face; the rest is the target's."""
    color_match: Unit = 0.0
    """Strength of the colour match inside the mask (mean and deviation in Lab)."""


class MatchConfig(Settings):
    """When two faces are the same person."""

    threshold: Cosine | None = None
    """Least cosine similarity to a reference; null: as the pack says."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How far the best match must be ahead of the second best."""


class RestorerConfig(Settings):
    """Sharpening the swapped face with the pack's restorer."""

    enabled: bool = False
    """Whether it runs."""
    strength: Unit = 1.0
    """Share of the restored face; the rest is as the swapper made it."""
    min_size: Annotated[int, Field(ge=0)] = 128
    """Side of the face's crop in frame pixels below which it is left as it is."""
    weights: str | None = None
    """Weight file of your own, or a name, in place of the pack's restorer."""


class SwapConfig(Settings):
    """Everything the swap of a picture can be told."""

    pack: str = "lite"
    """Named set of models, see `faceswap weights list`."""
    swapper: str | None = None
    """Weight file of your own in place of the pack's swapper."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:INDEX; only auto may choose the CPU."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the networks; auto: fp32 on a CPU, half precision on a GPU."""
    engine: Literal["auto", "torch", "onnxruntime"] = "auto"
    """What runs CenterFace and the lite pack's networks on a CPU in fp32. onnxruntime takes half
    the time, but getting ready takes a second; auto: onnxruntime for clips, torch for photos."""
    batch_size: Count = 8
    """Frames that go through the networks together."""
    detector: DetectorConfig = DetectorConfig()
    match: MatchConfig = MatchConfig()
    mask: MaskConfig = MaskConfig()
    occlusion: OcclusionConfig = OcclusionConfig()
    restorer: RestorerConfig = RestorerConfig()
    blend: BlendConfig = BlendConfig()

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if "," in value:
            raise ValueError("several devices can share out a clip, not a photo; name one")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("should be auto, cpu, cuda or cuda:INDEX")
        return value


class TrackConfig(Settings):
    """Following faces from frame to frame."""

    smoothing: Unit = 0.5
    """Strength of the smoothing of points, mask and colour; 0 = none."""
    max_gap: Seconds = 0.5
    """Longest time without a detection that is bridged."""
    fade: Seconds = 0.1
    """Time over which a swap fades in and out where a track begins or ends in view."""
    detect_every: Count = 1
    """Faces are looked for in every n-th frame and where a shot begins; in those between, dense
    points are found where the frames around them say that the face is."""


class EncodeConfig(Settings):
    """The output clip."""

    codec: Literal["h264", "hevc", "vp9", "av1", "prores", "ffv1"] | None = None
    """null: what the container takes, h264 if it can be."""
    encoder: str | None = None
    """ffmpeg's name of the encoder (libx264, h264_nvenc ...); null: the usual one of the codec."""
    crf: Annotated[int, Field(ge=0, le=63)] | None = None
    """Quality on the encoder's own scale, lower is better; null: visually lossless."""
    preset: str | None = None
    """Speed against size, as the encoder names it; null: its default."""
    fps: str | None = None
    """Frames per second, as a number or a fraction (30000/1001); null: the input's timestamps."""
    audio: bool = True
    """Whether sound is kept."""

    @field_validator("fps", mode="before")
    @classmethod
    def _rate(cls, value: object) -> object:
        if value is None:
            return None
        try:
            rate = Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if rate <= 0:
            raise ValueError("should be a positive number or fraction such as 30000/1001")
        return str(value)


class VideoConfig(SwapConfig):
    """Everything the swap of a clip can be told."""

    device: str = "auto"
    """As for a photo; or several, cuda:0,cuda:1, to share out the frames."""
    start: Seconds = 0.0
    """Time of the first frame taken."""
    end: Seconds | None = None
    """Time at which to stop; null: the end."""
    track: TrackConfig = TrackConfig()
    encode: EncodeConfig = EncodeConfig()

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        several = r"(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))+"
        return value if re.fullmatch(several, value) else SwapConfig._device(value)

    @model_validator(mode="after")
    def _ordered(self) -> VideoConfig:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g} s) should be later than start ({self.start:g} s)")
        return self


@overload
def load_config(path: str | Path | None = ..., overrides: Sequence[str] = ...) -> SwapConfig: ...
@overload
def load_config(
    path: str | Path | None = ...,
    overrides: Sequence[str] = ...,
    *,
    schema: type[S],
    options: Mapping[str, str] = ...,
) -> S: ...
def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    schema: type[Settings] = SwapConfig,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Defaults, a YAML file over them, and single settings over both.

    Args:
        path: YAML file; what it does not name keeps its default. None: no file.
        overrides: ``key.key=value``, the value read as YAML; later ones win.
        schema: What may be set.
        options: What the user typed to give a setting, if it was not ``--set``; for messages.

    Raises:
        ConfigError: The file cannot be read, or a setting does not exist or cannot be so; every
            such setting is named, a misspelt one with what was probably meant.
    """
    tree = {} if path is None else _read(Path(path))
    keys = [_override(tree, each) for each in overrides]
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        complaints = []
        for detail in error.errors():
            dotted = ".".join(str(key) for key in detail["loc"])
            by_hand = any((key + ".").startswith(dotted + ".") for key in keys)
            if dotted in options:
                complaints.append(_complaint(detail, schema, options[dotted]))
                continue
            said = _complaint(detail, schema, dotted)
            where = "--set: " if by_hand or path is None else f"{path}: "
            complaints.append(said if not dotted and path is None else where + said)
        raise ConfigError("; ".join(complaints)) from error


def dump_config(config: Settings) -> str:
    """All settings as YAML that `load_config` reads back to the same."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings as key: value, got {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], text: str) -> str:
    """Put one ``key.key=value`` into the tree; its dotted key."""
    dotted, equals, value = text.partition("=")
    dotted = dotted.strip()
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, such as mask.feather=0.1")
    *groups, last = dotted.split(".")
    for group in groups:
        branch = tree.get(group)
        if branch is None:
            branch = tree[group] = {}
        if not isinstance(branch, dict):
            raise ConfigError(f"--set {text}: {group} is a single setting, not a group of them")
        tree = branch
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from error
    return dotted


def _complaint(detail: ErrorDetails, schema: type[Settings], dotted: str) -> str:
    if detail["type"] == "extra_forbidden":
        return str(unknown("setting", dotted, _names(schema)))
    if detail["type"] == "model_type":
        return f"{dotted}: is a group of settings, not a single one: {dotted}.NAME=VALUE"
    said = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if isinstance(detail["input"], dict):  # of several settings together
        return f"{dotted}: {said}" if dotted else said
    return f"{dotted}: {said}, got {detail['input']!r}"


def _names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, item in schema.model_fields.items():
        kind = item.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name
