"""The command line: parse, make the configuration, one call, report.

Commands import what they run inside their bodies, so that ``--help`` loads nothing heavy.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from faceswap.errors import FaceSwapError

if TYPE_CHECKING:
    from faceswap.config import SwapConfig
    from faceswap.faces.select import Selection
    from faceswap.manifest import Entry
    from faceswap.types import FolderReport, ImageReport, VideoReport

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS = {  # option -> the setting it is short for
    "pack": "pack",
    "swapper": "swapper",
    "device": "device",
    "precision": "precision",
    "mask": "mask.kind",
    "color_match": "blend.color_match",
    "alpha": "blend.alpha",
    "occlusion": "occlusion.enabled",
    "restore": "restorer.enabled",
    "batch_size": "batch_size",
    "start": "start",
    "end": "end",
    "max_gap": "track.max_gap",
    "smoothing": "track.smoothing",
    "detect_every": "track.detect_every",
    "fps": "encode.fps",
    "codec": "encode.codec",
    "encoder": "encode.encoder",
    "crf": "encode.crf",
    "preset": "encode.preset",
    "audio": "encode.audio",
}
OPTIONS = {"audio": "no-audio"}  # those that are written otherwise than they are called
INTERRUPTED = 130  # exit code, 128 + SIGINT as shells have it
CLEAR = "\r\x1b[K"  # to the beginning of the terminal's line, which is emptied
_log = logging.getLogger("faceswap")


def options(*each: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown by ``--help`` in this order."""

    def add(command: F) -> F:
        for option in reversed(each):
            command = option(command)
        return command

    return add


def _level(level: int) -> Callable[[click.Context, click.Parameter, int], None]:
    def change(_context: click.Context, _parameter: click.Parameter, times: int) -> None:
        if times:
            _log.setLevel(max(level - 10 * (times - 1), logging.DEBUG))

    return change


class _Lines(logging.Handler):
    """One line on stderr for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(f"{level}{record.getMessage()}")


def say(text: str) -> None:
    """One line on stderr, whatever is in the text."""
    clear = CLEAR if sys.stderr.isatty() else ""
    click.echo(f"{clear}faceswap: {' '.join(text.split())}", err=True)


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Say so on stderr while it lasts, where that is a terminal and there is no -q."""
    watched = sys.stderr.isatty() and _log.isEnabledFor(logging.WARNING)
    if watched:
        click.echo(f"{CLEAR}{text} ...", err=True, nl=False)
    try:
        yield
    finally:
        if watched:
            click.echo(CLEAR, err=True, nl=False)


