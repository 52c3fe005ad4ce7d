"""Training of the identity encoder by a teacher that answers for each view."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_train_card import _small_landmarks, config_of, home, terms_of
from torch import nn

from faceswap.errors import ConfigError
from faceswap.train import identity
from faceswap.train.mixture import Mixing, draw_mixing, mixed
from faceswap.train.parallel import ALONE
from faceswap.train.run import build_task

__all__ = ["_small_landmarks", "home"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Asked:
    """A teacher that remembers what it saw."""

    size = 48

    def __init__(self) -> None:
        self.views: list[torch.Tensor] = []
        self.model = self

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        self.views.append(views)
        return F.adaptive_avg_pool2d(views.mean(1), 4).flatten(1)


def asked(home, monkeypatch, **changed) -> Asked:
    teacher = Asked()
    monkeypatch.setattr(identity, "load_recogniser", lambda *_: teacher)
    terms_of(config_of("identity", home, teacher="any", workers=0, **changed), CPU, steps=1)
    return teacher


def test_the_teacher_sees_each_view_and_mixtures_of_two_faces(home, monkeypatch):
    plain = asked(home, monkeypatch).views[-1]
    half = asked(home, monkeypatch, mixed=0.5).views[-1]
    assert plain.shape == half.shape == (4, 3, 48, 48)
    assert float(plain.min()) >= 0
    assert float(plain.max()) <= 1
    assert torch.equal(plain[2:], half[2:])
    assert all(float((a - b).abs().mean()) > 0.02 for a, b in zip(plain[:2], half[:2], strict=True))


def test_workers_ask_the_teacher_what_the_step_would(home):
    seen = [
        terms_of(config_of("identity", home, teacher="ENCODER", workers=n), CPU, steps=3)
        for n in (0, 2)
    ]
    assert seen[0] == seen[1]


def test_a_teacher_of_our_own_teaches(home):
    terms = terms_of(config_of("identity", home, teacher="ENCODER", mixed=0.5), CPU, steps=2)
    assert [set(each) for each in terms] == [{"cosine", "relation", "ranking"}] * 2
    assert all(-1 <= each["cosine"] <= 1 for each in terms)


def test_teachers_that_do_not_fit_are_refused(home):
    for changed, said in (
        ({"mixed": 0.5}, "mixed: nobody knows who a mixture is; name a teacher"),
        ({"teacher": "T.ts", "person": 0.5}, "person: a teacher answers for each view by itself"),
    ):
        with pytest.raises(ValidationError, match=said):
            config_of("identity", home, **changed)
    with pytest.raises(ValidationError, match="teacher: task mesh has none"):
        config_of("mesh", home, teacher="T.ts")
    config = config_of("identity", home, teacher="lite-identity")
    with pytest.raises(ConfigError, match="lite-identity gives 256 numbers, the data have 16"):
        build_task(config, CPU, ALONE)
    other = {"widths": [8, 8, 16], "depths": [1, 1, 1], "embedding_size": 32}
    with pytest.raises(ConfigError, match="the student gives 32 numbers, the data have 16"):
        build_task(config_of("identity", home, model=other), CPU, ALONE)


class Mobile(nn.Module):
    """A teacher of blocks like the student's, and twice as wide inside."""

    def __init__(self, last: int = 16) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(cin, 4 * cin, 1),
                nn.PReLU(4 * cin),
                nn.Conv2d(4 * cin, 4 * cin, 3, 2, 1, groups=4 * cin),
                nn.Conv2d(4 * cin, cout, 1),
            )
            for cin, cout in ((8, 8), (8, 8), (8, last))
        )
        self.tail = nn.Sequential(
            nn.Conv2d(last, 32, 1), nn.Conv2d(32, 32, 7, groups=32), nn.Conv2d(32, 16, 1)
        )

    def forward(self, crop: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(crop * 2 - 1))
        for block in self.blocks:
            x = block(x)
        return self.tail(x).flatten(1)


def saved(module: nn.Module, path: Path) -> str:
    torch.jit.trace(module.eval(), torch.rand(2, 3, 112, 112)).save(str(path))
    return str(path)


