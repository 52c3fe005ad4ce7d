"""The ffmpeg program: where it is and what it can do."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess

from faceswap.errors import MediaError


def find_ffmpeg() -> str:
    """Path of the ``ffmpeg`` on PATH, else of the one that came with imageio-ffmpeg.

    Raises:
        MediaError: there is neither.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg  # not needed where there is another

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise MediaError(
            "There is no ffmpeg program; install ffmpeg so that it is on PATH, or reinstall the "
            "Python package imageio-ffmpeg, which brings one"
        ) from error


def _ask(ffmpeg: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [ffmpeg, "-hide_banner", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MediaError(f"The program {ffmpeg!r} does not run: {error}") from error
    return done.stdout.decode(errors="replace")


@functools.cache
def encoders(ffmpeg: str) -> frozenset[str]:
    """Names of the encoders, of picture and sound, that it was built with."""
    return frozenset(re.findall(r"^ [VA]\S{5} (\S+)", _ask(ffmpeg, "-encoders"), re.MULTILINE))


@functools.cache
def pixel_formats(ffmpeg: str, encoder: str) -> tuple[str, ...]:
    """What an encoder takes; empty if it does not say."""
    said = re.search(r"Supported pixel formats: (.*)", _ask(ffmpeg, "-h", f"encoder={encoder}"))
    return tuple(said[1].split()) if said else ()


@functools.cache
def passthrough_option(ffmpeg: str) -> str:
    """The option for "leave the times alone": ``fps_mode``, before ffmpeg 5.1 ``vsync``."""
    said = re.search(r"ffmpeg version n?(\d+)\.(\d+)", _ask(ffmpeg, "-version"))
    old = said is not None and (int(said[1]), int(said[2])) < (5, 1)
    return "vsync" if old else "fps_mode"
