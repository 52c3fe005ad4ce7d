"""Encoders: which one, what it is fed and with which options.

For a codec this is a choice among what the ffmpeg at hand was built with; for a pixel format, among
what the encoder says it takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from faceswap.errors import ConfigError, MediaError
from faceswap.media.binary import encoders, pixel_formats
from faceswap.media.planes import parse_format
from faceswap.types import VideoInfo

_ENCODERS = {  # by preference
    "h264": ("libx264", "libopenh264"),
    "hevc": ("libx265",),
    "vp9": ("libvpx-vp9",),
    "vp8": ("libvpx",),
    "av1": ("libsvtav1", "libaom-av1"),
    "prores": ("prores_ks", "prores"),
    "ffv1": ("ffv1",),
    "mpeg4": ("mpeg4",),
    "gif": ("gif",),
    "webp": ("libwebp_anim",),
    "apng": ("apng",),
}
_EVEN_SIDES = ("264", "265", "hevc", "svtav1", "nvenc", "qsv", "vaapi", "videotoolbox")
_KEEP_RGB = ("ffv1", "prores")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How to encode; None or "auto" leaves the choice to the container and the source."""

    codec: str = "auto"  # h264, hevc, vp9, av1, vp8, prores, ffv1, mpeg4
    encoder: str | None = None  # by ffmpeg's name (h264_nvenc), instead of codec
    crf: float | None = None  # constant quality; smaller is better, the scale is the encoder's
    preset: str | None = None  # by the encoder's own names
    pixel_format: str | None = None  # by ffmpeg's name
    rate: Fraction | None = None  # constant frame rate to convert to
    audio: bool = True  # keep the sound


def needs_even_sides(encoder: str, pixel_format: str) -> bool:
    """Whether the encoder refuses odd widths and heights."""
    return any(part in encoder for part in _EVEN_SIDES) and "444" not in pixel_format


def choose_encoder(
    suffix: str, codecs: tuple[str, ...], info: VideoInfo, encoding: Encoding, ffmpeg: str
) -> str:
    """ffmpeg's name of the encoder.

    Args:
        suffix: of the output, for messages.
        codecs: what the container holds; the first is its default.
        info: of the source, whose codec is kept where that can be.
        encoding: what the user asked for.
        ffmpeg: the program.

    Raises:
        MediaError: the container does not hold the codec, or no encoder for it is there.
        ConfigError: there is no such codec.
    """
    available = encoders(ffmpeg)
    if encoding.encoder is not None:
        if encoding.encoder not in available:
            raise MediaError(
                f"The ffmpeg at {ffmpeg!r} has no encoder {encoding.encoder!r}; "
                f"`ffmpeg -encoders` lists those it has"
            )
        return encoding.encoder
    codec = encoding.codec
    if codec == "auto":
        codec = codecs[0]
        # not AVI: it has no times, and h264 frames are reordered
        same = info.codec in codecs and codec != "mpeg4" and info.codec != "mpeg4"
        if same and any(name in available for name in _ENCODERS[info.codec]):
            codec = info.codec
        if codec == "h264" and info.bits > 8 and "hevc" in codecs:
            codec = "hevc"  # hardly anything plays 10-bit h264
    elif codec not in _ENCODERS:
        raise ConfigError(f"There is no codec {codec!r}; known are {', '.join(_ENCODERS)}")
    elif codec not in codecs:
        raise MediaError(
            f"{suffix} cannot hold {codec}; it holds {', '.join(codecs)}. "
            "Choose another --codec or another extension"
        )
    for name in _ENCODERS[codec]:
        if name in available:
            return name
    raise MediaError(
        f"The ffmpeg at {ffmpeg!r} has no encoder for {codec} ({' or '.join(_ENCODERS[codec])}); "
        "install a full ffmpeg, or choose another --codec"
    )


def choose_pixel_format(info: VideoInfo, encoder: str, encoding: Encoding, ffmpeg: str) -> str:
    """The format the encoder gets: that of the source if it takes it, else the nearest.

    Raises:
        ConfigError: the one asked for is none that the encoder takes.
    """
    supported = pixel_formats(ffmpeg, encoder)
    wanted = encoding.pixel_format
    if wanted is not None:
        if supported and wanted not in supported:
            raise ConfigError(f"{encoder} does not take {wanted}; it takes {' '.join(supported)}")
        return wanted
    for wish in _wishes(info, encoder):
        if not supported or wish in supported:
            return wish
    return supported[0]


