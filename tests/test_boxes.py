"""Boxes against torchvision, and nothing that a swap imports loads it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision.ops as oracle

from faceswap.ops.boxes import batched_nms, box_area, box_iou


def boxes(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 40], 1)


def test_areas_and_overlaps() -> None:
    a, b = boxes(30, 0), boxes(20, 1)
    torch.testing.assert_close(box_area(a), oracle.box_area(a))
    torch.testing.assert_close(box_iou(a, b), oracle.box_iou(a, b))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.7])
def test_suppression_keeps_what_torchvision_keeps(seed: int, overlap: float) -> None:
    box = boxes(120, seed)
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(120, generator=generator)
    group = torch.randint(4, (120,), generator=generator)
    wanted = oracle.batched_nms(box, score, group, overlap)
    assert batched_nms(box, score, group, overlap).tolist() == wanted.tolist()


def test_nothing_in_nothing_out() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), none, 0.5).shape == (0,)


def test_the_pipeline_does_not_load_torchs_compiler() -> None:
    code = "import sys, faceswap.photo; print('torchvision' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
