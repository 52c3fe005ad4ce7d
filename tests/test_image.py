"""Photos in and out; every file is made here."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.media import image as media
from faceswap.media.image import Image, Written, check_output, read_image, write_image
from faceswap.media.provenance import COMPOSITE, read_provenance

LOSSLESS = [".png", ".tif", ".tiff", ".bmp", ".webp"]
HEIGHT, WIDTH = 45, 61


def picture(channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """Smooth ramps with some noise, (H, W, C)."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 61.0
    planes = [x, y, (x + y) / 2, 1 - 0.7 * x][:channels]
    top = np.iinfo(dtype).max
    noisy = np.stack(planes, -1) * 0.9 + rng.random((HEIGHT, WIDTH, channels)) * 0.1
    samples = (np.clip(noisy, 0, 1) * top).astype(dtype)
    return samples if channels > 1 else samples[..., 0]


def swapped(image: Image) -> torch.Tensor:
    """The pixels with one rectangle changed, as a swap would."""
    pixels = image.pixels.clone()
    pixels[:, 10:20, 15:30] = (pixels[:, 10:20, 15:30].int() + 40).clamp(0, 255).to(torch.uint8)
    return pixels


def as_numpy(image: Image) -> np.ndarray:
    return image.pixels.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_every_pixel_and_the_change(tmp_path: Path, suffix: str) -> None:
    PIL.Image.fromarray(picture()).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(as_numpy(image), picture())
    new = swapped(image)
    assert write_image(tmp_path / f"out{suffix}", new, image) == Written()
    assert torch.equal(read_image(tmp_path / f"out{suffix}").pixels, new)


