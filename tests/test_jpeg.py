"""A JPEG made from a JPEG: only the blocks that changed are coded anew."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

from faceswap.media import jpeg
from faceswap.media.image import Image, read_image, write_image
from faceswap.media.jpeg import JpegEditError, edit_jpeg, icc_markers
from faceswap.media.provenance import read_provenance

pytest.importorskip("jpegio", reason="no wheel of pyjpegio for this platform")

FORMS = {  # of a JPEG, as Pillow is asked for it
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"subsampling": "4:2:0", "progressive": True},
    "own tables": {"subsampling": "4:2:0", "optimize": True},
    "restart markers": {"subsampling": "4:2:0", "restart_marker_blocks": 7},
    "RGB": {"keep_rgb": True},
    "coarse": {"subsampling": "4:2:0", "quality": 25},
}


def scene(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Ramps, waves and noise, (H, W, 3) or (H, W)."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    planes = [x % 256, 128 + 90 * np.sin(y / 9), (x + y) % 256][:channels]
    noisy = np.stack(planes, -1) + rng.normal(0, 9, (height, width, channels))
    samples = np.clip(noisy, 0, 255).astype(np.uint8)
    return samples if channels > 1 else samples[..., 0]


def with_patch(old: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A soft disc of another colour inside the box y0, x0, y1, x1."""
    y0, x0, y1, x1 = box
    y, x = np.mgrid[: old.shape[0], : old.shape[1]]
    far = np.hypot((y - (y0 + y1) / 2) / (y1 - y0), (x - (x0 + x1) / 2) / (x1 - x0)) * 2
    share = np.clip(2 - 2 * far, 0, 1)[(...,) + (None,) * (old.ndim - 2)]
    other = np.array([200, 120, 90])[: 3 if old.ndim == 3 else 1]
    return np.rint(old * (1 - share) + other * share).astype(np.uint8)


def decoded(data: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def encoded(samples: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(samples).save(stream, "JPEG", **({"quality": 85} | options))
    return stream.getvalue()


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != b).reshape(*a.shape[:2], -1).any(2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(96, 128), (75, 101)])  # the second fills no grid
def test_what_did_not_change_is_bit_identical(form: str, size: tuple[int, int]) -> None:
    data = encoded(scene(*size), **FORMS[form])
    old = decoded(data)
    new = with_patch(old, (20, 30, 50, 66))  # blocks of 16 px: 16 to 64 down, 16 to 80 across
    out = edit_jpeg(data, old, new)
    now = decoded(out)
    allowed = np.zeros(size, bool)
    spill = 0 if form in ("4:4:4", "RGB") else 1
    allowed[16 - spill : 64 + spill, 16 - spill : 80 + spill] = True
    assert not (differing(now, old) & ~allowed).any()
    changed = differing(old, new)
    wanted = np.abs(new.astype(int) - old)[changed].mean()
    error = np.abs(now.astype(int) - new)[changed].mean()
    assert wanted > 25
    # no more than the noise that this quantisation cost the picture in the first place
    assert error < max(1.5, np.abs(old.astype(int) - scene(*size)).mean())


def test_at_the_finest_quantisation_the_change_is_exact_to_a_level() -> None:
    data = encoded(scene(64, 64), quality=100, subsampling="4:4:4")
    old = decoded(data)
    new = with_patch(old, (10, 10, 50, 50))
    assert np.abs(decoded(edit_jpeg(data, old, new)).astype(int) - new).mean() < 0.8


@pytest.mark.parametrize("factors", [0x411111, 0x121111, 0x221111])
def test_other_samplings(factors: int) -> None:
    ok, coded = cv2.imencode(".jpg", scene(70, 90), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors])
    assert ok
    data = coded.tobytes()
    old = decoded(data)
    new = with_patch(old, (40, 60, 69, 89))  # at the corner, where MCUs hang over
    now = decoded(edit_jpeg(data, old, new))
    assert np.array_equal(now[:31, :63], old[:31, :63])
    assert np.abs(now.astype(int) - new).mean() < 1.5


def test_grey_and_tiny() -> None:
    grey = encoded(scene(40, 40, 1))
    old = decoded(grey)
    new = with_patch(old, (8, 8, 16, 16))
    now = decoded(edit_jpeg(grey, old, new))
    assert not np.array_equal(now, old)
    outside = np.ones((40, 40), bool)
    outside[8:16, 8:16] = False
    assert np.array_equal(now[outside], old[outside])
    one = encoded(np.full((1, 1, 3), 90, np.uint8))
    now = decoded(edit_jpeg(one, decoded(one), np.full((1, 1, 3), 120, np.uint8)))
    assert np.abs(now.astype(int) - 120).max() <= 3