def _device(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    one = r"(cpu|cuda(:\d+)?)"
    if name is not None and not re.fullmatch(rf"auto|{one}(,{one})*", name):
        raise click.BadParameter(f"expected auto, cpu, cuda or cuda:INDEX, got {name!r}")
    return name


device_option = click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]",
    callback=_device,
    help="Where to run; a clip also on several, cuda:0,cuda:1.  [default: auto]",
)
verbosity = options(
    click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_level(logging.INFO),
        help="Say more; twice: also where an error comes from.",
    ),
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_level(logging.ERROR),
        help="Say nothing but errors.",
    ),
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the report as one JSON object."
)
overrides = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting; repeatable."
)
setting_options = options(
    click.option("--pack", metavar="NAME", help="Set of models.  [default: lite]"),
    click.option("--swapper", metavar="FILE", help="Swapper of your own in place of the pack's."),
    click.option("--mask", type=click.Choice(["adaptive", "ghost"]), help="How the edge is found."),
    click.option("--color-match/--no-color-match", default=None, help="Take the target's colours."),
    click.option("--alpha", type=click.FloatRange(0, 1), help="Share of the swapped face."),
    click.option(
        "--occlusion/--no-occlusion", default=None, help="Leave glasses and hands before the face."
    ),
    click.option("--restore/--no-restore", default=None, help="Sharpen the swapped face."),
    device_option,
    click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"])),
    click.option("--config", metavar="FILE", help="Settings as YAML, see configs/swap.yaml."),
    overrides,
)
face_options = options(
    click.option("--target-ref", metavar="PHOTO", help="Swap the person in this photo."),
    click.option("--all-faces", is_flag=True, help="Swap every face, not only the largest."),
    click.option(
        "--face", type=click.IntRange(min=1), metavar="N", help="Swap the Nth face from the left."
    ),
    click.option(
        "--map",
        "pairs",
        multiple=True,
        metavar="SOURCE=REF",
        help="Put SOURCE on the person in REF; repeatable, in place of SOURCE.",
    ),
    click.option(
        "--source-face",
        type=click.IntRange(min=1),
        metavar="N",
        help="Take the Nth face from the left of SOURCE, not the largest.",
    ),
    click.option(
        "--source-extra",
        multiple=True,
        metavar="PHOTO",
        help="More photos of the source, turned otherwise.",
    ),
)
output_options = options(
    click.option("-o", "--output", metavar="FILE", help="[default: TARGET_swapped.EXT beside it]"),
    click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
)
span_options = options(
    click.option("--start", type=float, metavar="SECONDS", help="Leave out what is before."),
    click.option("--end", type=float, metavar="SECONDS", help="Leave out what is after."),
)
clip_options = options(
    span_options,
    click.option("--fps", metavar="RATE", help="Constant frame rate.  [default: CLIP's times]"),
    click.option(
        "--codec", metavar="NAME", help="h264, hevc, vp9, av1, prores, ffv1.  [default: CLIP's]"
    ),
    click.option("--crf", type=int, metavar="N", help="Quality, lower is better."),
    click.option("--preset", metavar="NAME", help="Speed against size, as the encoder names it."),
    click.option("--encoder", metavar="NAME", help="ffmpeg's name, such as h264_nvenc."),
    click.option("--no-audio", "audio", flag_value=False, default=None, help="Without sound."),
    click.option("--max-gap", type=float, metavar="SECONDS", help="Bridged without a detection."),
    click.option("--smoothing", type=float, metavar="0..1", help="Strength; 0 is none."),
    click.option(
        "--detect-every",
        type=int,
        metavar="N",
        help="Look for faces in every N-th frame and at cuts only.  [default: 1]",
    ),
    click.option("--batch-size", type=int, metavar="N", help="Frames that go together."),
    click.option("--resume", is_flag=True, help="Go on with the work of an interrupted run."),
    click.option(
        "--preview",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only N frames, before and after, as one picture.",
    ),
    click.option("--sidecar", is_flag=True, help="Write OUTPUT.json: what was swapped when."),
)


@click.group("faceswap", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="faceswap", message="faceswap %(version)s")
def commands() -> None:
    """Put one person's face onto another person in a photo or a video."""
    _log.handlers = [_Lines()]
    _log.setLevel(logging.WARNING)
    if not sys.warnoptions:  # of libraries: nothing a user could act on
        warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code.

    What a user can cause ends in one line on stderr; anything else is a bug and keeps its
    traceback.

    Args:
        arguments: of the command line, by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        outcome = commands.main(
            arguments or ["--help"], prog_name="faceswap", standalone_mode=False
        )
    except click.Abort:
        say("interrupted")
        return INTERRUPTED
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "faceswap"
        say(f"{error.format_message()} (see {path} --help)")
        return error.exit_code
    except FaceSwapError as error:
        if _log.isEnabledFor(logging.DEBUG):
            click.echo(traceback.format_exc(), err=True, nl=False)
        say(str(error))
        return error.exit_code
    return outcome if isinstance(outcome, int) else 0


def choose(
    photos: tuple[str, ...], chosen: dict[str, Any]
) -> tuple[str | tuple[tuple[str, str], ...], str, Selection]:
    """Source (or pairs of source and reference), target, and whose face is swapped."""
    from faceswap.faces.select import Selection

    pairs = tuple(split(each) for each in chosen["pairs"])
    ways = ("target_ref", "all_faces", "face", "pairs")
    given = [f"--{way.replace('pairs', 'map').replace('_', '-')}" for way in ways if chosen[way]]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} cannot go together")
    if pairs and (chosen["source_face"] or chosen["source_extra"]):
        raise click.UsageError("--source-face and --source-extra go with SOURCE, not with --map")
    if len(photos) != (1 if pairs else 2):
        wanted = "TARGET alone, as --map names the sources" if pairs else "SOURCE and TARGET"
        raise click.UsageError(f"expected {wanted}, got {' '.join(photos) or 'nothing'}")
    face = None if chosen["face"] is None else chosen["face"] - 1
    selection = Selection(face=face, all_faces=chosen["all_faces"])
    return pairs or photos[0], photos[-1], selection


