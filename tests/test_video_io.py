"""Videos in and out; every clip is made here, with the ffmpeg that the writer uses."""

from __future__ import annotations

import gc
import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest
import torch

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.media import binary, plan, writer
from faceswap.media.binary import encoders, find_ffmpeg
from faceswap.media.buffers import Buffers
from faceswap.media.planes import FrameBatch, from_rgb, parse_format, with_changes
from faceswap.media.prefetch import Prefetch, Sink
from faceswap.media.provenance import COMPOSITE, read_provenance
from faceswap.media.reader import VideoReader
from faceswap.media.writer import Encoding, VideoWriter
from faceswap.types import VideoInfo

FAST = Encoding(preset="ultrafast")
SOURCE = "testsrc2=s=96x64:r={rate}:d={seconds}"


def ffmpeg(*arguments: str | Path) -> None:
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def clip(path: Path, *options: str, rate: str = "25", seconds: float = 0.6) -> Path:
    """A moving test picture, 96x64, h264 unless ``options`` say otherwise."""
    source = SOURCE.format(rate=rate, seconds=seconds)
    h264 = [] if "-c:v" in options else ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "12"]
    pixels = [] if "-pix_fmt" in options else ["-pix_fmt", "yuv420p"]
    ffmpeg("-f", "lavfi", "-i", source, *h264, *pixels, *options, path)
    return path


def need(encoder: str) -> None:
    if encoder not in encoders(find_ffmpeg()):
        pytest.skip(f"this ffmpeg has no {encoder}")


def copy(source: Path, target: Path, encoding: Encoding = FAST, **span: float) -> VideoWriter:
    """Through reader and writer without any change."""
    with (
        VideoReader(source, batch=4, **span) as reader,
        VideoWriter(target, reader.info, source=reader.clip, encoding=encoding) as out,
    ):
        for batch in reader:
            out.write(batch.frames, batch.pts, batch)
    return out


def seconds_of(path: Path) -> list[Fraction]:
    with VideoReader(path) as reader:
        return [second for batch in reader for second in batch.seconds]


def frames_of(path: Path) -> torch.Tensor:
    with VideoReader(path) as reader:
        return torch.cat([batch.frames for batch in reader])


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


# --- times -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rate", ["30000/1001", "25"])
def test_constant_rate_survives(tmp_path: Path, rate: str, suffix: str) -> None:
    source = clip(tmp_path / f"in{suffix}", rate=rate)
    copy(source, tmp_path / f"out{suffix}")
    before, after = seconds_of(source), seconds_of(tmp_path / f"out{suffix}")
    assert len(before) in (15, 18)
    assert before == after
    if suffix != ".mkv":  # whose times are milliseconds
        assert before == [index / Fraction(rate) for index in range(len(before))]


def test_variable_rate_survives(tmp_path: Path) -> None:
    times = "settb=1/90000,setpts='N*3600+N*N*50+mod(N,3)*700'"
    every = ["-enc_time_base", "1:90000", "-video_track_timescale", "90000"]
    mode = [f"-{binary.passthrough_option(find_ffmpeg())}", "passthrough"]
    source = clip(tmp_path / "in.mp4", "-vf", times, *mode, *every)
    before = seconds_of(source)
    gaps = {b - a for a, b in itertools.pairwise(before)}
    assert len(gaps) > 3, "the clip made here has a variable rate"
    copy(source, tmp_path / "out.mp4")
    assert seconds_of(tmp_path / "out.mp4") == before
    copy(source, tmp_path / "out.mkv")
    drift = [abs(a - b) for a, b in zip(before, seconds_of(tmp_path / "out.mkv"), strict=True)]
    assert max(drift) <= Fraction(1, 2000)  # Matroska counts milliseconds


def test_sound_is_copied_packet_by_packet(tmp_path: Path) -> None:
    ffmpeg(
        "-f", "lavfi", "-i", SOURCE.format(rate=25, seconds=0.8),
        "-f", "lavfi", "-i", "sine=f=440:d=0.8", "-c:a", "aac", "-preset", "ultrafast",
        "-metadata:s:a:0", "language=deu", tmp_path / "in.mp4",
    )  # fmt: skip
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"out{suffix}"
        copy(tmp_path / "in.mp4", target)
        before, after = packets_of(tmp_path / "in.mp4", "audio"), packets_of(target, "audio")
        assert [data for _, data in before] == [data for _, data in after]
        shift = {round(float(b - a), 3) for (a, _), (b, _) in zip(before, after, strict=True)}
        assert max(shift) - min(shift) <= 0.001
        video = seconds_of(target)[0] - seconds_of(tmp_path / "in.mp4")[0]
        assert abs(float(video)) < 0.001
        with av.open(str(target)) as container:
            assert container.streams.audio[0].language == "deu"
    silent = Encoding(preset="ultrafast", audio=False)
    copy(tmp_path / "in.mp4", tmp_path / "silent.mp4", silent)
    with VideoReader(tmp_path / "silent.mp4") as reader:
        assert reader.info.audio == 0


