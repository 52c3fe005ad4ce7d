"""Videos out: frames to an ffmpeg process, everything else copied from the original file.

Frames go down one pipe as raw video that carries its times (see `nut`); the original is the second
input, from which sound, subtitles, chapters and tags are copied. The output is a ``.part`` until it
is complete.
"""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import ffmpeg
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.media.binary import find_ffmpeg as find_ffmpeg
from faceswap.media.binary import passthrough_option
from faceswap.media.encoders import Encoding as Encoding
from faceswap.media.nut import NutMuxer
from faceswap.media.output import check_output, part_of
from faceswap.media.plan import LOSSLESS, Clip, Plan, make_plan
from faceswap.media.plan import VIDEO_EXTENSIONS as VIDEO_EXTENSIONS
from faceswap.media.planes import (
    FrameBatch,
    even_sides,
    from_rgb,
    matrix_of,
    parse_format,
    with_changes,
    with_even_sides,
)
from faceswap.media.provenance import Provenance, container_tags, embed_xmp
from faceswap.types import VideoInfo

_LINES_KEPT = 30  # of what ffmpeg says
_FROM_ZERO = "noise=drop='lt(pts,0)'"  # bitstream filter: packets from before the start
_PATIENCE = 10  # seconds for ffmpeg to end after it was told to


class VideoWriter:
    """Write frames with their times; use it in a ``with`` block.

    Leaving the block normally finishes the file and gives it its name; leaving it through an error
    stops ffmpeg and removes what was written.

    Args:
        path: the output; its extension chooses the container (`VIDEO_EXTENSIONS`, or `LOSSLESS`).
        info: of the frames, as `VideoReader.info`.
        source: `VideoReader.clip`, to copy sound and the rest from; None: only the frames.
        encoding: codec, quality and the like.
        overwrite: whether ``path`` may exist.
        provenance: the mark to write, by default composite media made with this program.

    Raises:
        MediaError: the output cannot be, or no ffmpeg can write it; before the first frame.
        ConfigError: an option that does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        info: VideoInfo,
        *,
        source: Clip | None = None,
        encoding: Encoding | None = None,
        overwrite: bool = False,
        provenance: Provenance | None = None,
    ) -> None:
        inputs = [] if source is None else [source.path]
        known = (*VIDEO_EXTENSIONS, LOSSLESS)
        self.path = check_output(path, inputs, overwrite, extensions=known)
        self.info = info
        self._part = part_of(self.path)
        self._part.unlink(missing_ok=True)
        self._provenance = provenance or Provenance()
        self._origin = source.origin if source is not None else None
        encoding = encoding or Encoding()
        program = find_ffmpeg()
        self.plan = make_plan(self.path, info, source, encoding, program)
        self.warnings = self.plan.warnings
        self.frames = 0
        command = _command(program, self._part, info, source, encoding, self.plan, self._provenance)
        self._said: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise MediaError(f"The program {program!r} does not run: {error}") from error
        self._listener = threading.Thread(target=self._listen, name="ffmpeg-stderr", daemon=True)
        self._listener.start()
        assert self._process.stdin is not None
        sent = with_even_sides(info) if self.plan.pad else info
        try:
            self._muxer = NutMuxer(cast(BinaryIO, self._process.stdin), sent)
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    def write(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
        pts: Sequence[int],  # B, ticks of info.time_base, strictly increasing
        original: FrameBatch | None = None,
    ) -> None:
        """Write frames; waits while ffmpeg is busy.

        With ``original`` (the batch they were made from), what did not change goes to the encoder
        as it came from the decoder.

        Raises:
            MediaError: ffmpeg gave up; nothing is left behind.
        """
        size = (self.info.height, self.info.width)
        if frames.shape[1:] != (3, *size) or len(frames) != len(pts):
            raise ValueError(
                f"frames: expected ({len(pts)}, 3, {size[0]}, {size[1]}), got {tuple(frames.shape)}"
            )
        frames = frames.cpu()
        if self._origin is None:
            self._origin = pts[0] if pts else None
        for index, tick in enumerate(pts):
            if original is None:
                planes = from_rgb(frames[index], self.info)
            else:
                old, own = original.frames[index].cpu(), original.planes[index]
                planes = with_changes(own, old, frames[index], self.info)
            if self.plan.pad:
                planes = even_sides(planes, self.info)
            try:
                self._muxer.write(planes, tick - (self._origin or 0))
            except OSError as error:
                raise self._failure() from error
            self.frames += 1

    def finish(self) -> None:
        """Wait for ffmpeg to write the rest, mark the file, and give it its name.

        Raises:
            MediaError: ffmpeg failed, or the file cannot be renamed; nothing is left behind.
        """
        assert self._process.stdin is not None
        try:
            self._muxer.close()
            self._process.stdin.close()
        except OSError as error:
            raise self._failure() from error
        code = self._process.wait()
        self._listener.join()
        if code != 0 or not self._part.exists():
            raise self._failure()
        try:
            embed_xmp(self._part, self.path.suffix.lower(), self._provenance)
            os.replace(self._part, self.path)
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise MediaError(f"Cannot write {str(self.path)!r}: {error.strerror}") from error

    def abort(self) -> None:
        """Stop ffmpeg and remove what it wrote."""
        self._stop()
        self._part.unlink(missing_ok=True)

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(_PATIENCE)
        self._listener.join(_PATIENCE)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace").strip()
            if text:
                self._said.append(text)

    def _failure(self) -> MediaError:
        """One line about why ffmpeg ended, after cleaning up."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # let it say why
            self._process.wait(_PATIENCE)
        self.abort()
        said = " | ".join(list(self._said)[-3:]) or f"exit code {self._process.returncode}"
        if "No space left" in said or "File too large" in said:
            reason = "no space is left for it"
        else:
            reason = f"ffmpeg stopped ({said})"
        return MediaError(f"Cannot write {str(self.path)!r}: {reason}")