def split(text: str) -> tuple[str, str]:
    """``SOURCE=REF`` of ``--map``; among several ``=``, the one between two files counts."""
    cuts = [(text[:at], text[at + 1 :]) for at, sign in enumerate(text) if sign == "="]
    files = [cut for cut in cuts if all(Path(side).is_file() for side in cut)]
    if not cuts or not all((files or cuts)[0]):
        raise click.UsageError(f"--map {text}: expected SOURCE=REF, two photos")
    return (files or cuts)[0]


def settings(chosen: dict[str, Any], schema: type[SwapConfig] | None = None) -> Any:
    """``--config``, over it the options that are short for a setting, over both ``--set``.

    An object of `schema`, which is `SwapConfig` if nothing is said.
    """
    from faceswap.config import SwapConfig, load_config

    given = {k: chosen[name] for name, k in SETTINGS.items() if chosen.get(name) is not None}
    if "blend.color_match" in given:
        given["blend.color_match"] = float(given["blend.color_match"])
    short = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    by_hand = {each.partition("=")[0].strip() for each in chosen["sets"]}
    typed = {key: OPTIONS.get(name, name) for name, key in SETTINGS.items() if key in given}
    return load_config(
        chosen.get("config"),
        [*short, *chosen["sets"]],
        schema=schema or SwapConfig,
        options={k: f"--{o.replace('_', '-')}" for k, o in typed.items() if k not in by_hand},
    )


def check_inputs(inputs: Sequence[str]) -> None:
    """Each of them is there."""
    from faceswap.errors import MissingMediaError

    for path in inputs:
        if not Path(path).exists():
            raise MissingMediaError(f"There is no file {path!r}")


def check_files(
    inputs: Sequence[str], output: str, overwrite: bool, extensions: Collection[str] = ()
) -> None:
    """What can be known to be wrong before anything heavy is loaded."""
    from faceswap.media.output import IMAGE_EXTENSIONS, check_output

    check_inputs(inputs)
    check_output(output, inputs, overwrite, extensions=extensions or IMAGE_EXTENSIONS)


def swapped_name(
    target: str, extensions: Collection[str] = (), other: str = ".png", end: str = "swapped"
) -> str:
    """``DIR/STEM_swapped.EXT``; another extension where EXT cannot be written."""
    from faceswap.media.output import IMAGE_EXTENSIONS

    path = Path(target)
    known = path.suffix.lower() in (extensions or IMAGE_EXTENSIONS)
    return str(path.with_name(f"{path.stem}_{end}{path.suffix if known else other}"))


def swapped_folder(folder: str) -> str:
    """``DIR_swapped`` beside a folder."""
    path = Path(folder)
    path = path if path.name.strip(".") else path.resolve()
    return str(path.with_name(f"{path.name}_swapped"))


def progress(line: str) -> None:
    """One line on stderr: with -v, or where it is a terminal and there is no -q."""
    watched = sys.stderr.isatty() and _log.isEnabledFor(logging.WARNING)
    if watched or _log.isEnabledFor(logging.INFO):
        say(line)


def show(report: ImageReport, as_json: bool) -> None:
    """One JSON object, or one line."""
    for warning in report.warnings:
        _log.warning(warning)
    if as_json:
        click.echo(json.dumps({k: v for k, v in asdict(report).items() if k != "image"}))
    elif _log.isEnabledFor(logging.WARNING):
        click.echo(
            f"{click.format_filename(report.output)}: {report.faces_swapped} of "
            f"{report.faces_seen} faces swapped ({report.pack} on {report.device}, "
            f"{report.seconds['total']:.1f} s)"
        )
    _log.info("%s", ", ".join(f"{stage} {spent:.2f} s" for stage, spent in report.seconds.items()))


def show_folder(report: FolderReport, as_json: bool) -> int:
    """One JSON object, or one line; what was left out on stderr. 1 if a photo was unreadable."""
    for warning in report.warnings:
        _log.warning(warning)
    for photo, why in (*report.left_out, *report.unreadable):
        _log.warning("%s: left out: %s", photo, why)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    elif _log.isEnabledFor(logging.WARNING):
        there = f", {report.there_already} there already" if report.there_already else ""
        out = len(report.left_out) + len(report.unreadable)
        click.echo(
            f"{click.format_filename(report.output)}: {report.faces_swapped} faces swapped in "
            f"{report.swapped} of {report.photos} photos ({out} left out{there}; {report.pack} on "
            f"{report.device}, {report.seconds:.1f} s)"
        )
    return 1 if report.unreadable else 0


