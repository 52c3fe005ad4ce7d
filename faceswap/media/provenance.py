"""Every output says that it is synthetic: the mark, and where each file format keeps it.

The mark is an XMP packet (Adobe XMP specification, ISO 16684-1) with the IPTC property
``Iptc4xmpExt:DigitalSourceType`` set to the term for composites that a trained algorithm made
(https://cv.iptc.org/newscodes/digitalsourcetype), and ``xmp:CreatorTool``.

Photos: merged into the packet that the photo came with. BMP has room for none: a sidecar
``photo.bmp.xmp``. Videos: container tags, and an XMP packet where the format has a place for one.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import struct
import xml.etree.ElementTree as ET  # expat >= 2.4.1 stops entity bombs; DOCTYPE is refused below
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from faceswap.errors import MediaError, MissingMediaError

COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
TERMS = {  # of IPTC's list, those that tell a photo from what is not one
    "compositeWithTrainedAlgorithmicMedia": "synthetic in parts",
    "compositeSynthetic": "synthetic in parts",
    "trainedAlgorithmicMedia": "synthetic",
    "algorithmicMedia": "synthetic",
    "virtualRecording": "synthetic",
    "algorithmicallyEnhanced": "changed by an algorithm",
    "digitalCapture": "taken by a camera",
    "computationalCapture": "taken by a camera",
    "negativeFilm": "taken on film",
    "positiveFilm": "taken on film",
    "print": "scanned from a print",
    "humanEdits": "edited by a person",
}
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
}
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'.encode()
_END = b'\n<?xpacket end="w"?>'
_SCAN_BYTES = 4 << 20  # how much of either end of a file is searched for a packet
_ISO_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification part 3, 1.2.7.1


def _name(prefix: str, local: str) -> str:
    return f"{{{_NAMESPACES[prefix]}}}{local}"


def _tool() -> str:
    try:
        version = importlib.metadata.version("faceswap")
    except importlib.metadata.PackageNotFoundError:  # run from a bare checkout
        version = "(source tree)"
    return f"faceswap {version}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an output says of its own origin."""

    source_type: str = COMPOSITE  # IPTC digital source type, a URL
    tool: str = field(default_factory=_tool)  # program and version


def xmp_packet(provenance: Provenance, existing: bytes = b"") -> bytes:
    """An XMP packet that carries the mark.

    Args:
        provenance: the mark.
        existing: the packet the input came with, or nothing. Its other fields are kept, except
            thumbnails (they show the face from before) and a rotation (it has been applied).

    Returns:
        The packet, UTF-8, with its ``<?xpacket`` wrapper. An ``existing`` that is not XMP is
        replaced by a fresh packet.
    """
    root = _parse(existing)
    if root is None:
        root = ET.Element(_name("x", "xmpmeta"))
        ET.SubElement(root, _name("rdf", "RDF"))
    rdf = root.find(_name("rdf", "RDF"))
    assert rdf is not None  # _parse returns no tree without one
    replaced = [
        _name("Iptc4xmpExt", "DigitalSourceType"),
        _name("xmp", "CreatorTool"),
        _name("xmp", "Thumbnails"),
        _name("tiff", "Orientation"),
    ]
    descriptions = rdf.findall(_name("rdf", "Description"))
    for description in descriptions:
        for tag in replaced:
            description.attrib.pop(tag, None)
            for child in description.findall(tag):
                description.remove(child)
    if not descriptions:
        about = {_name("rdf", "about"): ""}
        descriptions = [ET.SubElement(rdf, _name("rdf", "Description"), about)]
    descriptions[0].set(_name("Iptc4xmpExt", "DigitalSourceType"), provenance.source_type)
    descriptions[0].set(_name("xmp", "CreatorTool"), provenance.tool)
    for prefix, uri in _NAMESPACES.items():
        ET.register_namespace(prefix, uri)
    body: bytes = ET.tostring(root, encoding="utf-8")
    return _BEGIN + body + _END


def parse_xmp(packet: bytes) -> Provenance | None:
    """The mark in an XMP packet, or None if there is none."""
    root = _parse(packet)
    if root is None:
        return None
    found: dict[str, str] = {}
    for description in root.iter(_name("rdf", "Description")):
        for tag in (_name("Iptc4xmpExt", "DigitalSourceType"), _name("xmp", "CreatorTool")):
            child = description.find(tag)
            value = description.get(tag) or (child.text if child is not None else None)
            if value:
                found[tag] = value.strip()
    source_type = found.get(_name("Iptc4xmpExt", "DigitalSourceType"))
    if source_type is None:
        return None
    return Provenance(source_type, found.get(_name("xmp", "CreatorTool"), ""))


