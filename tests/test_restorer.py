"""The restorer: damage it learns from, the network, its training, and its place in the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from faceswap import Swapper, swap_image, weights
from faceswap.cli import main
from faceswap.config import RestorerConfig, SwapConfig
from faceswap.errors import ConfigError, MissingWeightError, WeightError
from faceswap.models import build, load_model, save_model
from faceswap.models.restorer import Restorer
from faceswap.restore import FaceRestorer, load_restorer
from faceswap.train import wear
from faceswap.train.config import Damage, RestorerRunConfig, load_train_config
from faceswap.train.data import load_crops
from faceswap.train.losses import feature_loss
from faceswap.train.restorer import Views
from faceswap.train.run import run_training

TINY = {"widths": (8, 8), "depths": (1, 1)}
NOTHING = dict.fromkeys(("clean", "warp", "blur", "patches", "shrink", "noise", "jpeg"), 0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Drawn faces with texture, ``(4, 3, 64, 64)``."""
    faces = torch.stack([synthetic.face(p, 0) for p in range(4)]).float() / 255
    return (faces + 0.1 * torch.rand(faces.shape, generator=rng(5)) - 0.05).clamp(0, 1)


# ---------------------------------------------------------------- damage


def hurt(pictures: torch.Tensor, damage: Damage, generator: torch.Generator) -> torch.Tensor:
    drawn = wear.draw_wear(len(pictures), pictures.shape[-1], damage, generator)
    return wear.worsen(pictures, drawn)


def test_damage_is_the_same_for_the_same_generator(pictures):
    first = hurt(pictures, Damage(), rng(3))
    assert torch.equal(first, hurt(pictures, Damage(), rng(3)))
    assert not torch.equal(first, hurt(pictures, Damage(), rng(4)))
    assert first.shape == pictures.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


@pytest.mark.parametrize("kind", ["warp", "blur", "patches", "shrink", "noise", "jpeg"])
def test_every_kind_changes_every_picture(pictures, kind):
    out = hurt(pictures, Damage(**{**NOTHING, kind: 1.0}), rng(1))
    changed = (out - pictures).abs().mean((1, 2, 3))
    assert bool((changed > 1e-4).all()), changed
    assert bool((changed < 0.15).all()), "still the same picture"


def test_no_damage_or_clean_leaves_pictures_alone(pictures):
    assert torch.allclose(hurt(pictures, Damage(**NOTHING), rng()), pictures, atol=1e-6)
    clean = hurt(pictures, Damage(clean=1.0), rng())
    assert torch.allclose(clean, pictures, atol=1e-6)


def test_blur_is_a_gaussian_of_that_width():
    """A point becomes a hill whose variance is sigma squared, along the axis it was asked for."""
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    one = torch.ones(1)
    hill = wear.filter_each(point, wear.kernels(2 * one, 0.4 * one))[0, 0]
    at = torch.arange(41.0) - 20
    assert float(hill.sum()) == pytest.approx(1, abs=1e-5)
    assert float((hill.sum(0) * at**2).sum()) == pytest.approx(4, rel=0.08)
    assert float((hill.sum(1) * at**2).sum()) == pytest.approx(0.64, rel=0.08)


def test_blur_of_each_picture_is_its_own(pictures):
    sigma = torch.tensor([0.0, 0.5, 1.0, 2.0])
    out = wear.filter_each(pictures, wear.kernels(sigma))
    change = (out - pictures).abs().mean((1, 2, 3))
    assert float(change[0]) < 1e-6
    assert bool((change.diff() > 0).all())
    alone = wear.filter_each(pictures[2:3], wear.kernels(sigma[2:3]))
    assert torch.allclose(out[2:3], alone, atol=2e-3), "but for a kernel cut at 2.5 sigma"


def test_jpeg_is_worse_at_lower_quality(pictures):
    def error(quality: int) -> float:
        out = wear.jpeg(pictures, [quality] * 4)
        return float((out - pictures).square().mean())

    assert error(10) > error(50) > error(90) > 0
    assert error(100) == 0


def test_soft_patches_leave_some_places_sharp(pictures):
    gate = torch.rand(4, 1, 6, 6, generator=rng())
    out = wear.soften_patches(pictures, wear.kernels(torch.full((4,), 2.0)), gate)
    change = (out - pictures).abs().amax(1)
    assert float((change < 1e-6).float().mean()) > 0.1
    assert float((change > 0.01).float().mean()) > 0.2


