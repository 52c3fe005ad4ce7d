"""One large file over HTTP: resumed where it broke off, checked, or not there at all.

Standard library only; proxies are taken from the environment. Nothing here knows what a weight
is: `weights.fetch` hands in addresses and what the file must be, and renames what comes out.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faceswap.errors import WeightError

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30.0  # seconds without a byte before an address counts as dead
TRIES = 8  # times one address is asked, as long as each brings the file on
PAUSE = 1.0  # seconds before asking again

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all or 0)


class _Refused(Exception):
    """This address does not have the file."""


class _Dropped(Exception):
    """The connection ended early; what came is kept."""


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One address, the part it fills, and what the whole has to be."""

    url: str
    part: Path
    size: int  # bytes, 0 = unknown
    sha256: str  # "" = unknown
    progress: Progress | None

    @property
    def have(self) -> int:
        """Bytes there so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def validator(self) -> str:
        """What the server said identifies the file the part was begun from, if it is this url's."""
        if not self._origin.exists():
            return ""
        url, _, validator = self._origin.read_text(encoding="utf-8").partition("\n")
        return validator if url == self.url else ""

    def begin(self, validator: str) -> None:
        """Note where a part that starts from nothing comes from."""
        self._origin.write_text(f"{self.url}\n{validator}", encoding="utf-8")

    def end(self) -> None:
        """Drop the note."""
        self._origin.unlink(missing_ok=True)

    def discard(self) -> None:
        """Drop the part as well."""
        self.end()
        self.part.unlink(missing_ok=True)

    @property
    def _origin(self) -> Path:
        return self.part.with_name(self.part.name + ".from")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    urls: Sequence[str],
    part: Path,
    *,
    size: int = 0,
    sha256: str = "",
    progress: Progress | None = None,
) -> tuple[str, str]:
    """Fetch one file into ``part`` from the first address that has it.

    Args:
        urls: Addresses of the same file, tried in this order.
        part: Where the bytes go. What an earlier call left there is continued, if it is known
            to be of the same file: by its checksum in the end, or by the server's own word
            (``If-Range``) where there is no checksum.
        size: Bytes the file must have, 0 = unknown.
        sha256: What the file must hash to, "" = unknown.
        progress: Called after every chunk.

    Returns:
        The address it came from, and its SHA-256.

    Raises:
        WeightError: No address had the file (all are named, with the reason), or it could not
            be written; ``part`` is then kept for the next call.
    """
    failures = []
    for url in urls:
        try:
            return url, _from_one(_Transfer(url, part, size, sha256, progress))
        except _Refused as error:
            failures.append(f"{url}: {error}")
    raise WeightError("; ".join(failures) or "no address is known")


def _from_one(transfer: _Transfer) -> str:
    """SHA-256 of the finished part, or `_Refused`."""
    for _ in range(TRIES):
        before = transfer.have
        try:
            resumed = _stream(transfer)
        except _Dropped as error:
            if transfer.have == before:  # not one byte more: this address is dead
                raise _Refused(str(error)) from error
            time.sleep(PAUSE)
            continue
        digest = sha256_of(transfer.part)
        if transfer.sha256 in ("", digest) and transfer.size in (0, transfer.have):
            transfer.end()
            return digest
        got = f"sha256 {digest}, expected {transfer.sha256}"
        if transfer.size not in (0, transfer.have):
            got = f"{transfer.have} bytes, expected {transfer.size}"
        transfer.discard()
        if not resumed:  # else: the beginning may have come from another file, try once more
            raise _Refused(f"sent another file: {got}")
    raise _Refused(f"broke off {TRIES} times")


def _stream(transfer: _Transfer) -> bool:
    """Add what is missing to the part; whether any of it was there before."""
    have, validator = transfer.have, transfer.validator
    if (have and not (transfer.sha256 or validator)) or (transfer.size and have > transfer.size):
        transfer.discard()
        have = 0
    headers = {"User-Agent": "faceswap", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = _open(transfer.url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise _Refused(f"{error.code} {error.reason}") from error
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # nothing was missing
        transfer.discard()
        raise _Dropped("the part was longer than the file") from error
    with response:
        start = have if response.status == 206 else 0
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Refused("sent another range of the file than was asked for")
        total = _total(response, start, transfer)
        free = shutil.disk_usage(transfer.part.parent).free
        if total - start > free:
            raise WeightError(
                f"no space left in {transfer.part.parent}: {(total - start) / 2**20:.0f} MiB "
                f"needed, {free / 2**20:.0f} MiB free"
            )
        _copy(response, start, total, transfer)
    return start > 0


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer of one address; `HTTPError` is left to the caller."""
    try:
        # an opener of our own: the module's shared one keeps the proxies of its first use
        answer: http.client.HTTPResponse = urllib.request.build_opener().open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _Refused(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Refused(str(error) or type(error).__name__) from error
    return answer


def _total(response: http.client.HTTPResponse, start: int, transfer: _Transfer) -> int:
    """Bytes of the whole file as the server says, 0 if it does not."""
    if response.headers.get_content_type() == "text/html":
        raise _Refused("answered with a web page instead of the file")
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else 0
    if transfer.size and total and total != transfer.size:
        raise _Refused(f"sent another file: {total} bytes, expected {transfer.size}")
    if not (total or transfer.size or transfer.sha256):
        raise _Refused("does not say how long the file is, and no checksum is known")
    return total


def _copy(response: http.client.HTTPResponse, start: int, total: int, transfer: _Transfer) -> None:
    done = start
    try:
        if not start:
            tag = response.headers.get("ETag", "")
            strong = tag if not tag.startswith("W/") else ""
            transfer.begin(strong or response.headers.get("Last-Modified", ""))
        with transfer.part.open("ab" if start else "wb") as out:
            while chunk := _read(response):
                out.write(chunk)
                done += len(chunk)
                if transfer.progress is not None:
                    transfer.progress(done, total)
    except OSError as error:
        raise WeightError(
            f"cannot write {transfer.part}: {error.strerror or error}; what came is kept, "
            "the next fetch goes on from it"
        ) from error
    if done < total:
        raise _Dropped(f"connection ended after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(str(error) or type(error).__name__) from error