def test_every_block_learns_from_the_teachers_maps(home, tmp_path):
    """At first each from the teacher's last one; the first map is its own in any case."""
    teacher = saved(Mobile(), tmp_path / "mobile.ts")
    small = {"widths": [8, 8, 16], "depths": [1, 1, 1], "embedding_size": 16, "size": 112}
    given = {"teacher": teacher, "losses": {"maps": 1.0}, "model": small, "mixed": 0.5}
    config = config_of("identity", home, **given, weaning=(4, 8), steps=60, lr=2e-2)
    terms = terms_of(config, CPU, steps=60)
    assert set(terms[0]) == {"cosine", "unexplained", "relation", "ranking"}
    assert min(each["unexplained"] for each in terms[50:]) < 0.7 * terms[0]["unexplained"]
    assert [identity._own(config, i) for i in (0, 4, 5, 7, 8, 20)] == [0, 0, 0.25, 0.75, 1, 1]
    at_once = config_of("identity", home, **given)
    assert identity._own(at_once, 0) == 1
    alone, forced = (terms_of(each, CPU, steps=1)[0] for each in (at_once, config))
    assert alone["unexplained"] != forced["unexplained"]

    def taught(own: bool) -> tuple[torch.Tensor, torch.Tensor]:
        task = build_task(at_once, CPU, ALONE)
        net = task.networks["identity"].eval()
        generator = torch.Generator().manual_seed(1)
        views = torch.rand(2, 3, 112, 112, generator=generator)
        maps = [torch.randn(2, c, s, s, generator=generator) for c, s in net.bottlenecks]
        with torch.no_grad():
            found, missed = identity.taught(net, views, maps, torch.full((4, 2, 1, 1, 1), own))
            whole = net(views)
        assert torch.equal(found, whole) == own
        return found, missed

    (_, own), (_, theirs) = taught(True), taught(False)
    assert own.shape == (4,)
    assert own[0] == theirs[0]
    assert (own[1:] != theirs[1:]).all()


def test_maps_of_other_blocks_are_refused(home, tmp_path):
    teacher = saved(Mobile(last=24), tmp_path / "other.ts")
    with pytest.raises(ConfigError, match=r"other.ts has 4 bottlenecks .*\(24, 7\).*student 4"):
        build_task(config_of("identity", home, teacher=teacher, losses={"maps": 1.0}), CPU, ALONE)
    with pytest.raises(ConfigError, match="has 0 bottlenecks"):
        build_task(config_of("identity", home, teacher="ENCODER", losses={"maps": 1}), CPU, ALONE)
    with pytest.raises(ValidationError, match=r"losses\.maps: they are a teacher's"):
        config_of("identity", home, losses={"maps": 1.0})
    map_ = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(2, 1, 1, 2)
    assert float(identity.unexplained(map_, map_)) == 0
    off = float(identity.unexplained(map_ + 1, map_))
    assert off == pytest.approx(1 / float(map_.var()), rel=1e-3)


def test_mixtures_show_both_and_are_a_little_bent():
    n, size = 64, 32
    black, white = torch.zeros(n, 3, size, size), torch.ones(n, 3, size, size)
    numbers = draw_mixing(n, torch.Generator().manual_seed(2))
    picture, moved = mixed(black, white, numbers)
    assert picture.shape == (n, 3, size, size)
    assert moved.shape == (n, size, size, 2)
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1
    through = numbers.through.flatten()
    assert 0.1 < float(through.float().mean()) < 0.45
    inner = picture[..., 8:-8, 8:-8].flatten(1)  # outside comes nothing in
    assert float(inner[through].std(1).max()) < 1e-5, "the same share everywhere"
    assert float(inner[~through].std(1).mean()) > 0.15
    assert 0.3 < float(inner.mean()) < 0.7, "no face is shown more than the other"
    assert 0.005 < float(moved.abs().mean()) < 0.05

    still = {"bend": torch.zeros(n, 2, 6, 6), "stretch": torch.zeros(n, 1, 1, 2)}
    values = {name: getattr(numbers, name) for name in Mixing.__slots__}
    picture, moved = mixed(black, white, Mixing(**{**values, **still}))
    assert float(moved.abs().max()) == 0
    swapped, _ = mixed(white, black, Mixing(**{**values, **still}))
    torch.testing.assert_close(picture + swapped, torch.ones_like(picture))