@commands.command()
@click.argument("photos", nargs=-1, metavar="SOURCE TARGET")
@output_options
@click.option("--quality", type=click.IntRange(1, 100), help="Of a JPEG or WebP output.")
@face_options
@setting_options
@as_json
@verbosity
def image(photos: tuple[str, ...], as_json: bool, **chosen: Any) -> int:
    """Put the face of the photo SOURCE on a person in the photo TARGET.

    TARGET may be a folder: all photos in it are swapped, into the folder -o DIR; what is there
    already is left alone. With --map, SOURCE is left out. Names that begin with a dash go after a
    --.
    """
    source, target, selection = choose(photos, chosen)
    config = settings(chosen)
    several = Path(target).is_dir()
    output = chosen["output"] or (swapped_folder if several else swapped_name)(target)
    paired = [] if isinstance(source, str) else [photo for pair in source for photo in pair]
    others = [*chosen["source_extra"], *filter(None, [chosen["target_ref"]])]
    if several:
        from faceswap.media.folder import find_photos

        check_inputs([*photos, *paired, *others])
        find_photos(Path(target), Path(output))
    else:
        check_files([*photos, *paired, *others], output, chosen["overwrite"])
    with doing("loading models"):
        from faceswap.folder import swap_folder
        from faceswap.photo import swap_image
        from faceswap.swap import Swapper

        swapper = Swapper.from_config(config)
    given: dict[str, Any] = {
        "overwrite": chosen["overwrite"],
        "select": selection,
        "reference": chosen["target_ref"],
        "extra": chosen["source_extra"],
        "source_face": chosen["source_face"] and chosen["source_face"] - 1,
        "quality": chosen["quality"],
    }
    if several:
        with bar("photos") as advance:
            done = swap_folder(swapper, source, target, output, progress=advance, **given)
        return show_folder(done, as_json)
    with doing("swapping"):
        report = swap_image(swapper, source, target, output, **given)
    show(report, as_json)
    return 0


