"""Swapping in clips: who, when, in sync, and what happens when something goes wrong.

People are coloured squares and the swapper paints (see `puppets`), so that all of the machinery
around the networks runs in full; one test at the end swaps a real face.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from puppets import BASE, Drawn, Puppeteer, draw, painted, painted_at, write_clip
from torch import Tensor

from faceswap import video
from faceswap.casting import Casting
from faceswap.config import VideoConfig
from faceswap.errors import ConfigError, DeviceError, FaceSwapError, MediaError, NoFaceError
from faceswap.media.binary import encoders, find_ffmpeg
from faceswap.media.planes import FrameBatch
from faceswap.media.provenance import COMPOSITE, read_provenance
from faceswap.media.reader import VideoReader
from faceswap.media.writer import VideoWriter
from faceswap.people import list_people
from faceswap.segments import at_rate
from faceswap.types import Faces
from faceswap.video import swap_video
from faceswap.window import Window

FAST = {"encode": {"preset": "ultrafast", "crf": 4}, "batch_size": 4}
SOURCE = np.full((32, 32, 3), 127, np.uint8)


def config(**settings: object) -> VideoConfig:
    return VideoConfig(**{**FAST, **settings})


def photo(person: str) -> np.ndarray:
    """A reference photo."""
    return draw([(person, 10, 10, 30)], (50, 50)).permute(1, 2, 0).numpy()


def read(path: str | Path) -> tuple[Tensor, list[int]]:
    """All frames ``(T, 3, H, W)`` and their times in ticks."""
    with VideoReader(path) as reader:
        batches = list(reader)
    return torch.cat([b.frames for b in batches]), [p for b in batches for p in b.pts]


def two(t: int) -> Drawn:
    """Red on the left and blue on the right, both drifting."""
    return [("red", 12 + 0.5 * t, 20, 30), ("blue", 80 - 0.5 * t, 24, 28)]


def make(path: Path, scene, count: int = 30, **options: object) -> Path:
    return write_clip(path, [draw(scene(t)) for t in range(count)], **options)


def swap(clip: Path, output: Path, *, source=SOURCE, settings: VideoConfig | None = None, **given):
    settings = settings or config()
    given.setdefault("overwrite", True)
    return swap_video(Puppeteer(settings), source, clip, output, config=settings, **given)


def test_one_person_is_swapped_in_every_frame_without_identities(tmp_path: Path) -> None:
    clip = make(tmp_path / "one.mp4", lambda t: [("red", 20 + t, 20, 30)])
    puppets = Puppeteer(config())
    report = swap_video(puppets, SOURCE, clip, tmp_path / "out.mp4", config=puppets.config)
    frames, pts = read(report.output)
    assert puppets.asked == 0
    assert pts == read(clip)[1]
    assert all(painted_at(frame, 20 + t, 20, 30) == "white" for t, frame in enumerate(frames))
    assert (report.frames, report.faces_swapped, report.tracks) == (30, 30, 1)
    assert report.person == ""
    assert report.jitter is not None
    assert {"decode", "track", "encode", "total"} <= set(report.seconds)
    assert [path.name for path in tmp_path.iterdir()].count(".out.mp4.work") == 0


def test_only_the_person_in_the_reference(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", two)
    report = swap(clip, tmp_path / "out.mp4", reference=photo("blue"))
    for t, frame in enumerate(read(report.output)[0]):
        red, blue = two(t)
        assert painted_at(frame, *blue[1:]) == "white"
        assert painted_at(frame, *red[1:]) == ""
    assert {entry["frames"] for entry in report.swaps} == {30}


def test_pairs_give_each_person_their_own_source(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", two)
    pairs = [(SOURCE, photo("blue")), (SOURCE.copy(), photo("red"))]
    report = swap(clip, tmp_path / "out.mp4", source=pairs)
    for t, frame in enumerate(read(report.output)[0]):
        red, blue = two(t)
        assert painted_at(frame, *blue[1:]) == "white"
        assert painted_at(frame, *red[1:]) == "yellow"


def test_several_references_for_one_source(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", two, 12)
    report = swap(clip, tmp_path / "out.mp4", reference=[photo("blue"), photo("red")])
    assert report.faces_swapped == 24


def test_the_most_present_person_if_nobody_is_named(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", lambda t: two(t)[1:] if t < 12 else two(t))
    report = swap(clip, tmp_path / "out.mp4")
    assert "2 people" in report.person
    assert "100%" in report.person
    for t, frame in enumerate(read(report.output)[0]):
        assert painted_at(frame, *two(t)[1][1:]) == "white"
        assert painted_at(frame, *two(t)[0][1:]) == ""


def test_everybody(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", two, 10)
    assert swap(clip, tmp_path / "out.mp4", all_faces=True).faces_swapped == 20


def test_people_who_cross_keep_their_sources(tmp_path: Path) -> None:
    def scene(t: int) -> Drawn:
        return [("red", 4 + 2.2 * t, 18, 30), ("blue", 94 - 2.2 * t, 26, 30)]

    clip = make(tmp_path / "cross.mp4", scene, 42)
    pairs = [(SOURCE, photo("blue")), (SOURCE.copy(), photo("red"))]
    frames, _ = read(swap(clip, tmp_path / "out.mp4", source=pairs).output)
    for t in [*range(10), *range(32, 42)]:
        assert painted_at(frames[t], *scene(t)[0][1:]) == "yellow"
        assert painted_at(frames[t], *scene(t)[1][1:]) == "white"


def test_leaving_and_returning_elsewhere(tmp_path: Path) -> None:
    def scene(t: int) -> Drawn:
        if t < 15:
            return [("red", 10, 20, 30)]
        return [] if t < 40 else [("blue", 10, 20, 30), ("red", 80, 20, 30)]

    clip = make(tmp_path / "back.mp4", scene, 60)
    frames, _ = read(swap(clip, tmp_path / "out.mp4", reference=photo("red")).output)
    assert painted_at(frames[10], 10, 20, 30) == "white"
    assert painted_at(frames[55], 80, 20, 30) == "white"
    assert painted_at(frames[55], 10, 20, 30) == ""
    assert all(painted(frame)["white"] == 0 for frame in frames[15:40])


def test_a_gap_is_bridged(tmp_path: Path) -> None:
    def scene(t: int) -> Drawn:
        return [] if 14 <= t < 18 else [("red", 20 + 2 * t, 20, 30)]

    clip = make(tmp_path / "gap.mp4", scene, 30)
    report = swap(clip, tmp_path / "out.mp4")
    frames, _ = read(report.output)
    assert report.bridged == 4
    assert all(painted_at(frames[t], 20 + 2 * t, 20, 30) == "white" for t in range(30))
    none = swap(clip, tmp_path / "out.mp4", settings=config(track={"max_gap": 0.0}))
    assert none.bridged == 0
    assert painted(read(none.output)[0][16])["white"] == 0


def test_fading_in_and_out_of_view_but_not_at_cuts(tmp_path: Path) -> None:
    def scene(t: int) -> Drawn:
        return [("red", 40, 20, 30)] if 10 <= t < 30 else []

    frames = [draw(scene(t)) for t in range(40)]
    frames += [draw([("red", 60, 10, 30)], background=230) for _ in range(10)]  # another shot
    clip = write_clip(tmp_path / "fade.mp4", frames)
    out, _ = read(swap(clip, tmp_path / "out.mp4", settings=config(track={"fade": 0.12})).output)
    share = [float(out[t, 1, 33:39, 52:58].float().mean() - 30) / 225 for t in range(10, 30)]
    assert share[0] == pytest.approx(0.25, abs=0.1)
    assert share[1] == pytest.approx(0.5, abs=0.1)
    assert share[10] == pytest.approx(1.0, abs=0.1)
    assert share[-1] == pytest.approx(0.25, abs=0.1)
    assert painted_at(out[40], 60, 10, 30) == "white"


def test_a_face_of_a_moment_is_no_person(tmp_path: Path) -> None:
    clip = make(
        tmp_path / "flash.mp4",
        lambda t: [("red", 10, 20, 30)] + ([("blue", 80, 20, 30)] if t in (12, 13) else []),
    )
    report = swap(clip, tmp_path / "out.mp4", all_faces=True)
    assert report.dropped == 2
    assert report.faces_swapped == 30


def test_detection_on_every_third_frame_finds_those_between(tmp_path: Path) -> None:
    clip = make(tmp_path / "one.mp4", lambda t: [("red", 20 + t, 20, 30)])
    report = swap(clip, tmp_path / "out.mp4", settings=config(track={"detect_every": 3}))
    frames, _ = read(report.output)
    assert all(painted_at(frames[t], 20 + t, 20, 30) == "white" for t in range(30))
    assert report.bridged == 0


@pytest.mark.parametrize("every", [2, 4])
def test_frames_before_a_cut_that_nobody_looked_at(tmp_path: Path, every: int) -> None:
    """Cuts fall between the frames that are looked at; the face is swapped up to the last one."""

    def scene(t: int) -> Drawn:
        return [("red", 20 + t, 20, 30)] if t < 15 else [("red", 90 - t, 30, 30)]

    drawn = [draw(scene(t), background=90 if t < 15 else 230) for t in range(27)]
    clip = write_clip(tmp_path / "cut.mp4", drawn)
    report = swap(clip, tmp_path / "out.mp4", settings=config(track={"detect_every": every}))
    frames, _ = read(report.output)
    assert all(painted_at(frame, *scene(t)[0][1:]) == "white" for t, frame in enumerate(frames))
    assert report.faces_swapped == 27


def test_times_of_a_variable_rate_survive_the_segments(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.3)
    steps = torch.randint(300, 1100, (60,), generator=torch.Generator().manual_seed(3))
    pts = [0, *steps.cumsum(0).tolist()][:60]
    clip = make(tmp_path / "vfr.mp4", lambda t: [("red", 20, 20, 30)], 60, pts=pts)
    report = swap(clip, tmp_path / "out.mp4")
    assert read(report.output)[1] == read(clip)[1]
    assert report.frames == 60


def sound(clip: Path, path: Path) -> Path:
    """The same with two sounds and a title."""
    tones = [f"sine=frequency={f}:duration=1.2" for f in (440, 660)]
    command = [find_ffmpeg(), "-v", "error", "-y", "-i", clip]
    for tone in tones:
        command += ["-f", "lavfi", "-i", tone]
    command += ["-map", "0", "-map", "1", "-map", "2", "-c:v", "copy", "-c:a", "aac"]
    subprocess.run([*command, "-metadata", "title=holiday", path], check=True)
    return path


def test_all_sounds_and_titles_are_copied_and_the_mark_is_set(tmp_path: Path) -> None:
    silent = make(tmp_path / "one.mp4", lambda t: [("red", 20 + t, 20, 30)])
    clip = sound(silent, tmp_path / "sound.mp4")
    report = swap(clip, tmp_path / "out.mp4", sidecar=True)
    with av.open(report.output) as out, av.open(str(clip)) as given:
        assert [s.codec_context.name for s in out.streams.audio] == ["aac", "aac"]
        assert out.metadata["title"] == "holiday"
        for a, b in zip(out.streams.audio, given.streams.audio, strict=True):
            assert (a.frames, a.duration) == (b.frames, b.duration)
    mark = read_provenance(report.output)
    assert mark is not None
    assert mark.source_type == COMPOSITE
    written = json.loads((tmp_path / "out.mp4.json").read_text())
    assert written["synthetic_media"] is True
    assert written["swaps"][0]["frames"] == 30
    mute = swap(
        clip, tmp_path / "mute.mp4", settings=config(encode={**FAST["encode"], "audio": False})
    )
    with av.open(mute.output) as out:
        assert not out.streams.audio


def test_a_part_of_a_clip_keeps_sound_in_sync(tmp_path: Path) -> None:
    silent = make(tmp_path / "one.mp4", lambda t: [("red", 20 + t, 20, 30)])
    clip = sound(silent, tmp_path / "sound.mp4")
    report = swap(clip, tmp_path / "out.mp4", settings=config(start=0.4, end=1.0))
    frames, pts = read(report.output)
    assert [Fraction(p) * BASE for p in pts] == [Fraction(i, 25) for i in range(15)]
    assert painted_at(frames[0], 30, 20, 30) == "white"
    with av.open(report.output) as out:
        for stream in out.streams.audio:
            length = float((stream.duration or 0) * stream.time_base)
            assert length == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animations(tmp_path: Path, suffix: str) -> None:
    clip = make(tmp_path / f"in{suffix}", lambda t: [("red", 20 + t, 20, 30)], 12, rate=10)
    report = swap(clip, tmp_path / f"out{suffix}")
    frames, pts = read(report.output)
    assert pts == read(clip)[1]
    assert all(painted_at(frame, 20 + t, 20, 30) == "white" for t, frame in enumerate(frames))


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi", ".webm"])
def test_other_containers(tmp_path: Path, suffix: str) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20 + t, 20, 30)], 12)
    settings = config(encode={"crf": 10}) if suffix == ".webm" else config()
    settings = config(encode={}) if suffix == ".avi" else settings
    report = swap(clip, tmp_path / f"out{suffix}", settings=settings)
    frames, _ = read(report.output)
    assert len(frames) == 12
    assert painted_at(frames[6], 26, 20, 30) == "white"


def test_another_frame_rate(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20 + t, 20, 30)], 25)
    settings = config(encode={**FAST["encode"], "fps": "10"})
    frames, pts = read(swap(clip, tmp_path / "out.mp4", settings=settings).output)
    assert len(frames) == 10
    assert len({b - a for a, b in itertools.pairwise(pts)}) == 1


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_stays_hdr_through_the_segments(tmp_path: Path, monkeypatch, transfer: str) -> None:
    if "libx265" not in encoders(find_ffmpeg()):
        pytest.skip("this ffmpeg has no libx265")
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.3)
    plain = make(tmp_path / "in.mkv", lambda t: [("red", 20 + t, 20, 30)], 20)
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
    clip = tmp_path / "hdr.mp4"
    command = [find_ffmpeg(), "-v", "error", "-i", plain, "-vf", f"format=yuv420p10le,{tags}"]
    command += ["-c:v", "libx265", "-x265-params", "log-level=none", "-preset", "ultrafast", clip]
    subprocess.run(command, check=True)
    report = swap(clip, tmp_path / "out.mp4")
    assert report.faces_swapped == 20
    with VideoReader(report.output) as reader:
        info = reader.info
    assert (info.codec, info.bits, info.pixel_format) == ("hevc", 10, "yuv420p10le")
    got = (info.color_space, info.color_primaries, info.color_transfer, info.color_range)
    assert got == ("bt2020nc", "bt2020", transfer, "tv")
    assert read(report.output)[1] == read(clip)[1]


def test_interlaced_input_is_said(tmp_path: Path) -> None:
    plain = make(tmp_path / "in.mkv", lambda t: [("red", 20, 20, 30)], 10)
    command = [find_ffmpeg(), "-v", "error", "-i", plain, "-vf", "setfield=tff", "-flags", "+ildct"]
    subprocess.run([*command, "-c:v", "mpeg2video", "-q:v", "2", tmp_path / "tv.mkv"], check=True)
    report = swap(tmp_path / "tv.mkv", tmp_path / "out.mp4")
    assert report.faces_swapped == 10
    assert [w for w in report.warnings if "is interlaced; it is treated as progressive" in w]
    assert not [w for w in swap(plain, tmp_path / "p.mp4").warnings if "interlaced" in w]


def test_frames_without_a_swap_come_through_untouched(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mkv", lambda t: [("red", 40, 20, 30)] if t >= 20 else [], 30)
    settings = config(encode={"codec": "ffv1"})
    frames, _ = read(swap(clip, tmp_path / "out.mkv", settings=settings).output)
    assert torch.equal(frames[:20], read(clip)[0][:20])


SCENE = """
from pathlib import Path
import sys
sys.path.insert(0, {tests!r})
from test_video import *
video.SEGMENT_SECONDS = 0.5
settings = config(encode={encode!r})
swap_video(Puppeteer(settings, slow=0.15), SOURCE, {clip!r}, {output!r}, config=settings,
           reference=photo("blue"))