def test_jpeg_is_close_and_has_full_chroma(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64] * 4
    smooth = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    write_image(tmp_path / "out.jpg", torch.from_numpy(smooth.transpose(2, 0, 1).copy()))
    with PIL.Image.open(tmp_path / "out.jpg") as out:
        assert [part[1:3] for part in out.layer] == [(1, 1)] * 3
        assert np.abs(np.asarray(out).astype(int) - smooth).mean() < 1.0
    high = (tmp_path / "out.jpg").stat().st_size
    write_image(tmp_path / "low.jpg", read_image(tmp_path / "out.jpg").pixels, quality=30)
    assert (tmp_path / "low.jpg").stat().st_size < high


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0"])
def test_jpeg_encoded_again_is_nearly_exact_outside_the_change(
    tmp_path: Path, sampling: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks cannot be kept (see test_jpeg.py), the quantisation at least is."""
    monkeypatch.setitem(sys.modules, "jpegio", None)
    noise = np.random.default_rng(1).integers(0, 99, (128, 160, 1))
    y, x = np.mgrid[0:128, 0:160]
    samples = (np.stack([x, y, (x + y) / 2], -1) * 0.5 + noise).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(samples).save(
        tmp_path / "in.jpg", quality=70, subsampling=sampling, exif=exif
    )
    image = read_image(tmp_path / "in.jpg")
    new = swapped(image)
    write_image(tmp_path / "out.jpg", new, image)
    error = (read_image(tmp_path / "out.jpg").pixels.int() - new.int()).abs().float()
    # turned, the coefficients are the same, but the inverse transform rounds rows before columns
    assert error[:, 48:].mean() < (0.1 if orientation == 1 else 0.3)
    write_image(tmp_path / "plain.jpg", new)  # quality 95
    plain = (read_image(tmp_path / "plain.jpg").pixels.int() - new.int()).abs().float()
    assert plain[:, 48:].mean() > 0.5
    assert error[:, 10:20, 15:30].mean() < 6


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_alpha_is_kept(tmp_path: Path, suffix: str) -> None:
    PIL.Image.fromarray(picture(4)).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    assert image.alpha is not None
    np.testing.assert_array_equal(image.alpha[0].numpy(), picture(4)[..., 3])
    new = swapped(image)
    write_image(tmp_path / f"out{suffix}", new, image)
    out = read_image(tmp_path / f"out{suffix}")
    assert torch.equal(out.pixels, new)
    assert out.alpha is not None
    assert torch.equal(out.alpha, image.alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_without_room_for_alpha_the_picture_is_put_on_white(tmp_path: Path, suffix: str) -> None:
    samples = np.zeros((8, 8, 4), np.uint8)
    samples[:4, :, 3] = 255
    PIL.Image.fromarray(samples).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    warnings = write_image(tmp_path / f"out{suffix}", image.pixels, image).warnings
    assert any("white" in warning for warning in warnings)
    out = read_image(tmp_path / f"out{suffix}").pixels
    assert out[:, :2].max() <= 2
    assert out[:, -2:].min() >= 253


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_survive(tmp_path: Path, suffix: str, channels: int) -> None:
    samples = picture(channels, np.uint16)
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
    given = samples if order is None else cv2.cvtColor(samples, order)
    source = tmp_path / f"in{suffix}"
    assert cv2.imwrite(str(source), given)
    image = read_image(source)
    shown = (samples.astype(np.uint32) + 128) // 257
    colour = np.repeat(shown[..., None], 3, 2) if channels == 1 else shown[..., :3]
    np.testing.assert_array_equal(as_numpy(image), colour)
    new = swapped(image)
    write_image(tmp_path / f"out{suffix}", new, image)
    out = cv2.imread(str(tmp_path / f"out{suffix}"), cv2.IMREAD_UNCHANGED)
    assert out.dtype == np.uint16
    out = out if order is None else cv2.cvtColor(out, order)
    untouched = np.ones((HEIGHT, WIDTH), bool)
    untouched[10:20, 15:30] = False
    np.testing.assert_array_equal(out[untouched], samples[untouched])
    if channels == 4:
        np.testing.assert_array_equal(out[..., 3], samples[..., 3])
    inside = out[10:20, 15:30].astype(int)
    before = samples[10:20, 15:30].astype(int)
    if channels == 4:
        inside, before = inside[..., :3], before[..., :3]
    low = before < 65535 - 41 * 257
    np.testing.assert_array_equal((inside - before)[low], 40 * 257)


def test_grey_stays_grey_and_exact(tmp_path: Path) -> None:
    PIL.Image.fromarray(picture(1)).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    assert image.pixels.shape == (3, HEIGHT, WIDTH)
    new = image.pixels.clone()
    new[:, 5, 7] = torch.tensor([200, 100, 50], dtype=torch.uint8)
    write_image(tmp_path / "out.png", new, image)
    with PIL.Image.open(tmp_path / "out.png") as out:
        assert out.mode == "L"
        got = np.asarray(out)
    assert got[5, 7] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    expected = picture(1)
    expected[5, 7] = got[5, 7]
    np.testing.assert_array_equal(got, expected)


def test_grey_with_alpha_palette_and_bilevel(tmp_path: Path) -> None:
    grey = PIL.Image.merge("LA", [PIL.Image.fromarray(picture(1))] * 2)
    grey.save(tmp_path / "la.png")
    image = read_image(tmp_path / "la.png")
    write_image(tmp_path / "la2.png", image.pixels, image)
    with PIL.Image.open(tmp_path / "la2.png") as out:
        assert out.mode == "LA"
        np.testing.assert_array_equal(np.asarray(out), np.asarray(grey))
    colours = PIL.Image.fromarray(picture()).quantize(32)
    colours.save(tmp_path / "p.png", transparency=3)
    image = read_image(tmp_path / "p.png")
    np.testing.assert_array_equal(as_numpy(image), np.asarray(colours.convert("RGB")))
    assert image.alpha is not None
    np.testing.assert_array_equal(image.alpha[0].numpy() == 0, np.asarray(colours) == 3)
    PIL.Image.fromarray(picture(1) > 128).save(tmp_path / "one.tif")
    assert set(read_image(tmp_path / "one.tif").pixels.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_convention_orientation_is_applied_once(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """Top left black, top right white, bottom left grey in the *upright* photo."""
    stored_from_upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),  # a viewer turns it clockwise, so it lies turned the other way
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.full((32, 48, 3), 128, np.uint8)
    upright[:16, :16], upright[:16, -16:] = 0, 255
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    source = tmp_path / f"in{suffix}"
    lies = np.ascontiguousarray(stored_from_upright[orientation](upright))
    PIL.Image.fromarray(lies).save(source, exif=exif, quality=100)
    image = read_image(source)
    assert image.pixels.shape == (3, 32, 48)
    assert np.abs(as_numpy(image).astype(int) - upright).max() < 8
    target = tmp_path / f"out{suffix}"
    # a JPEG stays as it lies, see test_jpeg.py
    kept = write_image(target, image.pixels, image).jpeg == "blocks kept"
    with PIL.Image.open(target) as out:
        assert out.size == ((48, 32) if not kept else lies.shape[1::-1])
        assert out.getexif().get(0x0112, 1) == (orientation if kept else 1)
        assert out.getexif()[0x010F] == "Maker"
    again = read_image(target)
    assert (again.pixels.int() - image.pixels.int()).abs().max() < 8


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_16_bit_tiff(tmp_path: Path, orientation: int) -> None:
    samples = picture(3, np.uint16)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    from faceswap.media.encode import encode
    from faceswap.media.metadata import Metadata

    (tmp_path / "in.tif").write_bytes(encode(samples, "TIFF", Metadata(exif.tobytes()), None))
    image = read_image(tmp_path / "in.tif")
    expected = np.rot90(samples, {3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(image.stored, expected)
    write_image(tmp_path / "out.tif", image.pixels, image)
    np.testing.assert_array_equal(read_image(tmp_path / "out.tif").stored, expected)


def exif_with_thumbnail() -> bytes:
    """Orientation 6 and the date in the first directory, a JPEG thumbnail in the second."""
    thumbnail = b"\xff\xd8THE OLD FACE\xff\xd9"
    first = struct.pack(">H", 2)
    first += struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    first += struct.pack(">HHII", 0x8769, 4, 1, 8 + 30)
    first += struct.pack(">I", 8 + 30 + 18)
    sub = struct.pack(">H", 1) + struct.pack(">HHI4s", 0x927C, 7, 4, b"MAKR") + b"\0\0\0\0"
    second = struct.pack(">H", 2)
    second += struct.pack(">HHII", 0x0201, 4, 1, 8 + 30 + 18 + 30)
    second += struct.pack(">HHII", 0x0202, 4, 1, len(thumbnail)) + b"\0\0\0\0"
    return b"Exif\0\0MM\0\x2a\0\0\0\x08" + first + sub + second + thumbnail


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_profile_are_kept_but_not_the_old_thumbnail(tmp_path: Path, suffix: str) -> None:
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "in.jpg"
    PIL.Image.fromarray(picture()).save(
        source, exif=exif_with_thumbnail(), icc_profile=profile, dpi=(300, 300)
    )
    assert b"THE OLD FACE" in source.read_bytes()
    image = read_image(source)
    target = tmp_path / f"out{suffix}"
    write_image(target, image.pixels, image)
    assert b"THE OLD FACE" not in target.read_bytes()
    with PIL.Image.open(target) as out:
        assert out.info["icc_profile"] == profile
        assert out.getexif().get_ifd(0x8769)[0x927C] == b"MAKR"
        if suffix != ".webp":
            assert tuple(round(v) for v in out.info["dpi"]) == (300, 300)


def test_damaged_exif_is_left_out_with_a_warning(tmp_path: Path) -> None:
    damaged = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09"
    PIL.Image.fromarray(picture()).save(tmp_path / "in.jpg", exif=damaged)
    image = read_image(tmp_path / "in.jpg")
    assert image.metadata.exif == b""
    assert "EXIF" in image.warnings[0]
    write_image(tmp_path / "out.jpg", image.pixels, image)


def test_cmyk_becomes_srgb(tmp_path: Path) -> None:
    flat = PIL.Image.new("RGB", (16, 16), (200, 60, 30))
    flat.convert("CMYK").save(tmp_path / "in.jpg", quality=95)
    image = read_image(tmp_path / "in.jpg")
    assert "CMYK" in image.warnings[0]
    expected = torch.tensor([200, 60, 30]).view(3, 1, 1)
    assert (image.pixels.int() - expected).abs().max() < 6


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_picture_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"in{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    image = read_image(tmp_path / f"in{suffix}")
    assert image.pixels[:, 8, 8].tolist() == [255, 0, 0]
    assert "3 pictures" in image.warnings[0]


@pytest.mark.parametrize(
    "name", ["with space.png", "quo'te\".png", "-leading.png", "Ünï-文件-🙂.png", "a%20b#c?.png"]
)
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(picture()).save(tmp_path / "in.png")
    (tmp_path / "in.png").rename(name)
    image = read_image(name)
    target = name.replace(".png", "_swapped.png")
    write_image(target, image.pixels, image)
    assert torch.equal(read_image(target).pixels, image.pixels)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_huge_picture_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    with pytest.raises(MediaError, match=r"30000x30000 pixels \(900 million\).*200 million"):
        read_image(tmp_path / "huge.png")
    PIL.Image.fromarray(picture()).save(tmp_path / "small.png")
    with pytest.raises(MediaError, match="61x45"):
        read_image(tmp_path / "small.png", max_pixels=2000)


def test_one_pixel_loads(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").pixels.flatten().tolist() == [1, 2, 3]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.jpg"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        whole, quality=95
    )
    files = {
        "text": (b"this is not a photo\n", "not a photo"),
        "empty": (b"", "empty"),
        "cut": (whole.read_bytes()[:3000], "damaged or cut short"),
        "cut_header": (whole.read_bytes()[:20], "damaged or cut short|not a photo"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        "half_png": (png_header(64, 64)[:60], "damaged or cut short"),
        "short_png": (png_header(640, 64), "damaged or cut short"),
    }
    result = {}
    for name, (data, message) in files.items():
        path = folder / f"{name}.jpg"
        path.write_bytes(data)
        result[name] = (path, message)
    result["folder"] = (folder, "folder")
    result["missing"] = (folder / "nowhere.jpg", "no file")
    return result


@pytest.mark.parametrize(
    "case",
    [
        "text",
        "empty",
        "cut",
        "cut_header",
        "heic",
        "half_png",
        "short_png",
        "folder",
        "missing",
    ],
)
def test_bad_files_give_one_clear_line(tmp_path: Path, case: str) -> None:
    path, message = bad_files(tmp_path / "bad")[case]
    kind = MissingMediaError if case == "missing" else MediaError
    with pytest.raises(kind, match=message) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_cut_16_bit_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "whole.png"), picture(3, np.uint16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(MediaError, match="cut short"):
        read_image(tmp_path / "cut.png")


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(MediaError, match="32 bits"):
        read_image(tmp_path / "float.tif")


def test_output_is_never_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.png"
    PIL.Image.fromarray(picture()).save(source)
    before = source.read_bytes()
    (tmp_path / "symbolic.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeper").mkdir()
    image = read_image(source)
    for name in ("in.png", "symbolic.png", "hard.png", "./deeper/../in.png"):
        with pytest.raises(MediaError, match="same file as the input"):
            write_image(name, image.pixels, image, overwrite=True)
    assert source.read_bytes() == before


def test_existing_output_needs_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(MediaError, match="--overwrite"):
        write_image(target, pixels)
    assert target.read_bytes() == b"precious"
    write_image(target, pixels, overwrite=True)
    assert read_image(target).pixels.shape == (3, 4, 4)
    assert sorted(os.listdir(tmp_path)) == ["out.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out", "Cannot tell the format"),
        ("out.xyz", "end it in one of .*png"),
        ("nowhere/out.png", "does not exist"),
        ("folder.png", "is a folder"),
        ("/proc/self/out.png", "Cannot write into"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MediaError, match=message) as caught:
        check_output(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(MediaError, match="Permission denied"):
        check_output(tmp_path / "locked" / "out.png")


def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    (tmp_path / "out.png").touch()
    with pytest.raises(MediaError, match="No space left"):
        write_image(tmp_path / "out.png", torch.zeros(3, 4, 4, dtype=torch.uint8), overwrite=True)
    assert os.listdir(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").stat().st_size == 0


def test_stale_part_that_links_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out.png.part").symlink_to(tmp_path / "precious")
    write_image(tmp_path / "out.png", torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "out.png.part").exists()


def test_quality_and_shape_are_checked(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="1 to 100"):
        write_image(tmp_path / "out.jpg", pixels, quality=0)
    with pytest.raises(ValueError, match=r"expected \(3, 4, 4\)"):
        write_image(tmp_path / "out.jpg", pixels[:, :2], Image(pixels))


def test_16_bits_to_jpeg_is_said(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "in.png"), np.repeat(np.tile(ramp, (64, 1))[..., None], 3, 2))
    image = read_image(tmp_path / "in.png")
    assert "8 bits" in write_image(tmp_path / "out.jpg", image.pixels, image).warnings[0]
    error = (read_image(tmp_path / "out.jpg").pixels.int() - image.pixels.int()).abs()
    assert error.float().mean() < 1


def test_size_limit_of_pillow_is_put_back() -> None:
    assert PIL.Image.MAX_IMAGE_PIXELS is not None
    assert media.MAX_PIXELS == 200_000_000


def test_default_mark(tmp_path: Path) -> None:
    write_image(tmp_path / "out.jpg", torch.zeros(3, 8, 8, dtype=torch.uint8))
    mark = read_provenance(tmp_path / "out.jpg")
    assert mark is not None
    assert mark.source_type == COMPOSITE
