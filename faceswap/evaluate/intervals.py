"""Means with bootstrap 95 % intervals, of swaps that share sources and targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

REPEATS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, how sure it is, and over how much it was taken."""

    mean: float  # NaN if nothing was measured
    low: float  # ends of the 95 % interval; NaN with fewer than two independent units
    high: float
    median: float
    measured: int
    unmeasured: int


def estimate(
    values: Tensor,  # (N,) float, NaN = not measured
    units: tuple[Tensor, ...],  # each (N,) int64, see `factors`; at least one
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """Mean of the measured values with its percentile bootstrap interval.

    Units are drawn with replacement, all rows of a unit together (pigeonhole bootstrap, Owen,
    Annals of Applied Statistics 2007): with two factors a row counts as often as its source was
    drawn times as often as its target was.
    """
    there = values.isfinite()
    kept = values[there].double()
    if not len(kept):
        nan = math.nan
        return Estimate(nan, nan, nan, nan, 0, len(values))
    mean, median = kept.mean().item(), kept.quantile(0.5).item()
    low = high = math.nan
    rows = [torch.unique(unit[there], return_inverse=True)[1] for unit in units]
    if max(int(row.max()) for row in rows) > 0:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.ones(repeats, len(kept), dtype=torch.float64)
        for row in rows:
            count = int(row.max()) + 1
            drawn = torch.randint(count, (repeats, count), generator=generator)
            times = torch.zeros(repeats, count, dtype=torch.float64)
            times.scatter_add_(1, drawn, torch.ones_like(times))
            weight *= times[:, row]
        total = weight.sum(1)
        means = ((weight @ kept) / total)[total > 0]
        ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = means.quantile(ends).tolist()
    return Estimate(mean, low, high, median, len(kept), len(values) - len(kept))


def factors(
    source: Tensor,  # (N,) int64, number of the source of each row
    target: Tensor,  # (N,) int64, number of the target picture or clip of each row
) -> tuple[Tensor, ...]:
    """What to draw in `estimate`: sources and targets, without one that hangs on the other.

    Where each target met one source only, drawing sources draws their targets along; drawing both
    would count the same chance twice. With a single source the interval speaks of targets only.
    """
    several = tuple(unit for unit in (source, target) if len(torch.unique(unit)) > 1)
    if len(several) < 2:
        return several or (target,)
    if _follows(target, source):
        return (source,)
    return (target,) if _follows(source, target) else (source, target)


def _follows(inner: Tensor, outer: Tensor) -> bool:
    """Whether each unit of ``inner`` lies in one unit of ``outer``."""
    pairs = torch.unique(torch.stack((inner, outer), 1), dim=0)
    return len(pairs) == len(torch.unique(inner))
