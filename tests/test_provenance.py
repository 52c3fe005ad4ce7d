"""Outputs say that they are synthetic, and inputs keep what they said."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch

from faceswap.errors import MediaError, MissingMediaError
from faceswap.media.image import read_image, write_image
from faceswap.media.provenance import (
    COMPOSITE,
    Provenance,
    container_tags,
    embed_xmp,
    parse_xmp,
    read_provenance,
    sidecar,
    xmp_packet,
)
from faceswap.train.preview import save_sheet

CAMERA = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:xap="http://ns.adobe.com/xap/1.0/"
   xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:lr="http://example.org/lr/"
   xap:CreatorTool="Camera 7" xap:Rating="4" tiff:Orientation="6">
  <lr:private>kept</lr:private>
  <xap:Thumbnails><rdf:Alt><rdf:li>OLDFACE</rdf:li></rdf:Alt></xap:Thumbnails>
 </rdf:Description>
 <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
  <e:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture</e:DigitalSourceType>
  <dc:creator><rdf:Seq><rdf:li>A. N. Other</rdf:li></rdf:Seq></dc:creator>
 </rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
BLACK = torch.zeros(3, 8, 8, dtype=torch.uint8)


def save_with_xmp(path: Path, xmp: bytes) -> None:
    image = PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    if path.suffix == ".png":
        info = PIL.PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(path, pnginfo=info)
    elif path.suffix == ".tif":
        image.save(path, tiffinfo={700: xmp})
    else:
        image.save(path, xmp=xmp)


def xmp_by_pillow(path: Path) -> bytes:
    with PIL.Image.open(path) as image:
        value = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
        if value is None:
            value = image.tag_v2[700]
    return value.encode() if isinstance(value, str) else value


def test_the_literal_terms() -> None:
    """The words other programs look for, spelled out here once more."""
    root = ET.fromstring(xmp_packet(Provenance(tool="faceswap 1.2")))
    description = next(root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"))
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )
    assert description.get("{http://ns.adobe.com/xap/1.0/}CreatorTool") == "faceswap 1.2"
    assert b"Iptc4xmpExt:DigitalSourceType=" in xmp_packet(Provenance())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_photo_is_marked_where_other_programs_look(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    write_image(target, BLACK)
    assert parse_xmp(xmp_by_pillow(target)) == Provenance()
    found = read_provenance(target)
    assert found == Provenance()
    assert found is not None
    assert found.tool.startswith("faceswap ")


def test_16_bit_files_are_marked(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((8, 8), 999, np.uint16)).save(tmp_path / "in.png")
    image = read_image(tmp_path / "in.png")
    for suffix in (".png", ".tif"):
        write_image(tmp_path / f"out{suffix}", image.pixels, image)
        assert parse_xmp(xmp_by_pillow(tmp_path / f"out{suffix}")) == Provenance()


def test_bmp_has_a_sidecar(tmp_path: Path) -> None:
    target = tmp_path / "out.bmp"
    write_image(target, BLACK)
    assert sidecar(target) == tmp_path / "out.bmp.xmp"
    assert read_provenance(target) == Provenance()
    with pytest.raises(MediaError, match="--overwrite"):
        write_image(target, BLACK)
    target.unlink()
    with pytest.raises(MediaError, match=r"out\.bmp\.xmp"):
        write_image(target, BLACK)
    assert not target.exists()
    write_image(target, BLACK, overwrite=True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_merged_into_the_packet_of_the_input(tmp_path: Path, suffix: str) -> None:
    save_with_xmp(tmp_path / f"in{suffix}", CAMERA)
    image = read_image(tmp_path / f"in{suffix}")
    target = tmp_path / f"out{suffix}"
    write_image(target, image.pixels, image, provenance=Provenance(tool="faceswap 9"))
    packet = xmp_by_pillow(target)
    assert read_provenance(target) == Provenance(COMPOSITE, "faceswap 9")
    for kept in (b"<lr:private>kept</lr:private>", b"A. N. Other", b'Rating="4"'):
        assert kept in packet
    for gone in (b"digitalCapture", b"Camera 7", b"OLDFACE", b"Orientation"):
        assert gone not in packet
    assert packet.count(b"CreatorTool") == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"<x:xmpmeta",
        b"\xff\xfe",
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>',
    ],
)
def test_damaged_packet_is_replaced(damaged: bytes) -> None:
    assert parse_xmp(xmp_packet(Provenance(), damaged)) == Provenance()


def test_packet_without_outer_element() -> None:
    bare = CAMERA[CAMERA.index(b"<rdf:RDF") : CAMERA.index(b"</x:xmpmeta>")]
    packet = xmp_packet(Provenance(), bare)
    assert b"<x:xmpmeta" in packet
    assert b"A. N. Other" in packet


def test_packet_too_long_for_jpeg(tmp_path: Path) -> None:
    long = CAMERA.replace(b"A. N. Other", b"A" * 66_000)
    save_with_xmp(tmp_path / "in.png", long)
    image = read_image(tmp_path / "in.png")
    warnings = write_image(tmp_path / "out.jpg", image.pixels, image).warnings
    assert any("XMP" in warning for warning in warnings)
    assert read_provenance(tmp_path / "out.jpg") == Provenance()


def test_extended_xmp_of_jpeg_is_carried_over(tmp_path: Path) -> None:
    body = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8) + b"<depth/>"
    extra = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "in.jpg", extra=extra)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, image)
    assert body in (tmp_path / "out.jpg").read_bytes()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_marked_and_stay_whole(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=70)
    assert read_provenance(target) is None
    embed_xmp(target, suffix, Provenance())
    assert read_provenance(target) == Provenance()
    if suffix != ".gif":  # Pillow does not read XMP of GIF
        assert parse_xmp(xmp_by_pillow(target)) == Provenance()
    with PIL.Image.open(target) as image:
        assert image.n_frames == 3
        image.seek(2)
        assert image.convert("RGB").getpixel((5, 5))[2] > 200


def test_tags_say_it_in_the_one_field_every_container_has(tmp_path: Path) -> None:
    tags = container_tags(Provenance())
    assert COMPOSITE in tags["comment"]
    assert "ynthetic" in tags["comment"]
    (tmp_path / "clip.avi").write_bytes(b"RIFF...." + tags["comment"].encode() + b"\0")
    assert read_provenance(tmp_path / "clip.avi") == Provenance()


def test_unmarked_and_missing_files(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    assert read_provenance(tmp_path / "plain.jpg") is None
    save_with_xmp(tmp_path / "camera.jpg", CAMERA)
    found = read_provenance(tmp_path / "camera.jpg")
    assert found is not None
    assert found.source_type.endswith("digitalCapture")
    with pytest.raises(MissingMediaError):
        read_provenance(tmp_path / "nowhere.jpg")


def test_sheets_of_swapped_faces_are_marked_and_those_of_photos_are_not(tmp_path: Path) -> None:
    row = torch.rand(2, 3, 8, 8)
    save_sheet(tmp_path / "swaps.png", [row, row], synthetic=True)
    save_sheet(tmp_path / "photos.png", [row, row])
    assert read_provenance(tmp_path / "swaps.png") == Provenance()
    assert read_provenance(tmp_path / "photos.png") is None
    for name in ("swaps.png", "photos.png"):
        assert read_image(tmp_path / name).pixels.shape == (3, 16, 16)