"""


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch, suffix: str) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    encode = FAST["encode"] if suffix == ".mp4" else {}
    clip = make(tmp_path / "long.mp4", lambda t: two(t % 60), 120)
    settings = config(encode=encode)
    whole = swap(clip, tmp_path / f"whole{suffix}", reference=photo("blue"), settings=settings)
    output = tmp_path / f"out{suffix}"
    code = SCENE.format(
        tests=str(Path(__file__).parent), clip=str(clip), output=str(output), encode=encode
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    journal = tmp_path / f".out{suffix}.work" / "journal.json"
    try:
        deadline = time.monotonic() + 240
        while not journal.exists() or len(json.loads(journal.read_text())["segments"]) < 2:
            assert child.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not output.exists()
    done = len(json.loads(journal.read_text())["segments"])
    puppets, seen = Puppeteer(settings), []
    report = swap_video(
        puppets,
        SOURCE,
        clip,
        output,
        config=puppets.config,
        reference=photo("blue"),
        resume=True,
        progress=lambda frames, *_: seen.append(frames),
    )
    assert seen[0] > 12 * done  # it did go on, not start over
    assert report.faces_swapped == whole.faces_swapped == 120
    assert report.swaps == whole.swaps
    (a, a_pts), (b, b_pts) = read(whole.output), read(report.output)
    assert a_pts == b_pts
    assert torch.equal(a, b)
    assert Path(whole.output).stat().st_size == output.stat().st_size
    assert not journal.parent.exists()


@pytest.mark.parametrize(
    ("suffix", "encode"),
    [(".webp", {}), (".apng", {}), (".avi", {}), (".mkv", {"fps": "10"}), (".mp4", {"fps": "60"})],
)
def test_other_outputs_resume_to_the_same(
    tmp_path: Path, monkeypatch, suffix: str, encode: dict[str, str]
) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20 + t % 40, 20, 30)], 100)
    settings = config(encode=encode)
    whole = swap(clip, tmp_path / f"whole{suffix}", settings=settings)
    output, seen = tmp_path / f"out{suffix}", []
    interrupt(clip, output, settings)
    assert len(list((tmp_path / f".out{suffix}.work").glob("0*"))) >= 2
    report = swap(
        clip,
        output,
        settings=settings,
        resume=True,
        progress=lambda frames, *_: seen.append(frames),
    )
    assert seen[0] > 25
    (a, a_pts), (b, b_pts) = read(whole.output), read(report.output)
    assert a_pts == b_pts
    assert torch.equal(a, b)
    assert len(a) == {"10": 40, "60": 240}.get(encode.get("fps", ""), 100)


def test_an_animation_keeps_what_was_not_swapped_bit_for_bit(tmp_path: Path) -> None:
    """Its frames lie in a lossless file for a while; transparency has to survive that too."""
    pictures = []
    for t in range(8):
        seen = np.dstack([draw([("red", 20, 20, 30)] if t > 4 else []).permute(1, 2, 0), ALPHA])
        seen[:10, :, :3] = RNG.integers(0, 60, (10, 128, 3))
        pictures.append(PIL.Image.fromarray(seen.astype(np.uint8)))
    clip = tmp_path / "in.apng"
    pictures[0].save(clip, "PNG", save_all=True, append_images=pictures[1:], duration=70)
    with VideoReader(clip) as reader:
        before = [(p, plane) for b in reader for p, plane in zip(b.pts, b.planes, strict=True)]
    with VideoReader(
        swap(clip, tmp_path / "out.apng", settings=config(encode={})).output
    ) as reader:
        assert reader.info.alpha
        after = [(p, plane) for b in reader for p, plane in zip(b.pts, b.planes, strict=True)]
    assert len(after) == 8
    for (a, was), (b, now) in zip(before[:5], after, strict=False):
        assert b == pytest.approx(a * after[-1][0] / before[-1][0], abs=1)
        assert all(np.array_equal(x, y) for x, y in zip(was, now, strict=True))


RNG = np.random.default_rng(0)
ALPHA = np.tile(np.linspace(255, 40, 128).astype(np.uint8), (72, 1))


@pytest.mark.parametrize("rate", ["10", "24000/1001", "25", "60"])
def test_convention_a_constant_rate_is_that_of_the_fps_filter(tmp_path: Path, rate: str) -> None:
    """Which frame stands at which moment, against ffmpeg itself, for a clip of uneven times."""
    ticks = np.cumsum(RNG.integers(200, 900, 40)).tolist()
    grey = [torch.full((3, 32, 32), 5 * i + 20, dtype=torch.uint8) for i in range(40)]
    clip = write_clip(tmp_path / "in.mkv", grey, pts=ticks)
    command = [find_ffmpeg(), "-v", "error", "-i", clip, "-vf", f"fps={rate}", "-c:v", "ffv1"]
    subprocess.run([*command, tmp_path / "out.mkv"], check=True)
    frames, pts = read(clip)
    with VideoReader(clip) as reader:
        seconds = [(p - reader.origin) * reader.info.time_base for p in pts]
    levels = {int(frame[0, 9, 9]): i for i, frame in enumerate(frames)}
    theirs = [levels[int(frame[0, 9, 9])] for frame in read(tmp_path / "out.mkv")[0]]
    ours = [i for i, _ in at_rate([*seconds, seconds[-1]], Fraction(rate))]
    assert ours == theirs[: len(ours)]
    assert len(theirs) - len(ours) <= max(1, Fraction(rate) / 10)  # the last frame's own length


def interrupt(clip: Path, output: Path, settings: VideoConfig, source=SOURCE) -> None:
    """Break off when half of it is done."""

    def stop(frames: int, *_: int) -> None:
        if frames >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swap_video(Puppeteer(settings), source, clip, output, config=settings, progress=stop)


def test_work_of_another_run_is_not_taken_for_this_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 90)
    output = tmp_path / "out.mp4"
    interrupt(clip, output, config())
    assert (tmp_path / ".out.mp4.work").is_dir()
    with pytest.raises(ConfigError, match="other inputs or settings"):
        swap(clip, output, settings=config(track={"smoothing": 0.1}), resume=True)
    assert swap(clip, output).frames == 90  # without resume: from the start
    assert not (tmp_path / ".out.mp4.work").exists()


HOLDER = """
import sys, time
from pathlib import Path
from faceswap.journal import Journal
with Journal(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_on_one_output(tmp_path: Path, monkeypatch, capsys) -> None:
    """The second is refused in one line and touches nothing; a dead one's lock is taken over."""
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 90)
    output, work = tmp_path / "out.mp4", tmp_path / ".out.mp4.work"
    interrupt(clip, output, config())
    finished = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(MediaError, match=f"Another run .process {holder.pid}.") as caught:
                swap(clip, output, resume=resume)
        assert caught.value.exit_code == 1
        kept = {p.name: p.stat().st_mtime_ns for p in work.iterdir() if p.name != "lock"}
        assert kept == finished
    finally:
        holder.kill()
        holder.wait()
    assert (work / "lock").exists()  # kill -9 leaves the file, the system lifts the lock
    seen: list[int] = []
    report = swap(clip, output, resume=True, progress=lambda frames, *_: seen.append(frames))
    assert seen[0] > 25
    assert report.frames == 90
    assert not work.exists()