@commands.command()
@click.argument("names", nargs=-1, metavar="SOURCE CLIP")
@output_options
@face_options
@clip_options
@setting_options
@as_json
@verbosity
def video(names: tuple[str, ...], as_json: bool, **chosen: Any) -> None:
    """Put the face of the photo SOURCE on a person in CLIP, a video or an animation.

    Without --target-ref, --map or --all-faces it is the person seen in most of the clip.
    """
    source, clip, selection = choose(names, chosen)
    if selection.face is not None:
        raise click.UsageError("--face counts in a photo; for a clip use --target-ref")
    from faceswap.config import VideoConfig
    from faceswap.media.plan import VIDEO_EXTENSIONS

    config, preview = settings(chosen, VideoConfig), chosen["preview"]
    extensions = () if preview else VIDEO_EXTENSIONS
    if preview:
        output = chosen["output"] or swapped_name(clip, ("",), ".png", "preview")
    else:
        output = chosen["output"] or swapped_name(clip, VIDEO_EXTENSIONS, ".mp4")
    paired = [] if isinstance(source, str) else [photo for pair in source for photo in pair]
    others = [*chosen["source_extra"], *filter(None, [chosen["target_ref"]])]
    check_files([*names, *paired, *others], output, chosen["overwrite"], extensions)
    with doing("loading models"):
        from faceswap.preview import preview_video
        from faceswap.swap import Swapper
        from faceswap.video import swap_video

        swapper = Swapper.from_config(config, video=True)
    given: dict[str, Any] = {
        "config": config,
        "reference": chosen["target_ref"] or None,
        "extra": chosen["source_extra"],
        "source_face": chosen["source_face"] and chosen["source_face"] - 1,
        "all_faces": selection.all_faces,
        "overwrite": chosen["overwrite"],
    }
    if preview:
        with doing("swapping"):
            report = preview_video(swapper, source, clip, output, count=preview, **given)
    else:
        with bar("frames") as advance:
            given |= {"resume": chosen["resume"], "sidecar": chosen["sidecar"]}
            report = swap_video(swapper, source, clip, output, progress=advance, **given)
    show_clip(report, as_json)


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int, int], None]]:
    """Frames, frames a second, faces and time left, where stderr is a terminal and no -q."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    off = None if _log.isEnabledFor(logging.WARNING) else True
    with (
        tqdm(unit=f" {unit}", leave=False, disable=off) as shown,
        logging_redirect_tqdm([_log]),
    ):

        def advance(frames: int, total: int, faces: int) -> None:
            shown.total = total or None
            shown.set_postfix(faces=faces, refresh=False)
            shown.update(frames - shown.n)

        yield advance


def show_clip(report: VideoReport, as_json: bool) -> None:
    """One JSON object, or two lines: what was done, and what took the time."""
    for warning in (*report.warnings, *filter(None, [report.person])):
        _log.warning(warning)
    total = report.seconds.get("total") or sum(report.seconds.values())
    stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in report.seconds.items())
    if as_json:
        click.echo(json.dumps(asdict(report)))
    elif _log.isEnabledFor(logging.WARNING):
        jitter = "" if report.jitter is None else f", jitter {report.jitter:.2f} %"
        click.echo(
            f"{click.format_filename(report.output)}: {report.faces_swapped} faces swapped in "
            f"{report.frames} frames ({report.faces_seen} seen in {report.tracks} tracks, "
            f"{report.bridged} bridged, {report.dropped} dropped{jitter}; {report.pack} on "
            f"{report.device}, {total:.1f} s)"
        )
        click.echo(f"seconds: {stages}")


@commands.command()
@click.argument("clip", metavar="CLIP")
@click.option("-o", "--output", metavar="DIR", help="[default: CLIP_people beside it]")
@span_options
@click.option("--pack", metavar="NAME", help="Set of models.  [default: lite]")
@device_option
@overrides
@as_json
@verbosity
def faces(clip: str, output: str | None, as_json: bool, **chosen: Any) -> None:
    """List the people in CLIP; write a contact sheet and a photo of each for --target-ref."""
    from faceswap.config import VideoConfig
    from faceswap.errors import MissingMediaError

    config = settings(chosen, VideoConfig)
    if not Path(clip).exists():
        raise MissingMediaError(f"There is no file {clip!r}")
    with doing("looking for people"):
        from faceswap.people import list_people
        from faceswap.swap import Swapper

        swapper = Swapper.from_config(config, video=True)
        folder = output or swapped_name(clip, ("",), "", "people")
        report = list_people(swapper, clip, folder, config=config)
    for warning in report.warnings:
        _log.warning(warning)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    for person in report.people:
        spans = ", ".join(f"{a:.1f}-{b:.1f}" for a, b in person.appearances[:8])
        more = ", ..." if len(person.appearances) > 8 else ""
        click.echo(
            f"{person.name}: in {person.share:.0%} of the clip, from {person.first:.1f} s, face "
            f"{person.size} px, seconds {spans}{more}"
        )
    click.echo(f"{click.format_filename(report.sheet)}")


@commands.group(no_args_is_help=False)
def weights() -> None:
    """Weight files: which there are, and how to get them."""


@weights.command("list")
@click.option("--commercial-only", is_flag=True, help="Only those free for commercial use.")
@as_json
def list_(commercial_only: bool, as_json: bool) -> None:
    """What there is, under which terms, and what of it is here."""
    from faceswap.weights import entries

    items = [each for each in entries().values() if each.commercial or not commercial_only]
    if as_json:
        click.echo(json.dumps({"weights": [row(each) for each in items]}))
        return
    keys = ("name", "role", "size", "present", "licence", "terms")
    rows = [keys] + [tuple(cell(row(each)[key]) for key in keys) for each in items]
    widths = [max(len(line[column]) for line in rows) for column in range(len(keys))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in rows:
        text = "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True))
        click.echo(text.rstrip()[:room])


def row(item: Entry) -> dict[str, Any]:
    """What `weights list` says of a file."""
    from faceswap.weights import path_of

    path = path_of(item)
    present = path.is_file()
    return {
        "name": item.name,
        "role": item.role,
        "size": path.stat().st_size if present else item.size or None,
        "licence": item.licence,
        "terms": item.terms,
        "commercial": item.commercial,
        "present": present,
        "path": str(path),
    }


def cell(value: str | int | bool | None) -> str:
    """As the table shows it; a number is bytes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value / 1e6:.1f} MB"
    return value or "?"


@weights.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@verbosity
def fetch(names: tuple[str, ...]) -> None:
    """Download weight files, or all of a pack."""
    from faceswap.weights import expand

    for name in dict.fromkeys(file for each in names for file in expand(each)):
        click.echo(f"{name}: {download(name)}")


