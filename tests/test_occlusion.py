"""What lies before a face: drawn occluders, the network's losses, and the stage that keeps them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from puppets import write_clip
from torch import Tensor, nn

from faceswap import weights
from faceswap.config import OcclusionConfig, SwapConfig, VideoConfig
from faceswap.errors import ConfigError, MissingWeightError
from faceswap.media.reader import VideoReader
from faceswap.models import build, load_model, save_model
from faceswap.models.engine import OcclusionEngine
from faceswap.models.guided import GuidedAEINet
from faceswap.models.occlusion import OcclusionNet
from faceswap.occlude import OcclusionMask, lasting, load_occlusion, near_face, without_rims
from faceswap.ops.geometry import align
from faceswap.ops.guide import make_guide
from faceswap.ops.shape import ShapeModel
from faceswap.ops.smooth import guided_filter
from faceswap.ops.topology import BROW_LEFT, BROW_RIGHT, FACE, five_points
from faceswap.photo import swap_image
from faceswap.swap import Swapper
from faceswap.train.config import Occluders, load_train_config
from faceswap.train.data import Crops, load_crops
from faceswap.train.occluders import Head, cover, draw_occluders, line
from faceswap.train.occlusion import bare, occlusion_loss, told_apart
from faceswap.train.run import run_training
from faceswap.train.wearers import glasses_score, real_glasses
from faceswap.video import swap_video

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Path(__file__).parents[1] / "configs" / "lite_occlusion.yaml"
SMALL = {"widths": (4, 8, 8)}


# ---------------------------------------------------------------- drawing


def faces(n: int, size: int = 128) -> tuple[Tensor, Tensor]:
    """Grey pictures, and a flat mesh of a face that looks into the camera."""
    mesh = (synthetic.mesh() * (size / synthetic.SIZE)).expand(n, 478, 3).clone()
    mesh[:, 10, :2] = mesh[:, [33, 263], :2].mean(1) - torch.tensor([0.0, 0.3 * size])
    mesh[:, 152, :2] = mesh[:, [33, 263], :2].mean(1) + torch.tensor([0.0, 0.5 * size])
    return torch.full((n, 3, size, size), 0.6), mesh


def drawn(n: int, size: int, seed: int = 0, **odds: float):
    return draw_occluders(n, size, Occluders(**odds), torch.Generator().manual_seed(seed))


def test_nothing_drawn_changes_nothing():
    images, mesh = faces(4)
    out, truth = cover(images, mesh, drawn(4, 128, glasses=0, things=0))
    assert torch.equal(out, images)
    assert not bool(truth.any())


@pytest.mark.parametrize("odds", [{"glasses": 1, "things": 0}, {"glasses": 0, "things": 1}])
def test_what_is_called_covered_has_changed_and_far_from_it_nothing_has(odds):
    images, mesh = faces(24)
    out, truth = cover(images, mesh, drawn(24, 128, **odds))
    assert 0.005 < float(truth.mean()) < 0.5
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    changed = (out - images).abs().amax(1, keepdim=True)
    # Some things happen to have the colour of what they cover, but not most of them.
    assert float((changed > 0.02)[truth > 0.99].float().mean()) > 0.9
    near = nn.functional.max_pool2d(truth, 17, 1, 8) > 0
    lenses = 0.05  # clear ones take a little light over a wide area
    if odds["things"]:
        assert not bool(changed[~near].any())
    else:
        assert float((changed[~near] > lenses).float().mean()) < 0.05


def test_glasses_sit_on_the_eyes_and_clear_ones_leave_them_to_be_seen():
    images, mesh = faces(64)
    _, truth = cover(images, mesh, drawn(64, 128, glasses=1, things=0))
    eyes = mesh[0, [33, 133, 362, 263], :2]
    reach = float(eyes[3, 0] - eyes[0, 0])
    y, x = torch.nonzero(truth.mean((0, 1)) > 0.15, as_tuple=True)
    middle = eyes.mean(0)
    assert abs(float(x.float().mean() - middle[0])) < 0.05 * reach
    assert abs(float(y.float().mean() - middle[1])) < 0.15 * reach
    pupils = [eyes[:2].mean(0).round().long(), eyes[2:].mean(0).round().long()]
    seen = torch.stack([truth[:, 0, at[1], at[0]] < 0.5 for at in pupils]).all(0)
    assert 0.4 < float(seen.float().mean()) < 0.85  # three in ten are dark, a few gleam


def test_glasses_turn_with_the_head():
    images, mesh = faces(32)
    turned = mesh.clone()
    yaw = math.radians(40)
    x = mesh[..., 0] - 63.5
    turned[..., 0], turned[..., 2] = 63.5 + x * math.cos(yaw), x * math.sin(yaw)
    glasses = drawn(32, 128, glasses=1, things=0)

    def reach(mesh: Tensor) -> tuple[float, float]:
        """How far it covers pictures to the left and to the right of the eyes' middle."""
        truth = cover(images, mesh, glasses)[1].mean((0, 1))
        across = torch.nonzero(truth.amax(0) > 0.4)[:, 0]
        middle = mesh[0, [33, 133, 362, 263], 0].mean()
        return float(middle - across.min()), float(across.max() - middle)

    left, right = reach(mesh)
    assert left == pytest.approx(right, abs=2)
    # The left side is nearer now: its temple shows, that of the other side lies behind the head.
    left, right = reach(turned)
    assert left > right + 6


