"""Every training on a card of cardboard (`card`): right devices, few waits, the same numbers."""

from __future__ import annotations

import json
import os
import signal
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from card import DEVICE, OnCard, TwoDevices, card
from safetensors.torch import load_file, save_file

from faceswap.errors import ConfigError
from faceswap.train import before, guided_judges, judges, run, views
from faceswap.train.config import SCHEMAS, RunConfig
from faceswap.train.feed import step_seed
from faceswap.train.parallel import ALONE
from faceswap.train.run import build_task, run_training

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = {"batch_size": 4, "steps": 2, "warmup": 2, "log_every": 1, "save_every": 2, "keep": 1}
ALL_LOSSES = dict.fromkeys(SCHEMAS["aei"]().losses.model_dump(), 0.1)  # type: ignore[attr-defined]
GAN = {"model": {"size": 32, "width": 0.125, "num_blocks": 1, "mask_head": True}}
TASKS: dict[str, dict[str, Any]] = {
    "identity": {
        "model": {"widths": [8, 8, 16], "depths": [1, 1, 1], "embedding_size": 16},
    },
    "mesh": {"model": {"widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "rank": 8, "size": 64}},
    "swapper": {
        "model": {"widths": [8, 8, 16, 16, 16], "embedding_size": 16, "size": 64, "shape_rank": 8},
        "teachers": {"identity": ["ENCODER", "ENCODER"], "occlusion": "lite-occlusion"},
        "losses": {
            **{"adversarial": 0.1, "points": 1.0, "eyes": 1.0, "r1": 0.1, "identity_rise": 3},
            **{"outline": 1.0, "other_photo": 0.5},
        },
        "degrade": 0.5,
        "critic": "multiscale",
        "critic_width": 0.125,
        "r1_every": 1,
    },
    "restorer": {
        "model": {"widths": [8, 8], "depths": [1, 1]},
        "sides": [32, 64],
        "min_sharpness": 0.0,
        "damage": {"clean": 0.0, "jpeg": 0.8, "shrink": 0.8, "noise": 0.8},
        "losses": {"adversarial_from": 0},
        "encoders": ["ENCODER"],
    },
    "occlusion": {
        "model": {"widths": [8, 8, 8]},
        "sides": [32, 64],
    },
    "detector": {
        "model": {"widths": (8, 8, 8, 8, 8), "depths": (1, 1, 1), "neck": 8},
        "size": 64,
        "smallest": 12,
        "largest": 40,
        "precision": "fp32",
        "workers": 0,  # in threads; with workers other processes compose
    },
    "aei": {
        **GAN,
        "critic_width": 0.125,
        "encoders": ["ENCODER"],
        "same_person": 0.5,
        "losses": ALL_LOSSES,
        "augment": {"degrade": 0.5},
        "embedding_noise": 0.05,
        "r1_every": 1,
    },
    "distill": {**GAN, "encoders": ["ENCODER"], "teacher": "TEACHER"},
}
# Each turn of the players asks once whether its loss is finite, and thin things before a source's
# face are filled in where there are any. The JPEG encoder is on the CPU: rows, pictures to it and
# back.
WAITS = {"swapper": 3, "aei": 2, "restorer": 5}
# Learning rates and the like; JPEG's pictures: 4 of 64 px twice, and where each window is.
WORK = {"restorer": 2 * 4 * 3 * 64 * 64 + 2000}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("card"))


def make_home(folder: Path) -> Path:
    """A prepared folder of twelve people whose meshes and embeddings differ, and networks."""
    from faceswap.models import build, save_model

    shard = synthetic.prepared(folder / "data", people=12, photos=3) / "shard-00000.safetensors"
    tensors = load_file(shard)
    random = torch.Generator().manual_seed(0)
    people = torch.randn(12, 1, 478, 3, generator=random).expand(12, 3, 478, 3)
    tensors["mesh"] += people.flatten(0, 1) + 0.5 * torch.randn(36, 478, 3, generator=random)
    tensors["embedding"] = torch.randn(36, 16, generator=random)
    save_file(tensors, shard)
    synthetic.encoder(folder / "encoder.safetensors")
    args = {"size": 32, "width": 0.125, "num_blocks": 1, "embedding_size": 16}
    save_model(folder / "teacher.safetensors", build("aei", **args), "aei", args)
    return folder


@pytest.fixture(autouse=True)
def _small_landmarks(monkeypatch):
    """For the eye loss, and that of points; and small eyes for what lies before faces."""
    from faceswap.models import build

    torch.manual_seed(0)
    args = {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "rank": 8, "size": 64}
    net = build("mesh", **args).eval().state_dict()
    small = build("occlusion", widths=(8, 8, 8), size=32).eval()

    def load(name: object, device: torch.device) -> torch.nn.Module:
        if name == "lite-occlusion":
            return deepcopy(small).to(device)
        mine = build("mesh", **args).eval()
        mine.load_state_dict(net)
        return mine.to(device)

    monkeypatch.setattr(judges, "load_model", load)
    monkeypatch.setattr(guided_judges, "load_model", load)
    monkeypatch.setattr(before, "load_model", load)


def config_of(task: str, home: Path, **changed: object) -> RunConfig:
    text = json.dumps(
        {**COMMON, **TASKS[task], "task": task, "data": str(home / "data"), **changed}
    )
    for name in ("encoder", "teacher"):
        text = text.replace(name.upper(), str(home / f"{name}.safetensors"))
    return SCHEMAS[task].model_validate(json.loads(text))


def terms_of(config: RunConfig, device: torch.device, steps: int = 2) -> list[dict[str, float]]:
    task = build_task(config, device, ALONE)
    seen = []
    for step in range(steps):
        random = torch.Generator().manual_seed(step_seed(config.seed, step))
        seen.append({name: float(value) for name, value in task.step(step, random).items()})
    return seen


@pytest.mark.parametrize("held", [True, False], ids=["held", "read"])
@pytest.mark.parametrize("task", TASKS)
def test_a_card_trains_as_a_cpu_does(home, monkeypatch, task, held):
    """Photos held on the card or sent with each step: the curve of the CPU, to the bit."""
    config = config_of(task, home)
    expected = terms_of(config, torch.device("cpu"))
    monkeypatch.setattr(views, "free_memory", lambda device: 10**9 * held)
    with card(monkeypatch):
        seen = terms_of(config, DEVICE)
    assert seen[0] == expected[0]
    assert seen[1] == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_leaves_the_work_to_the_card(home, monkeypatch, task):
    """Drawing random numbers aside, which workers do ahead of the step."""
    config = config_of(task, home, workers=1)
    monkeypatch.setattr(views, "free_memory", lambda device: 10**9)
    monkeypatch.setattr("faceswap.train.detector.Elsewhere", lambda begin, count: begin())
    with card(monkeypatch) as mode:
        network = build_task(config, DEVICE, ALONE)
        for step in range(2):
            mode.forget()
            network.step(step, torch.Generator().manual_seed(step_seed(config.seed, step)))
        waits, work = mode.waits.copy(), mode.work.copy()
    assert waits.total() <= WAITS.get(task, 1), waits
    assert work.total() <= WORK.get(task, 2000), work


@pytest.mark.parametrize("task", TASKS)
def test_a_run_on_a_card_leaves_what_one_on_a_cpu_leaves(home, tmp_path, monkeypatch, task):
    """Weights, pictures and checkpoint; and either goes on with the other's."""
    config = config_of(task, home)
    run_training(config, tmp_path / "cpu")
    with card(monkeypatch):
        monkeypatch.setattr(views, "free_memory", lambda device: 10**9)
        run_training(config, tmp_path / "card", device=DEVICE.type)
    names = sorted(p.name for p in (tmp_path / "cpu").iterdir() if p.is_file())
    assert names == sorted(p.name for p in (tmp_path / "card").iterdir() if p.is_file())
    for name in names:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(tmp_path / "cpu" / name), load_file(tmp_path / "card" / name)
            for key, tensor in ours.items():
                assert torch.allclose(tensor, theirs[key], atol=1e-4), key
    longer = config.model_copy(update={"steps": 3})
    assert run_training(longer, tmp_path / "card", resume=True) == 3
    with card(monkeypatch):
        assert run_training(longer, tmp_path / "cpu", device=DEVICE.type, resume=True) == 3


# What the first step gave when every view was still made on the CPU in the training thread: the
# order in which random numbers are drawn is part of a run (recorded on a CPU with
# torch 2.15; "mesh" anew when some of its views came to be blurred by motion, "identity" when it
# became a MobileFaceNet).
FIRST = {
    "identity": {"cosine": -0.049825, "relation": 0.214812, "ranking": 11.951646},
    "mesh": {"points": 0.199723, "presence": 0.742684, "error_%": 14.200356},
    "restorer": {"left_alone": 0.020310, "gradient": 0.033462, "features": 0.253766},
    "detector": {"score": 0.684434, "box": 0.524492, "points": 0.174101},
}


@pytest.mark.parametrize("task", FIRST)
def test_the_first_step_is_what_it_always_was(home, task):
    seen = terms_of(config_of(task, home), torch.device("cpu"), steps=1)[0]
    assert {name: seen[name] for name in FIRST[task]} == pytest.approx(FIRST[task], rel=1e-3)


def test_other_processes_compose_what_threads_would(home):
    """The detector's scenes where the device is not the CPU: the same batch, the same numbers."""
    from faceswap.train.data import load_crops
    from faceswap.train.detector import batches
    from faceswap.train.processes import Elsewhere

    config = config_of("detector", home)
    rows = load_crops(home / "data").split()[0]
    here, there = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = batches(config, rows)(here)
    elsewhere = Elsewhere(partial(batches, config, rows), 1)
    try:
        seen = elsewhere(there)
        process = next(iter(elsewhere.pool._processes))
        os.kill(process, signal.SIGTERM)  # as whoever stops a whole group does
        again = elsewhere(torch.Generator().manual_seed(5))
    finally:
        elsewhere.pool.shutdown()
    for batch in (seen, again):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.answers.box, expected.answers.box)
    assert torch.equal(here.get_state(), there.get_state())