def download(name: str) -> Path:
    """Fetch one file, with a bar where stderr is a terminal."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from faceswap.weights import fetch

    with (
        tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        logging_redirect_tqdm([_log]),
    ):

        def advance(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        return fetch(name, progress=advance)


@weights.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@verbosity
def verify(names: tuple[str, ...]) -> int:
    """Read files through and compare their checksums; by default all that are here."""
    from faceswap.errors import WeightError
    from faceswap.weights import entries, expand, present, verify

    code = 0
    for name in [file for each in names for file in expand(each)] or filter(present, entries()):
        try:
            click.echo(f"{name}: good, {verify(name)}")
        except WeightError as error:
            say(str(error))
            code = error.exit_code
    return code


@weights.command("import")
@click.argument("file", metavar="FILE")
@click.option("--as", "name", required=True, metavar="NAME", help="Name in `weights list`.")
@verbosity
def import_(file: str, name: str) -> None:
    """Take a file that you got by other means into the weights folder."""
    from faceswap.weights import import_file

    click.echo(f"{name}: {import_file(file, name)}")


@weights.command()
def where() -> None:
    """The folder of fetched weights ($FACESWAP_WEIGHTS, or the system's place for data)."""
    from faceswap.weights import where

    click.echo(where())


@commands.command()
@click.option("--config", required=True, metavar="FILE", help="What to train, see configs/.")
@click.option("--data", metavar="DIR", help="Prepared photos, in place of the file's.")
@click.option("--out", metavar="DIR", help="Folder of the run.  [default: runs/CONFIG]")
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@click.option(
    "--init-from", multiple=True, metavar="FILE", help="Weights to begin with; repeatable."
)
@click.option("--max-minutes", type=click.FloatRange(min=0), default=math.inf, help="Stop then.")
@device_option
@overrides
@verbosity
def train(config: str, out: str | None, sets: tuple[str, ...], **chosen: Any) -> None:
    """Train one of the networks, as a configuration file says.

    Ctrl-C ends the run after the step at hand, with a checkpoint to --resume.
    """
    if os.environ.get("RANK", "0") != "0":  # of torchrun: the first process speaks for all
        _log.setLevel(logging.ERROR)
    from faceswap.train.config import load_train_config

    given = {"data": chosen["data"], "init": chosen["init_from"]}
    short = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in given.items() if v]
    settings = load_train_config(Path(config), [*short, *sets])
    folder = Path(out or Path("runs") / Path(config).stem)
    from faceswap.swap import choose_device
    from faceswap.train.run import run_training

    step = run_training(
        settings,
        folder,
        device=str(choose_device(chosen["device"] or "auto")),
        resume=chosen["resume"],
        max_minutes=chosen["max_minutes"],
        report=progress,
    )
    if _log.isEnabledFor(logging.WARNING):
        click.echo(f"{folder}: step {step} of {settings.steps}")


@commands.command()
@as_json
def doctor(as_json: bool) -> int:
    """Is everything here that a swap needs?"""
    from faceswap.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps({each.name: {"ok": each.ok, "text": each.text} for each in findings}))
    else:
        for each in findings:
            mark = "ok" if each.ok else "!!" if each.needed else "--"
            click.echo(f"{mark}  {each.name:<12}  {each.text}")
    return int(any(each.needed and not each.ok for each in findings))


@commands.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, by FILE.")
def origin(files: tuple[str, ...], as_json: bool) -> int:
    """What photos and clips say of their own origin, as every swap does.

    A file without a mark may still be synthetic.
    """
    from faceswap.media.provenance import TERMS, read_provenance

    code = 0
    found: dict[str, dict[str, str] | None] = {}
    for name in files:
        try:
            mark = read_provenance(name)
        except FaceSwapError as error:  # the others are told all the same
            say(str(error))
            code = error.exit_code
            continue
        found[name] = None if mark is None else asdict(mark)
        if as_json:
            continue
        if mark is None:
            click.echo(f"{name}: no mark")
            continue
        term = mark.source_type.rsplit("/", 1)[-1]
        tool = f", made with {mark.tool}" if mark.tool else ""
        text = f"{name}: {TERMS.get(term, 'marked')} ({term}){tool}"
        click.echo("".join(c if c.isprintable() else "?" for c in text))  # files may say anything
    if as_json:
        click.echo(json.dumps(found))
    return code