def test_components_in_scans_of_their_own() -> None:
    """Three grey JPEGs put together as one of three scans, as progressive encoders do."""

    def segment(kind: int, body: bytes) -> bytes:
        return bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2, "big") + body

    parts, tables = [], b""
    for channel in range(3):
        grey = encoded(scene(32, 48)[..., channel] // 4 + 96)  # colours that RGB can hold
        at, tables = 2, b""
        while grey[at + 1] != 0xDA:
            length = int.from_bytes(grey[at + 2 : at + 4], "big") + 2
            tables += grey[at : at + length] if grey[at + 1] in (0xDB, 0xC4) else b""
            at += length
        parts.append(segment(0xDA, bytes([1, channel + 1, 0, 0, 63, 0])) + grey[at + 10 : -2])
    frame = bytes([8, 0, 32, 0, 48, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    data = b"\xff\xd8" + tables + segment(0xC0, frame) + b"".join(parts) + b"\xff\xd9"
    old = decoded(data)
    new = with_patch(old, (0, 0, 16, 16))
    now = decoded(edit_jpeg(data, old, new))
    assert np.array_equal(now[16:], old[16:])
    assert np.abs(now.astype(int) - new).mean() < 1.5


def test_without_a_change_the_coefficients_stay() -> None:
    data = encoded(scene(50, 70), progressive=True)
    assert np.array_equal(decoded(edit_jpeg(data, decoded(data), decoded(data))), decoded(data))


def test_markers_stand_in_order_and_others_go() -> None:
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(scene(16, 16), icc_profile=profile, comment=b"about the old face", dpi=(72, 72))
    long = profile + bytes(100_000)
    out = edit_jpeg(data, decoded(data), decoded(data), markers=icc_markers(long))
    with PIL.Image.open(io.BytesIO(out)) as image:
        assert image.info["icc_profile"] == long
        assert image.info["dpi"] == (72, 72)
        assert "comment" not in image.info


def test_what_stands_behind_the_picture_goes() -> None:
    data = encoded(scene(16, 16)) + encoded(scene(8, 8)) + b"the old face again"
    out = edit_jpeg(data, decoded(data), decoded(data))
    assert out.count(b"\xff\xd8\xff") == 1
    assert b"again" not in out


def test_cmyk_and_rubbish_are_refused() -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(scene(16, 16)).convert("CMYK").save(stream, "JPEG")
    with pytest.raises(JpegEditError, match="neither grey, RGB nor YCbCr"):
        edit_jpeg(stream.getvalue(), scene(16, 16), scene(16, 16))
    with pytest.raises(JpegEditError, match="blocks cannot be kept"):
        edit_jpeg(b"\xff\xd8rubbish", scene(16, 16), scene(16, 16))
    with pytest.raises(JpegEditError, match="not stored as it is shown"):
        edit_jpeg(encoded(scene(16, 16)), scene(24, 24), scene(24, 24))


def test_a_result_that_differs_elsewhere_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(scene(64, 64))
    old = decoded(data)
    wrong = old.copy()
    wrong[2, 2] ^= 64  # as if another decoder had made these pixels
    new = wrong.copy()
    new[40:44, 40:44] ^= 64
    with pytest.raises(JpegEditError, match="far from the faces"):
        edit_jpeg(data, wrong, new)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stays_as_it_lies(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    (tmp_path / "in.jpg").write_bytes(encoded(scene(75, 101), exif=exif))
    image = read_image(tmp_path / "in.jpg")
    upright = image.pixels.numpy().transpose(1, 2, 0)
    new = torch.from_numpy(with_patch(upright, (22, 22, 46, 46)).transpose(2, 0, 1).copy())
    assert write_image(tmp_path / "out.jpg", new, image).jpeg == "blocks kept"
    with PIL.Image.open(tmp_path / "out.jpg") as out, PIL.Image.open(tmp_path / "in.jpg") as before:
        assert out.size == before.size == (101, 75)
        assert out.getexif()[0x0112] == orientation
        assert out.getexif()[0x010F] == "Maker"
    now = read_image(tmp_path / "out.jpg").pixels
    assert (now.int() - new.int()).abs().float().mean() < 1
    same = (now == image.pixels).all(0)
    assert same[:4].all()  # 22 - 16 - 1 px of spill, whichever way the grid lies
    assert same[64:].all()
    assert same[:, 64:].all()
    assert not same[24:44, 24:44].all()


def test_the_photo_keeps_profile_and_gets_its_mark(tmp_path: Path) -> None:
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "in.jpg").write_bytes(encoded(scene(40, 40), icc_profile=profile))
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, image)
    assert read_provenance(tmp_path / "out.jpg") is not None
    assert read_image(tmp_path / "out.jpg").metadata.icc == profile


def test_encoded_again_is_said_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jpg").write_bytes(encoded(scene(40, 40)))
    image = read_image(tmp_path / "in.jpg")
    assert "quality" in write_image(tmp_path / "q.jpg", image.pixels, image, quality=90).jpeg
    assert write_image(tmp_path / "out.png", image.pixels, image).jpeg == ""
    assert write_image(tmp_path / "new.jpg", image.pixels, Image(image.pixels)).jpeg == ""
    monkeypatch.setitem(sys.modules, "jpegio", None)
    written = write_image(tmp_path / "again.jpg", image.pixels, image)
    assert written.jpeg == "encoded again: the package pyjpegio, which keeps blocks, is not here"
    assert read_image(tmp_path / "again.jpg").pixels.shape == image.pixels.shape
    PIL.Image.fromarray(scene(16, 16)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    image = read_image(tmp_path / "cmyk.jpg")
    assert "colours" in write_image(tmp_path / "rgb.jpg", image.pixels, image).jpeg


def test_spill_is_one_pixel() -> None:
    """What `_check` allows is what libjpeg's interpolation needs, not more."""
    data = encoded(scene(64, 64), subsampling="4:2:0")
    old = decoded(data)
    new = old.copy()
    new[16:32, 16:32] = [255, 0, 0]
    moved = np.argwhere(differing(decoded(edit_jpeg(data, old, new)), old))
    assert moved.min() == 16 - jpeg._SPILL
    assert moved.max() == 31 + jpeg._SPILL
