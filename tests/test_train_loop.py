"""Training runs of a few steps: falling loss, resume, seeds, signals, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import synthetic
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from faceswap.errors import ConfigError, FaceSwapError, MediaError, MissingMediaError, WeightError
from faceswap.models import build, load_model, save_model
from faceswap.models.fused import fuse
from faceswap.train import judges, record
from faceswap.train.config import AeiConfig, DistillConfig, RunConfig, load_train_config
from faceswap.train.data import load_crops
from faceswap.train.pairs import PairSampler
from faceswap.train.parallel import Group, SharedBatchNorm, share_norms
from faceswap.train.run import build_task, run_training
from faceswap.train.task import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
TINY = {
    "model": {"size": 32, "width": 0.125, "num_blocks": 1},
    "critic_width": 0.125,
    "batch_size": 4,
    "lr": 2e-3,
    "warmup": 2,
    "log_every": 2,
    "save_every": 4,
    "steps": 4,
    "same_person": 0.5,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return synthetic.home(tmp_path_factory.mktemp("train"))


def settings(home: Path, **changed: object) -> AeiConfig:
    given = {**TINY, "data": str(home / "data"), "encoders": [str(home / "encoder.safetensors")]}
    return AeiConfig.model_validate({**given, **changed})


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("minutes", "wait")} for line in lines]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.pt", weights_only=True)["networks"]["swapper"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_debug_overfits_eight_faces(home, tmp_path):
    """configs/debug.yaml as it stands, but for the photos, the encoder and fewer steps."""
    changed = [
        f"data={home / 'data'}",
        f"encoders=[{home / 'encoder.safetensors'}]",
        *("steps=20", "save_every=20", "log_every=5"),
    ]
    config = load_train_config(ROOT / "configs" / "debug.yaml", changed)
    assert run_training(config, tmp_path) == 20
    first, *_, last = metrics(tmp_path)
    assert last["reconstruction"] < 0.6 * first["reconstruction"]
    assert last["attribute"] < 0.6 * first["attribute"]
    assert (tmp_path / "sample-0000020.png").exists()
    network = load_model(tmp_path / "swapper.safetensors")
    swapped = network(torch.rand(2, 3, 32, 32), torch.rand(2, 16))
    assert swapped.shape == (2, 3, 32, 32)


def test_resume_is_exact(home, tmp_path, monkeypatch):
    """Killed between checkpoints, with lines in the log that no checkpoint knows of."""
    config = settings(home, steps=6)
    run_training(config, tmp_path / "whole")
    synthetic.killed_at(6, monkeypatch, lambda: run_training(config, tmp_path / "killed"))
    assert metrics(tmp_path / "killed")[-1]["step"] == 6
    assert run_training(config, tmp_path / "killed", resume=True) == 6
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))


def test_two_seeds_differ(home, tmp_path):
    for seed in (0, 1):
        run_training(settings(home, steps=1, seed=seed), tmp_path / str(seed))
    assert not same(weights_of(tmp_path / "0"), weights_of(tmp_path / "1"))


@pytest.fixture
def foreground():
    """Ctrl-C counts here, even where these tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(home, tmp_path, number):
    config = settings(home, steps=1000, log_every=1)
    seen: list[str] = []

    def report(line: str) -> None:
        seen.append(line)
        if len(seen) == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert run_training(config, tmp_path, report=report) == 2
    assert seen[2:] == ["stopping after this step, with a checkpoint"]
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
    assert (tmp_path / "swapper.safetensors").exists()


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_twice_interrupts_at_once(home, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_training(
            settings(home, steps=1000, log_every=1),
            tmp_path,
            report=lambda line: os.kill(os.getpid(), signal.SIGINT),
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "last.pt").exists()


def test_a_run_in_the_background_ignores_ctrl_c(home, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = settings(home, steps=2, log_every=1)
        stop = lambda line: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        assert run_training(config, tmp_path, report=stop) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_time_budget(home, tmp_path):
    assert run_training(settings(home, steps=50), tmp_path, max_minutes=0) == 1
    assert (tmp_path / "last.pt").exists()


def test_minutes_of_a_run_go_on_where_they_were(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 2, "minutes": 7.5}\n{"step": 4, "minutes": 9.0}\n')
    with record.Record(tmp_path, 3) as again:
        again.write(4, 1.25, {"loss": 1.0})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["step"], line["minutes"]) for line in lines] == [(2, 7.5), (4, 8.75)]


