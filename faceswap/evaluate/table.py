"""The measures by name, and the tables that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from faceswap.evaluate.intervals import Estimate, estimate, factors

Better = Literal["lower", "higher", "1"]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a name in a report means."""

    unit: str
    better: Better
    about: str


MEASURES = {
    "id_retrieval": Measure("%", "higher", "nearest of all sources is the right one (top 1)"),
    "id_retrieval_5": Measure("%", "higher", "right source is among the five nearest"),
    "id_cosine": Measure("", "higher", "cosine of identity to the source"),
    "id_target": Measure("", "lower", "cosine of identity to the target"),
    "shape": Measure("%", "lower", "proportions of the face against the source's"),
    "shape_target": Measure("%", "higher", "the same against the target's"),
    "pose": Measure("degrees", "lower", "turn between the head poses"),
    "pose_shift": Measure("% of eye distance", "lower", "place of the head in the picture"),
    "pose_scale": Measure("%", "lower", "size of the head"),
    "expression": Measure("% of eye distance", "lower", "lips, lids and brows, without pose"),
    "expression_separated": Measure(
        "% of eye distance", "lower", "the same without what is face shape"
    ),
    "mouth_opening": Measure("% of eye distance", "lower", "difference of the lips' gap"),
    "eye_opening": Measure("% of eye width", "lower", "difference of the lids' gap"),
    "gaze": Measure("degrees", "lower", "direction of the eyes relative to the head"),
    "gaze_shift": Measure("% of eye width", "lower", "place of the iris between the eye's corners"),
    "outside_pixels": Measure("%", "lower", "pixels away from any face that changed; 0 = exact"),
    "outside_change": Measure("1/255", "lower", "mean change away from any face"),
    "border_tone": Measure("Delta E", "lower", "step of colour at the face's outline"),
    "blur_ratio": Measure("", "1", "sharpness against its surroundings, target = 1"),
    "jitter": Measure("% of eye distance", "lower", "shaking that the swap added (clips)"),
    "id_drift": Measure("", "lower", "1 - cosine to the clip's mean identity (clips)"),
    "flicker": Measure("1/255", "lower", "change of the mask's border between frames (clips)"),
    "ID retrieval": Measure("%", "higher", "top 1, with CosFace"),
    "shape_ringnet": Measure("", "lower", "FLAME shape against the source's, L2"),
    "exp_ringnet": Measure("", "lower", "FLAME expression against the target's, L2"),
    "pose_ringnet": Measure("", "lower", "FLAME pose against the target's, L2"),
    "poseHN": Measure("degrees", "lower", "Hopenet yaw, pitch, roll against the target's, L2"),
    "eye_ldmk": Measure("crop px", "lower", "WFLW eye points against the target's, mean L2"),
}
CLIP_MEASURES = ("jitter", "id_drift", "flicker")  # one value a clip, all others one a face
FAILURE = {"id_retrieval": 0.0, "id_retrieval_5": 0.0, "ID retrieval": 0.0}  # of no face at all


@dataclass(slots=True)
class Row:
    """One measured face, or one clip."""

    triple: int  # row of the list of swaps
    frame: int  # of the clip; 0 for a photo
    values: dict[str, float] = field(default_factory=dict)
    reason: str = ""  # why something could not be measured


@dataclass(slots=True)
class Table:
    """Everything that was measured, in the order of the swaps."""

    source: Tensor  # (triples,) int64, number of the person put in
    target: Tensor  # (triples,) int64, number of the target file
    faces: list[Row]
    clips: list[Row]

    def rows(self, name: str) -> list[Row]:
        """The rows that a measure has values in."""
        return self.clips if name in CLIP_MEASURES else self.faces

    def names(self) -> list[str]:
        """Measures that at least one row has, in the order of `MEASURES`."""
        have = {name for row in (*self.faces, *self.clips) for name in row.values}
        return [name for name in MEASURES if name in have]

    def column(self, name: str) -> Tensor:
        """Values of a measure ``(rows,) float64``, NaN = not measured."""
        values = [row.values.get(name, math.nan) for row in self.rows(name)]
        return torch.tensor(values, dtype=torch.float64)

    def units(self, name: str) -> tuple[Tensor, ...]:
        """What the bootstrap draws, for the rows of a measure."""
        at = torch.tensor([row.triple for row in self.rows(name)], dtype=torch.int64)
        return factors(self.source[at], self.target[at])

    def summary(self, *, seed: int = 0) -> dict[str, Estimate]:
        """Mean and interval of each measure."""
        return {
            name: estimate(self.column(name), self.units(name), seed=seed) for name in self.names()
        }


def difference(a: Table, b: Table, *, seed: int = 0) -> dict[str, Estimate]:
    """Paired differences b - a of each measure, over the rows that both have.

    Rows belong together by swap and frame; a face that only one side could measure counts as
    unmeasured.
    """
    out = {}
    for name in a.names():
        if name not in b.names():
            continue
        theirs = {(row.triple, row.frame): row.values for row in b.rows(name)}
        gaps = [
            theirs.get((row.triple, row.frame), {}).get(name, math.nan)
            - row.values.get(name, math.nan)
            for row in a.rows(name)
        ]
        out[name] = estimate(torch.tensor(gaps, dtype=torch.float64), a.units(name), seed=seed)
    return out


def numbered(names: Sequence[str]) -> Tensor:
    """Equal names get equal numbers, ``(N,) int64``."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names], dtype=torch.int64)