def _parse(packet: bytes) -> ET.Element | None:
    """The tree of a packet; its own prefixes are registered so that they are written again."""
    body = packet.strip(b"\0 \r\n\t")
    if not body or b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        return None
    try:
        for _, (prefix, uri) in ET.iterparse(io.BytesIO(body), events=["start-ns"]):
            if prefix and not re.fullmatch(r"ns\d+", prefix) and prefix not in _NAMESPACES:
                ET.register_namespace(prefix, uri)
        root = ET.fromstring(body)
    except ET.ParseError:
        return None
    if root.tag == _name("rdf", "RDF"):  # the outer element is optional in the specification
        outer = ET.Element(_name("x", "xmpmeta"))
        outer.append(root)
        return outer
    return root if root.find(_name("rdf", "RDF")) is not None else None


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the mark of a file without metadata stands: ``photo.bmp`` -> ``photo.bmp.xmp``."""
    target = Path(path)
    return target.with_name(target.name + ".xmp")


def container_tags(provenance: Provenance) -> dict[str, str]:
    """Tags for a video container.

    ``comment`` is the one key that every container keeps (mp4, mov, mkv, webm, avi), so it says
    all; Matroska keeps the others too.
    """
    return {
        "comment": f"Synthetic media, made with {provenance.tool}. "
        f"DigitalSourceType: {provenance.source_type}",
        "synthetic_media": "true",
        "digital_source_type": provenance.source_type,
        "creator_tool": provenance.tool,
    }


def embed_xmp(path: str | os.PathLike[str], suffix: str, provenance: Provenance) -> None:
    """Add an XMP packet to a finished animation or video, in place.

    Args:
        path: the file (a ``.part``, as a rule).
        suffix: which format it is, ``.mp4``; formats without a place for XMP are left alone.
        provenance: the mark.
    """
    packet = xmp_packet(provenance)
    if suffix in (".mp4", ".m4v", ".mov"):
        with open(path, "ab") as file:  # a box of its own at the end; players skip it
            file.write(struct.pack(">I4s", 24 + len(packet), b"uuid") + _ISO_XMP + packet)
        return
    splice = {".gif": _gif_with, ".webp": _webp_with, ".apng": png_with, ".png": png_with}
    if suffix in splice:
        data = splice[suffix](Path(path).read_bytes(), packet)
        Path(path).write_bytes(data)


def png_with(data: bytes, xmp: bytes, chunks: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG with an XMP text chunk, and other (type, body) chunks, put behind its header."""
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    added = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"iTXt", text))
    )
    header = 8 + 25  # signature, IHDR
    return data[:header] + added + data[header:]


def _gif_with(data: bytes, xmp: bytes) -> bytes:
    # XMP specification part 3, 1.1.2: the packet is not cut into sub-blocks; the 258 bytes behind
    # it lead any reader that takes it for sub-blocks out again.
    trailer = bytes([1, *range(255, -1, -1), 0])
    block = b"\x21\xff\x0bXMP DataXMP" + xmp + trailer
    palette = 3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    start = 13 + palette  # behind header, screen descriptor and global palette
    return data[:start] + block + data[start:]


def _webp_with(data: bytes, xmp: bytes) -> bytes:
    assert data[12:16] == b"VP8X"  # every animation has this header
    flags = bytes([data[20] | 0x04])
    chunk = b"XMP " + struct.pack("<I", len(xmp)) + xmp + b"\0" * (len(xmp) % 2)
    body = data[8:20] + flags + data[21:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


def read_provenance(path: str | os.PathLike[str]) -> Provenance | None:
    """What a photo or video says of its own origin; None if it says nothing.

    XMP packets are made to be found by scanning, so that is what happens, whatever the format;
    then the sidecar, then the container's tags are asked.

    Raises:
        MissingMediaError: there is no such file.
        MediaError: it cannot be read.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            data = stream.read(_SCAN_BYTES)
            if size > len(data):
                stream.seek(max(len(data), size - _SCAN_BYTES))
                data += stream.read()
    except FileNotFoundError as error:
        raise MissingMediaError(f"There is no file {os.fspath(path)!r}") from error
    except OSError as error:
        raise MediaError(f"Cannot read {os.fspath(path)!r}: {error.strerror}") from error
    for match in re.finditer(rb"<x:xmpmeta.*?</x:xmpmeta>", data, re.DOTALL):
        found = parse_xmp(match.group())
        if found is not None:
            return found
    beside = sidecar(file)
    if beside.is_file():
        return parse_xmp(beside.read_bytes())
    tagged = re.search(rb"made with (faceswap \S+)\. DigitalSourceType: (http\S+?Media)", data)
    return Provenance(tagged[2].decode(), tagged[1].decode()) if tagged else None