def test_the_same_numbers_draw_the_same_things():
    images, mesh = faces(6)
    one, other = (cover(images, mesh, drawn(6, 128, seed=3)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], cover(images, mesh, drawn(6, 128, seed=4))[0])


def test_wire_is_drawn_as_thin_as_it_is_and_marked_a_pixel_broad():
    across = torch.arange(-3.0, 4.0).view(1, 1, 7)
    distance = (across / 10).abs()  # a unit is 10 px
    grain = torch.full((1, 1, 1), 10.0)
    thin, marked = line(torch.full((1, 1, 1), 0.01), distance, grain)[0]
    torch.testing.assert_close(thin, torch.tensor([[0, 0, 0, 0.6, 0, 0, 0]]))
    torch.testing.assert_close(marked, torch.tensor([[0, 0, 0.1, 1, 0.1, 0, 0]]))
    thick, marked = line(torch.full((1, 1, 1), 0.15), distance, grain)[0]
    torch.testing.assert_close(thick, torch.tensor([[0, 0, 1.0, 1, 1, 0, 0]]))
    assert torch.equal(thick, marked)


# ---------------------------------------------------------------- loss


def test_the_loss_by_hand():
    logits = torch.tensor([0.0, 2.0, 5.0]).view(3, 1, 1, 1)  # three pictures of a pixel
    truth = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1)
    weight = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1, 1)
    p = [0.5, 1 / (1 + math.exp(-2))]
    pixels, overlap = occlusion_loss(logits, truth, weight)
    assert float(pixels) == pytest.approx((-math.log(p[0]) - 0.5 * math.log(1 - p[1])) / 1.5)
    assert float(overlap) == pytest.approx(1 - (2 * p[0] + 1) / (p[0] + 0.5 * p[1] + 1 + 1))


def test_what_lies_beside_the_face_does_not_count():
    _, mesh = faces(1)
    near = near_face(mesh, 128)[0, 0]
    rim = mesh[0, list(FACE), :2]
    middle = rim.mean(0).round().long()
    assert near[middle[1], middle[0]] == 1
    left = int(rim[:, 0].min())
    assert near[middle[1], left + 3] == 1
    assert 0.1 < near[middle[1], left - 3] < 0.9
    assert near[middle[1], left - 10] == 0


def test_it_learns(tmp_path):
    synthetic.prepared(tmp_path / "data", people=8)
    sets = ["sides=[64]", "batch_size=8", "steps=160", "warmup=5", "log_every=20", "workers=0"]
    sets += ["precision=fp32", "model.widths=[8, 16, 32, 32]", "lr=1e-2"]
    sets += ["occluders.glasses=1", "occluders.things=0", "save_every=160", "leave_out=0"]
    config = load_train_config(CONFIG, [f"data={tmp_path / 'data'}", *sets])
    run_training(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i]) for i in (0, -1))
    assert last["pixels"] < 0.75 * first["pixels"]
    assert last["iou_%"] > 40  # of saying nowhere: 0
    assert (tmp_path / "run" / "sample-0000160.png").is_file()
    assert isinstance(load_model(tmp_path / "run" / "occlusion.safetensors"), OcclusionNet)


