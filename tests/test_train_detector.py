"""The detector: its network, composed scenes, which cell sees which face, and a short run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import synthetic
import torch

from faceswap.config import SwapConfig
from faceswap.errors import ConfigError, FaceSwapError, MediaError
from faceswap.faces.detect import PHOTO_SIDES, VIDEO_SIDES, CenterFaceDetector, GridDetector
from faceswap.models import build, load_model, save_model
from faceswap.models.detector import Grid
from faceswap.ops.boxes import box_iou
from faceswap.ops.topology import five_points
from faceswap.swap import Swapper
from faceswap.train.cells import answer, assign
from faceswap.train.collage import Material
from faceswap.train.config import DetectorConfig, load_train_config
from faceswap.train.crowd import shows_others
from faceswap.train.data import load_crops
from faceswap.train.detector import (
    detector_losses,
    draw_face,
    generalised_iou,
    quality_focal_loss,
)
from faceswap.train.run import run_training
from faceswap.train.scenes import Scenes, draw_scenes, load_backgrounds
from faceswap.types import Faces

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SMALL = {"widths": (8, 8, 8, 8, 8), "depths": (1, 1, 1), "neck": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    synthetic.prepared(folder / "data", people=8)
    return folder


# ---------------------------------------------------------------- network


def test_grids_cover_the_frame():
    net = build("detector", **SMALL).eval()
    grids = net(torch.zeros(2, 3, 70, 100))
    assert [(g.stride, tuple(g.score.shape)) for g in grids] == [
        (8, (2, 12, 16)),
        (16, (2, 6, 8)),
        (32, (2, 3, 4)),
    ]
    # A head that says nothing puts a box of 4 strides about the middle of every cell.
    torch.nn.init.zeros_(net.head.weight)
    grid = net(torch.zeros(1, 3, 64, 64))[1]
    assert grid.box[0, 1, 2].tolist() == [40 - 32, 24 - 32, 40 + 32, 24 + 32]
    assert grid.points[0, 1, 2].tolist() == [[40.0, 24.0]] * 5
    assert torch.sigmoid(grid.score).unique().item() == pytest.approx(0.01)


def test_bytes_and_floats_are_the_same():
    net = build("detector", **SMALL).eval()
    frames = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    kept = frames.float() / 255
    copy = kept.clone()
    for a, b in zip(net(frames), net(kept), strict=True):
        assert torch.allclose(a.score, b.score, atol=1e-4)
        assert torch.allclose(a.box, b.box, atol=1e-2)
    assert torch.equal(kept, copy)


def test_folding_changes_nothing():
    torch.manual_seed(0)
    net = build("detector", **SMALL)
    for _ in range(3):
        net(torch.rand(2, 3, 64, 64))
    folded = net.folded()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    frames = torch.rand(1, 3, 64, 96)
    for a, b in zip(net.eval()(frames), folded(frames), strict=True):
        assert torch.allclose(a.score, b.score, atol=1e-4)
        assert torch.allclose(a.points, b.points, atol=1e-3)


class OneFace(torch.nn.Module):
    """Sees one face at (30, 20) .. (50, 44) working px of the second frame, in two cells."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, frames: torch.Tensor) -> list[Grid]:
        n = len(frames)
        score = torch.full((n, 10, 12), -9.0)
        score[n - 1, 4, 5], score[n - 1, 4, 6] = 2.0, 1.0
        box = torch.tensor([30.0, 20, 50, 44]).expand(n, 10, 12, 4)
        points = torch.tensor([[35.0, 28], [45, 28], [40, 33], [36, 38], [44, 38]])
        return [Grid(8, score, box, points.expand(n, 10, 12, 5, 2))]


def test_faces_come_back_in_frame_pixels():
    """Frames twice as large as the working size: an edge at 30 is at 60, its pixel at 59.5."""
    detector = GridDetector(OneFace(), sides=(96,), threshold=0.6)
    faces = detector(torch.zeros(2, 3, 160, 192, dtype=torch.uint8))
    assert faces.frame.tolist() == [1]
    assert faces.box[0].tolist() == pytest.approx([59.5, 39.5, 99.5, 87.5])
    assert faces.points[0, 0].tolist() == pytest.approx([69.5, 55.5])
    assert float(faces.score[0]) == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert len(detector.with_threshold(0.9)(torch.zeros(2, 3, 160, 192, dtype=torch.uint8))) == 0
    assert isinstance(detector.with_threshold(0.9), GridDetector)


def test_the_shipped_size():
    config = load_train_config(ROOT / "configs" / "lite_detector.yaml")
    net = build("detector", **config.model.model_dump())
    assert sum(p.numel() for p in net.parameters()) < 1_000_000