def test_shrink_takes_detail_and_keeps_the_tone(pictures):
    ways = [(True, True), (True, False), (False, True), (False, False)]
    out = wear.shrink(pictures, [1.0, 0.5, 0.25, 0.25], ways)
    assert torch.equal(out[0], pictures[0])
    detail = out.diff(dim=-1).abs().mean((1, 2, 3)) / pictures.diff(dim=-1).abs().mean((1, 2, 3))
    assert bool((detail[1:] < 0.7).all())
    assert float((out.mean((2, 3)) - pictures.mean((2, 3))).abs().max()) < 0.02


# ---------------------------------------------------------------- network


def test_a_new_network_leaves_crops_alone():
    net = build("restorer", **TINY).eval()
    crops = torch.rand(2, 3, 64, 64, generator=rng())
    assert torch.equal(net(crops), crops)


def trained_by_chance(**args: object) -> Restorer:
    """A network with a correction that is not zero."""
    torch.manual_seed(1)
    net = Restorer(**(args or TINY))
    torch.nn.init.normal_(net.head.weight, std=0.02)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(128, 128), (256, 256), (100, 76), (33, 47)])
def test_any_size_in_the_same_size_out(shape):
    crops = torch.rand(2, 3, *shape, generator=rng())
    out = trained_by_chance()(crops)
    assert out.shape == crops.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert not torch.equal(out, crops)


@torch.no_grad()
def test_a_crop_does_not_depend_on_its_batch():
    net = trained_by_chance()
    crops = torch.rand(3, 3, 64, 64, generator=rng())
    assert torch.allclose(net(crops)[1:2], net(crops[1:2]), atol=1e-6)


def test_the_shipped_size_is_small():
    count = sum(p.numel() for p in build("restorer").parameters())
    assert 1e6 < count < 3e6


def test_widths_and_depths_that_do_not_fit():
    with pytest.raises(ConfigError, match="as many of one as of the other"):
        build("restorer", widths=(8, 8), depths=(1,))


def test_it_learns_to_undo_a_blur():
    """Overfit: a few dozen steps on four drawings take off a good part of the error."""
    torch.manual_seed(0)
    net = Restorer(widths=(16, 24), depths=(1, 1))
    pictures = torch.stack([synthetic.face(p, 0) for p in range(4)]).float() / 255
    soft = wear.filter_each(pictures, wear.kernels(torch.ones(4)))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    before = float((soft - pictures).square().mean())
    for _ in range(60):
        loss = (net(soft) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * before


# ---------------------------------------------------------------- training


def test_feature_loss_by_hand():
    """Directions (1, 0) and (0, 1) at one of two places: (1 + 1) / 2; lengths do not count."""
    ours = torch.tensor([[[[2.0, 1.0]], [[0.0, 0.0]]]])
    truth = torch.tensor([[[[5.0, 0.0]], [[0.0, 3.0]]]])
    assert float(feature_loss([ours], [truth])) == pytest.approx(1.0)
    assert float(feature_loss([ours, ours], [truth, ours])) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restorer")
    synthetic.prepared(folder / "data")
    synthetic.encoder(folder / "encoder.safetensors")
    return folder


def run_settings(home: Path, **changed: object) -> RestorerRunConfig:
    given = {
        "data": str(home / "data"),
        "encoders": [str(home / "encoder.safetensors")],
        "model": TINY,
        "sides": [32, 64],
        "min_sharpness": 0.0,
        "batch_size": 4,
        "steps": 4,
        "warmup": 2,
        "log_every": 2,
        "save_every": 4,
        "losses": {"adversarial_from": 2},
    }
    return RestorerRunConfig.model_validate({**given, **changed})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_leaves_weights_that_load(home, tmp_path, precision):
    lines: list[str] = []
    settings = run_settings(home, precision=precision)
    assert run_training(settings, tmp_path / "run", report=lines.append) == 4
    assert isinstance(load_model(tmp_path / "run" / "restorer.safetensors"), Restorer)
    assert (tmp_path / "run" / "sample-0000004.png").is_file()
    for term in ("pixels", "gradient", "features", "identity", "left_alone"):
        assert term in lines[0]
    assert "adversarial" not in lines[0]
    assert "critic" in lines[1]


def test_resume_is_exact(home, tmp_path, monkeypatch):
    """Killed at the end of step 4, gone on with from the checkpoint of step 2."""
    settings = run_settings(home, save_every=2)
    run_training(settings, tmp_path / "whole")
    synthetic.killed_at(4, monkeypatch, lambda: run_training(settings, tmp_path / "killed"))
    assert run_training(settings, tmp_path / "killed", resume=True) == 4
    whole, again = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["networks"]["restorer"]
        for name in ("whole", "killed")
    )
    for a, b in zip(whole.values(), again.values(), strict=True):
        assert torch.equal(a, b)


