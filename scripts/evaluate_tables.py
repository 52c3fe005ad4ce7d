"""Rebuild the tables of measures in README.md and weights/README.md.

    python scripts/evaluate_tables.py SOURCES TARGETS -o runs/tables --limit 100 \\
        --variant "lite" \\
        --variant "lite, restored: restorer.enabled=true" \\
        --variant "ghost-2, its own mask: pack=ghost-2 mask.kind=ghost"

Each variant is a name and, after a colon, settings as for ``--set``. All are measured on the same
pairs by the same instruments; the table goes to stdout, the reports to a folder each.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from datetime import date
from pathlib import Path

import torch

from faceswap.config import load_config
from faceswap.evaluate.extract import load_instruments
from faceswap.evaluate.plan import EvaluateOptions
from faceswap.evaluate.report import number
from faceswap.evaluate.run import run_evaluation
from faceswap.evaluate.table import MEASURES

COLUMNS = (
    "id_retrieval", "id_cosine", "id_target", "shape", "pose", "expression", "gaze",
    "border_tone", "blur_ratio",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("targets", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--variant", action="append", required=True, metavar="NAME[: KEY=VALUE ...]"
    )
    parser.add_argument("--extractor", action="append", default=[], metavar="NAME=FILE[@SIZE]")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    tools = load_instruments(tuple(given.extractor), given.device)
    rows = []
    for variant in given.variant:
        name, _, settings = variant.partition(":")
        report = run_evaluation(
            EvaluateOptions(
                output=given.output / re.sub(r"\W+", "-", name.strip()),
                sources=given.sources,
                targets=given.targets,
                config=load_config(None, [f"device={given.device}", *settings.split()]),
                limit=given.limit,
                overwrite=True,
            ),
            tools=tools,
            progress=lambda line: print(line, file=sys.stderr),
        )
        (side,) = report["sides"]
        values = [side["measures"][column] for column in COLUMNS]
        cells = [
            f"{number(value['mean'])} ({number(value['low'])} to {number(value['high'])})"
            for value in values
        ]
        speed = f"{side['swaps'] / side['seconds_swapping']:.2f}"
        rows.append([name.strip(), *cells, speed])
    head = [f"{each} {MEASURES[each].unit}".strip() for each in COLUMNS]
    print(f"| | {' | '.join(head)} | swaps/s |")
    print("| --- " * (len(COLUMNS) + 2) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {side['swaps']} swaps; "
        f"mean (95 % interval). Measured with {', '.join(tools.about.values())}."
    )


if __name__ == "__main__":
    main()