def _wishes(info: VideoInfo, encoder: str) -> list[str]:
    """Pixel formats from the best to one that every encoder takes."""
    form = parse_format(info.pixel_format)
    assert form is not None  # the reader gives planar formats only
    if encoder == "gif":
        return ["pal8"]
    if encoder == "libwebp_anim":
        return ["bgra"]
    if encoder == "apng":
        names = ("rgb24", "rgba", "rgb48be", "rgba64be")
        return [names[info.alpha + 2 * (form.bits > 8)]]
    ten = "10le" if form.bits > 8 else ""
    if form.kind == "gbr" and not encoder.startswith(_KEEP_RGB):
        # what everything plays; full chroma would shut most players out
        return [f"yuva420p{ten}", "yuva420p"] * info.alpha + [f"yuv420p{ten}", "yuv420p"]
    own = info.pixel_format
    opaque = own.replace("yuva", "yuv").replace("gbrap", "gbrp")
    same = [own, opaque] if info.alpha else [opaque]
    if form.kind == "gbr":
        same += (["bgra"] if info.alpha else ["bgr0"]) if form.bits == 8 else []
        same += ["yuva444p10le", "yuva444p"] * info.alpha + ["yuv444p10le", "yuv444p"]
    depth = own.removeprefix("gray") if form.kind == "gray" else own.partition("p")[2]
    if form.kind == "gray":
        same.append(f"yuv420p{depth}")
    wishes = same + ([name.removesuffix(depth) + ten for name in same] if depth else [])
    wishes += [name.replace("420", "422") for name in wishes]
    wishes += [re.sub("4[24][02]", "444", name) for name in wishes]
    if form.bits == 8:
        wishes += [f"{name}10le" for name in wishes]
    return [*wishes, f"yuv420p{ten}", "yuv420p"]


def encoder_options(
    muxer: str, encoder: str, pixel_format: str, info: VideoInfo, encoding: Encoding
) -> dict[str, object]:
    """Options for ffmpeg; visually lossless unless asked otherwise."""

    def quality(default: float) -> float:
        return default if encoding.crf is None else encoding.crf

    preset = encoding.preset
    options: dict[str, object]
    if encoder == "libx264":
        options = {"crf": quality(16), "preset": preset or "medium"}
        options |= {"bf": 0} if muxer == "avi" else {}
    elif encoder == "libx265":
        options = {"crf": quality(17), "preset": preset or "fast"}
        options["x265-params"] = "log-level=error"
        if muxer in ("mp4", "mov"):
            options["tag:v"] = "hvc1"  # Apple's players know only this name
    elif encoder == "libvpx-vp9":
        options = {"crf": quality(18), "b:v": 0, "deadline": "good"}
        options |= {"cpu-used": preset or 4, "row-mt": 1}
        options |= {"auto-alt-ref": 0} if "yuva" in pixel_format else {}
    elif encoder == "libvpx":
        options = {"crf": quality(6), "b:v": "20M", "deadline": "good", "cpu-used": preset or 4}
        options |= {"auto-alt-ref": 0} if "yuva" in pixel_format else {}
    elif encoder == "libsvtav1":
        options = {"crf": quality(18), "preset": preset or 8}
    elif encoder == "libaom-av1":
        options = {"crf": quality(18), "b:v": 0, "cpu-used": preset or 6}
    elif encoder.startswith("prores"):
        options = {"profile:v": 4 if "444" in pixel_format else 3, "vendor": "apl0"}
    elif encoder == "ffv1":
        options = {"level": 3, "slicecrc": 1}
    elif encoder == "mpeg4":
        options = {"q:v": quality(2)}
    elif encoder == "libwebp_anim":
        exact = encoding.crf is None and info.codec in ("gif", "webp", "apng")
        options = {"loop": 0} | ({"lossless": 1} if exact else {"quality": quality(90)})
    elif encoder in ("gif", "apng"):
        options = {"loop": 0} if encoder == "gif" else {"plays": 0}
    elif "nvenc" in encoder:
        options = {"cq": quality(18), "b:v": 0, "rc": "vbr", "preset": preset or "p5"}
    else:
        options = {} if encoding.crf is None else {"crf": encoding.crf}
        options |= {} if preset is None else {"preset": preset}
    return options