def join_segments(
    path: str | os.PathLike[str],
    segments: Sequence[tuple[Path, Fraction]],
    info: VideoInfo,
    *,
    source: Clip,
    lead: Fraction,
    encoding: Encoding | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Make one clip of videos written without sound, and copy the rest from the original.

    Args:
        path: the output; its extension is that of the segments. An existing file is replaced.
        segments: each with its length in seconds, in order, all in one folder.
        info: of the frames, as `VideoReader.info`.
        source: `VideoReader.clip`, to copy sound and the rest from.
        lead: seconds from the start of the clip to the first frame.
        encoding: as the segments were written.
        provenance: the mark to write.

    Raises:
        MediaError: ffmpeg failed; the segments stay, the output is not begun.
    """
    target, provenance = Path(path), provenance or Provenance()
    program = find_ffmpeg()
    plan = make_plan(path, info, source, encoding or Encoding(), program)
    listing = segments[0][0].with_name("segments.txt")
    lines = [f"file {name.name}\nduration {float(length):.9f}\n" for name, length in segments]
    listing.write_text("ffconcat version 1.0\n" + "".join(lines), encoding="utf-8")
    video = ffmpeg.input(
        "file:" + os.path.abspath(listing), format="concat", itsoffset=f"{float(lead):.9f}"
    )
    options: dict[str, Any] = {"c:v": "copy", "format": plan.muxer}
    if "tag:v" in plan.options:
        options["tag:v"] = plan.options["tag:v"]
    part = part_of(target)
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    command = _finished([video["v:0"]], program, part, info, source, plan, provenance, options)
    if "ss" in options:  # would drop key frames, whose decoding time lies before their own
        at = command.index("-ss", command.index("-c:v"))
        command[at : at + 2] = [word for kind in "as" for word in (f"-bsf:{kind}", _FROM_ZERO)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
            raise MediaError(f"Cannot write {str(target)!r}: ffmpeg stopped ({' | '.join(said)})")
        embed_xmp(part, target.suffix.lower(), provenance)
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"Cannot write {str(target)!r}: {error.strerror}") from error


def _command(
    program: str,
    part: Path,
    info: VideoInfo,
    source: Clip | None,
    encoding: Encoding,
    plan: Plan,
    provenance: Provenance,
) -> list[str]:
    """The ffmpeg command line."""
    video = ffmpeg.input("pipe:0", format="nut")
    video = _filters(video["v:0"], info, encoding, plan)
    outputs = [video]
    options: dict[str, Any] = {"c:v": plan.encoder, **plan.options, "format": plan.muxer}
    constant = encoding.rate is not None or plan.muxer == "avi"
    options[passthrough_option(program)] = "cfr" if constant else "passthrough"
    if not constant:
        base = info.time_base
        options["enc_time_base"] = f"{base.numerator}/{base.denominator}"
    elif encoding.rate is None:
        options["r"] = f"{info.rate.numerator}/{info.rate.denominator}"
    return _finished(outputs, program, part, info, source, plan, provenance, options)


def _finished(
    outputs: list[Any],
    program: str,
    part: Path,
    info: VideoInfo,
    source: Clip | None,
    plan: Plan,
    provenance: Provenance,
    options: dict[str, Any],
) -> list[str]:
    """The command line once its picture is settled: sound and tags, and how it is muxed."""
    tags = container_tags(provenance)
    if source is not None and plan.movie:
        if source.comment and not source.comment.startswith("Synthetic media"):
            tags["comment"] += f" | {source.comment}"
        outputs += _copied(source, info, plan, options)
    if plan.movie:
        for number, (key, value) in enumerate(tags.items()):
            options[f"metadata:g:{number}"] = f"{key}={value}"
        options["metadata:s:v:0"] = "rotate="  # older ffmpegs would turn the frames once more
    if plan.muxer in ("mp4", "mov"):
        options["movflags"] = "+faststart"
    options["max_muxing_queue_size"] = 9999
    node = ffmpeg.output(*outputs, "file:" + os.path.abspath(part), **options)
    node = node.global_args("-hide_banner", "-nostats", "-loglevel", "error", "-copyts", "-y")
    command: list[str] = ffmpeg.compile(node, cmd=program)
    return command


def _copied(source: Clip, info: VideoInfo, plan: Plan, options: dict[str, Any]) -> list[Any]:
    """The streams that come from the original file; adds their options."""
    given: dict[str, Any] = {"protocol_whitelist": "file"}
    if source.origin:
        given["itsoffset"] = f"{float(-source.origin * info.time_base):.6f}"
    if source.start is not None:
        given["ss"] = f"{float(source.start):.6f}"  # finds a key frame before; the rest is cut off:
        options["ss"] = 0
    if source.end is not None:
        options["t"] = f"{float(source.end - (source.start or 0)):.6f}"
    original = ffmpeg.input("file:" + os.path.abspath(source.path), **given)
    streams = []
    if plan.audio != "none":
        streams.append(original["a"])
        options["c:a"] = plan.audio
        for index in range(len(source.audio)):  # languages and titles
            options[f"map_metadata:s:a:{index}"] = f"1:s:a:{index}"
        if plan.audio in ("aac", "libmp3lame", "libopus"):
            options["b:a"] = "192k"
    kept = [index for index, how in enumerate(plan.subtitles) if how]
    for number, index in enumerate(kept):
        streams.append(original[f"s:{index}"])
        options[f"c:s:{number}"] = plan.subtitles[index]
        options[f"map_metadata:s:s:{number}"] = f"1:s:s:{index}"
    if plan.muxer == "matroska":
        streams.append(original["t?"])  # fonts of the subtitles
        options["c:t"] = "copy"
    if not streams:  # ffmpeg-python leaves out an input of which nothing is used; tags are, though
        streams.append(original["a:99?"])
    options["map_metadata"] = 1
    options["map_metadata:s:v:0"] = f"1:s:{source.video}"
    options["map_chapters"] = 1
    return streams


def _filters(video: Any, info: VideoInfo, encoding: Encoding, plan: Plan) -> Any:
    """Say what colours the frames have, and convert only what the encoder cannot take."""
    given = parse_format(info.pixel_format)
    assert given is not None
    if given.kind == "gbr":
        tags = {"range": "pc", "colorspace": "gbr"}
    else:
        tags = {"range": info.color_range, "colorspace": info.color_space}
    tags |= {"color_primaries": info.color_primaries, "color_trc": info.color_transfer}
    video = video.filter("setparams", **{key: value for key, value in tags.items() if value})
    if encoding.rate is not None:
        rate = Fraction(encoding.rate)
        video = video.filter("fps", f"{rate.numerator}/{rate.denominator}")
    if info.sample_aspect not in (0, 1):
        aspect = info.sample_aspect
        video = video.filter("setsar", f"{aspect.numerator}/{aspect.denominator}")
    if plan.encoder == "gif":
        split = video.filter_multi_output("split")
        palette = split[0].filter(
            "palettegen", stats_mode="single", reserve_transparent=int(info.alpha)
        )
        return ffmpeg.filter([split[1], palette], "paletteuse", new=1, dither="sierra2_4a")
    if plan.pixel_format != info.pixel_format:
        scale: dict[str, Any] = {"flags": "bicubic+accurate_rnd+full_chroma_int"}
        if given.kind == "gbr" and plan.pixel_format.startswith("yuv"):
            scale |= {"out_color_matrix": matrix_of(info), "out_range": "tv"}
        video = video.filter("scale", **scale)
    return video.filter("format", plan.pixel_format)