def test_a_failure_before_the_work_keeps_that_of_an_earlier_run(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 90)
    interrupt(clip, tmp_path / "out.mp4", config())

    def none(*_: object, **__: object) -> None:
        raise NoFaceError("no face found in the source")

    monkeypatch.setattr(Puppeteer, "identify", none)
    with pytest.raises(NoFaceError):
        swap(clip, tmp_path / "out.mp4")
    assert (tmp_path / ".out.mp4.work" / "journal.json").exists()


def test_resume_goes_by_what_photos_show_not_by_their_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 90)
    output, photos = tmp_path / "out.mp4", [tmp_path / "a.png", tmp_path / "b.png"]
    for path in photos:
        PIL.Image.fromarray(SOURCE).save(path)
    interrupt(clip, output, config(), str(photos[0]))
    PIL.Image.fromarray(255 - SOURCE).save(photos[0])
    with pytest.raises(ConfigError, match="other inputs or settings"):
        swap(clip, output, source=str(photos[0]), resume=True)
    seen: list[int] = []
    swap(
        clip,
        output,
        source=str(photos[1]),
        resume=True,
        progress=lambda frames, *_: seen.append(frames),
    )
    assert seen[0] > 25


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 90)
    real, calls = VideoWriter.write, []

    def write(self, frames, pts, original=None):
        calls.append(pts)
        if len(calls) > 48:
            self.abort()
            raise MediaError("Cannot write: no space is left for it")
        return real(self, frames, pts, original)

    monkeypatch.setattr(VideoWriter, "write", write)
    with pytest.raises(MediaError, match=r"no space is left.*--resume goes on"):
        swap(clip, tmp_path / "out.mp4")
    monkeypatch.undo()
    monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.5)
    report = swap(clip, tmp_path / "out.mp4", resume=True)
    assert report.frames == 90
    assert len(read(report.output)[0]) == 90