# ---------------------------------------------------------------- scenes


def material(home: Path, **changed: float) -> Material:
    data = load_crops(home / "data")
    sizes = {"size": 128, "smallest": 10.0, "largest": 60.0, **changed}
    rows = torch.arange(len(data))
    return Material(
        data,
        rows,
        load_backgrounds(""),
        **sizes,  # type: ignore[arg-type]
    )


def test_scenes_are_what_the_seed_says(home):
    make = material(home)
    one, two, other = (draw_scenes(make, 3, torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.box, two.box)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (3, 3, 128, 128)
    assert 0 <= float(one.images.min()) < float(one.images.max()) <= 1


def test_points_lie_where_the_drawing_has_them(home):
    """Both eyes of a face have one colour; so have they in the scene, mirrored or turned."""
    make = material(home, size=256, largest=120.0, smallest=40.0)
    seen = 0
    for seed in range(6):
        scenes = draw_scenes(make, 4, torch.Generator().manual_seed(seed))
        for i in torch.nonzero(scenes.counts)[:, 0].tolist():
            box, five = scenes.box[i], scenes.points[i]
            assert (five >= box[:2] - 1).all()
            assert (five <= box[2:] + 1).all()
            inside = ((five > 4) & (five < 251)).all()
            across = five[1] - five[0]
            assert across[0] > 0  # left is left
            assert five[3, 0] < five[4, 0]
            if not inside or (box[2:] - box[:2]).prod().sqrt() < 50:
                continue
            picture = scenes.images[scenes.frame[i]]
            left, right, nose = (
                picture[:, y - 1 : y + 2, x - 1 : x + 2].mean((1, 2))
                for x, y in five[:3].round().long().tolist()
            )
            seen += int((left - right).abs().max() < 0.12 and (left - nose).abs().max() > 0.04)
    assert seen >= 10


def test_hidden_and_tiny_faces_do_not_count(home):
    scenes = draw_scenes(material(home, smallest=24.0), 24, torch.Generator().manual_seed(0))
    extent = (scenes.box[:, 2:] - scenes.box[:, :2]).clamp_min(0)
    size = extent.prod(1).sqrt()
    assert (size[scenes.counts] >= 24).all()
    assert (size[~scenes.counts] < 24).any()
    visible = scenes.box.clamp(0, 128)
    share = (visible[:, 2:] - visible[:, :2]).clamp_min(0).prod(1) / extent.prod(1)
    assert (share[scenes.counts] > 0.6).all()
    assert len(scenes.counts) > 24


def test_backgrounds_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="no photo in it"):
        load_backgrounds(str(tmp_path / "empty"))


# ---------------------------------------------------------------- which cell sees which face


def grids_of(side: int) -> list[Grid]:
    return [
        Grid(
            s,
            torch.zeros(1, side // s, side // s),
            torch.zeros(1, side // s, side // s, 4),
            torch.zeros(1, side // s, side // s, 5, 2),
        )
        for s in (8, 16, 32)
    ]


def scenes_of(boxes: list[list[float]], counts: list[bool], side: int = 128) -> Scenes:
    box = torch.tensor(boxes)
    middle = (box[:, None, :2] + box[:, None, 2:]) / 2
    return Scenes(
        torch.zeros(1, 3, side, side),
        torch.zeros(len(box), dtype=torch.int64),
        box,
        middle.expand(-1, 5, 2).contiguous(),
        torch.tensor(counts),
    )


def test_a_small_face_belongs_to_the_fine_grid():
    owner, open_ = assign(scenes_of([[54.0, 54, 74, 74]], [True]))
    fine, rest = owner[0, :256].view(16, 16), owner[0, 256:]
    # Middle 64: cells with middles at 60 and 68 are 4 px away, within three quarters of a cell.
    assert torch.nonzero(fine >= 0).tolist() == [[7, 7], [7, 8], [8, 7], [8, 8]]
    assert (rest < 0).all()
    assert not open_[0, 256:].any()  # 20 px is far from the other grids' ranges


def test_two_grids_share_a_face_between_their_ranges():
    owner, open_ = assign(scenes_of([[44.0, 44, 84, 84]], [True]))
    assert (owner[0, :256] >= 0).any()
    assert (owner[0, 256:320] >= 0).any()
    assert (owner[0, 320:] < 0).all()
    assert not (open_ & (owner >= 0)).any()
    # The inner part, but not the middle, is left open: middles at 52 are 12 px away, 16 is 40 %.
    assert bool(open_[0, :256].view(16, 16)[6, 6])
    assert not bool(open_[0, :256].view(16, 16)[5, 5])


def test_the_smaller_of_two_faces_wins_and_uncounted_ones_are_open():
    boxes = [[34.0, 34, 84, 84], [50.0, 50, 68, 68], [100.0, 100, 120, 120]]
    owner, open_ = assign(scenes_of(boxes, [True, True, False]))
    assert int(owner[0, :256].view(16, 16)[7, 7]) == 1
    assert int(owner[0, :256].view(16, 16)[13, 13]) == -1
    assert bool(open_[0, :256].view(16, 16)[13, 13])


def test_losses_by_hand():
    # One cell right (q = 0.5 at p = 0.5: nothing), one at p = 0.5 for background: 0.25 ln 2.
    loss = quality_focal_loss(torch.zeros(2), torch.tensor([0.5, 0.0]))
    assert float(loss) == pytest.approx(0.25 * math.log(2), rel=1e-5)
    # Boxes of 2 x 2, one px apart in x: IoU 2 / 6; around both 3 x 2, filled. Far ones: -4 / 12.
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]])
    b = torch.tensor([[1.0, 0, 3, 2], [4, 0, 6, 2]])
    iou, giou = generalised_iou(a, b)
    assert iou.tolist() == pytest.approx([1 / 3, 0])
    assert giou.tolist() == pytest.approx([1 / 3, -1 / 3])


