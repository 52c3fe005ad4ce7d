"""A folder of photos swapped by one command or call."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from test_cli_bad_input import SMALL, Case, face, refuse

from faceswap import (
    FolderReport,
    Provenance,
    SwapConfig,
    Swapper,
    read_provenance,
    swap_folder,
    swap_image,
)
from faceswap.cli import main, swapped_folder
from faceswap.config import load_config
from faceswap.errors import MediaError, MissingMediaError, NoFaceError
from faceswap.faces.select import Selection
from faceswap.media.folder import find_photos

PHOTOS = ("a.jpg", "deep/er/b.png", "deep/c.JPG")


@pytest.fixture(scope="module")
def swapper(lite_pack) -> Swapper:
    settings = ["device=cpu", "detector.sides=[256]", "detector.rotate=false"]
    return Swapper.from_config(load_config(None, settings, schema=SwapConfig))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos of a face, one of nobody, one that is none, and what is no photo at all."""
    monkeypatch.chdir(tmp_path)
    face(mirrored=True).save("source.png")
    for name in PHOTOS:
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        face().save(path)
    PIL.Image.linear_gradient("L").convert("RGB").save("photos/nobody.png")
    Path("photos/text.jpg").write_text("Dear diary,\n")
    Path("photos/notes.txt").write_text("no photo\n")
    Path("photos/.hidden").mkdir()
    face().save("photos/.hidden/d.jpg")
    face().save("photos/._a.jpg")
    return tmp_path


def files(folder: str) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path).convert("RGB"))


def test_every_photo_is_swapped_as_it_is_alone(home, swapper):
    seen: list[tuple[int, int, int]] = []
    report = swap_folder(
        swapper, "source.png", "photos", "out", progress=lambda *each: seen.append(each)
    )
    assert files("out") == set(PHOTOS)
    assert (report.photos, report.swapped, report.faces_swapped) == (5, 3, 3)
    assert report.there_already == 0
    assert [name for name, _ in report.left_out] == ["nobody.png"]
    assert report.left_out[0][1].startswith("no face found")
    assert [name for name, _ in report.unreadable] == ["text.jpg"]
    assert report.unreadable[0][1].startswith("is not a photo")
    assert seen[0] == (0, 5, 0)
    assert seen[-1] == (5, 5, 3)
    for name in PHOTOS:
        swap_image(swapper, "source.png", Path("photos", name), "alone.png", overwrite=True)
        mark = read_provenance(Path("out", name))
        assert mark is not None
        assert mark.source_type == Provenance().source_type
        made, before = pixels(Path("out", name)).astype(int), pixels(Path("photos", name))
        assert np.abs(made - pixels("alone.png")).mean() < 2  # a JPEG is not a PNG
        assert np.abs(made - before).mean() > 2


def test_a_second_call_goes_on_and_overwrites_only_when_told(home, swapper):
    swap_folder(swapper, "source.png", "photos", "out")
    Path("out/a.jpg").unlink()
    Path("out/deep/c.JPG").write_text("mine")
    report = swap_folder(swapper, "source.png", "photos", "out")
    assert (report.swapped, report.there_already) == (1, 2)
    assert Path("out/deep/c.JPG").read_text() == "mine"
    report = swap_folder(swapper, "source.png", "photos", "out", overwrite=True)
    assert (report.swapped, report.there_already) == (3, 0)
    assert pixels("out/deep/c.JPG").shape == (192, 192, 3)


def test_the_output_may_lie_in_the_folder_but_is_never_the_folder(home, swapper):
    for _ in range(2):
        report = swap_folder(swapper, "source.png", "photos", "photos/out", overwrite=True)
        assert (report.photos, report.swapped) == (5, 3)
    assert files("photos/out") == set(PHOTOS)
    with pytest.raises(MediaError, match=r"is the folder the photos are in.*-o"):
        find_photos(Path("photos"), Path("photos/../photos"))
    with pytest.raises(MediaError, match="is a file"):
        find_photos(Path("photos"), Path("source.png"))
    with pytest.raises(MissingMediaError, match="There is no folder 'nope'"):
        find_photos(Path("nope"), Path("out"))


def test_a_source_in_the_folder_is_read_and_never_written(home, swapper):
    before = Path("photos/a.jpg").read_bytes()
    report = swap_folder(swapper, "photos/a.jpg", "photos", "out")
    assert report.swapped == 3
    assert Path("photos/a.jpg").read_bytes() == before


def test_who_is_swapped_is_chosen_as_in_one_photo(home, swapper):
    report = swap_folder(swapper, "source.png", "photos", "o1", reference="photos/a.jpg")
    assert report.swapped == 3
    with pytest.raises(NoFaceError, match=r"photos: nobody was swapped in any .*\(5\).*number 7"):
        swap_folder(swapper, "source.png", "photos", "o2", select=Selection(face=6))
    assert not Path("o2").exists()


def test_a_full_disk_ends_it_and_leaves_what_is_done(home, swapper, monkeypatch):
    import faceswap.folder as module

    write, calls = module.write_image, []

    def full(path, *rest, **more):
        calls.append(path)
        if len(calls) > 1:
            raise MediaError(f"Cannot write {str(path)!r}: No space left on device")
        return write(path, *rest, **more)

    monkeypatch.setattr(module, "write_image", full)
    with pytest.raises(MediaError, match="No space left"):
        swap_folder(swapper, "source.png", "photos", "out")
    assert files("out") == {"a.jpg"}
    monkeypatch.setattr(module, "write_image", write)
    assert swap_folder(swapper, "source.png", "photos", "out").there_already == 1


def test_command(home, lite_pack, monkeypatch, capfd):
    monkeypatch.setattr(Swapper, "from_config", cache(Swapper.from_config))
    words = f"image source.png photos --device cpu {SMALL}".split()
    assert main([*words, "--json"]) == 1  # a photo could not be read
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert set(report) == set(FolderReport.__dataclass_fields__)
    assert report["swapped"] == 3
    assert files("photos_swapped") == set(PHOTOS)
    assert "nobody.png: left out: no face found" in err
    assert "text.jpg: left out: " in err
    assert err.count("\n") == 2
    Path("photos/text.jpg").unlink()
    assert main(words) == 0
    out, _ = capfd.readouterr()
    assert out.startswith("photos_swapped: 0 faces swapped in 0 of 4 photos (1 left out, 3 there")


def test_mistakes_are_found_before_a_model_is_loaded(home, monkeypatch, capfd):
    def load(config: object) -> Swapper:
        raise AssertionError

    monkeypatch.setattr(Swapper, "from_config", load)
    Path("empty").mkdir()
    for words, said in (
        ("source.png empty", ("'empty'", "no photo")),
        ("source.png photos -o photos", ("'photos'", "never overwritten")),
        ("source.png photos -o source.png", ("'source.png'", "is a file")),
        ("nope.png photos", ("'nope.png'",)),
        ("source.png photos --target-ref nope.png", ("'nope.png'",)),
    ):
        refuse(Case(words, 1, said), capfd)


def test_names_of_folders():
    assert swapped_folder("photos/") == "photos_swapped"
    assert swapped_folder("a/photos.2024") == str(Path("a/photos.2024_swapped"))
    here = Path.cwd()
    assert swapped_folder(".") == str(here.with_name(f"{here.name}_swapped"))
