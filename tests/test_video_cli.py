"""`faceswap video` from its command line, with puppets in place of networks: every option."""

from __future__ import annotations

import json
from pathlib import Path

import av
import PIL.Image
import pytest
from puppets import Puppeteer, draw, write_clip
from test_video import SOURCE, photo, read, sound, two

import faceswap.swap
from faceswap.cli import main
from faceswap.config import VideoConfig


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second of one person, with sound; and the photos ``source.png`` and ``blue.png``."""

    def puppets(config: VideoConfig, *, video: bool) -> Puppeteer:
        assert video
        return Puppeteer(config)

    monkeypatch.setattr(faceswap.swap.Swapper, "from_config", puppets)
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(SOURCE).save("source.png")
    PIL.Image.fromarray(photo("blue")).save("blue.png")
    frames = [draw([("red", 20 + t, 20, 30)] if not 10 <= t < 14 else []) for t in range(25)]
    return sound(write_clip(tmp_path / "silent.mp4", frames), tmp_path / "clip.mp4")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    """The report of a run that succeeds."""
    assert main(["video", *map(str, arguments), "--json"]) == 0
    said = capsys.readouterr()
    report: dict[str, object] = json.loads(said.out)
    return report


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line of a run that ends with this exit code."""
    assert main(["video", *map(str, arguments)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def codec(path: str) -> str:
    with av.open(path) as out:
        return str(out.streams.video[0].codec_context.codec.canonical_name)


def test_the_defaults(clip: Path, capsys) -> None:
    report = run(capsys, "source.png", clip)
    assert report["output"] == str(clip.with_name("clip_swapped.mp4"))
    assert (report["frames"], report["faces_swapped"], report["bridged"]) == (25, 25, 4)
    assert codec("clip_swapped.mp4") == "h264"
    assert {"frames", "faces_seen", "faces_swapped", "bridged", "tracks", "dropped"} <= set(report)
    assert {"decode", "track", "encode", "total"} <= set(report["seconds"])
    assert main(["video", "source.png", str(clip), "--overwrite"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "25 faces swapped in 25 frames (21 seen in 1 tracks, 4 bridged, 0 dropped" in first
    assert second.startswith("seconds: ")
    assert " total " in second
    assert "exists already" in refused(capsys, 1, "source.png", clip)
    assert run(capsys, "source.png", clip, "--overwrite")["frames"] == 25


def test_codec_encoder_crf_and_preset(clip: Path, capsys) -> None:
    def size(*options: str) -> int:
        run(capsys, "source.png", clip, "-o", "out.mkv", "--overwrite", *options)
        return Path("out.mkv").stat().st_size

    size("--codec", "ffv1")
    assert codec("out.mkv") == "ffv1"
    size("--encoder", "mpeg4")
    assert codec("out.mkv") == "mpeg4"
    fine = size("--crf", "4", "--preset", "ultrafast", "--no-audio")
    assert size("--crf", "40", "--preset", "ultrafast", "--no-audio") < fine
    assert b"cabac=0" in Path("out.mkv").read_bytes()  # x264 writes down its settings
    size("--preset", "veryfast")
    assert b"cabac=1" in Path("out.mkv").read_bytes()
    assert "--codec: should be 'h264'" in refused(
        capsys, 2, "source.png", clip, "-o", "out.mkv", "--overwrite", "--codec", "h265"
    )


def test_start_end_fps_and_sound(clip: Path, capsys) -> None:
    cut = run(capsys, "source.png", clip, "-o", "cut.mp4", "--start", "0.2", "--end", "0.6")
    assert (cut["frames"], len(read("cut.mp4")[0])) == (10, 10)
    run(capsys, "source.png", clip, "-o", "fps.mp4", "--fps", "10", "--no-audio")
    assert len(read("fps.mp4")[0]) == 10
    for name, streams in (("cut.mp4", 2), ("fps.mp4", 0)):
        with av.open(name) as out:
            assert len(out.streams.audio) == streams
    assert "end" in refused(capsys, 2, "source.png", clip, "--start", "3", "--end", "1")


def test_max_gap_and_smoothing(clip: Path, capsys) -> None:
    report = run(capsys, "source.png", clip, "--max-gap", "0.1", "--smoothing", "0")
    assert (report["bridged"], report["tracks"]) == (0, 2)


def test_detect_every(clip: Path, capsys) -> None:
    often, seldom = (
        run(capsys, "source.png", clip, "--detect-every", n, "--overwrite") for n in ("1", "4")
    )
    assert seldom["seconds"]["total"] > 0
    assert often["faces_swapped"] - seldom["faces_swapped"] in (0, 1, 2, 3)


def test_preview_and_sidecar(clip: Path, capsys) -> None:
    report = run(capsys, "source.png", clip, "--preview", "4")
    strip = PIL.Image.open(clip.with_name("clip_preview.png"))
    assert report["output"] == str(clip.with_name("clip_preview.png"))
    assert report["frames"] == 4
    assert strip.size == (4 * (128 + 4), 2 * (72 + 4))
    above, below = (strip.crop((0, y, 132, y + 76)) for y in (0, 76))
    assert (255, 255, 255) not in above.getdata()
    assert (255, 255, 255) in below.getdata()
    run(capsys, "source.png", clip, "--sidecar")
    written = json.loads(Path("clip_swapped.mp4.json").read_text())
    assert written["made_from"] == "clip.mp4"
    assert written["swaps"][0]["source"] == "source.png"


def test_people_by_photo(tmp_path: Path, clip: Path, capsys) -> None:
    write_clip(tmp_path / "two.mkv", [draw(two(t)) for t in range(10)])
    report = run(capsys, "source.png", "two.mkv", "--target-ref", "blue.png")
    assert report["output"] == "two_swapped.mkv"
    assert report["faces_swapped"] == 10
    report = run(capsys, "two.mkv", "--map", "source.png=blue.png", "--overwrite")
    assert report["faces_swapped"] == 10
    report = run(capsys, "source.png", "two.mkv", "--all-faces", "--overwrite")
    assert report["faces_swapped"] == 20
    report = run(capsys, "source.png", "two.mkv", "--overwrite")
    assert report["faces_swapped"] == 10
    assert "2 people are in the clip" in str(report["person"])
    for wrong in (["--target-ref", "blue.png", "--all-faces"], ["--face", "2"]):
        refused(capsys, 2, "source.png", "two.mkv", *wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--codec h265", "--codec: should be 'h264', 'hevc'"),
        ("--codec h264 --set encode.codec=h265", "--set: encode.codec: should be"),
        ("--max-gap -1", "--max-gap: should be greater than or equal to 0, got -1.0"),
        ("--detect-every 0", "--detect-every: should be greater than or equal to 1, got 0"),
        ("--fps fast", "--fps: should be a positive number or fraction"),
        ("--start 5 --end 2", "faceswap: end (2 s) should be later than start (5 s)"),
    ],
)
def test_a_refusal_names_the_option_that_was_typed(clip: Path, capsys, words, said) -> None:
    line = refused(capsys, 2, "source.png", clip, *words.split())
    assert said in line
    assert ("--set" in line) == ("--set" in words)


def test_bad_input_ends_in_one_line(tmp_path: Path, clip: Path, capsys) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "nothing.mp4").touch()
    write_clip(tmp_path / "empty.mp4", [draw([]) for _ in range(5)])
    cases = {
        "text.mp4": "not a video that can be read",
        "nothing.mp4": "is empty",
        "source.png": "is a photo, not a video",
        "missing.mp4": "There is no file",
        "empty.mp4": "no face found in 5 frames",
    }
    before = {path.name for path in tmp_path.iterdir()}
    for name, said in cases.items():
        assert said in refused(capsys, 1, "source.png", name)
    red = [draw([("red", 20, 20, 30)]) for _ in range(5)]
    write_clip(tmp_path / "red.mp4", red)
    said = refused(capsys, 1, "source.png", "red.mp4", "--target-ref", "blue.png")
    assert "best similarity 0." in said
    assert {path.name for path in tmp_path.iterdir()} == before | {"red.mp4"}