def test_video_that_starts_after_the_sound_stays_in_place(tmp_path: Path) -> None:
    clip(tmp_path / "video.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1.2", "-c:a", "aac", tmp_path / "sound.m4a")
    ffmpeg(
        "-itsoffset", "0.4", "-i", tmp_path / "video.mp4", "-i", tmp_path / "sound.m4a",
        "-c", "copy", "-map", "0:v", "-map", "1:a", tmp_path / "in.mkv",
    )  # fmt: skip
    copy(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert abs(float(seconds_of(tmp_path / "out.mp4")[0]) - 0.4) < 0.025


def test_part_of_a_clip(tmp_path: Path) -> None:
    ffmpeg(
        "-f", "lavfi", "-i", SOURCE.format(rate=25, seconds=2), "-f", "lavfi", "-i", "sine=d=2",
        "-c:a", "aac", "-preset", "ultrafast", "-g", "30", tmp_path / "in.mp4",
    )  # fmt: skip
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4", start=0.8, end=1.6)
    assert seconds_of(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(20)]
    both = [frames_of(tmp_path / "in.mp4")[20:40], frames_of(tmp_path / "out.mp4")]
    assert (both[0].float() - both[1].float()).abs().mean() < 4
    sound = [float(when) for when, _ in packets_of(tmp_path / "out.mp4", "audio")]
    assert 0 <= sound[0] < 0.03
    assert 0.74 < sound[-1] < 0.8
    with pytest.raises(MediaError, match="No frame"):
        VideoReader(tmp_path / "in.mp4", start=5)
    with pytest.raises(ConfigError, match="no part"):
        VideoReader(tmp_path / "in.mp4", start=2, end=1)


def test_conversion_to_a_constant_rate(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    copy(source, tmp_path / "out.mp4", Encoding(preset="ultrafast", rate=Fraction(50)))
    after = seconds_of(tmp_path / "out.mp4")
    assert after == [Fraction(i, 50) for i in range(len(after))]
    assert 29 <= len(after) <= 31


# --- picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_convention_rotation_is_honoured(tmp_path: Path, degrees: int) -> None:
    """Upright, the top left is red and the top right is blue."""
    upright = np.full((64, 96, 3), 128, np.uint8)
    upright[:24, :24], upright[:24, -24:] = (255, 0, 0), (0, 0, 255)
    lies = np.rot90(upright, degrees // 90)  # to be turned clockwise by the player
    PIL.Image.fromarray(np.ascontiguousarray(lies)).save(tmp_path / "frame.png")
    ffmpeg(
        "-loop", "1", "-t", "0.2", "-i", tmp_path / "frame.png", "-pix_fmt", "yuv420p",
        "-crf", "5", tmp_path / "flat.mp4",
    )  # fmt: skip
    ffmpeg(
        "-display_rotation", str(-degrees), "-i", tmp_path / "flat.mp4", "-c", "copy",
        tmp_path / "in.mp4",
    )  # fmt: skip
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    for name, turn in (("in.mp4", degrees), ("out.mp4", 0)):
        with VideoReader(tmp_path / name) as reader:
            assert (reader.info.height, reader.info.width) == (64, 96)
            assert reader.info.rotation == turn
            frame = next(iter(reader)).frames[0].int()
        assert (frame[:, 8, 8] - torch.tensor([255, 0, 0])).abs().max() < 12
        assert (frame[:, 8, -8] - torch.tensor([0, 0, 255])).abs().max() < 12


def test_odd_sides_are_kept_where_the_codec_can(tmp_path: Path) -> None:
    need("libvpx-vp9")
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=s=97x65:r=10:d=0.3", "-pix_fmt", "yuv420p",
        "-c:v", "libvpx-vp9", "-deadline", "realtime", tmp_path / "in.webm",
    )  # fmt: skip
    out = copy(tmp_path / "in.webm", tmp_path / "out.webm", Encoding(preset="8"))
    assert out.warnings == ()
    assert frames_of(tmp_path / "out.webm").shape == (3, 3, 65, 97)
    error = frames_of(tmp_path / "out.webm").float() - frames_of(tmp_path / "in.webm").float()
    assert error.abs().mean() < 2
    out = copy(tmp_path / "in.webm", tmp_path / "out.mp4", Encoding(codec="h264", crf=4))
    assert "even sides" in out.warnings[0]
    padded = frames_of(tmp_path / "out.mp4")
    assert padded.shape == (3, 3, 66, 98)
    assert (padded[..., :65, 97].float() - padded[..., :65, 96].float()).abs().mean() < 2
    assert (padded[..., 65, :97].float() - padded[..., 64, :97].float()).abs().mean() < 2


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("width", [72, 86, 97])
def test_every_column_is_converted(tmp_path: Path, width: int, pixels: str) -> None:
    """A fast path of swscale forgets the last columns; theirs is whatever lay in memory."""
    need("ffv1")
    ffmpeg(
        "-f", "lavfi", "-i", f"color=0x5080c0:s={width}x54:d=0.2:r=25", "-pix_fmt", pixels,
        "-c:v", "ffv1", tmp_path / "in.mkv",
    )  # fmt: skip
    frames = frames_of(tmp_path / "in.mkv").int()
    assert frames.shape == (5, 3, 54, width)
    assert (frames - frames[:, :, :1, :1]).abs().max() <= 1
    assert (frames[0, :, 0, 0] - torch.tensor([0x50, 0x80, 0xC0])).abs().max() <= 3


def smooth(height: int = 64, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [x / width, y / height, 1 - (x + y) / (height + width)]
    return np.rint(np.stack(planes, -1) * 235 + 10).astype(np.uint8)


@pytest.mark.parametrize("limits", ["tv", "pc"])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
def test_colours_come_in_and_go_out_right(tmp_path: Path, matrix: str, limits: str) -> None:
    PIL.Image.fromarray(smooth()).save(tmp_path / "frame.png")
    scale = f"scale=out_color_matrix={matrix}:out_range={limits}:flags=accurate_rnd"
    ffmpeg(
        "-loop", "1", "-t", "0.12", "-i", tmp_path / "frame.png", "-vf",
        f"{scale},format=yuv420p,setparams=colorspace={matrix}:range={limits}",
        "-c:v", "libx264", "-crf", "4", tmp_path / "in.mp4",
    )  # fmt: skip
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    changed = tmp_path / "rgb.mp4"
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert (reader.info.color_space, reader.info.color_range) == (matrix, limits)
        with VideoWriter(changed, reader.info, encoding=Encoding(crf=4)) as out:
            for batch in reader:
                given = torch.from_numpy(smooth().transpose(2, 0, 1).copy())
                out.write(given.expand(len(batch), -1, -1, -1), batch.pts)  # no original planes
    for name in ("in.mp4", "out.mp4", "rgb.mp4"):
        error = frames_of(tmp_path / name).numpy().astype(int) - smooth().transpose(2, 0, 1)
        assert np.abs(error).mean() < 2, name
        with VideoReader(tmp_path / name) as reader:
            assert (reader.info.color_space, reader.info.color_range) == (matrix, limits), name


def test_wrong_matrix_would_be_seen() -> None:
    """The test above can fail: bt709 planes taken for bt601 are far off."""
    rgb = torch.from_numpy(smooth().transpose(2, 0, 1).copy())
    both = [
        from_rgb(rgb, VideoInfo(96, 64, Fraction(25), Fraction(1, 25), 1, 1.0, color_space=matrix))
        for matrix in ("bt709", "smpte170m")
    ]
    assert np.abs(both[0][0].astype(int) - both[1][0]).mean() > 2


FORMATS = [
    "yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuva420p", "yuv420p10le", "yuv422p12le",
    "gbrp", "gbrap", "gbrp10le", "gray", "gray10le",
]  # fmt: skip


@pytest.mark.parametrize("limits", ["tv", "pc"])
@pytest.mark.parametrize("name", FORMATS)
def test_only_changed_samples_change(name: str, limits: str) -> None:
    height, width = 35, 51
    info = VideoInfo(
        width, height, Fraction(25), Fraction(1, 25), 1, 1.0,
        pixel_format=name, color_space="bt709", color_range=limits,
    )  # fmt: skip
    form = parse_format(name)
    assert form is not None
    rng = np.random.default_rng(0)
    planes = tuple(
        rng.integers(0, form.top + 1, shape).astype(f"<u{form.sample_bytes}")
        for shape in form.shapes(height, width)
    )
    old = torch.full((3, height, width), 90, dtype=torch.uint8)
    assert with_changes(planes, old, old.clone(), info) is planes
    new = old.clone()
    new[:, 11:20, 21:34] += 50
    result = with_changes(planes, old, new, info)
    for index, (before, after) in enumerate(zip(planes, result, strict=True)):
        chroma = form.kind == "yuv" and index in (1, 2)
        y, x = (form.sub_y, form.sub_x) if chroma else (1, 1)
        touched = np.zeros(before.shape, bool)
        touched[11 // y : -(-20 // y), 21 // x - (x > 1) : -(-34 // x) + (x > 1)] = True
        np.testing.assert_array_equal(after[~touched], before[~touched])
        if index == 3:
            np.testing.assert_array_equal(after, before)  # alpha
    luma = result[0].astype(int) - planes[0]
    full_range = limits == "pc" or form.kind != "yuv"
    unit = form.top / 255 if full_range else 219 / 255 * 2 ** (form.bits - 8)
    room = planes[0].astype(int) + 51 * unit < form.top
    inside = luma[11:20, 21:34][room[11:20, 21:34]]
    np.testing.assert_allclose(inside, round(50 * unit), atol=1)


@pytest.mark.parametrize("name", FORMATS)
def test_rgb_to_planes_and_back(tmp_path: Path, name: str) -> None:
    """Against ffmpeg's own conversion, through a lossless file."""
    need("ffv1")
    form = parse_format(name)
    assert form is not None
    info = VideoInfo(
        96, 64, Fraction(25), Fraction(1, 25), 1, 1.0, pixel_format=name,
        color_space="" if form.kind == "gbr" else "bt709", color_range="tv", alpha=form.alpha,
    )  # fmt: skip
    colours = smooth()
    if form.kind == "gray":
        colours = np.repeat(colours.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    rgb = torch.from_numpy(colours.transpose(2, 0, 1).copy())
    with VideoWriter(tmp_path / "out.mkv", info, encoding=Encoding(codec="ffv1")) as out:
        out.write(rgb[None], [0])
    if name != "yuv440p":  # which this encoder may not take
        assert out.plan.pixel_format in (name, "bgra", "bgr0")
    flags = "accurate_rnd+full_chroma_int+full_chroma_inp"
    ffmpeg(
        "-i", tmp_path / "out.mkv", "-vf", f"scale=flags={flags},format=rgb24", tmp_path / "out.png"
    )  # fmt: skip
    error = np.asarray(PIL.Image.open(tmp_path / "out.png")).astype(int) - colours
    assert np.abs(error).mean() < 0.8


def test_ten_bits_and_hdr_pass_untouched(tmp_path: Path) -> None:
    need("libx265")
    need("ffv1")
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
    x265 = ["-c:v", "libx265", "-x265-params", "log-level=none", "-preset", "ultrafast"]
    pixels = ["-vf", f"format=yuv420p10le,{tags}", "-pix_fmt", "yuv420p10le"]
    source = clip(tmp_path / "in.mp4", *x265, *pixels, seconds=0.2)
    copy(source, tmp_path / "exact.mkv", Encoding(codec="ffv1"))
    copy(source, tmp_path / "out.mp4")
    with VideoReader(source) as a, VideoReader(tmp_path / "exact.mkv") as b:
        for one, two in zip(a, b, strict=True):
            for own, again in zip(one.planes, two.planes, strict=True):
                for plane, other in zip(own, again, strict=True):
                    assert plane.dtype == np.uint16
                    assert plane.max() > 255
                    np.testing.assert_array_equal(plane, other)
    with VideoReader(tmp_path / "out.mp4") as reader:
        info = reader.info
    assert (info.codec, info.bits) == ("hevc", 10)
    got = (info.color_space, info.color_primaries, info.color_transfer, info.color_range)
    assert got == ("bt2020nc", "bt2020", "smpte2084", "tv")


def test_a_change_reaches_the_file_and_the_rest_does_not_move(tmp_path: Path) -> None:
    need("ffv1")
    source = clip(tmp_path / "in.mkv")
    with VideoReader(source, batch=5) as reader:
        info, origin = reader.info, reader.clip
        with VideoWriter(
            tmp_path / "out.mkv", info, source=origin, encoding=Encoding(codec="ffv1")
        ) as out:
            for batch in reader:
                new = batch.frames.clone()
                new[:, :, 20:40, 30:60] = torch.tensor([200, 120, 90]).view(3, 1, 1)
                out.write(new, batch.pts, batch)
    before, after = frames_of(source), frames_of(tmp_path / "out.mkv")
    assert torch.equal(before[..., :16, :], after[..., :16, :])
    assert torch.equal(before[..., 44:, :], after[..., 44:, :])
    error = after[:, :, 22:38, 34:56].float() - torch.tensor([200.0, 120, 90]).view(3, 1, 1)
    assert error.abs().mean() < 4  # chroma of the noise below shines through half a pixel


# --- animations --------------------------------------------------------------------------------


def animation(path: Path, alpha: bool = False) -> list[PIL.Image.Image]:
    frames = []
    for index in range(4):
        frame = PIL.Image.new("RGBA", (41, 31), (0, 0, 0, 0) if alpha else (10, 20, 30, 255))
        frame.paste((250 - 40 * index, 30, 40 * index, 255), (4 + index, 5, 20 + index, 25))
        frames.append(frame)
    if path.suffix == ".gif" and not alpha:
        frames = [frame.convert("RGB") for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    kind = {"apng": "PNG"}.get(path.suffix[1:])
    frames[0].save(
        path, kind, save_all=True, append_images=frames[1:], duration=[80, 120, 40, 100],
        disposal=2 if alpha and path.suffix != ".webp" else 0, **options,
    )  # fmt: skip
    return frames


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animations_in_and_out(tmp_path: Path, suffix: str, alpha: bool) -> None:
    need({".gif": "gif", ".webp": "libwebp_anim", ".apng": "apng"}[suffix])
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    frames = animation(source, alpha)
    out = copy(source, target, Encoding())
    assert out.warnings == ()
    assert out.info.alpha == alpha
    assert seconds_of(source) == [Fraction(ms, 1000) for ms in (0, 80, 200, 240)]
    assert seconds_of(target) == seconds_of(source)
    for index, frame in enumerate(frames):
        with PIL.Image.open(target) as image:
            assert image.n_frames == 4
            assert image.info.get("loop", 0) == 0
            image.seek(index)
            got = np.asarray(image.convert("RGBA")).astype(int)
        expected = np.asarray(frame.convert("RGBA")).astype(int)
        np.testing.assert_array_equal(got[..., 3], expected[..., 3])
        seen = expected[..., 3] > 0
        assert np.abs(got - expected)[seen].max() <= 8
    assert read_provenance(target) is not None


def test_animation_to_movie(tmp_path: Path) -> None:
    animation(tmp_path / "in.gif")
    out = copy(tmp_path / "in.gif", tmp_path / "out.mp4")
    assert out.plan.pixel_format == "yuv420p"
    assert seconds_of(tmp_path / "out.mp4") == seconds_of(tmp_path / "in.gif")
    animation(tmp_path / "clear.gif", alpha=True)
    assert any(
        "transparency" in w for w in copy(tmp_path / "clear.gif", tmp_path / "c.mp4").warnings
    )


def test_movie_to_gif(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", rate="20", seconds=0.4)
    copy(source, tmp_path / "out.gif", Encoding())
    assert seconds_of(tmp_path / "out.gif") == seconds_of(source)
    error = frames_of(tmp_path / "out.gif").float() - frames_of(source).float()
    assert error.abs().mean() < 6


# --- what else a file holds --------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    (folder / "words.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nhello\n")
    (folder / "tags.txt").write_text(
        ";FFMETADATA1\ntitle=My Film\ncomment=old words\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=300\ntitle=one\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=300\nEND=600\ntitle=two\n"
    )
    ffmpeg(
        "-f", "lavfi", "-i", SOURCE.format(rate=25, seconds=0.6),
        "-f", "lavfi", "-i", "sine=d=0.6", "-f", "lavfi", "-i", "sine=f=880:d=0.6",
        "-i", folder / "words.srt", "-i", folder / "tags.txt",
        "-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map_metadata", "4",
        "-map_chapters", "4", "-c:a", "aac", "-c:s", "srt", "-preset", "ultrafast",
        "-metadata:s:a:1", "language=fra", folder / "rich.mkv",
    )  # fmt: skip
    return folder / "rich.mkv"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_tracks_chapters_and_tags(tmp_path: Path, rich: Path, suffix: str) -> None:
    need("libvpx-vp9" if suffix == ".webm" else "libx264")
    target = tmp_path / f"out{suffix}"
    preset = "8" if suffix == ".webm" else "ultrafast"
    out = copy(rich, target, Encoding(preset=preset))
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == 2
        assert len(container.streams.subtitles) == (0 if suffix == ".avi" else 1)
        tags = {key.lower(): value for key, value in container.metadata.items()}
        if suffix != ".avi":
            assert [chapter["metadata"]["title"] for chapter in container.chapters()] == [
                "one",
                "two",
            ]
            assert container.streams.audio[1].language == "fra"
    assert tags["title"] == "My Film"
    assert COMPOSITE in tags["comment"]
    assert "old words" in tags["comment"]
    found = read_provenance(target)
    assert found is not None
    assert found.source_type == COMPOSITE
    assert found.tool.startswith("faceswap ")
    said = " ".join(out.warnings)
    assert ("subtitles" in said) == (suffix == ".avi")
    assert ("sound" in said) == (suffix in (".avi", ".webm"))


def test_mp4_subtitles_and_mp3_sound_are_known_by_their_codec(tmp_path: Path, rich: Path) -> None:
    ffmpeg(
        "-i", rich, "-map", "0:v", "-map", "0:a:0", "-map", "0:s", "-c:v", "copy",
        "-c:a", "libmp3lame", "-c:s", "mov_text", tmp_path / "in.mp4",
    )  # fmt: skip
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert reader.clip.audio == ("mp3",)
        assert reader.clip.subtitles == ("mov_text",)
    for suffix, kind in ((".mp4", "mov_text"), (".mkv", "subrip"), (".avi", None)):
        out = copy(tmp_path / "in.mp4", tmp_path / f"out{suffix}")
        assert bool(out.warnings) == (kind is None)
        with VideoReader(tmp_path / f"out{suffix}") as reader:
            assert reader.clip.subtitles == (() if kind is None else (kind,))
            assert reader.clip.audio == ("mp3",)


def test_missing_sound_encoder_is_said_up_front(
    tmp_path: Path, rich: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "encoders", lambda program: frozenset({"libvpx-vp9"}))
    with VideoReader(rich) as reader, pytest.raises(MediaError, match=r"libopus.*--no-audio"):
        VideoWriter(tmp_path / "out.webm", reader.info, source=reader.clip)
    assert os.listdir(tmp_path) == []


def test_tags_do_not_grow_when_a_result_is_swapped_again(tmp_path: Path, rich: Path) -> None:
    copy(rich, tmp_path / "one.mp4")
    copy(tmp_path / "one.mp4", tmp_path / "two.mp4")
    with av.open(str(tmp_path / "two.mp4")) as container:
        assert container.metadata["comment"].count("Synthetic media") == 1


def test_tags_that_are_no_utf8_do_not_stop_a_clip(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.avi", "-metadata", "comment=caf_ noir")
    source.write_bytes(source.read_bytes().replace(b"caf_", b"caf\xe9"))  # Latin-1
    copy(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert "caf noir" in container.metadata["comment"]


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.mp4", None, "no file"),
        ("text.mp4", b"these are words\n" * 50, "not a video"),
        ("text.txt", b"\x1b[31mwords\n" * 50, "not a video"),
        ("empty.mp4", b"", "empty"),
        ("photo.mp4", b"\xff\xd8\xff\xe0" + bytes(100), "faceswap image"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not a video"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        ("", None, "folder"),
    ],
)
def test_bad_files_give_one_clear_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    kind = MissingMediaError if name == "nowhere.mp4" else MediaError
    with pytest.raises(kind, match=message) as caught:
        VideoReader(path)
    assert "\n" not in str(caught.value)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "cover.png")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.3", tmp_path / "sound.m4a")
    video = clip(tmp_path / "clip.mp4", seconds=0.2)
    for source, name in ((tmp_path / "sound.m4a", "song.m4a"), (video, "clip_with_cover.mp4")):
        ffmpeg(
            "-i", tmp_path / "cover.png", "-i", source, "-map", "0", "-map", "1", "-c", "copy",
            "-disposition:v:0", "attached_pic", tmp_path / name,
        )  # fmt: skip
    with pytest.raises(MediaError, match="no video in it"):
        VideoReader(tmp_path / "song.m4a")
    copy(tmp_path / "clip_with_cover.mp4", tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4").shape == (5, 3, 64, 96)


def test_sound_only(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.3", tmp_path / "sound.m4a")
    with pytest.raises(MediaError, match="no video in it"):
        VideoReader(tmp_path / "sound.m4a")


@pytest.mark.parametrize("name", ["fast.mp4", "in.mkv"])
def test_truncated_file_gives_what_there_is(tmp_path: Path, name: str) -> None:
    options = ["-movflags", "faststart", "-g", "5"]
    whole = clip(tmp_path / name, *options, seconds=1.6)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(data[: len(data) // 2])
    with VideoReader(cut) as reader:
        count = sum(len(batch) for batch in reader)
        assert 5 < count < 38
        assert reader.damaged
        assert any("cut short" in warning for warning in reader.warnings)


def test_mp4_cut_before_its_index(tmp_path: Path) -> None:
    whole = clip(tmp_path / "in.mp4")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(MediaError, match="cut off before its index"):
        VideoReader(tmp_path / "cut.mp4")


def test_damage_in_the_middle(tmp_path: Path) -> None:
    whole = clip(tmp_path / "in.mkv", "-g", "5", "-bf", "0")
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "bad.mkv").write_bytes(data)
    with VideoReader(tmp_path / "bad.mkv") as reader:
        count = sum(len(batch) for batch in reader)
        assert count >= 8
        assert reader.damaged
        assert reader.warnings


def test_truncated_webp(tmp_path: Path) -> None:
    animation(tmp_path / "in.webp")
    (tmp_path / "cut.webp").write_bytes((tmp_path / "in.webp").read_bytes()[:200])
    with pytest.raises(MediaError, match="damaged or cut short"):
        VideoReader(tmp_path / "cut.webp")
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "still.webp")
    with pytest.raises(MediaError, match="faceswap image"):
        VideoReader(tmp_path / "still.webp")


@pytest.mark.parametrize(
    "name", ["a b.mp4", "quo'te\".mp4", "-dash.mp4", "Ünï-文.mp4", "a:b%03d.mp4"]
)
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "in.mp4", seconds=0.2).rename(name)
    copy(Path(name), Path(f"{name[:-4]}_swapped.mp4"))
    assert len(seconds_of(Path(f"{name[:-4]}_swapped.mp4"))) == 5


# --- bad output --------------------------------------------------------------------------------


INFO = VideoInfo(32, 32, Fraction(10), Fraction(1, 10), 0, 0.0)


def test_outputs_refused_before_any_work(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", seconds=0.2)
    before = source.read_bytes()
    os.link(source, tmp_path / "hard.mp4")
    with VideoReader(source) as reader:
        for name in ("in.mp4", "hard.mp4"):
            with pytest.raises(MediaError, match="same file"):
                VideoWriter(tmp_path / name, reader.info, source=reader.clip, overwrite=True)
    assert source.read_bytes() == before
    (tmp_path / "there.mp4").touch()
    cases = {
        "there.mp4": "--overwrite",
        "out.xyz": "Cannot tell the format",
        "nowhere/out.mp4": "does not exist",
        "/proc/self/out.mp4": "Cannot write into",
    }
    for name, message in cases.items():
        with pytest.raises(MediaError, match=message):
            VideoWriter(tmp_path / name, INFO)
    with pytest.raises(MediaError, match=r"webm cannot hold h264; it holds vp9"):
        VideoWriter(tmp_path / "out.webm", INFO, encoding=Encoding(codec="h264"))
    with pytest.raises(ConfigError, match="no codec"):
        VideoWriter(tmp_path / "out.mp4", INFO, encoding=Encoding(codec="h999"))
    with pytest.raises(MediaError, match="has no encoder 'libnothing'"):
        VideoWriter(tmp_path / "out.mp4", INFO, encoding=Encoding(encoder="libnothing"))
    with pytest.raises(ConfigError, match="does not take"):
        VideoWriter(tmp_path / "out.mp4", INFO, encoding=Encoding(pixel_format="pal8"))
    assert sorted(os.listdir(tmp_path)) == ["hard.mp4", "in.mp4", "there.mp4"]


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An ffmpeg that answers questions like the real one and does ``script`` otherwise."""
    real = find_ffmpeg()
    path = folder / "ffmpeg"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *pipe:0*) {script} ;; *) exec "{real}" "$@" ;; esac\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(writer, "find_ffmpeg", lambda: str(path))


def write_many(path: Path, count: int = 400) -> None:
    frames = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with VideoWriter(path, INFO) as out:
        for pts in range(count):
            out.write(frames, [pts])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'No space left on device' >&2; exit 1", "no space is left"),
        ("head -c 5000 > /dev/null; echo 'Cannot do it' >&2; exit 1", "Cannot do it"),
        ("cat > /dev/null; echo late >&2; exit 1", "late"),
        ("cat > /dev/null; exit 0", "Cannot write"),
        ("kill -9 $$", "ffmpeg stopped"),
    ],
)
def test_ffmpeg_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_ffmpeg(tmp_path, monkeypatch, script)
    with pytest.raises(MediaError, match=message) as caught:
        write_many(tmp_path / "out.mp4")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["ffmpeg"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_ffmpeg()
    fake_ffmpeg(tmp_path, monkeypatch, f'trap "" XFSZ; ulimit -f 4; exec "{real}" "$@"')
    noise = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)

    def work() -> None:
        with VideoWriter(tmp_path / "out.mkv", INFO) as out:
            for pts in range(300):
                out.write(noise, [pts])

    with pytest.raises(MediaError, match="no space is left"):
        work()
    assert os.listdir(tmp_path) == ["ffmpeg"]


@pytest.mark.timeout(60)
def test_talkative_ffmpeg_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatter = "i=0; while [ $i -lt 3000 ]; do echo 'a long line of chatter about nothing' >&2"
    fake_ffmpeg(tmp_path, monkeypatch, f"{chatter}; i=$((i+1)); done; cat > /dev/null; exit 1")
    with pytest.raises(MediaError, match="chatter"):
        write_many(tmp_path / "out.mp4")


def test_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"precious")

    def work() -> None:
        with VideoWriter(tmp_path / "out.mp4", INFO, overwrite=True) as out:
            out.write(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [0, 1])
            raise KeyError("a bug elsewhere")

    with pytest.raises(KeyError):
        work()
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize("there", [True, False], ids=["broken", "not-installed"])
def test_no_ffmpeg_at_all(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def nothing() -> str:
        raise RuntimeError("none")

    monkeypatch.setattr(binary.shutil, "which", lambda name: None)
    if there:
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", nothing)
    else:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MediaError, match="install ffmpeg"):
        find_ffmpeg()


def test_frames_of_the_wrong_size(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"expected \(1, 3, 32, 32\)"),
        VideoWriter(tmp_path / "out.mp4", INFO) as out,
    ):
        out.write(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [0])
    assert os.listdir(tmp_path) == []


# --- threads -----------------------------------------------------------------------------------


def alive() -> int:
    return sum(t.name.startswith(("prefetch", "sink")) for t in threading.enumerate())


def test_prefetch_keeps_order_and_stays_bounded() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for index in range(50):
            made.append(index)
            yield index

    with Prefetch(source(), depth=2) as items:
        got = []
        for item in items:
            assert len(made) <= len(got) + 4  # two queued, one in hand, one being made
            got.append(item)
    assert got == list(range(50))
    assert alive() == 0


@pytest.mark.timeout(20)
def test_prefetch_can_be_left_at_any_time() -> None:
    with Prefetch(itertools.count(), depth=3) as items:
        assert next(items) == 0
    assert alive() == 0
    with Prefetch(itertools.count()):
        pass
    assert alive() == 0


def test_prefetch_hands_over_the_error_of_the_source() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise MediaError("broken")

    with Prefetch(source()) as items:
        assert next(items) == 1
        with pytest.raises(MediaError, match="broken"):
            next(items)
    assert alive() == 0


def test_sink_consumes_everything_in_order() -> None:
    got: list[int] = []
    with Sink(got.append, depth=2) as sink:
        for index in range(100):
            sink.send(index)
    assert got == list(range(100))
    assert alive() == 0


@pytest.mark.timeout(20)
def test_sink_error_reaches_the_sender_or_the_end() -> None:
    def fail(item: int) -> None:
        raise MediaError(f"cannot take {item}")

    def send_many() -> None:
        with Sink(fail, depth=1) as sink:
            for index in range(1000):
                sink.send(index)

    with pytest.raises(MediaError, match="cannot take 0"):
        send_many()

    def send_one() -> None:
        with Sink(fail, depth=4) as sink:
            sink.send(7)

    with pytest.raises(MediaError, match="cannot take 7"):
        send_one()
    assert alive() == 0


@pytest.mark.timeout(20)
def test_sink_forgets_what_waits_when_the_block_fails() -> None:
    gate = threading.Event()
    got: list[int] = []

    def slow(item: int) -> None:
        gate.wait(5)
        got.append(item)

    def work() -> None:
        with Sink(slow, depth=8) as sink:
            for index in range(5):
                sink.send(index)
            gate.set()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert len(got) <= 5
    assert alive() == 0


def test_whole_chain_in_threads(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    with (
        VideoReader(source, batch=3) as reader,
        VideoWriter(tmp_path / "out.mp4", reader.info, source=reader.clip, encoding=FAST) as out,
        Sink[FrameBatch](lambda batch: out.write(batch.frames, batch.pts, batch)) as sink,
        Prefetch(reader) as batches,
    ):
        for batch in batches:
            sink.send(batch)
    assert seconds_of(tmp_path / "out.mp4") == seconds_of(source)


def test_buffers_are_lent_again_and_never_twice() -> None:
    buffers = Buffers()
    first = buffers.tensor(2, 3)
    where = first.data_ptr()
    kept = first[1]  # a view of a view: the block is still looked at
    del first
    gc.collect()
    second = buffers.tensor(2, 3)
    assert second.data_ptr() != where
    second.fill_(7)
    kept.fill_(9)
    assert int(second.max()) == 7
    del kept
    gc.collect()
    assert buffers.tensor(3, 2).data_ptr() == where
    luma, chroma = buffers.planes([(4, 6), (2, 3)], 2)
    luma[:], chroma[:] = 1, 1023
    assert (luma.dtype, luma.shape, int(luma.max())) == (np.dtype("<u2"), (4, 6), 1)
    assert (chroma.shape, int(chroma.min())) == ((2, 3), 1023)


def test_frames_of_a_batch_do_not_change_when_reading_goes_on(tmp_path: Path) -> None:
    """Blocks are used again, those of frames that somebody holds are not."""
    source = clip(tmp_path / "in.mkv", "-c:v", "ffv1", seconds=1.2)
    with VideoReader(source, batch=4) as reader:
        held, copies = [], []
        for number, batch in enumerate(reader):
            if number % 2:
                held.append(batch)
                copies.append((batch.frames.clone(), [[*map(np.copy, p)] for p in batch.planes]))
    assert len(held) > 2
    for batch, (frames, planes) in zip(held, copies, strict=True):
        assert torch.equal(batch.frames, frames)
        for own, copied in zip(batch.planes, planes, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(own, copied, strict=True))


@pytest.mark.parametrize("name", ["in.mp4", "in.webp"])
def test_a_look_here_and_there_gives_the_frames_that_reading_gives(
    tmp_path: Path, name: str
) -> None:
    options = ("-g", "12", "-bf", "2")
    if name.endswith("webp"):
        need("libwebp_anim")
        options = ("-c:v", "libwebp_anim", "-lossless", "1")
    source = clip(tmp_path / name, *options, rate="10", seconds=4)
    with VideoReader(source, batch=100) as reader:
        every = next(iter(reader))
        zero = reader.origin * every.time_base
    with VideoReader(source, batch=1) as reader:
        for moment in (2.05, 0.3, 3.9, 1.1):
            there = reader.frame_at(moment)
            assert there is not None
            number = next(
                i for i, t in enumerate(every.seconds) if t - zero >= Fraction(str(moment))
            )
            assert there.pts == every.pts[number : number + 1]
            assert torch.equal(there.frames[0], every.frames[number])
        assert reader.frame_at(4.2) is None
        assert reader.frame_at(0) is not None