def test_a_head_that_is_right_costs_nothing():
    scenes = scenes_of([[54.0, 54, 74, 74]], [True])
    grids = []
    owner, _ = assign(scenes)
    begin = 0
    for grid in grids_of(128):
        cells = grid.score.numel()
        mine = owner[:, begin : begin + cells].view(grid.score.shape) >= 0
        begin += cells
        grids.append(
            Grid(
                grid.stride,
                torch.where(mine, 20.0, -20.0),
                scenes.box[0].expand(*mine.shape, 4),
                scenes.points[0].expand(*mine.shape, 5, 2),
            )
        )
    # Labels count from pixel middles, grids from the picture's edge, half a pixel before them.
    pixels = Scenes(
        scenes.images, scenes.frame, scenes.box - 0.5, scenes.points - 0.5, scenes.counts
    )
    terms, error = detector_losses(grids, answer(pixels))
    assert all(float(value) < 1e-6 for value in terms.values())
    assert float(error) == 0
    moved = [g._replace(points=g.points + 2.0) for g in grids]
    terms, error = detector_losses(moved, answer(pixels))
    assert float(error) == pytest.approx(math.sqrt(8) / 20)
    assert float(terms["points"]) == pytest.approx(0.1 - 0.01, rel=1e-4)  # |x| - beta / 2


# ---------------------------------------------------------------- a run


SHORT = {
    "model": SMALL,
    "size": 64,
    "smallest": 12,
    "largest": 40,
    "batch_size": 4,
    "steps": 3,
    "log_every": 1,
    "save_every": 3,
    "losses": {"score": 1, "box": 0, "points": 5},
}