# ---------------------------------------------------------------- what can be wrong


def left_behind(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir() if "out" in path.name}


def test_no_face_anywhere(tmp_path: Path) -> None:
    clip = make(tmp_path / "empty.mp4", lambda t: [], 10)
    with pytest.raises(NoFaceError, match="no face found in 10 frames"):
        swap(clip, tmp_path / "out.mp4")
    assert left_behind(tmp_path) == set()


def test_reference_matches_nobody(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", two, 10)
    with pytest.raises(NoFaceError, match=r"nobody matches.*best similarity 0\.\d\d, needed 0\.28"):
        swap(clip, tmp_path / "out.mp4", reference=photo("green"))
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not a video at all", "not a video"), (b"", "is empty")],
)
def test_not_a_video(tmp_path: Path, content: bytes, said: str) -> None:
    clip = tmp_path / "in.mp4"
    clip.write_bytes(content)
    with pytest.raises(MediaError, match=said):
        swap(clip, tmp_path / "out.mp4")
    assert left_behind(tmp_path) == set()


def test_sound_only(tmp_path: Path) -> None:
    clip = tmp_path / "in.m4a"
    command = [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.5", clip]
    subprocess.run(command, check=True)
    with pytest.raises(MediaError, match="no video in it"):
        swap(clip, tmp_path / "out.mp4")


def test_truncated_clip_is_swapped_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = torch.randint(0, 60, (60, 1, 72, 128), generator=torch.Generator().manual_seed(0))
    frames = [draw([("red", 20, 20, 30)]) for _ in range(60)]
    frames = [f + n.byte() * (f == 90) for f, n in zip(frames, noise, strict=True)]
    clip = write_clip(tmp_path / "in.mkv", frames)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut short; the \d+ frames.*partial") as caught:
        swap(clip, tmp_path / "out.mkv")
    assert caught.value.exit_code == 1
    assert left_behind(tmp_path) == {"out.mkv.partial"}
    content = (tmp_path / "out.mkv.partial").rename(tmp_path / "out.mkv")
    assert 5 < len(read(content)[0]) < 60


def test_damage_in_the_middle_is_survived_and_said(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mkv", lambda t: two(t % 50), 100)
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    clip.write_bytes(data)
    report = swap(clip, tmp_path / "out.mkv", all_faces=True)
    assert report.frames > 50
    assert Path(report.output).name == "out.mkv"


def test_unknown_duration(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 20)
    bare = tmp_path / "bare.h264"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-i", clip, "-c:v", "copy", "-f", "h264", bare], check=True
    )
    assert swap(bare, tmp_path / "out.mp4").frames == 20


def test_refusals_before_any_work(tmp_path: Path, monkeypatch) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 6)
    cases = {
        "out.txt": ({}, "format of the output"),
        "nowhere/out.mp4": ({}, "does not exist"),
        "in.mp4": ({}, "same file"),
        "out.webm": ({"settings": config(encode={"codec": "h264"})}, "cannot hold h264"),
        "out.mp4": ({"settings": config(encode={"encoder": "h264_no"})}, "no encoder 'h264_no'"),
    }

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(Puppeteer, "detect", never)
    for name, (given, said) in cases.items():
        with pytest.raises(FaceSwapError, match=said):
            swap(clip, tmp_path / name, **given)
    (tmp_path / "there.mp4").touch()
    with pytest.raises(MediaError, match="exists already"):
        swap(clip, tmp_path / "there.mp4", overwrite=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        swap(clip, tmp_path / "out.mp4", reference=photo("red"), all_faces=True)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that root cannot write to")
def test_a_folder_that_nobody_can_write_to(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 6)
    with pytest.raises(MediaError, match="Cannot write into '/proc/self'"):
        swap(clip, Path("/proc/self/out.mp4"))


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("out.mp4", {"preset": "instant"}),
        ("out.webm", {"encoder": "libx264"}),
        ("out.gif", {"encoder": "libx264"}),
        ("out.mp4", {"encoder": "h264_nvenc"}),
    ],
)
def test_what_an_encoder_does_not_take_is_said_up_front(
    tmp_path: Path, monkeypatch, name: str, encode: dict[str, str]
) -> None:
    if encode.get("encoder", "") not in ("", *encoders(find_ffmpeg())) or (
        "nvenc" in encode.get("encoder", "") and os.path.exists("/dev/nvidia0")
    ):
        pytest.skip("this ffmpeg has no such encoder, or this machine can use it")
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 6)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(Puppeteer, "detect", never)
    with pytest.raises(
        MediaError, match=rf"'{name}' cannot be encoded: .*choose another"
    ) as caught:
        swap(clip, tmp_path / name, settings=config(encode=encode))
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == set()


