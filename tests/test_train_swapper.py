"""Settings of the guided swapper's training: which terms there are, and what they weigh."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import synthetic
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from test_guided import guide
from test_train_card import _small_landmarks, config_of, home, terms_of

from faceswap.errors import ConfigError, WeightError
from faceswap.faces.identity import IdentityEncoder
from faceswap.models import build, load_model, save_model
from faceswap.train import before, guided_judges, swapper
from faceswap.train.data import load_crops
from faceswap.train.parallel import ALONE
from faceswap.train.run import build_task
from faceswap.train.source_embedding import SourceEmbedder, class_centres
from faceswap.train.views import Store
from faceswap.types import Faces

__all__ = ["_small_landmarks", "home"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PLAIN = {"losses": {}, "degrade": 0.0, "critic": "patch"}


def first(home, **changed) -> dict[str, float]:
    return terms_of(config_of("swapper", home, **{**PLAIN, **changed}), CPU, steps=1)[0]


def test_a_share_of_pairs_is_of_one_person(home):
    data = load_crops(home / "data")
    rows, _ = data.split()
    for share, count in ((0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)):
        pairs = swapper.Pairs(data, rows, share)
        source, target = pairs.draw(8, torch.Generator().manual_seed(1))
        assert pairs.same(8) == count
        same = data.identity[source] == data.identity[target]
        assert bool(same[:count].all())
        assert bool((source != target)[:count].all())
        assert len(source) == len(target) == 8
        if count < 8:
            assert not bool(same[count:].all())


def test_photos_of_one_person_have_pixels_to_follow_and_strangers_have_judges(home):
    strangers, family = first(home, same_person=0.0), first(home, same_person=1.0)
    pixels, judged = {"rec", "gradient"}, {"tone", "identity", "leak"}
    assert set(first(home)) == pixels | judged | {"adversarial", "critic"}
    assert set(strangers) == judged | {"adversarial", "critic"}
    assert set(family) == pixels | {"adversarial", "critic"}
    assert all(math.isfinite(value) for value in (strangers | family).values())


def test_who_has_one_photo_can_only_be_a_stranger(tmp_path):
    data = load_crops(synthetic.prepared(tmp_path / "data", people=6, photos=1))
    rows, _ = data.split()
    with pytest.raises(ConfigError, match=r"one photo of each person.*--set same_person=0"):
        swapper.Pairs(data, rows, 0.5)
    source, target = swapper.Pairs(data, rows, 0.0).draw(4, torch.Generator())
    assert source.shape == target.shape == (4,)


def test_another_photo_of_the_same_person_where_there_is_one(home, tmp_path):
    data = load_crops(home / "data")
    rows, _ = data.split()
    pairs = swapper.Pairs(data, rows, 0.0)
    many = rows.repeat(20)
    others = pairs.others(many, torch.Generator().manual_seed(2))
    assert bool((data.identity[others] == data.identity[many]).all())
    assert bool((others != many).all())
    assert set(others.tolist()) == set(rows.tolist()), "every photo has its turn"
    alone = load_crops(synthetic.prepared(tmp_path / "data", people=6, photos=1))
    rows, _ = alone.split()
    pairs = swapper.Pairs(alone, rows, 0.0)
    assert torch.equal(pairs.others(rows, torch.Generator()), rows)


def test_who_somebody_is_may_be_said_by_another_photo(home):
    terms = [first(home, losses={"other_photo": share}) for share in (0.0, 0.5, 1.0)]
    assert len({each["identity"] for each in terms}) == 3
    assert len({each["leak"] for each in terms}) == 1
    assert len({each["rec"] for each in terms}) == 1


def test_who_a_source_is_may_be_said_by_the_encoder_that_ships(home):
    data = load_crops(home / "data")
    rows = torch.tensor([3, 0, 5])
    config = config_of("swapper", home, **PLAIN)
    config = config.model_copy(update={"embedding_noise": 0.25})
    store = Store(data, CPU)
    known = SourceEmbedder.of(config, data, store, CPU)
    assert torch.equal(known.of_rows(rows, CPU), data.embedding[rows])
    noisy = known(known.draw(rows, torch.Generator().manual_seed(1))) - data.embedding[rows]
    size = data.embedding[rows].square().mean(1).sqrt()
    torch.testing.assert_close(noisy.std(1) / size, torch.full((3,), 0.25), atol=0.05, rtol=0)

    data = replace(data, embedding=torch.ones(len(data.points), 256))
    teachers = config.teachers.model_copy(update={"encoder": "lite-identity"})
    seen = SourceEmbedder.of(config.model_copy(update={"teachers": teachers}), data, store, CPU)
    faces = Faces(torch.arange(3), torch.zeros(3, 4), data.points[rows], torch.ones(3))
    net = load_model("lite-identity")
    shipped = IdentityEncoder(net, mirrored=True)(data.pixels(rows), faces)
    cosine = torch.cosine_similarity(seen.of_rows(rows, CPU), shipped)
    assert bool((cosine > 0.99).all())


def test_an_encoder_that_does_not_fit_is_refused(home):
    data = load_crops(home / "data")
    for name, said in (
        ("lite-landmarks", r"teachers\.encoder: lite-landmarks is a MeshNet"),
        ("lite-identity", r"lite-identity gives 256 numbers, the data have 16; name another"),
    ):
        config = config_of("swapper", home, **{**PLAIN, "teachers": {"encoder": name}})
        with pytest.raises(ConfigError, match=said):
            SourceEmbedder.of(config, data, Store(data, CPU), CPU)


def test_what_lies_before_the_target_stays(home, monkeypatch):
    """Judges see the target there, and the network has nothing to do with it."""
    plain = first(home)
    everything = before.Before(lambda images, *_: torch.ones_like(images[:, :1]), "fp32", CPU)
    monkeypatch.setattr(before.Before, "of", lambda *_: everything)
    hidden = first(home)
    assert hidden["rec"] == hidden["gradient"] == 0 < plain["rec"]
    assert hidden["leak"] > 0.85, "cosine of the target to itself, less what is allowed"


def test_an_occlusion_network_is_asked_for(home):
    config = config_of("swapper", home, **{**PLAIN, "teachers": {"occlusion": "lite-landmarks"}})
    with pytest.raises(ConfigError, match=r"teachers\.occlusion: lite-landmarks is a MeshNet"):
        build_task(config, CPU, ALONE)


def test_terms_that_are_off_by_default(home):
    losses = {"eyes": 2.0, "points": 1.0, "r1": 1.0, "outline": 1.0, "adversarial_from": 0}
    terms = first(home, losses=losses, r1_every=1)
    assert {"eyes", "points", "r1", "outline"} <= set(terms)
    assert terms["r1"] > 0
    task = config_of("swapper", home, **{**PLAIN, "losses": losses, "r1_every": 2})
    assert ["r1" in each for each in terms_of(task, CPU, steps=3)] == [True, False, True]


def test_the_source_is_looked_for_among_everybody(home):
    """Of strangers, among the people trained on, and each at their own place."""
    config = config_of("swapper", home, **{**PLAIN, "losses": {"retrieval": 1.0}})
    assert "retrieval" not in first(home)
    terms = terms_of(config, CPU, steps=1)[0]
    people = len({*load_crops(home / "data").split()[0].tolist()}) // 3
    assert 0 < terms["retrieval"] < 40
    data = load_crops(home / "data")
    rows, _ = data.split()
    centres, place = class_centres(data.embedding[rows], data.identity[rows])
    assert centres.shape == (people, 16)
    for row, at in zip(rows.tolist(), place.tolist(), strict=True):
        photos = rows[data.identity[rows] == data.identity[row]]
        mean = F.normalize(F.normalize(data.embedding[photos]).mean(0), dim=0)
        torch.testing.assert_close(centres[at], mean)
    other = {"teachers": {"identity": "lite-identity"}, "losses": {"retrieval": 1.0}}
    with pytest.raises(ConfigError, match="retrieval: lite-identity gives 256 numbers, the data"):
        build_task(config_of("swapper", home, **{**PLAIN, **other}), CPU, ALONE)


def test_identity_and_leak_rise_together(home):
    def weights(index: int, **losses: float) -> dict[str, float]:
        config = config_of("swapper", home, **{**PLAIN, "losses": losses})
        data = load_crops(home / "data")
        return guided_judges.Judges.of(config, CPU, Store(data, CPU), None).weights(index)

    rising = [weights(i, identity=8, leak=4, identity_rise=4) for i in (0, 1, 3, 9)]
    assert [each["identity"] for each in rising] == [2, 4, 8, 8]
    assert [each["leak"] for each in rising] == [1, 2, 4, 4]
    assert [each["tone"] for each in rising] == [4, 4, 4, 4]
    assert weights(0, identity=8, leak=4)["identity"] == 8


def test_coarse_sources_and_views_without_mirrors(home):
    """What each changes: the pixels it should, and only where it is on."""
    seen = {}
    for name, changed in (
        ("plain", {}),
        ("coarse", {"degrade": 1.0}),
        ("straight", {"flip": 0.0}),
    ):
        seen[name] = first(home, **changed)
    assert seen["plain"] == first(home)
    assert seen["coarse"]["rec"] != seen["plain"]["rec"]
    assert seen["straight"]["rec"] != seen["plain"]["rec"]


def test_critics(home):
    names = {}
    for critic in ("patch", "multiscale"):
        config = config_of("swapper", home, critic=critic, critic_width=0.125)
        task = build_task(config, CPU, ALONE)
        task.step(0, torch.Generator().manual_seed(0))
        names[critic] = type(task.networks["critic"]).__name__
    assert names == {"patch": "PatchDiscriminator", "multiscale": "MultiscaleDiscriminator"}


def test_what_is_exported_decides_and_speaks_up(home):
    """Half open and leaning to one side: the gate opens or shuts; the residual is a bit larger."""
    task = build_task(config_of("swapper", home, **PLAIN), CPU, ALONE)
    net = task.networks["swapper"]
    assert isinstance(net, swapper.GuidedAEINet)
    shown = swapper.decide(net, steepness=4.0, shift=0.5, stronger=2.0)
    before, after = net.head[0], shown.head[0]
    maps = torch.randn(1, before.in_channels, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        old, new = before(maps), after(maps)
    torch.testing.assert_close(new[:, :4], 4 * (old[:, :4] + 0.5))
    torch.testing.assert_close(new[:, 4:], 2 * old[:, 4:])
    assert shown is not net


def test_a_teacher_nobody_knows_is_named(home):
    with pytest.raises(ValidationError, match="oclusion"):
        config_of("swapper", home, **{**PLAIN, "teachers": {"oclusion": "lite-occlusion"}})


def test_a_network_grows_from_the_weights_of_a_smaller_one(home, tmp_path):
    """What is new says nothing until it is trained, and learns from the first step on."""
    torch.manual_seed(4)
    args = config_of("swapper", home).model
    small = build("aei_guided", **args).eval()
    torch.nn.init.normal_(small.shape_mean)  # not fitted anew
    file = save_model(tmp_path / "small.safetensors", small, "aei_guided", args)
    larger = {**args, "extra_layers": 2, "mapping": 8}
    config = config_of("swapper", home, model=larger, init=[str(file)], warmup=0)
    task = build_task(config, CPU, ALONE)
    net = task.networks["swapper"].eval()
    guided, identity = guide(3, 64), torch.randn(3, 16)
    with torch.no_grad():
        expected, seen = (each.gates(guided, identity) for each in (load_model(file), net))
    for a, b in zip(expected, seen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    before_it = {name: tensor.clone() for name, tensor in net.named_parameters()}
    task.step(0, torch.Generator().manual_seed(1))
    task.step(1, torch.Generator().manual_seed(2))
    for name, tensor in net.named_parameters():
        if name.startswith(("extra", "mapping")):
            assert not torch.equal(tensor, before_it[name]), name

    lacking = {**small.state_dict()}
    del lacking["start.weight"]
    save_file(lacking, tmp_path / "lacking.safetensors", {"arch": "aei_guided", "args": "{}"})
    config = config.model_copy(update={"init": (str(tmp_path / "lacking.safetensors"),)})
    with pytest.raises(WeightError, match=r"missing start\.weight;|missing start\.weight$"):
        build_task(config, CPU, ALONE)


def test_workers_of_a_cpu_make_guides_and_change_nothing(home):
    alone, beside = (
        terms_of(config_of("swapper", home, workers=count, ahead=2), CPU, steps=3)
        for count in (0, 2)
    )
    assert alone == beside
