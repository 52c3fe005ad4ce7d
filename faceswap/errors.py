"""Every error a user can cause, as one small tree.

Each class is also the builtin a Python caller would expect, and carries the exit code the
command line ends with. Messages say what was done, where, and what to do next, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FaceSwapError(Exception):
    """Base of all errors the package raises on purpose; shown without a traceback."""

    exit_code = 1


class ConfigError(FaceSwapError, ValueError):
    """A setting, option or combination of them that cannot be right."""

    exit_code = 2


class WeightError(FaceSwapError, OSError):
    """A weight file that is missing, damaged, of another network, or not to be trusted."""


class MissingWeightError(WeightError, FileNotFoundError):
    """A weight file that is not here; the message names the command that gets it."""


class MediaError(FaceSwapError, OSError):
    """A photo or video that cannot be read or written."""


class MissingMediaError(MediaError, FileNotFoundError):
    """A photo or video that does not exist."""


class NoFaceError(FaceSwapError, LookupError):
    """No face where one is needed, or nobody who matches the reference."""


class DeviceError(FaceSwapError, RuntimeError):
    """A device that was asked for and cannot be had."""


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that nobody here knows, with the nearest known one.

    Args:
        what: What was named, as the user would say it ("pack", "setting").
        name: The name that was given.
        known: Every name there is.
    """
    names = sorted(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(names)}"
    return ConfigError(f"unknown {what} {name!r}: {hint}")
