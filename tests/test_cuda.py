"""What only a GPU can show; the same functions run on the CPU in test_fused and test_swap_fused."""

import copy

import pytest
import torch
from test_fused import lively

from faceswap.bench.material import photo
from faceswap.config import SwapConfig
from faceswap.faces.select import Selection
from faceswap.models import build, to_precision
from faceswap.models.fused import FusedAEINet, fuse
from faceswap.swap import Swapper

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GHOST_2 = {"attribute_encoder": "unet", "num_blocks": 2}


@torch.inference_mode()
def test_fused_half_precision_is_as_near_as_the_plain_network_is():
    """Both in fp16 against the plain network in fp32.

    Each other they cannot equal within a small bound: untrained weights magnify rounding, and the
    plain network itself is up to 0.04 off (0.0015 in the mean, on a CPU).
    """
    plain = lively(build("aei", **GHOST_2)).cuda()
    fused = to_precision(fuse(copy.deepcopy(plain)), "fp16")
    random = torch.Generator().manual_seed(0)
    target = torch.rand(4, 3, 256, 256, generator=random).cuda()
    identity = torch.randn(1, 512, generator=random).cuda()
    exact = plain(target, identity.expand(4, -1))
    to_precision(plain, "fp16")
    rounded = plain(target.half(), identity.half().expand(4, -1)).float()
    ours, theirs = (
        (each - exact).abs().mean() for each in (fused(target, fused.condition(identity)), rounded)
    )
    assert 0 < theirs < 5e-3
    assert ours < 1.25 * theirs


@torch.inference_mode()
def test_memory_of_ghost_2_at_batch_8():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    exact = fuse(build("aei", **GHOST_2).eval().cuda())  # a swapper keeps it for reruns
    half = to_precision(copy.deepcopy(exact), "fp16")
    assert isinstance(half, FusedAEINet)
    identity = torch.randn(1, 512, device="cuda")
    half(torch.rand(8, 3, 256, 256, device="cuda"), half.condition(identity))
    assert torch.cuda.max_memory_allocated() - before < 4 * 2**30


def test_lite_makes_the_pictures_that_a_cpu_makes(lite_pack):
    frames = torch.stack([photo(2, (720, 1280)), photo(2, (720, 1280), moment=1.0)])
    out = {}
    for device in ("cpu", "cuda"):
        swapper = Swapper.from_config(SwapConfig(device=device, precision="fp32"))
        person = swapper.identify([photo(1)])
        out[device] = swapper(frames, person, Selection(all_faces=True)).frames
    difference = (out["cpu"].int() - out["cuda"].int()).abs().float()
    assert (out["cuda"] != frames).any()
    assert difference.mean() < 0.05
    assert difference.max() <= 12, "points a hundredth of a pixel off, at an edge"