class Cramped(Puppeteer):
    """A GPU whose memory suffices for so many frames, or faces, at once."""

    room = 2

    def detect(self, frames: Tensor, **given) -> Faces:
        if len(frames) > self.room:
            raise torch.cuda.OutOfMemoryError
        return super().detect(frames, **given)

    def dense(self, frames: Tensor, faces: Faces) -> Tensor:
        if len(faces) > self.room:
            raise torch.cuda.OutOfMemoryError
        return super().landmarks(frames, faces)


def test_batches_are_halved_when_gpu_memory_is_short(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", two, 20)
    given = {"config": config(batch_size=8), "reference": photo("blue"), "overwrite": True}
    usual = swap_video(Puppeteer(given["config"]), SOURCE, clip, tmp_path / "out.mp4", **given)
    frames = read(usual.output)[0]
    cramped = swap_video(Cramped(given["config"]), SOURCE, clip, tmp_path / "out.mp4", **given)
    assert "batches of 2 from here on" in " ".join(cramped.warnings)
    assert torch.equal(read(cramped.output)[0], frames)
    puppets = Cramped(given["config"])
    puppets.room = 0
    given |= {"reference": None, "all_faces": True}
    with pytest.raises(DeviceError, match="does not suffice for a single frame"):
        swap_video(puppets, SOURCE, clip, tmp_path / "out.mp4", **given)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 6)
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(MediaError, match="Cannot write into"):
        swap(clip, folder / "out.mp4")