def test_old_checkpoints_are_kept(home, tmp_path):
    run_training(settings(home, steps=3, save_every=1, keep=2), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "last.pt",
        "step-0000002.pt",
        "step-0000003.pt",
    ]


def test_a_loss_that_is_not_finite_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setattr(
        judges.IdentityJudge, "distance", lambda self, a, b: torch.tensor(float("nan"))
    )
    with pytest.raises(NonFiniteLossError, match="not finite: identity;"):
        run_training(settings(home), tmp_path)


def test_a_full_disk_keeps_the_old_checkpoint(home, tmp_path, monkeypatch):
    real = torch.save

    def full(state, file):
        if state["step"] < least:
            return real(state, file)
        file.write(b"half of it")
        try:
            raise OSError(28, "No space left on device")
        finally:  # as torch does it
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    least = 1
    said = r"step 1 cannot be written \(No space left on device\); there is none before it"
    with pytest.raises(WeightError, match=said):
        run_training(settings(home, save_every=1), tmp_path)
    assert not list(tmp_path.glob("*.p*t"))
    least = 2
    with pytest.raises(WeightError, match=r"step 2 cannot be written .*No space left.* is kept"):
        run_training(settings(home, save_every=1), tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_leaves_no_half_copy(home, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(WeightError, match="No space left"):
        run_training(settings(home, save_every=1, keep=2), tmp_path)
    assert [each.name for each in tmp_path.glob("*.p*t")] == ["last.pt"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1


def test_a_run_that_cannot_be_written(home, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match=r"file: cannot be written \(File exists\)"):
        run_training(settings(home), tmp_path / "file")
    run_training(settings(home, steps=2), tmp_path / "run")
    log = (tmp_path / "run" / "metrics.jsonl").read_text()

    def full(path, text, **given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MediaError, match="No space left"):
        run_training(settings(home), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log


def test_going_on_with_other_settings_is_told(home, tmp_path, caplog):
    run_training(settings(home, steps=1), tmp_path)
    run_training(settings(home, steps=1, log_every=1, workers=0), tmp_path, resume=True)
    assert not caplog.records
    losses = {"identity": 5}
    run_training(settings(home, steps=2, losses=losses), tmp_path, resume=True)
    (record,) = caplog.records
    assert "steps was 1, is 2, losses.identity was 15.0, is 5.0" in record.getMessage()


def test_tensorboard_keeps_the_step_of_the_checkpoint(home, tmp_path, monkeypatch):
    """It forgets what is logged from `purge_step` on, which is to be the step taken next."""
    boards: list[Mock] = []

    def writer(folder: str, purge_step: int) -> Mock:
        assert folder == str(tmp_path / "tensorboard")
        boards.append(Mock(purge_step=purge_step))
        return boards[-1]

    monkeypatch.setattr(record, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Mock(SummaryWriter=writer))
    for steps in (2, 4):
        config = settings(home, steps=steps, log_every=1)
        run_training(config, tmp_path, resume=steps == 4)
    assert [board.purge_step for board in boards] == [1, 3]
    logged = [[call.args for call in board.add_scalar.call_args_list] for board in boards]
    assert [{step for _, _, step in calls} for calls in logged] == [{1, 2}, {3, 4}]
    (value,) = (value for name, value, step in logged[1] if (name, step) == ("identity", 4))
    assert round(value, 5) == metrics(tmp_path)[-1]["identity"]
    assert all(board.close.called for board in boards)


def test_a_damaged_checkpoint(home, tmp_path):
    run_training(settings(home, steps=2, save_every=1, keep=2), tmp_path)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(WeightError, match=r"last.pt: damaged.*copy step-0000002.pt over it"):
        run_training(settings(home), tmp_path, resume=True)
    for old in tmp_path.glob("step-*.pt"):
        old.unlink()
    last.write_bytes(b"")
    with pytest.raises(WeightError, match=r"last.pt: damaged.*begin a new run"):
        run_training(settings(home), tmp_path, resume=True)


def test_runs_are_neither_overwritten_nor_mixed(home, tmp_path):
    with pytest.raises(ConfigError, match="no run to resume"):
        run_training(settings(home), tmp_path / "new", resume=True)
    run_training(settings(home, steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_training(settings(home), tmp_path / "run")
    other = {**TINY["model"], "num_blocks": 2}
    with pytest.raises(ConfigError, match=r"or task \(model\.num_blocks was 1, is 2\)"):
        run_training(settings(home, steps=1, model=other), tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"or task \(losses\.pair was 0\.0, is 1\.0\)"):
        run_training(settings(home, steps=1, losses={"pair": 1}), tmp_path / "run", resume=True)


def test_data_that_cannot_be(home, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingMediaError, match="faceswap prepare"):
        run_training(settings(home, data=str(tmp_path / "empty")), tmp_path / "a")
    alone = synthetic.prepared(tmp_path / "alone", photos=1)
    with pytest.raises(ConfigError, match="one photo of each person"):
        run_training(settings(home, data=str(alone)), tmp_path / "b")
    config = settings(home, data=str(alone), same_person=0, steps=1)
    assert run_training(config, tmp_path / "b") == 1


def test_settings_that_do_not_go_together(home, tmp_path):
    with pytest.raises(ConfigError, match="batch_size 4 does not divide"):
        run_training(settings(home, accumulate=3), tmp_path)
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        run_training(settings(home, precision="fp16"), tmp_path)
    with pytest.raises(WeightError, match=r"nobody\.safetensors: no such .*encoders=\[lite-iden"):
        run_training(settings(home, encoders=["nobody.safetensors"]), tmp_path)


# ---------------------------------------------------------------- the recipe


def test_pairs_are_of_one_person_as_often_as_asked(home):
    data = load_crops(home / "data")
    share = AeiConfig().augment
    sampler = PairSampler(data, 32, share, same_person=0.5, device=torch.device("cpu"))
    source, target, pairs = sampler.rows_of(4000, torch.Generator().manual_seed(0))
    assert torch.equal(pairs, data.identity[source] == data.identity[target])
    people = data.identity[sampler.rows].unique().numel()
    assert float(pairs.float().mean()) == pytest.approx(0.5 + 0.5 / people, abs=0.03)
    # Half of all were drawn as another photo; strangers are the same photo 1 time in all rows.
    copies = float((source == target).float().mean())
    assert copies == pytest.approx(0.5 / len(sampler.rows), abs=0.02)
    assert not data.held_back[source].any()


def test_views_match_their_points(home):
    """The eyes of the view are where its points say, mirrored or not."""
    data = load_crops(home / "data")
    augment = AeiConfig().augment.model_copy(update={"color": 0.0, "rotation": 8.0})
    sampler = PairSampler(data, 64, augment, same_person=0.5, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    draw = sampler.draw(8, generator)
    pairs = sampler.views(draw)
    assert draw.count == int(pairs.same.sum())
    assert (pairs.points[:, 0, 0] < pairs.points[:, 1, 0]).all()
    for view, (left, right, nose, *_) in zip(
        pairs.target, pairs.points.round().long(), strict=True
    ):
        eyes = [view[:, y, x] for x, y in (left.tolist(), right.tolist())]
        skin = view[:, nose[1], nose[0]]
        assert (eyes[0] - eyes[1]).abs().max() < 0.02
        assert (eyes[0] - skin).abs().max() > 0.05


def test_every_term_can_be_on(home, tmp_path, monkeypatch):
    net = build("mesh", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), rank=8, size=64)
    monkeypatch.setattr(judges, "load_model", lambda name, device: net.eval())
    names = AeiConfig().losses.model_dump()
    config = settings(
        home,
        losses={**dict.fromkeys(names, 0.1)},
        model={**TINY["model"], "mask_head": True},
        steps=1,
        log_every=1,
        accumulate=2,
        embedding_noise=0.05,
        precision="bf16",
        augment={"degrade": 0.5},
        clip_norm=1.0,
        attribute_form="original",
        encoders=[str(home / "encoder.safetensors")] * 2,
    )
    run_training(config, tmp_path)
    assert set(names) | {"critic", "critic_identity", "critic_pair"} == set(
        metrics(tmp_path)[0]
    ) - {"step"}


def test_workers_change_nothing_and_waiting_is_logged(home, tmp_path):
    for workers in (0, 2):
        run_training(settings(home, workers=workers), tmp_path / str(workers))
    assert metrics(tmp_path / "0") == metrics(tmp_path / "2")
    lines = (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()
    assert all(0 <= json.loads(line)["wait"] <= 1 for line in lines)


def test_a_mask_head_learns_the_face(home, tmp_path):
    """Its mask is the face of views it has not seen; outside of it the picture is the target's."""
    model = {**TINY["model"], "mask_head": True}
    losses = {"adversarial": 0, "identity": 0, "mask": 5}
    config = settings(
        home, model=model, losses=losses, steps=100, batch_size=8, lr=4e-3, augment={"flip": 0.5}
    )
    run_training(config, tmp_path)
    first, *_, last = metrics(tmp_path)
    assert last["mask"] < 0.3 * first["mask"]  # soft edges keep it from 0
    network = load_model(tmp_path / "swapper.safetensors")
    plain = build("aei", **TINY["model"], embedding_size=16).state_dict()
    extra = network.state_dict().keys() - plain.keys()
    assert extra == {f"generator.mask.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert not plain.keys() - network.state_dict().keys()
    data = load_crops(home / "data")
    sampler = PairSampler(
        data, 32, AeiConfig().augment, same_person=0, device=torch.device("cpu"), region=True
    )
    generator = torch.Generator().manual_seed(0)
    pairs = sampler.views(sampler.draw(16, generator))
    judge = judges.IdentityJudge(config.encoders, torch.device("cpu"))
    with torch.no_grad():
        identity = judges.mean_embedding(judge.each(pairs.source, pairs.source_points))
        face, logits = network.render(network.attributes(pairs.target), identity)
        swapped = network(pairs.target, identity)
    mask = logits.sigmoid()
    both, either = (mask > 0.5) & (pairs.region > 0.5), (mask > 0.5) | (pairs.region > 0.5)
    assert float(both.sum() / either.sum()) > 0.75
    assert torch.allclose(swapped, mask * face + (1 - mask) * pairs.target, atol=1e-6)
    with pytest.raises(ValueError, match="needs the target"):
        network.generate(network.attributes(pairs.target), identity)
    with torch.no_grad():  # as the pipeline runs it
        assert torch.allclose(fuse(network)(pairs.target, identity), swapped, atol=1e-4)


def test_accumulation_gives_the_same_losses(home):
    """Parts add up to the whole batch where no batch norm looks across it."""
    seen = []
    for parts in (1, 2):
        model = {**TINY["model"], "attribute_encoder": "unet"}
        config = settings(home, accumulate=parts, model=model, losses={"adversarial": 0})
        task = build_task(config, torch.device("cpu"), Group())
        for module in task.networks["swapper"].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
                module.forward = lambda x: x  # type: ignore[method-assign]
        terms = task.step(0, torch.Generator().manual_seed(1))
        seen.append({name: float(value) for name, value in terms.items()})
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)


def test_begin_with_published_files(home, tmp_path):
    """A plain state dict of a generator goes to the generator, one of a critic to the critic."""
    config = settings(home, steps=1)
    donor = build_task(settings(home, seed=9), torch.device("cpu"), Group())
    critic = build("discriminator", width=0.125)
    generator = tmp_path / "G.pth"
    torch.save(donor.networks["swapper"].state_dict(), generator)
    torch.save(critic.state_dict(), tmp_path / "D.pth")
    config = settings(home, init=[str(generator), str(tmp_path / "D.pth")])
    task = build_task(config, torch.device("cpu"), Group())
    assert same(task.networks["swapper"].state_dict(), donor.networks["swapper"].state_dict())
    assert same(task.networks["critic"].state_dict(), critic.state_dict())


def test_a_student_learns_from_a_teacher(home, tmp_path):
    args = {"size": 32, "width": 0.25, "num_blocks": 1, "embedding_size": 16}
    torch.manual_seed(3)
    save_model(tmp_path / "teacher.safetensors", build("aei", **args), "aei", args)
    given = {k: v for k, v in TINY.items() if k != "critic_width"}
    config = DistillConfig.model_validate(
        {
            **given,
            "data": str(home / "data"),
            "encoders": [str(home / "encoder.safetensors")],
            "teacher": str(tmp_path / "teacher.safetensors"),
            "steps": 20,
        }
    )
    run_training(config, tmp_path / "run")
    first, *_, last = metrics(tmp_path / "run")
    assert last["pixels"] < 0.7 * first["pixels"]
    big = {**TINY["model"], "size": 64}
    with pytest.raises(ConfigError, match=r"set model\.size=32"):
        run_training(config.model_copy(update={"model": type(config.model)(**big)}), tmp_path / "x")


class Reads(TorchDispatchMode):
    """Counts how often Python reads a number out of a tensor, which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_each_term(home, monkeypatch):
    counts = []
    for some in ({"attribute": 0, "identity": 0}, {"ssim": 1, "cycle": 1, "pair": 1}):
        config = settings(home, losses=some, workers=0)
        task = build_task(config, torch.device("cpu"), Group())
        for optimizer in task.optimizers.values():  # Adam counts its steps in numbers on the CPU
            monkeypatch.setattr(optimizer, "step", lambda: None)
        with Reads() as reads:
            terms = task.step(0, torch.Generator().manual_seed(0))
        counts.append(reads.count)
        assert all(isinstance(value, torch.Tensor) for value in terms.values())
    assert counts[0] == counts[1]
    assert counts[0] <= 4  # pairs drawn, on the CPU; then once for each turn of the two players


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
@pytest.mark.timeout(1200)
def test_compiled_networks_train_alike(home, tmp_path):
    """The whole compiler on the smallest network; losses agree with those of a plain run."""
    losses = {"adversarial": 0, "identity": 0, "attribute": 0}
    for compiled in (False, True):
        config = settings(home, compile=compiled, losses=losses, steps=2, log_every=1)
        run_training(config, tmp_path / str(compiled))
    plain, compiled_ = metrics(tmp_path / "False"), metrics(tmp_path / "True")
    assert compiled_[0] == pytest.approx(plain[0], rel=1e-3)
    assert compiled_[1] == pytest.approx(plain[1], rel=0.02)


def test_compiling_without_a_compiler_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile: .* compiler no-such-compiler; install it"):
        run_training(settings(home, compile=True), tmp_path)


# ---------------------------------------------------------------- several processes


def test_shared_batch_norm_alone_is_batch_norm(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: None)
    plain = torch.nn.BatchNorm2d(3)
    shared = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    share_norms(shared)
    assert type(shared[0]) is SharedBatchNorm
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    left, right = plain(a), shared(b)
    assert torch.allclose(left, right, atol=1e-5)
    (left**3).sum().backward()
    (right**3).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-3)
    assert torch.allclose(plain.running_var, shared[0].running_var, rtol=1e-4)


PROGRAM = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from faceswap.train.config import AeiConfig
from faceswap.train.run import run_training
run_training(AeiConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def test_two_processes_are_one_with_twice_the_batch(home, tmp_path):
    config = settings(home, steps=2, log_every=1)
    run_training(config, tmp_path / "one")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "program.py")]
    command += [config.model_dump_json(), str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line.keys() for line in one] == [line.keys() for line in two]
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    assert two[1] == pytest.approx(one[1], rel=0.03)  # Adam's first step amplifies rounding
    a, b = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert a.keys() == b.keys()


def test_lite_tasks_run_in_one_process(home, tmp_path, monkeypatch):
    monkeypatch.setattr("faceswap.train.run.join_group", lambda device: Group(0, 2))
    config = load_train_config(ROOT / "configs" / "lite_landmarks.yaml")
    with pytest.raises(ConfigError, match="runs in one process"):
        run_training(config, tmp_path)


# ---------------------------------------------------------------- settings


def test_typos_are_named(tmp_path):
    path = tmp_path / "my.yaml"
    for text, said in (
        ("steps: 3", "my.yaml: names no task to train; there are: aei, detector"),
        ("task: aie", "unknown task 'aie': did you mean aei"),
        ("task: aei\nlosses: {identiy: 3}", "did you mean losses.identity"),
        ("task: aei\nmodel: {num_block: 3}", "did you mean model.num_blocks"),
        ("task: aei\nmodel: {num_blocks: 4}", "model.num_blocks: should be 1, 2 or 3"),
        ("task: identity\naugment: 0.5", "augment: task identity has none"),
        ("task: mesh\nperson: 0.5", "person: task mesh has none"),
        ("task: swapper\nlosses: {tine: 3}", "did you mean losses.tone"),
        ("task: identity\nlosses: {rankin: 3}", "unknown loss of identity 'rankin': did you mean"),
        ("task: swapper\nsame_person: 2", "same_person: should be less than or equal to 1"),
        ("task: aei\naugment: {color: 2}", "augment.color: should be less than or equal to 1"),
    ):
        path.write_text(text)
        with pytest.raises(FaceSwapError) as raised:
            load_train_config(path)
        assert said in str(raised.value)


def test_init_is_a_file_or_several():
    assert RunConfig(task="aei", init="a.pth").init == ("a.pth",)
    assert RunConfig(task="aei", init=["a.pth", "b.pth"]).init == ("a.pth", "b.pth")
    assert RunConfig(task="aei", init="").init == ()