@commands.command()
@click.argument("photos", nargs=-1, metavar="PHOTOS...")
@click.argument("out")
@click.option("--flat", multiple=True, metavar="PHOTOS", help="More; their folders are no people.")
@click.option("--size", type=click.IntRange(min=32), help="Side of the crops.  [default: 224]")
@click.option("--margin", type=click.FloatRange(min=1), help="Width of the view.  [default: 1.6]")
@click.option(
    "--min-size", type=click.IntRange(min=0), help="Shorter side of a photo.  [default: 250]"
)
@click.option(
    "--min-sharpness",
    type=click.FloatRange(min=0),
    help="Of a face; 0 keeps all.  [default: 0.15]",
)
@click.option(
    "--min-similarity",
    type=click.FloatRange(-1, 1),
    help="Cosine to the person's other photos.  [default: 0.2]",
)
@click.option("--mesh-teacher", metavar="FILE", help="FaceMesh as TorchScript.")
@click.option("--iris-teacher", metavar="FILE", help="Iris as TorchScript, goes with it.")
@click.option("--identity-teacher", metavar="FILE", help="TorchScript or weights.")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes.")
@device_option
@as_json
@verbosity
def prepare(photos: tuple[str, ...], out: str, as_json: bool, **chosen: Any) -> None:
    """Make a training set of folders or tars of PHOTOS in the folder OUT.

    A photo's person is the folder it lies in. Run it again to go on after a stop.
    """
    if not photos and not chosen["flat"]:
        raise click.UsageError("Missing argument 'PHOTOS...'.")
    from faceswap.swap import choose_device
    from faceswap.train.prepare import PrepareOptions, prepare

    flat, workers, device = chosen.pop("flat"), chosen.pop("workers"), chosen.pop("device")
    report = prepare(
        [Path(each) for each in photos],
        Path(out),
        PrepareOptions(**{name: value for name, value in chosen.items() if value is not None}),
        flat=[Path(each) for each in flat],
        device=str(choose_device(device or "auto")),
        workers=workers,
        report=progress,
    )
    if as_json:
        click.echo(json.dumps(asdict(report)))
    elif _log.isEnabledFor(logging.WARNING):
        dropped = ", ".join(f"{times} {reason}" for reason, times in report.dropped.items())
        click.echo(
            f"{out}: {report.kept} faces of {report.people} people from {report.photos} photos"
            + (f" (dropped: {dropped}; which and why: {out}/report.json)" if dropped else "")
        )


@commands.command()
@click.option("--sources", metavar="DIR", type=Path, help="Photos of the people to put in.")
@click.option("--targets", metavar="DIR", type=Path, help="Photos or clips to put them in.")
@click.option("--triples", metavar="LIST.csv", type=Path, help="source,target,swapped by any tool.")
@click.option("--faceforensics", metavar="DIR", type=Path, help="Root of a FaceForensics++ copy.")
@click.option("--method", metavar="NAME", help="Method of FaceForensics++ to measure.")
@click.option("--pairs", metavar="FILE.json", type=Path, help="Pair list of FaceForensics++.")
@click.option("--compression", type=click.Choice(["raw", "c23", "c40"]), default="c23")
@click.option("--compare", nargs=2, metavar="A B", help="Packs, swapper files or lists, paired.")
@click.option(
    "--extractor",
    "extractors",
    multiple=True,
    metavar="NAME=FILE[@SIZE]",
    help="identity, cosface, hopenet, ringnet, eyes or features, as TorchScript.",
)
@click.option(
    "--pairing",
    type=click.Choice(["cross", "zip"]),
    default="cross",
    help="Every source on every target, or first on first.",
)
@click.option("--limit", type=click.IntRange(min=1), help="So many pairs at most, by chance.")
@click.option("--frames", type=click.IntRange(min=1), default=10, help="Of a clip, for identity.")
@click.option("--track", type=click.IntRange(min=1), default=100, help="Frames for steadiness.")
@click.option("--seed", type=int, default=0, help="Of the pairs and of the intervals.")
@click.option("-o", "--output", metavar="DIR", type=Path, required=True, help="Of the report.")
@click.option("--overwrite", is_flag=True, help="Replace a report that is there.")
@setting_options
@as_json
@verbosity
def evaluate(as_json: bool, **chosen: Any) -> None:
    """Measure swaps: identity, pose, expression, gaze, edges, steadiness.

    They are made first (--sources with --targets), or there already (--triples). The folder DIR
    gets report.md, report.json, rows.csv and pictures.
    """
    own = {k: v for k, v in chosen.items() if k not in {*SETTINGS, "config", "sets"}}
    own["compare"] = own["compare"] or None
    from faceswap.config import VideoConfig

    config = settings(chosen, VideoConfig)
    from faceswap.evaluate.plan import EvaluateOptions
    from faceswap.evaluate.report import as_text, finite
    from faceswap.evaluate.run import run_evaluation

    report = run_evaluation(EvaluateOptions(config=config, **own), progress=progress)
    click.echo(json.dumps(finite(report)) if as_json else as_text(report))