def test_several_judges_of_identity_are_averaged(home):
    """Twice the same one says what one says; its name alone is a list of one."""
    config = config_of("swapper", home)
    (judge, _) = config.teachers.identity

    def judged_by(identity: object) -> RunConfig:
        teachers = config.teachers.model_copy(update={"identity": identity})
        return config.model_copy(update={"teachers": teachers})

    alone = judged_by(judge)
    one, two = (terms_of(each, torch.device("cpu"), steps=1)[0] for each in (alone, config))
    assert one["identity"] > 0
    assert two == pytest.approx(one, rel=1e-5)
    none = judged_by([judge, str(home / "no.ts")])
    with pytest.raises(ConfigError, match=r"no\.ts"):
        build_task(none, torch.device("cpu"), ALONE)


def test_cuda_is_a_device_without_a_number(home, tmp_path, monkeypatch):
    """torch takes no device without an index as the current one; the first is that anyway."""

    def choose(device):
        raise ValueError(f"Expected a torch.device with a specified index, but got: {device}")

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    reached = []
    monkeypatch.setattr(run, "build_task", lambda config, where, group: reached.append(where))
    monkeypatch.setattr(run, "train", lambda *_, **__: 0)
    run_training(config_of("mesh", home), tmp_path, device="cuda")
    assert reached == [torch.device("cuda")]
    with pytest.raises(ValueError, match="cuda:1"):  # which one is told where there is a number
        run_training(config_of("mesh", home), tmp_path, device="cuda:1")


