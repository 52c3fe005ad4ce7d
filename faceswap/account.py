"""What is said of a clip at the end: the report, the sidecar, or why nothing was swapped."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from faceswap.cast import Cast
from faceswap.errors import MediaError, NoFaceError
from faceswap.media.provenance import Provenance
from faceswap.types import VideoReport
from faceswap.window import Window


def report_of(output: Path, window: Window, cast: Cast, seconds: dict[str, float]) -> VideoReport:
    """The report, but for warnings; ``seconds``: of each stage."""
    tally, names, peak = window.tally, cast.identities.names, peak_bytes()
    return VideoReport(
        output=str(output),
        frames=tally.frames,
        faces_seen=tally.faces_seen,
        faces_swapped=tally.faces_swapped,
        pack=window.swapper.pack.name,
        device=window.devices,
        seconds=seconds,
        jitter=tally.jitter,
        tracks=tally.tracks,
        bridged=tally.bridged,
        dropped=tally.dropped,
        person=cast.person,
        peak_mb=None if peak is None else peak / 1e6,
        swaps=tuple(
            {"track": n, "source": names[s], "first": a, "last": b, "frames": count}
            for n, (s, a, b, count) in sorted(tally.swaps.items())
        ),
    )


def nothing_swapped(clip: str, cast: Cast, window: Window) -> NoFaceError:
    """Why a clip stayed as it was, and what to do."""
    tally, casting = window.tally, window.casting
    if not tally.faces_seen:
        return NoFaceError(
            f"{clip}: no face found in {tally.frames} frames; nothing was swapped and nothing "
            "written"
        )
    if cast.references is not None and casting.best > -1:
        return NoFaceError(
            f"{clip}: nobody matches the reference (best similarity {casting.best:.2f}, needed "
            f"{casting.threshold:.2f}); use another reference photo, such as one that `faceswap "
            f"faces` writes, or --set match.threshold={max(casting.best - 0.01, 0):.2f}"
        )
    return NoFaceError(
        f"{clip}: {tally.faces_seen} faces were found, none for long enough to be a person; "
        "nothing was swapped and nothing written"
    )


def write_sidecar(output: Path, clip: str, report: VideoReport) -> None:
    """``OUTPUT.json``: that this is synthetic, and what was swapped when."""
    mark = Provenance()
    content = {
        "synthetic_media": True,
        "digital_source_type": mark.source_type,
        "tool": mark.tool,
        "output": output.name,
        "made_from": os.path.basename(clip),
        "frames": report.frames,
        "faces_swapped": report.faces_swapped,
        "swaps": report.swaps,  # times in seconds of the clip it was made from
    }
    path = output.with_name(output.name + ".json")
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MediaError(f"Cannot write {str(path)!r}: {error.strerror}") from error


def peak_bytes() -> int | None:
    """Most memory the process ever held; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # what follows also knows what the process held that started this one
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if found:
            return 1024 * int(found[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
