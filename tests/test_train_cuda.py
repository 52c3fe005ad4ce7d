"""Training on a GPU: what the CPU tests cannot show. Their twins are in test_train_loop."""

from __future__ import annotations

import pytest
import synthetic
import test_train_card
import torch
from test_train_loop import metrics, settings

from faceswap.train.config import AeiConfig
from faceswap.train.data import load_crops
from faceswap.train.pairs import PairSampler
from faceswap.train.run import run_training
from faceswap.train.task import NonFiniteLossError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return synthetic.home(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return test_train_card.make_home(tmp_path_factory.mktemp("lite"))


def test_photos_lie_on_the_gpu_and_views_are_those_of_a_cpu(home):
    data = load_crops(home / "data")
    views = {}
    for device in ("cpu", "cuda"):
        where = torch.device(device)
        sampler = PairSampler(data, 32, AeiConfig().augment, same_person=0.5, device=where)
        generator = torch.Generator().manual_seed(3)
        views[device] = sampler.views(sampler.draw(8, generator))
        assert (sampler.store.held is not None) == (device == "cuda")
    assert views["cuda"].target.is_cuda
    assert torch.allclose(views["cuda"].target.cpu(), views["cpu"].target, atol=2e-3)
    assert torch.allclose(views["cuda"].points.cpu(), views["cpu"].points, atol=1e-2)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 0.01), ("bf16", 0.05), ("fp16", 0.05)])
def test_the_first_step_is_that_of_a_cpu(home, tmp_path, precision, near):
    """Same weights, same pairs; later steps drift apart, as Adam's first step is a sign."""
    run_training(settings(home, steps=1, log_every=1), tmp_path / "cpu")
    config = settings(home, steps=3, log_every=1, precision=precision)
    assert run_training(config, tmp_path / "cuda", device="cuda") == 3
    assert metrics(tmp_path / "cuda")[0] == pytest.approx(metrics(tmp_path / "cpu")[0], rel=near)


@pytest.mark.parametrize("task", ["identity", "mesh", "swapper", "restorer", "detector"])
def test_the_first_step_of_the_lite_tasks_is_that_of_a_cpu(faces, task):
    """Views are made on the GPU from numbers drawn on the CPU; scenes by other processes."""
    config = test_train_card.config_of(task, faces, workers=2)
    cpu, cuda = (
        test_train_card.terms_of(config, torch.device(device), steps=1)[0]
        for device in ("cpu", "cuda")
    )
    assert cuda == pytest.approx(cpu, rel=0.02, abs=2e-3)


def test_compiled_training(home, tmp_path):
    for compiled in (False, True):
        config = settings(home, steps=2, log_every=1, compile=compiled, precision="bf16")
        run_training(config, tmp_path / str(compiled), device="cuda")
    plain, compiled_ = metrics(tmp_path / "False"), metrics(tmp_path / "True")
    assert compiled_[0] == pytest.approx(plain[0], rel=0.05)


def test_a_run_goes_from_the_gpu_to_a_cpu(home, tmp_path):
    run_training(settings(home, steps=2), tmp_path, device="cuda")
    assert run_training(settings(home, steps=4), tmp_path, device="cpu", resume=True) == 4


def test_a_loss_that_is_not_finite_stops_the_run(home, tmp_path, monkeypatch):
    from faceswap.train import judges

    nan = torch.tensor(float("nan"), device="cuda")
    monkeypatch.setattr(judges.IdentityJudge, "distance", lambda self, a, b: nan)
    with pytest.raises(NonFiniteLossError, match="not finite: identity;"):
        run_training(settings(home), tmp_path, device="cuda")