def test_a_shape_model_wants_enough_faces(home):
    model = {**TASKS["swapper"]["model"], "shape_rank": 64}
    with pytest.raises(ConfigError, match="faces to train on, and the shape model takes 64"):
        terms_of(config_of("swapper", home, model=model), torch.device("cpu"))


def test_the_card_of_cardboard_finds_mistakes(monkeypatch):
    with card(monkeypatch) as mode:
        x = torch.arange(6.0).view(2, 3).to(DEVICE, non_blocking=True)
        assert isinstance(x, OnCard)
        assert x.device == DEVICE
        assert not mode.waits
        for mistake in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(1, 3)]),
            lambda: torch.ones(4)[torch.tensor([1, 0]).to(DEVICE)],
        ):
            with pytest.raises(TwoDevices):
                mistake()
        mode.forget()
        for waiting in (
            lambda: float(x.sum()),
            lambda: x[x > 2],
            lambda: x[[1, 0]],
            lambda: x.new_tensor([1.0]),
            lambda: x.cpu(),
            lambda: torch.ones(3).to(DEVICE),
            lambda: torch.linalg.inv(torch.eye(2, device=DEVICE)),
        ):
            before = mode.waits.total()
            waiting()
            assert mode.waits.total() > before
        assert x[[1, 0]].cpu().tolist() == [[3, 4, 5], [0, 1, 2]]
        before = mode.work.total()
        torch.ones(1000) * 2
        assert mode.work.total() - before == 2000