@pytest.fixture(scope="module")
def learned(home):
    """Scenes, and a network trained on just them for a few seconds."""
    scenes = draw_scenes(
        material(home, size=96, smallest=14.0), 12, torch.Generator().manual_seed(3)
    )
    torch.manual_seed(0)
    net = build("detector", widths=(8, 16, 24, 24, 24), depths=(1, 1, 1), neck=24)
    optimizer = torch.optim.AdamW(net.parameters())
    steps = 120
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        terms, _ = detector_losses(net(scenes.images), answer(scenes))
        optimizer.zero_grad()
        (terms["score"] + 2 * terms["box"] + 10 * terms["points"]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    return scenes, net.eval()


def test_what_it_learned_is_found_where_it_is(learned):
    """Labels, losses, decoding and the detector around it mean the same places, to half a pixel."""
    scenes, net = learned
    detector = GridDetector(net.folded(), sides=(96,), threshold=0.5)
    found = detector(scenes.images.mul(255).round().byte())
    wanted = torch.nonzero(scenes.counts)[:, 0].tolist()
    assert len(wanted) > 25
    off = []
    for i in wanted:
        mine = found[found.frame == scenes.frame[i]]
        overlap = box_iou(scenes.box[i][None], mine.box)[0] if len(mine) else torch.zeros(1)
        if float(overlap.max()) > 0.5:
            off.append(mine.points[int(overlap.argmax())] - scenes.points[i])
    assert len(off) >= 0.9 * len(wanted)
    false = [
        i
        for i in range(len(found))
        if float(box_iou(found.box[i][None], scenes.box[scenes.frame == found.frame[i]]).amax())
        < 0.2
    ]
    assert len(false) <= 2
    mean = torch.stack(off).mean((0, 1)).abs()
    assert float(mean.max()) < 0.2, "points lie off to one side"
    assert float(torch.stack(off).norm(dim=2).mean()) < 1.0


def test_a_run_writes_what_loads(home, tmp_path):
    config = DetectorConfig.model_validate({**SHORT, "data": str(home / "data")})
    assert run_training(config, tmp_path / "run") == 3
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert (tmp_path / "run" / "sample-0000003.png").exists()
    net = load_model(tmp_path / "run" / "detector.safetensors")
    assert len(net(torch.zeros(1, 3, 64, 64))) == 3


def test_a_run_resumes_exactly(home, tmp_path):
    config = DetectorConfig.model_validate({**SHORT, "data": str(home / "data"), "save_every": 1})
    run_training(config, tmp_path / "whole")
    assert run_training(config, tmp_path / "cut", max_minutes=0) == 1
    assert run_training(config, tmp_path / "cut", resume=True) == 3
    whole, cut = (load_model(tmp_path / n / "detector.safetensors") for n in ("whole", "cut"))
    for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_crops_with_a_second_face_are_left_out(home, monkeypatch):
    """Whoever is found outside of a crop's own face, but not the face itself or a part of it."""
    data = load_crops(home / "data")
    x0, y0 = synthetic.mesh()[:468, :2].amin(0)
    x1, y1 = synthetic.mesh()[:468, :2].amax(0)
    boxes = torch.tensor([[x0, y0, x1, y1], [x0, y0, x0 + 6, y0 + 6], [0.0, 0, x0 + 2, y0 + 2]])

    def seen(self: CenterFaceDetector, frames: torch.Tensor) -> Faces:
        frame = torch.tensor([0, 1, 2])[: len(frames)]
        return Faces(frame, boxes, torch.zeros(3, 5, 2), torch.ones(3))

    monkeypatch.setattr(CenterFaceDetector, "__call__", seen)
    rows = torch.tensor([4, 0, 7, 9, 3, 2])
    assert shows_others(data, rows, batch=3).tolist() == [False, False, True] * 2


def test_the_pipeline_takes_it_in_place_of_the_packs(lite_pack, learned, tmp_path):
    _, net = learned
    file = save_model(
        tmp_path / "mine.safetensors",
        net,
        "detector",
        {"widths": (8, 16, 24, 24, 24), "depths": (1, 1, 1), "neck": 24},
    )
    config = SwapConfig(pack=lite_pack.name, detector={"weights": str(file)})
    for video in (False, True):
        detector = Swapper.from_config(config, video=video).detector
        assert isinstance(detector, GridDetector)
        assert detector.sides == (VIDEO_SIDES if video else PHOTO_SIDES)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in detector.model.modules())
    named = SwapConfig(pack=lite_pack.name, detector={"weights": "centerface"})
    assert type(Swapper.from_config(named).detector) is CenterFaceDetector
    for name, said in (
        (str(tmp_path / "no.safetensors"), "no such weight file"),
        ("lite-identity", "lite-identity is no detector: its role is identity"),
        ("centreface", "did you mean centerface"),
    ):
        with pytest.raises(FaceSwapError, match=said):
            Swapper.from_config(SwapConfig(pack=lite_pack.name, detector={"weights": name}))
    other = save_model(
        tmp_path / "critic.safetensors",
        build("discriminator", width=0.125),
        "discriminator",
        {"width": 0.125},
    )
    with pytest.raises(ConfigError, match="holds a MultiscaleDiscriminator, which is no detector"):
        Swapper.from_config(SwapConfig(pack=lite_pack.name, detector={"weights": str(other)}))


def test_scenes_fit_the_grids(home, tmp_path):
    config = DetectorConfig(data=str(home / "data"), size=100)
    with pytest.raises(ConfigError, match="size 100: a scene's side is a multiple of 32"):
        run_training(config, tmp_path)


def test_a_drawn_face_stays_in_the_picture():
    picture = torch.zeros(3, 20, 20)
    draw_face(picture, torch.tensor([-5.0, 3, 10, 40]), torch.tensor([[3.0, 5]] * 5))
    assert picture[1, 3, 0] == 1
    assert picture[0, 5, 3] == 1
    assert float(picture[:, :3].sum()) == 0


def test_five_points_of_the_drawing(home):
    """What the drawings promise, which the tests above rely on."""
    assert torch.allclose(five_points(synthetic.mesh()[None])[0], synthetic.points(), atol=1e-3)
