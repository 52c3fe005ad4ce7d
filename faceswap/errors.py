"""Every error a user can cause, as one small tree.

Each class is also the builtin a Python caller would expect, and carries the exit code the
command line ends with. Messages say what was done, where, and what to do next, in one line.
"""

from __future__ import annotations


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