def test_without_ffmpeg(tmp_path: Path, monkeypatch) -> None:
    clip = make(tmp_path / "in.mp4", lambda t: [("red", 20, 20, 30)], 6)

    def none() -> str:
        raise MediaError("There is no ffmpeg program")

    monkeypatch.setattr(video, "find_ffmpeg", none)
    with pytest.raises(MediaError, match="no ffmpeg"):
        swap(clip, tmp_path / "out.mp4")


# ---------------------------------------------------------------- seeing what is there


def test_people_of_a_clip(tmp_path: Path) -> None:
    clip = make(tmp_path / "two.mp4", lambda t: two(t)[1:] if t < 20 else two(t), 50)
    report = list_people(Puppeteer(), clip, tmp_path / "people")
    first, second = report.people
    assert (first.name, first.first) == ("person-1", 0.0)
    assert first.share == 1.0
    assert second.share == pytest.approx(0.6, abs=0.1)
    assert second.first == pytest.approx(0.8, abs=0.1)
    assert first.size == pytest.approx(28, abs=2)
    assert PIL.Image.open(report.sheet).size[1] == 256
    portrait = np.asarray(PIL.Image.open(first.portrait))
    swapped = swap(clip, tmp_path / "out.mp4", reference=portrait)
    assert painted_at(read(swapped.output)[0][30], *two(30)[1][1:]) == "white"


