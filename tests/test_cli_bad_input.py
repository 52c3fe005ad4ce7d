"""Whatever a user gets wrong ends in one line that names it, the right exit code and no file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from skimage import data

from faceswap.cli import main
from faceswap.swap import Swapper

SMALL = "--set detector.sides=[256] --set detector.rotate=false"  # enough here, and quick


class Case(NamedTuple):
    """One mistake."""

    words: str  # after `faceswap image`, cut at spaces
    code: int
    said: tuple[str, ...]  # all of them stand in the line


def beginning(width: int, height: int) -> bytes:
    """A PNG that says how large it is and ends where the samples begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + size + chunk + check + struct.pack(">I", 1000) + b"IDAT"


@cache
def face(*, mirrored: bool = False) -> PIL.Image.Image:
    """Eileen Collins (NASA, public domain), 192 x 192."""
    picture = data.astronaut()[0:240, 100:340]
    picture = picture[:, ::-1] if mirrored else picture
    return PIL.Image.fromarray(np.ascontiguousarray(picture)).resize((192, 192))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a photo of each kind; no weights but the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "weights"))
    face().save("face.jpg")
    face(mirrored=True).save("other.png")
    data_of_jpeg = Path("face.jpg").read_bytes()
    Path("cut.jpg").write_bytes(data_of_jpeg[: len(data_of_jpeg) // 2])
    Path("text.jpg").write_text("Dear diary,\n")
    Path("empty.jpg").touch()
    Path("huge.png").write_bytes(beginning(30_000, 30_000))
    Path("folder.jpg").mkdir()
    PIL.Image.new("RGB", (1, 1), "white").save("dot.png")
    PIL.Image.linear_gradient("L").convert("RGB").save("nobody.png")
    Path("text.yaml").write_text("mask: [1\n")
    return tmp_path


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out without any model is found out without loading one."""
    monkeypatch.setattr(Swapper, "from_config", lambda config: SimpleNamespace(seconds={}))


@pytest.fixture(scope="module")
def from_config(lite_pack) -> Callable[..., Swapper]:
    """`Swapper.from_config`, loading once for each configuration."""
    return cache(Swapper.from_config)


def refuse(case: Case, capfd: pytest.CaptureFixture[str], *, before: str = "image") -> None:
    """Run, and see that it was refused as it should be."""
    files = sorted(Path().rglob("*"))
    capfd.readouterr()
    assert main([*before.split(), *case.words.split()]) == case.code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("faceswap: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in case.said:
        assert part in err
    assert sorted(Path().rglob("*")) == files


FILES = {
    "missing source": Case("nope.jpg face.jpg", 1, ("no file", "'nope.jpg'")),
    "missing target": Case("face.jpg nope.jpg", 1, ("no file", "'nope.jpg'")),
    "missing target in a missing folder": Case("face.jpg no/pe.jpg", 1, ("no file", "'no/pe.jpg'")),
    "missing extra": Case("face.jpg face.jpg --source-extra nope.jpg", 1, ("'nope.jpg'",)),
    "missing reference": Case("face.jpg face.jpg --target-ref nope.jpg", 1, ("'nope.jpg'",)),
    "missing in a pair": Case("--map face.jpg=nope.jpg face.jpg", 1, ("'nope.jpg'",)),
    "folder as source": Case("folder.jpg face.jpg", 1, ("'folder.jpg'", "folder", "photo")),
    "folder as target": Case("face.jpg folder.jpg", 1, ("'folder.jpg'", "folder", "photo")),
    "text as source": Case("text.jpg face.jpg", 1, ("'text.jpg'", "not a photo", "JPEG")),
    "text as target": Case("face.jpg text.jpg", 1, ("'text.jpg'", "not a photo", "JPEG")),
    "empty": Case("face.jpg empty.jpg", 1, ("'empty.jpg'", "empty")),
    "cut source": Case("cut.jpg face.jpg", 1, ("'cut.jpg'", "cut short")),
    "cut target": Case("face.jpg cut.jpg", 1, ("'cut.jpg'", "cut short")),
    "huge": Case("face.jpg huge.png", 1, ("'huge.png'", "30000x30000", "smaller")),
    "huge source": Case("huge.png face.jpg", 1, ("'huge.png'", "30000x30000", "smaller")),
    "output exists": Case("face.jpg other.png -o dot.png", 1, ("'dot.png'", "--overwrite")),
    "output is the target": Case(
        "face.jpg other.png -o other.png --overwrite", 1, ("'other.png'", "another name")
    ),
    "output is the source": Case(
        "face.jpg other.png -o ./face.jpg --overwrite", 1, ("'face.jpg'", "another name")
    ),
    "output is the reference": Case(
        "face.jpg other.png --target-ref dot.png -o dot.png --overwrite", 1, ("'dot.png'",)
    ),
    "output in no folder": Case("face.jpg other.png -o no/x.png", 1, ("'no/x.png'", "make it")),
    "output is a folder": Case("face.jpg other.png -o folder.jpg", 1, ("'folder.jpg'", "folder")),
    "output of no known format": Case("face.jpg other.png -o x.txt", 1, ("'x.txt'", ".png")),
    "output nowhere to write": Case("face.jpg other.png -o /proc/x.png", 1, ("'/proc'", "-o")),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_files(folder, no_models, capfd, case):
    if "/proc" in case.words and not Path("/proc/self").exists():
        pytest.skip("no /proc, which not even root can write into")
    refuse(case, capfd)


USAGE = {
    "nothing": Case("", 2, ("SOURCE and TARGET", "image --help")),
    "no target": Case("face.jpg", 2, ("SOURCE and TARGET", "face.jpg")),
    "too many": Case("face.jpg face.jpg face.jpg", 2, ("SOURCE and TARGET",)),
    "source beside pairs": Case("--map face.jpg=face.jpg face.jpg face.jpg", 2, ("--map",)),
    "half a pair": Case("--map face.jpg= face.jpg", 2, ("--map face.jpg=", "SOURCE=REF")),
    "no pair": Case("--map face.jpg face.jpg", 2, ("SOURCE=REF",)),
    "two rules": Case("face.jpg face.jpg --face 1 --all-faces", 2, ("--face", "--all-faces")),
    "rule and pairs": Case("--map a=b face.jpg --target-ref c", 2, ("--target-ref", "--map")),
    "extra and pairs": Case("--map a=b face.jpg --source-extra c", 2, ("--source-extra", "--map")),
    "face 0": Case("face.jpg face.jpg --face 0", 2, ("--face", "0")),
    "alpha": Case("face.jpg face.jpg --alpha 1.5", 2, ("--alpha", "1.5")),
    "quality": Case("face.jpg face.jpg --quality 101", 2, ("--quality", "101")),
    "mask": Case("face.jpg face.jpg --mask oval", 2, ("--mask", "oval", "adaptive", "ghost")),
    "device": Case("face.jpg face.jpg --device gpu", 2, ("--device", "gpu", "cuda:INDEX")),
    "option": Case("face.jpg face.jpg --all-face", 2, ("--all-face", "--all-faces")),
    "setting": Case("face.jpg face.jpg --set mask.fether=1", 2, ("mask.fether", "mask.feather")),
    "value": Case("face.jpg face.jpg --set mask.feather=9", 2, ("mask.feather", "0.5", "9")),
    "no value": Case("face.jpg face.jpg --set mask", 2, ("KEY=VALUE",)),
    "missing settings": Case("face.jpg face.jpg --config no.yaml", 2, ("no.yaml",)),
    "broken settings": Case("face.jpg face.jpg --config text.yaml", 2, ("text.yaml", "not YAML")),
    "unknown pack": Case("face.jpg other.png --pack lit", 2, ("pack", "'lit'", "mean lite")),
}


@pytest.mark.parametrize("case", USAGE.values(), ids=USAGE.keys())
def test_usage(folder, capfd, case):
    refuse(case, capfd)


def test_missing_ghost_weights(folder, capfd):
    said = ("ghost-swapper-2", "faceswap weights fetch ghost")
    refuse(Case("face.jpg other.png --pack ghost-2", 1, said), capfd)


def test_missing_swapper_of_ones_own(folder, capfd):
    refuse(Case("face.jpg other.png --swapper runs/no.safetensors", 1, ("runs/no.safeten",)), capfd)


def test_swapper_that_is_none(folder, capfd):
    refuse(Case("face.jpg other.png --swapper face.jpg", 1, ("face.jpg",)), capfd)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(folder, capfd, device):
    said = (f"--device {device}", "--device cpu")
    refuse(Case(f"face.jpg other.png --device {device}", 1, said), capfd)


FACES = {
    "no face in source": Case("nobody.png face.jpg", 1, ("nobody.png", "no face")),
    "no face in target": Case("face.jpg nobody.png", 1, ("nobody.png", "no face")),
    "no face in extra": Case(
        "face.jpg other.png --source-extra nobody.png", 1, ("nobody.png", "no face")
    ),
    "no face in reference": Case(
        "face.jpg other.png --target-ref nobody.png", 1, ("nobody.png", "no face")
    ),
    "one pixel as source": Case("dot.png face.jpg", 1, ("dot.png", "no face")),
    "one pixel as target": Case("face.jpg dot.png", 1, ("dot.png", "no face")),
    "nobody matches": Case(
        "face.jpg other.png --target-ref face.jpg --set match.threshold=0.9999",
        1,
        ("other.png", "nobody matches", "--set match.threshold="),
    ),
    "no such face": Case("face.jpg other.png --face 2", 1, ("other.png", "no number 2")),
    "no such source face": Case("face.jpg other.png --source-face 2", 1, ("face.jpg", "number 2")),
}


@pytest.mark.parametrize("case", FACES.values(), ids=FACES.keys())
def test_faces(folder, from_config, monkeypatch, capfd, case):
    monkeypatch.setattr(Swapper, "from_config", from_config)
    refuse(case._replace(words=f"{case.words} --device cpu {SMALL}"), capfd)


ODD = [
    'it\'s "one" photo.jpg',
    "-f.jpg",
    "--help.jpg",
    "Übergröße 日本 🙂.jpg",
    "a\nb.jpg",
    "%s.jpg",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_missing_files(folder, capfd, name):
    assert main(["image", "--", "face.jpg", name]) == 1
    err = capfd.readouterr().err
    assert err == f"faceswap: There is no file {name!r}\n"


def test_odd_names(folder, from_config, monkeypatch, capfd):
    """Names that a shell or an option parser could trip over are files like any other."""
    monkeypatch.setattr(Swapper, "from_config", from_config)
    source, target, output = ODD[0], "-ü =ß 🙂.png", "--out 'put'.png"
    Path("face.jpg").rename(source)
    Path("other.png").rename(target)
    options = ["--device", "cpu", *SMALL.split(), f"--output={output}", "-q"]
    assert main(["image", *options, "--", source, target]) == 0
    assert capfd.readouterr() == ("", "")
    before, after = (np.asarray(PIL.Image.open(name)) for name in (target, output))
    assert before.shape == after.shape
    assert (before != after).any()
