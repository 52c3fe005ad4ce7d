"""Which encoder, pixel format and streams go into which container; decided before any work.

What cannot be is re-chosen with a warning (a subtitle kind the container does not know) or, when
it was asked for by name, refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from faceswap.errors import MediaError
from faceswap.media.binary import encoders
from faceswap.media.encoders import (
    Encoding,
    choose_encoder,
    choose_pixel_format,
    encoder_options,
    needs_even_sides,
)
from faceswap.media.planes import parse_format
from faceswap.types import VideoInfo

_TEXT_SUBTITLES = ("mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text")


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of a file that frames were read from, and what lies beside its video."""

    path: str
    origin: int = 0  # tick of the video's time base that becomes time zero
    start: Fraction | None = None  # seconds from the start of the container
    end: Fraction | None = None
    video: int = 0  # index of the video stream among all streams
    audio: tuple[str, ...] = ()  # codec of each stream
    subtitles: tuple[str, ...] = ()  # codec of each stream
    comment: str = ""  # of the container


@dataclass(frozen=True, slots=True)
class _Container:
    muxer: str
    codecs: tuple[str, ...]  # the first is the default
    audio: tuple[str, ...] = ()  # codecs that can be copied; "*" = any
    audio_encoder: str = ""  # for the others
    subtitles: tuple[str, ...] = ()  # codecs that can be copied
    subtitle_encoder: str = ""  # for other text
    movie: bool = True


_MP4_AUDIO = ("aac", "mp3", "ac3", "eac3", "alac", "mp2")
_CONTAINERS = {
    ".mp4": _Container(
        "mp4",
        ("h264", "hevc", "av1", "vp9", "mpeg4"),
        (*_MP4_AUDIO, "opus", "flac"),
        "aac",
        ("mov_text",),
        "mov_text",
    ),
    ".mov": _Container(
        "mov",
        ("h264", "hevc", "prores", "mpeg4"),
        (*_MP4_AUDIO, "pcm_"),
        "aac",
        ("mov_text",),
        "mov_text",
    ),
    ".mkv": _Container(
        "matroska",
        ("h264", "hevc", "vp9", "av1", "vp8", "ffv1", "prores", "mpeg4"),
        ("*",),
        "",
        (
            "subrip",
            "ass",
            "ssa",
            "webvtt",
            "hdmv_pgs_subtitle",
            "dvd_subtitle",
            "dvb_subtitle",
        ),
        "srt",
    ),
    ".webm": _Container(
        "webm", ("vp9", "av1", "vp8"), ("opus", "vorbis"), "libopus", ("webvtt",), "webvtt"
    ),
    ".avi": _Container(
        "avi", ("mpeg4", "h264", "ffv1"), ("mp3", "ac3", "mp2", "pcm_"), "libmp3lame"
    ),
    ".gif": _Container("gif", ("gif",), movie=False),
    ".webp": _Container("webp", ("webp",), movie=False),
    ".apng": _Container("apng", ("apng",), movie=False),
}
_CONTAINERS[".m4v"] = _CONTAINERS[".mp4"]
VIDEO_EXTENSIONS = tuple(_CONTAINERS)
LOSSLESS = ".nut"  # of the program's own intermediate files
_CONTAINERS[LOSSLESS] = _Container("nut", ("ffv1",))


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about an output that is known before the first frame."""

    muxer: str
    encoder: str
    pixel_format: str
    options: dict[str, object] = field(default_factory=dict)  # of the encoder, for ffmpeg
    audio: str = "none"  # none, copy, or an encoder
    subtitles: tuple[str, ...] = ()  # per stream: "copy", an encoder, or "" = left out
    pad: bool = False  # odd sides get one more row or column
    movie: bool = True  # sound, chapters and tags have a place
    warnings: tuple[str, ...] = ()


def make_plan(
    path: str | os.PathLike[str],
    info: VideoInfo,
    clip: Clip | None,
    encoding: Encoding,
    ffmpeg: str,
) -> Plan:
    """Decide how a video is written.

    Args:
        path: the output; its extension is one of `VIDEO_EXTENSIONS`.
        info: of the frames.
        clip: where sound, subtitles and metadata come from.
        encoding: what the user asked for.
        ffmpeg: the program.

    Raises:
        MediaError: the container cannot hold the codec, or the ffmpeg has no encoder for it.
        ConfigError: a codec, quality or pixel format that does not exist.
    """
    container = _CONTAINERS[Path(path).suffix.lower()]
    warnings: list[str] = []
    encoder = choose_encoder(Path(path).suffix, container.codecs, info, encoding, ffmpeg)
    pixel_format = choose_pixel_format(info, encoder, encoding, ffmpeg)
    form, given = parse_format(pixel_format), parse_format(info.pixel_format)
    if info.alpha and form is not None and not form.alpha and encoder != "gif":
        warnings.append(f"{encoder} in {container.muxer} keeps no transparency; it is dropped")
    if given is not None and form is not None and form.bits < given.bits:
        warnings.append(f"{encoder} takes {form.bits} bits; the {given.bits} of the input are cut")
    odd = bool(info.width % 2 or info.height % 2)
    pad = odd and needs_even_sides(encoder, pixel_format)
    if pad:
        warnings.append(
            f"{encoder} needs even sides: {info.width}x{info.height} is written one row or "
            "column larger (.mkv with codec ffv1, or .webm, keep the size)"
        )
    if container.muxer == "avi" and info.variable_rate:
        warnings.append("AVI has one frame rate; frames are repeated or dropped to reach it")
    audio, subtitles = _beside(container, clip, encoding, warnings)
    if audio not in ("none", "copy") and audio not in encoders(ffmpeg):
        raise MediaError(
            f"The ffmpeg at {ffmpeg!r} has no encoder {audio}, which {container.muxer} needs for "
            "this sound; choose another extension, or --no-audio"
        )
    return Plan(
        container.muxer,
        encoder,
        pixel_format,
        encoder_options(container.muxer, encoder, pixel_format, info, encoding),
        audio,
        subtitles,
        pad,
        container.movie,
        tuple(warnings),
    )


def _beside(
    container: _Container, clip: Clip | None, encoding: Encoding, warnings: list[str]
) -> tuple[str, tuple[str, ...]]:
    """What happens to the sound, and to each subtitle stream."""
    if clip is None:
        return "none", ()
    audio = "none"
    if clip.audio and encoding.audio:
        if not container.movie:
            warnings.append(f"{container.muxer} has no sound; it is left out")
        elif "*" in container.audio or all(c.startswith(container.audio) for c in clip.audio):
            audio = "copy"
        else:
            audio = container.audio_encoder
            kinds = ", ".join(sorted(set(clip.audio)))
            warnings.append(f"{container.muxer} cannot hold {kinds} sound; encoded with {audio}")
    subtitles = []
    for kind in clip.subtitles:
        if kind in container.subtitles:
            subtitles.append("copy")
        elif kind in _TEXT_SUBTITLES and container.subtitle_encoder:
            subtitles.append(container.subtitle_encoder)
        else:
            subtitles.append("")
            warnings.append(f"{container.muxer} cannot hold {kind} subtitles; they are left out")
    return audio, tuple(subtitles)