def view_of(views: Views, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    windows = views.windows(torch.tensor([1]), side)
    return views.show(windows), windows.points


def test_views_are_windows_that_are_never_enlarged(home):
    data = load_crops(home / "data")
    views = Views(data, run_settings(home, sides=[64]), torch.device("cpu"))
    seen, points = view_of(views, 64)
    assert torch.allclose(seen[0], data.pixels(torch.tensor([1]))[0].float() / 255)
    assert torch.allclose(points[0], data.points[1], atol=1e-4)
    small, points = view_of(views, 32)
    assert small.shape == (1, 3, 32, 32)
    middle = (data.points[1] - 31.5) * 32 / 40 + 15.5  # 64 px of margin 1.6 hold a view of 40
    assert torch.allclose(points[0], middle, atol=1e-3)
    drawn = views.draw(rng()).windows
    assert views.show(drawn).shape == (4, 3, 64, 64)
    at = drawn.points
    assert bool(drawn.flip.any()), "some are mirrored"
    assert bool((at[:, 0, 0] < at[:, 1, 0]).all()), "mirrored faces keep left left"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sides": [96]}, "--size 96 or more"),
        ({"min_sharpness": 1e6}, "use sharper ones"),
        ({"precision": "fp16"}, "use bf16 or fp32"),
    ],
)
def test_what_cannot_be_trained_is_said(home, tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        run_training(run_settings(home, **changed), tmp_path / "run")


def test_the_shipped_config_and_its_typos():
    path = Path(__file__).parents[1] / "configs" / "restorer.yaml"
    config = load_train_config(path)
    assert isinstance(config, RestorerRunConfig)
    assert config.model.model_dump() == RestorerRunConfig().model.model_dump()
    with pytest.raises(ConfigError, match="smallest"):
        load_train_config(path, ["damage.smalest=0.2"])
    with pytest.raises(ConfigError, match="multiple of 16"):
        load_train_config(path, ["sides=[100]"])


# ---------------------------------------------------------------- pipeline


def test_small_faces_are_left_alone_and_the_change_comes_gradually():
    restorer = FaceRestorer(trained_by_chance(), RestorerConfig(strength=0.5, min_size=100))
    extent = torch.tensor([50.0, 100.0, 112.5, 125.0, 400.0])
    assert restorer.share(extent).tolist() == [0, 0, 0.25, 0.5, 0.5]
    crops = torch.rand(5, 3, 64, 64, generator=rng())
    with torch.no_grad():
        out = restorer(crops, extent, lambda run: run())
        whole = restorer.network(crops)
    assert torch.equal(out[:2], crops[:2])
    assert torch.allclose(out[3:], (crops + whole)[3:] / 2, atol=1e-5)
    assert torch.allclose(out[2], torch.lerp(crops[2], whole[2], 0.25), atol=1e-5)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.safetensors"
    args = {"widths": (8, 8), "depths": (1, 1)}
    return save_model(path, trained_by_chance(**args), "restorer", args)


def test_strength_zero_or_off_loads_nothing():
    pack, device = weights.pack("lite"), torch.device("cpu")
    assert load_restorer(RestorerConfig(weights="nowhere.safetensors"), pack, device) is None
    zero = RestorerConfig(enabled=True, strength=0, weights="nowhere.safetensors")
    assert load_restorer(zero, pack, device) is None


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("nowhere.safetensors", MissingWeightError, "nowhere.safetensors"),
        ("ghost-restorer", MissingWeightError, "leave --restore out"),
        ("nobody-knows-it", ConfigError, "nobody-knows-it"),
        ("lite-identity", ConfigError, "IdentityNet, which is no restorer"),
    ],
)
def test_a_restorer_that_is_not_there_is_refused_not_ignored(
    monkeypatch, tmp_path, name, error, said
):
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path))
    settings = RestorerConfig(enabled=True, weights=name)
    with pytest.raises(error, match=said):
        load_restorer(settings, weights.pack("lite"), torch.device("cpu"))


def test_the_published_restorer_is_refused_even_where_its_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FACESWAP_WEIGHTS", str(tmp_path))
    path = weights.path_of(weights.entry("ghost-restorer"))
    path.parent.mkdir(parents=True)
    torch.save({"x": torch.zeros(1)}, path)
    settings = RestorerConfig(enabled=True, weights="ghost-restorer")
    with pytest.raises(WeightError, match="no network of faceswap"):
        load_restorer(settings, weights.pack("ghost-2"), torch.device("cpu"))