@commands.group()
def bench() -> None:
    """How fast this machine is, on pictures made for it."""


def _bench_options(command: F) -> F:
    return options(
        click.option("--pack", help="Models to time.  [default: lite]"),
        device_option,
        click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"])),
        overrides,
        as_json,
        verbosity,
    )(command)


@bench.command("image")
@click.option("--repeats", type=click.IntRange(min=1), default=5, help="Warm runs.")
@_bench_options
def bench_image(as_json: bool, repeats: int, **chosen: Any) -> None:
    """Photos of 1920x1080 with 1 and 4 faces: seconds by stage, cold start, memory."""
    config = settings(chosen)
    from faceswap.bench.image import bench_image as run
    from faceswap.bench.image import format_image_bench

    with doing("timing photos"):
        result = run(config, repeats=repeats)
    click.echo(json.dumps(result) if as_json else format_image_bench(result))


@bench.command("video")
@click.option("--size", metavar="WxH", default="1280x720", show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.2), default=15.0, show_default=True)
@click.option("--faces", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch-size", type=int, metavar="N", help="Frames that go together.")
@_bench_options
def bench_video(as_json: bool, size: str, seconds: float, faces: int, **chosen: Any) -> None:
    """A clip end to end: frames/s, ms by stage, who waits for whom, first frame, memory."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
        raise click.BadParameter(f"--size: expected WIDTHxHEIGHT such as 1280x720, got {size!r}")
    from faceswap.config import VideoConfig

    config = settings(chosen, VideoConfig)
    from faceswap.bench.video import bench_video as run
    from faceswap.bench.video import format_video_bench

    width, height = map(int, size.split("x"))
    with doing("timing a clip"):
        result = run(config, size=(height, width), seconds=seconds, faces=faces)
    click.echo(json.dumps(result) if as_json else format_video_bench(result))


@bench.command("model")
@click.argument("name", metavar="NAME")
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="[default: 1 and 4]"
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, help="Runs of each.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@device_option
@as_json
@verbosity
def bench_model(as_json: bool, name: str, batches: tuple[int, ...], **chosen: Any) -> None:
    """NAME's networks as written against fused: a pack, a weight, a file, an architecture."""
    from faceswap.bench.model import bench_model as run
    from faceswap.bench.model import format_model_bench

    with doing("timing networks"):
        device = chosen.pop("device") or "auto"
        result = run(name, batches=batches or (1, 4), device=device, **chosen)
    click.echo(json.dumps(result) if as_json else format_model_bench(result))


@bench.command("train")
@click.option("--config", metavar="FILE", required=True, help="Such as configs/aei_2blk.yaml.")
@click.option("--steps", type=click.IntRange(min=1), default=5, help="How many are timed.")
@device_option
@overrides
@as_json
@verbosity
def bench_train(
    as_json: bool, config: str, steps: int, device: str | None, sets: tuple[str, ...]
) -> None:
    """A training's images/s, share of the time that goes into data, memory."""
    from faceswap.bench.train import bench_train as run
    from faceswap.bench.train import format_train_bench
    from faceswap.train.config import load_train_config

    with doing("timing a training"):
        result = run(load_train_config(Path(config), sets), steps=steps, device=device or "auto")
    click.echo(json.dumps(result) if as_json else format_train_bench(result))


@commands.command()
@click.argument("run", metavar="RUN")
@click.option("--to", type=click.Choice(["safetensors", "onnx"]), required=True)
@click.option("-o", "--output", metavar="FILE", help="[default: beside the weights]")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@verbosity
def export(
    run: str, to: Literal["safetensors", "onnx"], output: str | None, overwrite: bool
) -> None:
    """Write the weights of a training RUN, or of a weight file, for use elsewhere."""
    from faceswap.train.export import export

    with doing("exporting"):
        path = export(Path(run), to, Path(output) if output else None, overwrite=overwrite)
    click.echo(path)
