"""Rebuild the tables of measures in README.md and weights/README.md.

    python scripts/evaluate_tables.py DATA --photos ../shared/data -o runs/tables \\
        --teachers ../shared/teachers --write

DATA is a folder of `faceswap prepare`, PHOTOS the folders or tars it was made of. Two tables: the
pack's networks, one by one, on people held back from training (`score_lite.py`); and whole swaps of
held-back photos by `faceswap evaluate`, with GHOST's mask and ours, with and without restorer, with
1 and 2 AAD blocks. A row whose weights are not there says so. The tables go to stdout, and with
``--write`` into weights/README.md and README.md, between ``<!-- table NAME -->`` and
``<!-- end -->`` where these stand.

Other comparisons: ``--variant "NAME: KEY=VALUE ..."`` takes settings as ``--set`` does.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import score_lite
import torch
from score_swaps import choose_pairs

from faceswap import weights
from faceswap.config import load_config
from faceswap.errors import ConfigError, FaceSwapError
from faceswap.evaluate.extract import Instruments, load_instruments
from faceswap.evaluate.plan import EvaluateOptions
from faceswap.evaluate.report import number
from faceswap.evaluate.run import run_evaluation
from faceswap.evaluate.table import MEASURES
from faceswap.media.image import write_image
from faceswap.train.data import INDEX, Crops, load_crops
from faceswap.train.photos import decode, find_photos

ROOT = Path(__file__).parent.parent
COLUMNS = (
    "id_retrieval", "id_cosine", "id_target", "shape", "pose", "expression", "gaze",
    "border_tone", "blur_ratio",
)  # fmt: skip
SECOND = "lite-swapper-2"  # what a swapper with 2 AAD blocks is called, once there is one
IDENTITY = ("cos_source", "cos_other", "cos_target", "top1", "top1_other")
FACES = ("pose", "expression", "expression_separated", "mouth_opening", "gaze", "blur_ratio")


def standard_variants() -> list[str]:
    """The rows that the table always has, as ``--variant`` takes them."""
    rows = [
        "lite",
        "lite, mask of GHOST: mask.kind=ghost",
        "lite, restored: restorer.enabled=true",
    ]
    if SECOND in weights.entries():
        rows.append(f"lite, 2 blocks: swapper={SECOND}")
    return rows


def large_faces(data: Crops, folder: Path, least: float) -> Crops:
    """The same with only such people held back whose face is so large in its photo.

    Args:
        data: what lies in the folder.
        folder: prepared.
        least: side of the swapper's crop in the photo, px; a restorer leaves small faces alone.
    """
    scale = torch.tensor(json.loads((folder / INDEX).read_text())["scale"])
    side = data.size / data.margin / scale
    return replace(data, held_back=data.held_back & (side >= least))


def write_pairs(data: Crops, folder: Path, photos: Sequence[Path], pairs: int) -> list[Path]:
    """Held-back sources and targets as PNG in two folders, to be paired by order."""
    files = [file for each in photos for file in (sorted(each.glob("*.tar")) or [each])]
    where = {photo.name: photo for photo in find_photos(files)}
    chosen = choose_pairs(data, pairs, 1)
    out = []
    for kind, rows in (("sources", chosen.source), ("targets", chosen.target)):
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*.png"):
            old.unlink()
        for i, row in enumerate(rows.tolist()):
            name = data.names[row]
            if name not in where:
                raise ConfigError(f"--photos: {name} is not in them")
            write_image(place / f"{i:03d}.png", decode(where[name]), overwrite=True)
        out.append(place)
    return out


def variants_table(given: argparse.Namespace, tools: Instruments, folders: list[Path]) -> str:
    """Swaps of every variant, measured alike."""
    head = [f"{each}, {MEASURES[each].unit}".rstrip(", ") for each in COLUMNS]
    lines = [f"| | {' | '.join(head)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    about = ""
    for variant in given.variant or standard_variants():
        name, _, settings = variant.partition(":")
        try:
            report = run_evaluation(
                EvaluateOptions(
                    output=given.output / re.sub(r"\W+", "-", name.strip()),
                    sources=folders[0],
                    targets=folders[1],
                    pairing="zip",
                    config=load_config(None, [f"device={given.device}", *settings.split()]),
                    overwrite=True,
                ),
                tools=tools,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
            )
        except FaceSwapError as error:
            reason = str(error).replace(f"{ROOT}/", "")
            lines.append(f"| {name.strip()} | not there: {reason} " + "| " * len(COLUMNS) + "|")
            continue
        (side,) = report["sides"]
        lines.append(f"| {name.strip()} | {' | '.join(cell(side, each) for each in COLUMNS)} |")
        failed = side["faces_not_fully_measured"]
        about = (
            f"{side['swaps']} swaps of {side['people']} people held back, one each; {failed} not "
            f"or not fully measured. Mean (95 % interval). Measured with "
            f"{', '.join(tools.about.values())} at {side['images_per_second']:.2f} images/s."
        )
    if not given.variant and SECOND not in weights.entries():
        said = "| lite, 2 blocks | not trained: the pack has one swapper "
        lines.append(said + "| " * len(COLUMNS) + "|")
    return "\n".join([*lines, "", f"{about} {_machine()}"])


def cell(side: dict[str, Any], name: str) -> str:
    """A mean with its interval."""
    value = side["measures"].get(name)
    if value is None:
        return "-"
    return f"{number(value['mean'])} ({number(value['low'])} to {number(value['high'])})"


def networks_table(given: argparse.Namespace, data: Crops) -> str:
    """Landmarks, identity and swapper of the pack on people held back."""
    options = score_lite.parse(
        [str(given.data), "--people", str(given.people), *_teachers(given.teachers)]
    )
    found = score_lite.run(options, data)
    lines = ["| network | held-back people |", "| --- | --- |"]
    for name, figures in found.items():
        if name.startswith(("landmarks", "identity")):
            said = ", ".join(f"{key} {_short(value)}" for key, value in figures.items())
            lines.append(f"| {name.split()[1]} | {said} |")
    swaps = found["swaps"]
    for encoder in swaps["encoders"]:
        how = swaps["took_part"].get(encoder)
        lines += ["", f"By {encoder}{f' ({how})' if how else ''}:", ""]
        lines += _swaps(swaps["measures"], [f"{each} {encoder}" for each in IDENTITY])
        ceiling = swaps["ceiling"]
        lines += [
            "",
            f"Another photo of the source itself: cosine {ceiling[f'cos_source {encoder}']:.3f}, "
            f"top1 {ceiling[f'top1 {encoder}']:.1f}.",
        ]
    lines += ["", "By " + swaps["measured_with"] + ":", "", *_swaps(swaps["measures"], list(FACES))]
    said = f"{swaps['sources']} sources, {swaps['swaps']} swaps, mean ± half of the 95 % interval."
    return "\n".join([*lines, "", f"{said} {_machine()}"])


def _swaps(rows: dict[str, Any], columns: list[str]) -> list[str]:
    heads = [each.split(" ")[0] for each in columns]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        cells = [score_lite.cell(each, values[each]) for each in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _teachers(folder: Path | None) -> list[str]:
    """Judges for `score_lite`, if there is a folder of them."""
    if folder is None:
        return ["--encoder", "lite-identity", "--took-part", "lite-identity=is the pack's own"]
    return [
        *("--encoder", str(folder / "omz_reid.ts"), "--encoder", str(folder / "mobilefacenet.ts")),
        *("--facemesh", str(folder / "facemesh.ts"), "--iris", str(folder / "iris.ts")),
        *("--took-part", "omz_reid=teacher of the pack's encoder"),
        *("--took-part", "mobilefacenet=took no part"),
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if value == int(value) else f"{value:.3f}"


def _machine() -> str:
    chip = platform.processor() or platform.machine()
    return f"{date.today()}, {chip}, {torch.get_num_threads()} threads, torch {torch.__version__}."


def put(name: str, text: str) -> list[Path]:
    """Replace a table where it stands; the files that were changed."""
    changed = []
    marks = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    for path in (ROOT / "README.md", ROOT / "weights" / "README.md"):
        old = path.read_text(encoding="utf-8")
        new = marks.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, help="folder of TorchScript judges")
    parser.add_argument("--extractor", action="append", default=[], metavar="NAME=FILE[@SIZE]")
    parser.add_argument("--variant", action="append", metavar="NAME[: KEY=VALUE ...]")
    parser.add_argument("--only", choices=["networks", "swaps"])
    parser.add_argument("--people", type=int, default=100, help="of each table (%(default)s)")
    parser.add_argument("--least", type=float, default=160, help="px of a face (%(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    try:
        data = load_crops(given.data)
        tables = {}
        if given.only != "networks":
            tools = load_instruments(tuple(given.extractor), given.device)
            large = large_faces(data, given.data, given.least)
            folders = write_pairs(large, given.output, given.photos, given.people)
            tables["swaps"] = variants_table(given, tools, folders)
        if given.only != "swaps":
            tables["networks"] = networks_table(given, data)
    except FaceSwapError as error:
        sys.exit(f"evaluate_tables: {error}")
    for name, text in tables.items():
        print(f"\n{text}")
        for path in put(name, text) if given.write else []:
            print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