def test_people_of_an_empty_clip(tmp_path: Path) -> None:
    clip = make(tmp_path / "empty.mp4", lambda t: [], 10)
    with pytest.raises(NoFaceError, match="no face found"):
        list_people(Puppeteer(), clip, tmp_path / "people")
    assert not (tmp_path / "people").exists()


@pytest.mark.parametrize("slow", ["work", "writer"])
def test_memory_does_not_depend_on_the_length(tmp_path: Path, monkeypatch, slow: str) -> None:
    """Frames that exist at any moment, wherever: reader, queues, window, writer."""
    alive = []
    gc.collect()  # other tests' clips, which tracebacks may still hold
    others = [each for each in gc.get_objects() if type(each) is FrameBatch]
    left_over = {id(each) for each in others}

    def count(frames: int, *_: int) -> None:
        if frames // 4 % 4:  # looking at every object there is takes a while
            return
        batches = [each for each in gc.get_objects() if type(each) is FrameBatch]
        batches = [each for each in batches if id(each) not in left_over]
        alive.append(len({id(planes) for batch in batches for planes in batch.planes}))

    if slow == "writer":  # the queue before it fills up
        real = VideoWriter.write

        def write(self, frames, pts, original=None):
            time.sleep(0.004)
            return real(self, frames, pts, original)

        monkeypatch.setattr(VideoWriter, "write", write)
    clip = make(tmp_path / "long.mp4", lambda t: [("red", 20, 20, 30)], 320)
    swap(clip, tmp_path / "out.mp4", progress=count)
    settings, puppets = config(), Puppeteer()
    window = Window(
        puppets,
        puppets.identify([]),
        roles=(0,),
        casting=Casting(None),
        config=settings,
        rate=25.0,
    )
    queued = 2 * (video._DEPTH + 2) * settings.batch_size  # waiting, and one in hand at each end
    assert len(alive) > 10
    assert max(alive) <= window._ahead + 2 * settings.batch_size + queued < 80