def test_a_pack_without_restorer_says_so():
    from dataclasses import replace

    pack = replace(weights.pack("lite"), restorer=None)
    with pytest.raises(ConfigError, match="has no face restorer; leave --restore out"):
        load_restorer(RestorerConfig(enabled=True), pack, torch.device("cpu"))


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    """A public-domain face, enlarged, and the same mirrored and darker."""
    data = pytest.importorskip("skimage.data")
    head = torch.from_numpy(np.ascontiguousarray(data.astronaut()[0:256, 100:356]))
    large = torch.nn.functional.interpolate(
        head.permute(2, 0, 1)[None].float(), size=(512, 512), mode="bicubic"
    )
    target = large[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray((target[:, ::-1] * 0.7).astype(np.uint8)), target


def swapped(photos, **restorer: object) -> tuple[torch.Tensor, dict[str, float]]:
    config = SwapConfig.model_validate({"device": "cpu", "restorer": restorer})
    report = swap_image(Swapper.from_config(config), *photos)
    assert report.image is not None
    return report.image.int(), report.seconds


def test_the_pipeline_with_and_without(lite_pack, photos, own_file):
    plain, seconds = swapped(photos)
    assert "restore" not in seconds
    zero, _ = swapped(photos, enabled=True, strength=0, weights=str(own_file))
    assert torch.equal(plain, zero)
    whole, seconds = swapped(photos, enabled=True, weights=str(own_file))
    assert seconds["restore"] > 0
    half, _ = swapped(photos, enabled=True, strength=0.5, weights=str(own_file))
    change, less = (whole - plain).abs(), (half - plain).abs()
    assert 0 < float(less.float().mean()) < float(change.float().mean())
    border = change.amax(0)
    border[40:472, 40:472] = 0
    assert not bool(border.any()), "only the face may change"
    small, _ = swapped(photos, enabled=True, min_size=2000, weights=str(own_file))
    assert torch.equal(plain, small)


def test_the_command_line_restores(lite_pack, photos, own_file, tmp_path, capsys):
    from PIL import Image

    for name, photo in zip(("a.png", "b.png"), photos, strict=True):
        Image.fromarray(photo).save(tmp_path / name)
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    out = tmp_path / "out.png"
    own = f"restorer.weights={own_file}"
    assert main(["image", *files, "-o", str(out), "--restore", "--set", own, "--json"]) == 0
    assert '"restore":' in capsys.readouterr().out
    bad = ["--restore", "--set", "restorer.weights=nowhere.safetensors"]
    assert main(["image", *files, "-o", str(tmp_path / "no.png"), *bad]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "nowhere.safetensors" in lines[0]
    assert not (tmp_path / "no.png").exists()


def test_motion_blurs_some_pictures_along_a_line_and_moves_none() -> None:
    generator = torch.Generator().manual_seed(0)
    motion = wear.draw_motion(64, 0.5, 4.0, generator)
    assert 16 < len(motion.rows) < 48
    images = torch.zeros(64, 3, 41, 41)
    images[:, :, 20, 20] = 1.0
    out = wear.motion_blurred(images, motion)
    still = torch.ones(64, dtype=torch.bool)
    still[motion.rows] = False
    torch.testing.assert_close(out[still], images[still])
    spots = out[motion.rows][:, 0]
    axis = torch.arange(41.0)
    centre = torch.stack([spots.sum(1) @ axis, spots.sum(2) @ axis], 1)  # the light's own
    torch.testing.assert_close(centre, torch.full_like(centre, 20.0), atol=1e-3, rtol=0)
    ys, xs = torch.meshgrid(axis - 20, axis - 20, indexing="ij")
    offsets = torch.stack([xs, ys]).flatten(1)
    spread = torch.einsum("np,ip,jp->nij", spots.flatten(1), offsets, offsets)
    across, along = torch.linalg.eigvalsh(spread).sqrt().unbind(1)
    assert float(along.max()) == pytest.approx(4.0, rel=0.1)
    long = along > 2
    assert bool(long.any())
    assert float((across / along)[long].max()) < 0.3


def test_where_nothing_moves_nothing_is_blurred() -> None:
    motion = wear.draw_motion(8, 0.0, 4.0, torch.Generator().manual_seed(0))
    images = torch.rand(8, 3, 9, 9)
    assert wear.motion_blurred(images, motion) is images