def test_a_side_the_network_cannot_halve_is_told(tmp_path):
    synthetic.prepared(tmp_path / "data", people=2)
    config = load_train_config(CONFIG, [f"data={tmp_path / 'data'}", "sides=[100]"])
    with pytest.raises(ConfigError, match="sides: 100 is no multiple of 32"):
        run_training(config, tmp_path / "run")


# ---------------------------------------------------------------- network and stage


def test_the_network_tells_pixels_at_any_side():
    net = build("occlusion", **SMALL).eval()
    assert isinstance(net, OcclusionNet)
    for side in (net.stride, 5 * net.stride):
        assert net(torch.rand(2, 3, side, side)).shape == (2, 1, side, side)
    with pytest.raises(ConfigError, match="at least two"):
        build("occlusion", widths=(8,))


def test_onnxruntime_gives_the_same():
    torch.manual_seed(0)
    net = build("occlusion", **SMALL).eval()
    assert isinstance(net, OcclusionNet)
    engine = OcclusionEngine(net)
    for side in (32, 64):
        crop = torch.rand(3, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(engine(crop), net(crop), atol=1e-4, rtol=1e-4)


class _Stripe(nn.Module):
    """Says that the left half of every picture is covered, and remembers the sides it saw."""

    size = 160

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[int] = []

    def forward(self, crop: Tensor) -> Tensor:
        self.sides.append(crop.shape[-1])
        logits = torch.full_like(crop[:, :1], -9.0)
        logits[..., : crop.shape[-1] // 2] = 9.0
        return logits


@pytest.mark.parametrize("size", [64, 160, 256, 512])
def test_crops_of_any_side(size):
    stripe = _Stripe()
    crops, elsewhere = torch.rand(2, 3, size, size), torch.zeros(2, 106, 2)
    covered = OcclusionMask(stripe)(crops, elsewhere, lambda run: run())
    assert stripe.sides == [160]
    assert covered.shape == (2, 1, size, size)
    assert float(covered[..., : size // 2 - size // 16].min()) > 0.99
    assert float(covered[..., size // 2 + size // 16 :].max()) < 0.01


def test_nothing_lies_before_what_is_no_face():
    crops, mesh = faces(1)
    covered = OcclusionMask(_Stripe())(crops, mesh, lambda run: run())
    near = near_face(mesh, 128)
    assert torch.equal(covered[..., :60], near[..., :60])
    assert 0 < float(covered.mean()) < float(near.mean())


def test_what_is_seen_for_a_moment_is_not_there_and_what_is_missed_for_one_is():
    seen = torch.zeros(11, 5)
    seen[4:7, 0] = 1
    seen[:, 1] = 1
    seen[4:7, 1] = 0
    seen[:, 2] = 0.5  # unsure all the time
    seen[6:, 3] = 1  # comes in the frame behind the middle one
    seen[5:, 4] = 1  # came in this one
    out = lasting(seen)
    torch.testing.assert_close(out[:3], torch.tensor([0.0, 1.0, 0.5]))
    assert 0.2 < float(out[3]) < 0.5 < float(out[4]) < 0.8


def test_a_coarse_mask_follows_the_edges_of_the_picture():
    picture = torch.zeros(1, 1, 64, 64)
    picture[..., 30:] = 1.0
    coarse = torch.linspace(-1.5, 2.5, 64).clamp(0, 1).expand(1, 1, 64, 64)
    fine = guided_filter(picture, coarse, radius=6, flat=1e-3)
    jump = float((fine[..., 30] - fine[..., 29]).mean())
    assert jump > 5 * float((coarse[..., 30] - coarse[..., 29]).mean())
    # Without an edge to follow it is a mean of means.
    flat = guided_filter(torch.full_like(picture, 0.5), coarse, radius=6, flat=1e-3)
    box = nn.AvgPool2d(13, 1, 6, count_include_pad=False)
    torch.testing.assert_close(flat, box(box(coarse)), atol=1e-4, rtol=0)


def test_a_rim_stays_without_the_skin_and_the_brow_beside_it():
    picture = torch.full((1, 3, 480, 480), 0.6)
    picture[..., 239:242, :] = 0.4  # wire, 3 px
    picture[..., 180:205, :] = 0.2  # a brow
    seen = torch.zeros(1, 1, 160, 160)
    seen[..., 79:81, :] = 1.0  # 6 px of the picture
    mask = OcclusionMask(_Stripe()).fit(seen, picture, torch.zeros(1, 106, 2))[0, 0, :, 240]
    assert float(mask[239:242].min()) > 0.9
    assert float(mask[:238].max()) < 0.1
    assert float(mask[243:].max()) < 0.1


def test_a_speck_is_no_rim_but_bits_of_one_are():
    picture = torch.full((1, 3, 480, 480), 0.6)
    seen = torch.zeros(1, 1, 160, 160)
    speck, bits = (
        (slice(79, 82), slice(30, 34)),
        [(slice(79, 82), slice(x, x + 4)) for x in (110, 118, 126)],
    )
    for at in (speck, *bits):
        seen[0, 0, at[0], at[1]] = 1.0
        picture[..., 3 * at[0].start : 3 * at[0].stop, 3 * at[1].start : 3 * at[1].stop] = 0.3
    mask = OcclusionMask(_Stripe()).fit(seen, picture, torch.zeros(1, 106, 2))[0, 0, 240]
    assert float(mask[:200].max()) < 0.05
    assert all(float(mask[3 * at[1].start + 6]) > 0.9 for at in bits)


def test_what_is_asked_for_is_loaded(tmp_path, monkeypatch):
    pack, cpu = weights.pack("lite"), torch.device("cpu")
    ghost = weights.pack("ghost-2")
    assert load_occlusion(OcclusionConfig(enabled=False), pack, cpu) is None
    assert load_occlusion(OcclusionConfig(), ghost, cpu) is None, "as the original"
    path = tmp_path / "own.safetensors"
    save_model(path, build("occlusion", **SMALL), "occlusion", SMALL)
    own = OcclusionConfig(enabled=True, weights=str(path))
    for each in (pack, ghost):
        assert isinstance(load_occlusion(own, each, cpu), OcclusionMask)
    other = tmp_path / "other.safetensors"
    args = {"widths": (8, 8), "depths": (1, 1)}
    save_model(other, build("restorer", **args), "restorer", args)
    with pytest.raises(ConfigError, match=r"holds a Restorer, which masks no occlusion"):
        load_occlusion(OcclusionConfig(weights=str(other)), pack, cpu)
    monkeypatch.setattr(weights, "present", lambda name: False)
    with pytest.raises(MissingWeightError, match=r"--no-occlusion"):
        load_occlusion(OcclusionConfig(), pack, cpu)


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    """A public-domain face, mirrored and darker, and as it is."""
    data = pytest.importorskip("skimage.data")
    target = np.ascontiguousarray(data.astronaut()[0:256, 100:356])
    return np.ascontiguousarray((target[:, ::-1] * 0.7).astype(np.uint8)), target


def swapped(photos: tuple[np.ndarray, np.ndarray], swapper: Swapper) -> np.ndarray:
    image = swap_image(swapper, *photos).image
    assert image is not None
    return image.permute(1, 2, 0).numpy()


def test_what_is_covered_stays_as_it_is(lite_pack, photos):
    swapper = Swapper.from_config(SwapConfig.model_validate({"occlusion": {"enabled": False}}))
    assert swapper.occlusion is None
    plain = swapped(photos, swapper)
    swapper.occlusion = OcclusionMask(_Stripe())
    half = swapped(photos, swapper)
    changed = np.abs(plain.astype(int) - photos[1]).max(2) > 8
    rows, columns = (np.nonzero(changed.any(axis))[0] for axis in (1, 0))
    middle = (columns[0] + columns[-1]) // 2
    left, right = slice(0, middle - 12), slice(middle + 12, None)
    assert changed[:, left].sum() > 300
    still = np.abs(half.astype(int) - photos[1]).max(2)[:, left]
    assert (still > 8).sum() < 0.1 * changed[:, left].sum(), "only at the rim, beside the face"
    inner = np.s_[rows[0] + 30 : rows[-1] - 30, columns[0] + 25 : middle - 12]
    assert np.array_equal(half[inner], photos[1][inner])
    assert (np.abs(half.astype(int) - photos[1]).max(2) > 8)[:, right].sum() > 300


def test_light_is_not_taken_from_what_covers_the_face(lite_pack, photos):
    """A dark cloth, not unlike skin in shadow, must not darken the face beside it."""
    swapper = Swapper.from_config(SwapConfig())
    net = swapper.generator
    assert isinstance(net, GuidedAEINet)
    model = ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
    frame = torch.from_numpy(photos[1]).permute(2, 0, 1)[None]
    faces = swapper.detect(frame)
    mesh = swapper.dense(frame, faces)
    at = align(five_points(mesh), 128, template=swapper.pack.template)
    crop = at.crop(frame, faces.frame)
    mesh = torch.cat([at.points(mesh[..., :2]), mesh[..., 2:] * at.scale[:, None, None]], -1)
    cloth = crop.clone()
    cloth[..., :40] *= 0.55
    covered = torch.zeros_like(crop[:, :1])
    covered[..., :40] = 1.0

    def lit(target: Tensor, covered: Tensor | None) -> Tensor:
        guide, _ = make_guide(model, crop * 0.8, mesh, target, mesh, covered=covered)
        return guide.image[..., 40:110, 50:95]

    truth = lit(crop, None)
    told, not_told = ((lit(cloth, c) - truth).abs().mean() for c in (covered, None))
    assert told < 0.6 * not_told


# ---------------------------------------------------------------- who wears real glasses


def wearing(tmp_path: Path, people: int, *, embedding: bool) -> tuple[Crops, Tensor]:
    """Faces of which every fourth has a bar across the nose, one in eight of those hardly."""
    data = load_crops(synthetic.prepared(tmp_path / "data", people=people, photos=1))
    random = torch.Generator().manual_seed(0)
    mesh = data.mesh.clone()
    mesh[:, 9, :2] = mesh[:, [33, 133, 362, 263], :2].mean(1) - torch.tensor([0.0, 4.0])
    mesh[:, 5, :2] = mesh[:, 9, :2] + torch.tensor([0.0, 12.0])
    wears = torch.arange(people) % 4 == 0
    images = data.images[0].clone()
    noise = 12 * torch.randn(images.shape, generator=random)
    images = (images.float() + noise).clamp(0, 255).byte()
    x, y = (round(float(v)) for v in mesh[0, 9, :2])
    for row in torch.nonzero(wears)[:, 0].tolist():
        images[row, :, y + 4 : y + 6, x - 5 : x + 6] = 10 if row % 32 else 110
    vectors = torch.randn(people, 16, generator=random) + wears[:, None] * 0.7
    found = replace(data, images=(images,), mesh=mesh, embedding=vectors if embedding else None)
    return found, wears


@pytest.mark.parametrize("embedding", [False, True])
def test_glasses_are_told_by_the_bar_and_by_what_recognisers_know(tmp_path, embedding):
    data, wears = wearing(tmp_path, 320, embedding=embedding)
    score = glasses_score(data)
    right = (score[wears][:, None] > score[~wears][None]).float().mean()
    assert right > (0.97 if embedding else 0.85)


def test_their_photos_are_left_out(tmp_path):
    data, wears = wearing(tmp_path, 80, embedding=False)
    rows = torch.arange(80)[::2]
    kept = bare(data, rows, 0.5)
    assert len(kept) == 20
    assert set(kept.tolist()) <= set(rows.tolist())
    assert float(wears[kept].float().mean()) < 0.5 * float(wears[rows].float().mean())
    assert torch.equal(bare(data, rows, 0.0), rows)
    assert len(bare(data, rows, 1.0)) == 1


def rims(mesh: Tensor, size: int, much: float) -> Tensor:
    """Probabilities that are this much on two rings about the eyes, and little beside them."""
    across, down = Head.of(mesh).plane(size, mesh.new_full((len(mesh),), -0.2))
    ring = ((across.abs() - 0.35).square() + down.square()).sqrt() - 0.25
    return torch.where(ring.abs() < 0.04, much, 0.01)[:, None]


def test_rims_that_a_network_is_unsure_of_are_marked_by_what_is_clearest_there():
    size = 128
    _, mesh = faces(1, size)
    seen = rims(mesh, size, 0.5)
    ring = seen > 0.4
    seen[..., :44, :][ring[..., :44, :]] = 0.2  # fainter above
    middle = mesh[0, [33, 263], :2].mean(0).round().long()
    seen[0, 0, middle[1], middle[0]] = 0.1  # neither here nor there
    cheek = np.s_[0, 0, int(middle[1]) + 40, int(middle[0]) - 10]
    seen[cheek] = 0.7  # something else, away from the eyes
    covered, known = real_glasses(seen, mesh)
    assert torch.equal(covered[ring], torch.ones(int(ring.sum())))
    assert bool(known[ring].all())
    assert known[0, 0, middle[1], middle[0]] == 0
    assert covered[cheek] == known[cheek] == 1
    bare_skin = (seen < 0.05) & ~ring
    assert not bool(covered[bare_skin].any())
    assert bool(known[bare_skin].all())


def test_brows_are_no_rims_unless_they_are_clear():
    size = 128
    _, mesh = faces(1, size)
    seen = rims(mesh, size, 0.5)
    y, x = (int(v) for v in mesh[0, [33, 263], :2].mean(0).round().flip(0))
    box = [(x - 12, y - 8), (x - 2, y - 8), (x - 2, y - 2), (x - 12, y - 2)]
    outline = torch.tensor(box, dtype=torch.float32)[[0, 0, 0, 1, 1, 2, 2, 2, 3, 3]]
    mesh[0, list(BROW_LEFT), :2] = outline
    mesh[0, list(BROW_RIGHT), :2] = outline
    brow = np.s_[..., y - 6 : y - 3, x - 10 : x - 3]
    ring = seen > 0.4
    assert bool(ring[brow].any())
    covered, known = real_glasses(seen, mesh)
    assert not bool(covered[brow].any())
    assert not bool(known[brow][ring[brow]].any())
    far = ring.clone()
    far[..., y - 14 : y + 4, x - 18 : x + 4] = False
    assert bool(covered[far].all())
    covered, known = real_glasses(rims(mesh, size, 0.9), mesh)
    assert torch.equal(covered[brow], ring[brow].float())
    assert bool(known[brow].all())


def test_nothing_is_known_of_glasses_that_are_nowhere_clear_or_seen_from_the_side():
    size = 128
    _, mesh = faces(1, size)
    eyes = mesh[0, [33, 263], :2].mean(0).round().long()
    about = np.s_[:, :, int(eyes[1]) - 3 : int(eyes[1]) + 4, int(eyes[0]) - 8 : int(eyes[0]) + 9]
    assert not bool(real_glasses(rims(mesh, size, 0.25), mesh)[1][about].any())
    turned, yaw = mesh.clone(), math.radians(50)
    x = mesh[..., 0] - eyes[0]
    turned[..., 0], turned[..., 2] = eyes[0] + x * math.cos(yaw), x * math.sin(yaw)
    assert not bool(real_glasses(rims(turned, size, 0.9), turned)[1][about].any())
    assert bool(real_glasses(rims(mesh, size, 0.9), mesh)[1][about].all())


class _Dark(OcclusionNet):
    """Takes what is black for covered."""

    def __init__(self) -> None:
        super().__init__(widths=(4, 4), size=160)

    def forward(self, crop: Tensor) -> Tensor:
        return 40 * (0.15 - crop.mean(1, keepdim=True))


def test_a_network_tells_who_wears_glasses(tmp_path):
    data, wears = wearing(tmp_path, 70, embedding=False)  # more than are looked at together
    images = data.images[0].clone()
    eyes = data.mesh[0, [33, 263], :2].mean(0).round().long()
    rows, columns = (
        slice(int(v) - r, int(v) + r) for v, r in zip(eyes.flip(0), (4, 20), strict=True)
    )
    images[:, :, rows, columns] = images[:, :, rows, columns].clamp(min=120)
    images[wears, :, rows, columns] = 0
    data = replace(data, images=(images,))
    some = torch.arange(70)[1:]
    worn, plain = told_apart(data, some, _Dark(), torch.device("cpu"))
    assert worn.tolist() == some[wears[1:]].tolist()
    assert plain.tolist() == some[~wears[1:]].tolist()
    worn, plain = told_apart(data, some[:3], _Dark(), torch.device("cpu"))  # none of these
    assert len(worn) == 1
    assert plain.tolist() == [1, 2, 3]


def test_a_network_marks_real_glasses_for_the_next(tmp_path, monkeypatch):
    """The wearers of a batch are its last faces, and nothing is drawn before them."""
    synthetic.prepared(tmp_path / "data", people=8)
    torch.manual_seed(0)
    path = tmp_path / "teacher.safetensors"
    save_model(path, build("occlusion", **SMALL), "occlusion", SMALL)
    asked: list[int] = []

    def told(probability: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(mesh))
        return real_glasses(probability, mesh)

    monkeypatch.setattr("faceswap.train.occlusion.real_glasses", told)
    sets = [f"data={tmp_path / 'data'}", "sides=[32]", "batch_size=8", "steps=3", "workers=0"]
    sets += ["precision=fp32", "model.widths=[4, 8, 8]", "wearers=0.25"]
    run_training(load_train_config(CONFIG, [*sets, f"teacher={path}"]), tmp_path / "run")
    assert asked == [2, 2, 2]
    told_to: list[int] = []
    monkeypatch.setattr(
        "faceswap.train.occlusion.told_apart",
        lambda data, rows, *rest: told_to.append(len(rows)) or (rows[:1], rows),
    )
    alone = [*sets, "wearers=0", f"teacher={path}"]  # tells who wears some, and marks nothing
    run_training(load_train_config(CONFIG, alone), tmp_path / "told")
    assert len(told_to) == 1
    assert asked == [2, 2, 2]
    with pytest.raises(ConfigError, match="set teacher=FILE"):
        run_training(load_train_config(CONFIG, sets), tmp_path / "other")
    args = {"widths": (8, 8), "depths": (1, 1)}
    save_model(path, build("restorer", **args), "restorer", args)
    with pytest.raises(ConfigError, match="a Restorer, not an OcclusionNet"):
        run_training(load_train_config(CONFIG, [*sets, f"teacher={path}"]), tmp_path / "other")


# ---------------------------------------------------------------- the source's glasses


def test_rims_are_filled_in_and_nothing_else_changes():
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    skin = (0.5 + 0.001 * x + 0.0005 * y).expand(1, 3, 256, 256).contiguous()
    radius = ((x - 128).square() + (y - 128).square()).sqrt()
    rim = ((radius - 40).abs() < 2.5).float().expand(1, 1, 256, 256)
    out = without_rims(skin * (1 - rim), rim)
    assert float((out - skin).abs().max()) < 0.03
    far = ((radius - 40).abs() > 14).expand_as(skin)
    assert torch.equal(out[far], skin[far])


def test_dark_lenses_stay():
    images = torch.full((1, 3, 256, 256), 0.6)
    lens = torch.zeros(1, 1, 256, 256)
    lens[..., 100:140, 60:120] = 1
    images = images * (1 - 0.9 * lens)
    assert torch.equal(without_rims(images, lens), images)


class _Glasses(nn.Module):
    """Sees that the left half is covered in every picture but one, and in that one all of it."""

    size = 160

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, crop: Tensor) -> Tensor:
        logits = torch.full_like(crop[:, :1], -9.0)
        for row in range(len(crop)):
            logits[row, ..., : 160 if self.seen == 5 else 80] = 9.0
            self.seen += 1
        return logits


def test_in_a_clip_the_mask_does_not_flicker(lite_pack, photos, tmp_path, monkeypatch):
    """What covers the left half stays in all frames; one false alarm does not stop the swap."""
    frame = torch.from_numpy(photos[1]).permute(2, 0, 1).contiguous()
    clip = write_clip(tmp_path / "in.mkv", [frame] * 12)
    settings = VideoConfig(encode={"codec": "ffv1"}, detector={"rotate": False})
    swapper = Swapper.from_config(settings, video=True)
    assert swapper.occlusion is not None
    network = _Glasses()
    swapper.occlusion = OcclusionMask(network)
    network.seen = -1  # the source photo is looked at as well
    report = swap_video(swapper, photos[0], clip, tmp_path / "out.mkv", config=settings)
    assert report.faces_swapped == 12
    assert network.seen == 12
    with VideoReader(tmp_path / "out.mkv") as reader:
        out = torch.cat([batch.frames for batch in reader]).float()
    with VideoReader(clip) as reader:
        before = torch.cat([batch.frames for batch in reader]).float()
    changed = (out - before).abs().amax(1) > 8  # (T, H, W)
    columns = torch.nonzero(changed.any(0).any(0))[:, 0]
    middle = int(columns.min() + columns.max()) // 2
    counts = changed.flatten(2 - 1).sum(1).float()
    assert float(counts.min()) > 0.9 * float(counts.max()), "the same in all of them"
    assert float(counts.min()) > 300
    left = changed[:, :, : middle - 12].sum((1, 2)).float()
    assert float(left.max()) < 0.15 * float(counts.min())