@pytest.mark.parametrize("cuts", [False, True])
def test_one_person_in_view_needs_no_identity_network(
    tmp_path: Path, lite_pack, monkeypatch, cuts: bool
) -> None:
    """With the real pack: the encoder sees the source photo, and nothing of the clip."""
    from skimage import data

    from faceswap.faces.identity import IdentityEncoder
    from faceswap.swap import Swapper

    seen = []
    real = IdentityEncoder.embed

    def embed(self, crops: Tensor) -> Tensor:
        seen.append(len(crops))
        return real(self, crops)

    monkeypatch.setattr(IdentityEncoder, "embed", embed)
    person = torch.from_numpy(data.astronaut()[0:220, 120:330].copy()).permute(2, 0, 1)
    frames = []
    for t in range(4):
        frame = torch.full((3, 240, 320), 230 if cuts and t > 1 else 100, dtype=torch.uint8)
        frame[:, 10:230, 20 + 8 * t : 230 + 8 * t] = person
        frames.append(frame)
    clip = write_clip(tmp_path / "in.mkv", frames, rate=5)
    settings = VideoConfig(detector={"rotate": False}, encode={"preset": "ultrafast"})
    swapper = Swapper.from_config(settings, video=True)
    source = np.ascontiguousarray(data.astronaut()[:250, 100:350])
    report = swap_video(swapper, source, clip, tmp_path / "out.mkv", config=settings)
    assert report.faces_swapped == 4
    assert report.person == ""
    # Two shots could be of two people; that they are not is looked up once, for the census.
    assert seen == ([1, 4] if cuts else [1])


def test_a_real_face(tmp_path: Path, lite_pack) -> None:
    """An astronaut who moves over a background is swapped in place, and nothing around her."""
    from skimage import data

    from faceswap.swap import Swapper

    person = torch.from_numpy(data.astronaut()[0:220, 120:330].copy()).permute(2, 0, 1)
    frames = []
    for t in range(6):
        frame = torch.full((3, 240, 320), 100, dtype=torch.uint8)
        frame[:, 10:230, 20 + 8 * t : 230 + 8 * t] = person
        frames.append(frame)
    clip = write_clip(tmp_path / "in.mkv", frames)
    settings = VideoConfig(encode={"codec": "ffv1"}, detector={"rotate": False})
    swapper = Swapper.from_config(settings, video=True)
    source = np.ascontiguousarray(data.astronaut()[:250, 100:350, ::-1][:, ::-1])
    report = swap_video(swapper, source, clip, tmp_path / "out.mkv", config=settings)
    before, after = read(clip)[0].float(), read(report.output)[0].float()
    assert report.faces_swapped == 6
    for t in range(6):
        change = (after[t] - before[t]).abs().amax(0)
        _ys, xs = (change > 6).nonzero(as_tuple=True)
        assert 20 + 8 * t < int(xs.min())
        assert int(xs.max()) < 230 + 8 * t
        assert len(xs) > 500
        assert float(change[:, :15].max()) == 0
