"""What a measurement is told as: one dictionary, and text made of it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faceswap.evaluate.collect import Collected
from faceswap.evaluate.intervals import Estimate
from faceswap.evaluate.protocol import Triple
from faceswap.evaluate.table import MEASURES

LISTED = 50  # swaps named in report.md for want of a measure; report.json has all
SHORT = 5  # the same on the terminal
BETTER = {"lower": "lower", "higher": "higher", "1": "near 1"}


def describe(found: Collected, triples: Sequence[Triple], *, seed: int) -> dict[str, Any]:
    """The part of a report on one list of swaps, ready for JSON."""
    table = found.table
    measures = {
        name: {**asdict(value), "unit": MEASURES[name].unit, "better": MEASURES[name].better}
        for name, value in table.summary(seed=seed).items()
    }
    failures = [
        {**_names(triples[row.triple]), "frame": row.frame, "reason": row.reason}
        for row in table.faces
        if row.reason
    ]
    return {
        "swaps": len(triples),
        "clips": len(table.clips),
        "faces": len(table.faces),
        "people": found.people,
        "faces_not_fully_measured": len(failures),
        "measures": measures,
        **({"crops_of_fid_and_kid": found.crops, **found.sets} if found.sets else {}),
        "failures": failures,
    }


def write_json(path: Path, report: dict[str, Any]) -> None:
    """A report as JSON; what was not measured is null."""
    text = json.dumps(finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_rows(path: Path, found: Collected, triples: Sequence[Triple]) -> None:
    """Every value of every face and clip as CSV, so that others can compute from it."""
    names = found.table.names()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target", "swapped", "kind", "frame", *names, "reason"])
        for kind, rows in (("face", found.table.faces), ("clip", found.table.clips)):
            for row in rows:
                values = [row.values.get(name, math.nan) for name in names]
                cells = [f"{value:.6g}" if math.isfinite(value) else "" for value in values]
                where = _names(triples[row.triple]).values()
                writer.writerow([*where, kind, row.frame, *cells, row.reason])


def as_text(report: dict[str, Any]) -> str:
    """The table of a report in columns, for a terminal."""
    rows = [line for line in _table(report) if line is not None]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([line.rstrip() for line in lines] + _counts(report) + _failed(report, SHORT))


def as_markdown(report: dict[str, Any]) -> str:
    """A report as Markdown; paths of pictures are relative to its folder."""
    head, *rows = _table(report)
    lines = ["# Evaluation", ""]
    lines += [f"- {text}" for text in _counts(report)]
    lines += [f"- {name}: {value}" for name, value in report["protocol"].items()]
    lines += [f"- measured with, {name}: {what}" for name, what in report["instruments"].items()]
    lines += [f"- note: {text}" for text in report["notes"]]
    lines += ["", _line(head), _line(["---"] * len(head))]
    lines += [_line(row) for row in rows]
    lines += ["", "Intervals are 95 % percentile bootstrap intervals over sources and targets."]
    lines += ["", "## What the names mean", ""]
    for name in _measured(report):
        measure = MEASURES[name]
        better = BETTER[measure.better]
        lines.append(f"- **{name}**: {measure.about}; {better} is better.")
    lines += _missing(report)
    for side in report["sides"]:
        for name, paths in side["pictures"].items():
            if paths:
                title = f"{name} ({side['name']})" if len(report["sides"]) > 1 else name
                lines += ["", f"## {title}", ""]
                lines += [f"![{name}]({path})" for path in paths]
    if any(paths for side in report["sides"] for paths in side["pictures"].values()):
        lines += [
            "",
            "Sheets: from left to right the best, the median and the worst swaps by that measure; "
            "from top to bottom source, target, swapped.",
        ]
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """A value with as many digits as tell something."""
    if value is None or not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}"


def _table(report: dict[str, Any]) -> Iterator[list[str]]:
    sides = report["sides"]
    if len(sides) == 2:
        names = [side["name"] for side in sides]
        counted = ["pairs", "not measured"]
        yield ["measure", *names, "difference", "95 % interval", *counted, "unit", "better"]
    else:
        yield [
            "measure",
            "mean",
            "95 % interval",
            "median",
            "measured",
            "not measured",
            "unit",
            "better",
        ]
    for name in _measured(report):
        values = [side["measures"].get(name) for side in sides]
        tail = [MEASURES[name].unit, BETTER[MEASURES[name].better]]
        means = [number(value and value["mean"]) for value in values]
        if len(sides) == 2:
            gap = report["difference"].get(name)
            counts = [str(gap[each]) if gap else "-" for each in ("measured", "unmeasured")]
            yield [name, *means, number(gap and gap["mean"]), _interval(gap), *counts, *tail]
        else:
            (one,) = values
            counts = [str(one["measured"]), str(one["unmeasured"])]
            yield [name, *means, _interval(one), number(one["median"]), *counts, *tail]
    for name in ("fid", "kid"):
        values = [side.get(name) for side in sides]
        if any(value is not None for value in values):
            width = 9 if len(sides) == 2 else 8
            cells = [name, *(number(value) for value in values)]
            yield cells + [""] * (width - len(cells) - 1) + ["lower"]


def _interval(value: dict[str, Any] | None) -> str:
    if value is None or value["low"] is None or not math.isfinite(value["low"]):
        return "-"
    return f"{number(value['low'])} to {number(value['high'])}"


def _measured(report: dict[str, Any]) -> list[str]:
    have = {name for side in report["sides"] for name in side["measures"]}
    return [name for name in MEASURES if name in have]


def _counts(report: dict[str, Any]) -> list[str]:
    lines = []
    for side in report["sides"]:
        lines.append(
            f"{side['name']}: {side['swaps']} swaps ({side['clips']} clips), {side['faces']} faces,"
            f" {side['faces_not_fully_measured']} of them not or not fully measured; "
            f"{side['images']} images measured at {side['images_per_second']:.2f} a second on "
            f"{report['device']} ({report['threads']} threads)"
        )
    return lines


def _missing(report: dict[str, Any]) -> list[str]:
    if not any(side["failures"] for side in report["sides"]):
        return []
    return ["", "## Not or not fully measured", "", *_failed(report, LISTED)]


def _failed(report: dict[str, Any], most: int) -> list[str]:
    """What could not be measured and why, so many lines of each side."""
    lines = []
    for side in report["sides"]:
        failures = side["failures"]
        lines += [
            f"- {side['name']}: {each['source']} on {each['target']}, frame {each['frame']}: "
            f"{each['reason']}"
            for each in failures[:most]
        ]
        if len(failures) > most:
            lines.append(f"- {side['name']}: and {len(failures) - most} more, see report.json")
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _names(triple: Triple) -> dict[str, str]:
    return {name: str(getattr(triple, name)) for name in ("source", "target", "swapped")}


def finite(value: Any) -> Any:
    """The same with null for what is not a number, as JSON knows none."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if isinstance(value, Estimate):
        return finite(asdict(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
