"""Training of the identity encoder by a teacher that answers for each view."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_train_card import _small_landmarks, config_of, home, terms_of

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

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        self.views.append(views)
        return F.adaptive_avg_pool2d(views.mean(1), 4).flatten(1)


def asked(home, monkeypatch, **changed) -> Asked:
    teacher = Asked()
    monkeypatch.setattr(identity, "load_recogniser", lambda *_: teacher)
    terms_of(config_of("identity", home, teacher="any", **changed), CPU, steps=1)
    return teacher


def test_the_teacher_sees_each_view_and_mixtures_of_two_faces(home, monkeypatch):
    plain = asked(home, monkeypatch).views[-1]
    half = asked(home, monkeypatch, mixed=0.5).views[-1]
    assert plain.shape == half.shape == (4, 3, 48, 48)
    assert float(plain.min()) >= 0
    assert float(plain.max()) <= 1
    assert torch.equal(plain[2:], half[2:])
    assert all(float((a - b).abs().mean()) > 0.02 for a, b in zip(plain[:2], half[:2], strict=True))


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
