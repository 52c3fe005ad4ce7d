"""The evaluation from files to report, with made-up faces that say what they are.

A face here is a square of 40 px whose first pixel is magenta; the next ones hold its pose, its
expression, its gaze, and who it is. The instruments read that, so every measure has a known value.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faceswap.config import SwapConfig, VideoConfig
from faceswap.errors import ConfigError, MediaError, MissingMediaError, NoFaceError, WeightError
from faceswap.evaluate import extract, figures, photos, protocol, table
from faceswap.evaluate.collect import collect
from faceswap.evaluate.extract import Instruments, load_extractor
from faceswap.evaluate.intervals import Estimate
from faceswap.evaluate.plan import EvaluateOptions, Side, making, plan
from faceswap.evaluate.protocol import Triple, faceforensics, pair_folders, read_triples
from faceswap.evaluate.report import as_text
from faceswap.evaluate.run import make_with_pack, run_evaluation
from faceswap.evaluate.seen import look
from faceswap.media.image import read_image, write_image
from faceswap.ops.shape import ShapeModel
from faceswap.ops.topology import FACE_OVAL, INNER_LIPS
from faceswap.types import Faces, Pictures

ROOT = Path(__file__).parent.parent
SIDE, FACE = 120, 40
MAGENTA = torch.tensor([255, 0, 255], dtype=torch.uint8)
ANNA, BERT, CARL = (250, 20, 20), (20, 250, 20), (20, 20, 250)
DORA = (250, 240, 20)  # who has Anna's jaw


def reference() -> Tensor:
    """A mean face 4 units from eye to eye."""
    mesh = torch.randn(478, 3, generator=torch.Generator().manual_seed(5))
    angle = torch.arange(36) / 36 * 2 * math.pi
    mesh[list(FACE_OVAL)] = torch.stack((5 * angle.sin(), 1 - 6 * angle.cos(), 2 + 0 * angle), 1)
    for left, right, x in ((33, 263, 3.0), (133, 362, 1.0), (159, 386, 2.0), (145, 374, 2.0)):
        mesh[left], mesh[right] = torch.tensor([-x, 0, 0]), torch.tensor([x, 0, 0])
    mesh[[159, 386], 1], mesh[[145, 374], 1] = -0.4, 0.4
    mesh[468], mesh[473] = torch.tensor([-2.0, 0, 0]), torch.tensor([2.0, 0, 0])
    return mesh


def face(
    picture: Tensor,  # (3, H, W) uint8, changed
    at: tuple[int, int],
    person: tuple[int, int, int],
    *,
    yaw: int = 0,  # degrees
    mouth: int = 0,  # tenths of a unit
    gaze: int = 0,  # hundredths of a unit, to the right
) -> Tensor:
    """Draw a face with its corner there."""
    x, y = at
    texture = torch.rand(1, FACE, FACE, generator=torch.Generator().manual_seed(3)) * 60 - 30
    colour = torch.tensor(person, dtype=torch.float32)[:, None, None]
    picture[:, y : y + FACE, x : x + FACE] = (colour + texture).clamp(1, 254).byte()
    picture[:, y, x] = MAGENTA
    picture[:, y, x + 1] = torch.tensor([yaw + 128, mouth, gaze], dtype=torch.uint8)
    picture[:, y, x + 2] = torch.tensor(person, dtype=torch.uint8)
    return picture


def scene(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, 120, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def detect(frames: Tensor) -> Faces:
    marks = (frames == MAGENTA.view(1, 3, 1, 1)).all(1).nonzero()
    frame, y, x = marks.T
    corner = torch.stack((x, y), 1).float()
    box = torch.cat((corner, corner + FACE), 1)
    return Faces(frame, box, corner[:, None] + torch.rand(len(marks), 5, 2), torch.ones(len(marks)))


def _pixel(frames: Pictures, faces: Faces, offset: int) -> Tensor:
    x, y = faces.box[:, 0].long().tolist(), faces.box[:, 1].long().tolist()
    rows = zip(faces.frame.tolist(), y, x, strict=True)
    found = [frames[b][:, y, x + offset].float() for b, y, x in rows]
    return torch.stack(found) if found else torch.zeros(0, 3)


def landmarks(frames: Pictures, faces: Faces) -> Tensor:
    """The reference with what the pixels say of it, 4 px a unit."""
    out = []
    values = zip(_pixel(frames, faces, 1), _pixel(frames, faces, 2), faces.box, strict=True)
    for (yaw, mouth, gaze), person, box in values:
        mesh = reference()
        mesh[list(INNER_LIPS), 1] += float(mouth) / 10
        mesh[[468, 473], 0] += float(gaze) / 100
        mesh[[172, 397], 0] *= 1 + float(person[0]) / 500  # Anna's jaw is the widest
        t = math.radians(float(yaw) - 128)
        turn = torch.tensor(
            [[math.cos(t), 0, math.sin(t)], [0, 1, 0], [-math.sin(t), 0, math.cos(t)]]
        )
        centre = torch.tensor([box[0] + FACE / 2, box[1] + FACE / 2, 0])
        out.append(4 * mesh @ turn.T + centre)
    return torch.stack(out) if out else torch.zeros(0, 478, 3)


def encode(frames: Pictures, faces: Faces) -> Tensor:
    return _pixel(frames, faces, 2) - 100


@pytest.fixture
def tools() -> Instruments:
    basis = torch.zeros(1, 3 * 478)
    basis[0, 0] = 1
    shape = ShapeModel(reference(), basis, torch.eye(1))
    return Instruments(
        detect=detect,
        landmarks=landmarks,
        encode=encode,
        shape=shape,
        device=torch.device("cpu"),
        about={"identity": "three numbers"},
    )


@pytest.fixture
def world(tmp_path) -> Path:
    """Photos of Anna and Carl as sources, of Bert as target."""
    for name, person in (("anna", ANNA), ("carl", CARL)):
        photo = face(scene(1), (30, 50), person, yaw=20, mouth=9, gaze=40)
        write_image(tmp_path / f"{name}.png", photo)
    write_image(tmp_path / "bert.png", face(scene(2), (30, 50), BERT))
    write_image(tmp_path / "noise.png", scene(9))
    return tmp_path


def triple(folder: Path, source: str, target: str, swapped: str) -> Triple:
    return Triple(folder / source, folder / target, folder / swapped, source)


def means(found: dict[str, Estimate]) -> dict[str, float]:
    return {name: value.mean for name, value in found.items()}


# ---------------------------------------------------------------- sanity


def test_target_pasted_unchanged(tools, world):
    found = collect(
        tools, [triple(world, f"{who}.png", "bert.png", "bert.png") for who in ("anna", "carl")]
    )
    got = means(found.table.summary())
    assert got["id_target"] == pytest.approx(1)
    assert got["id_retrieval"] == 0
    a, b = (torch.tensor(p) - 100.0 for p in (ANNA, BERT))
    assert got["id_cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
    for name in ("pose", "pose_shift", "pose_scale", "expression", "expression_separated", "gaze",
                 "gaze_shift", "mouth_opening", "eye_opening", "shape_target", "outside_pixels",
                 "outside_change", "border_tone"):  # fmt: skip
        assert got[name] == pytest.approx(0, abs=1e-3), name
    assert got["blur_ratio"] == pytest.approx(1)
    assert got["shape"] > 0.1


def test_source_pasted_as_swapped(tools, world):
    found = collect(
        tools, [triple(world, f"{who}.png", "bert.png", f"{who}.png") for who in ("anna", "carl")]
    )
    summary = found.table.summary()
    got = means(summary)
    assert got["id_retrieval"] == 100
    assert got["id_cosine"] == pytest.approx(1)
    assert got["id_target"] < 0.5
    assert got["pose"] == pytest.approx(20, abs=0.01)
    assert got["gaze"] == pytest.approx(30, abs=0.1)  # 0.4 of a width of 2, radius 0.4 widths
    assert got["gaze_shift"] == pytest.approx(20, abs=0.1)
    assert got["expression"] > 1
    assert got["shape"] == pytest.approx(0, abs=1e-4)
    assert got["shape_target"] > 0.1
    assert got["outside_pixels"] > 90
    assert all(value.unmeasured == 0 for value in summary.values())


def test_noise_is_not_measurable(tools, world):
    swaps = [
        triple(world, "anna.png", "bert.png", "anna.png"),
        triple(world, "anna.png", "bert.png", "noise.png"),  # nobody left
        triple(world, "anna.png", "noise.png", "noise.png"),  # nobody there
        triple(world, "noise.png", "bert.png", "anna.png"),  # nobody to put in
    ]
    found = collect(tools, swaps)
    reasons = [row.reason for row in found.table.faces]
    assert reasons[0] == ""
    assert reasons[1].startswith("no face in the swapped")
    assert reasons[2:] == ["no face in the target", "no face in the source"]
    rows = [row.values for row in found.table.faces]
    assert (rows[1]["id_retrieval"], rows[1]["id_retrieval_5"]) == (0, 0)  # a failure of identity
    assert "id_cosine" not in rows[1]
    assert "pose" not in rows[1]
    assert rows[2] == {}
    assert "id_retrieval" not in rows[3]
    assert rows[3]["pose"] == pytest.approx(20, abs=0.01)
    summary = found.table.summary()
    assert (summary["id_retrieval"].mean, summary["id_retrieval"].measured) == (50, 2)
    assert (summary["pose"].measured, summary["pose"].unmeasured) == (2, 2)


def test_the_face_at_the_targets_place_is_measured(tools, tmp_path):
    """A second person in the picture is neither taken for the swap nor counts as outside."""
    target = face(face(scene(), (5, 5), BERT), (70, 70), CARL)
    swapped = face(face(scene(), (5, 5), BERT), (70, 70), ANNA)
    first = look(tools, target[None])
    wanted = int(first.mesh[0].mean(0)[0] > 60)  # whichever of the two equal ones came out
    again = look(tools, swapped[None], first)
    assert again.embedding[0].tolist() == [x - 100 for x in (ANNA if wanted else BERT)]
    moved = face(scene(), (40, 5), ANNA)
    assert not look(tools, moved[None], first).valid[0]


class Counted:
    """A detector that keeps the sizes of what it was shown."""

    def __init__(self, blind: bool = False) -> None:
        self.seen: list[tuple[int, int]] = []
        self.blind = blind

    def __call__(self, frames: Tensor) -> Faces:
        self.seen += [tuple(frame.shape[1:]) for frame in frames]
        return Faces.empty() if self.blind else detect(frames)


def test_each_picture_is_searched_once_and_swaps_only_where_the_face_was(tools, world):
    whole, near = Counted(), Counted()
    counting = replace(tools, detect=whole, near=near)
    write_image(world / "other.png", face(scene(4), (60, 20), CARL))
    # targets take turns in the list, and are still read and looked at once
    swaps = [
        triple(world, who, target, swapped)
        for who, swapped in (("anna.png", "anna.png"), ("carl.png", "carl.png"))
        for target in ("bert.png", "other.png")
    ]
    found = collect(counting, swaps)
    assert len(whole.seen) == 2 + 2  # sources and targets, no swap
    assert near.seen == [(extract.CLOSE, extract.CLOSE)] * (2 + 2 + 4)
    assert [row.triple for row in found.table.faces] == [0, 1, 2, 3]
    assert [row.reason for row in found.table.faces][::2] == ["", ""]
    assert all("no face in the swapped" in row.reason for row in found.table.faces[1::2])
    assert found.images == 4
    plain = collect(tools, swaps)
    for a, b in zip(found.table.faces, plain.table.faces, strict=True):
        assert a.values == pytest.approx(b.values, nan_ok=True)


def test_where_a_close_look_finds_nothing_the_whole_is_searched(tools, world):
    whole, near = Counted(), Counted(blind=True)
    found = collect(
        replace(tools, detect=whole, near=near), [triple(world, "anna.png", "bert.png", "bert.png")]
    )
    assert len(whole.seen) == 3
    assert means(found.table.summary())["pose"] == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------- batches


def test_networks_see_many_photos_at_once(tools, world, monkeypatch):
    sizes: list[int] = []

    def counted(frames: Pictures, faces: Faces) -> Tensor:
        sizes.append(len(faces))
        return encode(frames, faces)

    write_image(world / "wide.png", face(scene(4), (60, 20), CARL)[:, :100])
    swaps = [
        triple(world, who, target, swapped)
        for who in ("anna.png", "carl.png")
        for target, swapped in (("bert.png", "anna.png"), ("wide.png", "wide.png"))
    ]
    monkeypatch.setattr(photos, "TOGETHER", 3)
    found = collect(replace(tools, encode=counted), swaps)
    # 2 sources; targets bert and wide and swaps 0 2 1; swap 3, whose target is known
    assert sizes == [2, 2, 3, 1]
    assert [row.triple for row in found.table.faces] == [0, 1, 2, 3]
    monkeypatch.setattr(photos, "PIXELS", 1)
    sizes.clear()
    again = collect(replace(tools, encode=counted), swaps)
    assert sizes == [1] * (2 + 2 + 4)
    for a, b in zip(found.table.faces, again.table.faces, strict=True):
        assert a.values == pytest.approx(b.values, nan_ok=True)


def test_a_batch_says_of_each_photo_what_it_says_alone(tmp_path, monkeypatch):
    """With the real networks, on photos of several sizes; one swap leaves nobody."""
    from skimage import data

    lite = extract.load_instruments((), "cpu")
    astronaut = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    source = read_image(ROOT / "examples/source.jpg").pixels
    pictures = {
        "a": astronaut,
        "b": astronaut[:, :300, 60:380].contiguous(),
        "c": source,
        "d": (astronaut.float() * 0.8 + 20).byte(),
    }
    pictures |= {"e": (pictures["b"].float() * 0.7 + 10).byte(), "f": source // 2 + 50}
    pictures["g"] = torch.full_like(pictures["b"], 90)
    for name, pixels in pictures.items():
        write_image(tmp_path / f"{name}.png", pixels)
    pairs = [("c", "a", "d"), ("c", "b", "e"), ("a", "c", "f"), ("a", "b", "g")]
    swaps = [triple(tmp_path, *(f"{name}.png" for name in each)) for each in pairs]
    together = collect(lite, swaps)
    monkeypatch.setattr(photos, "TOGETHER", 1)
    alone = collect(lite, swaps)
    reasons = [row.reason for row in together.table.faces]
    assert [bool(reason) for reason in reasons] == [False, False, False, True]
    assert reasons == [row.reason for row in alone.table.faces]
    for a, b in zip(together.table.faces, alone.table.faces, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-3, abs=1e-3, nan_ok=True)
    assert together.table.faces[0].values["id_cosine"] < 0.5


# ---------------------------------------------------------------- clips


def write_clip(path: Path, frames: list[Tensor]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "bgr0"
        for frame in frames:
            array = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            packets = stream.encode(
                av.VideoFrame.from_ndarray(array, "rgb24").reformat(format="bgr0")
            )
            container.mux(packets)
        container.mux(stream.encode())


def test_clip(tools, world):
    places = [(30 + 2 * i, 50) for i in range(6)]
    target = [face(scene(), at, BERT) for at in places]
    swapped = [face(scene(), at, ANNA) for at in places]
    swapped[3] = face(scene(), (places[3][0], 51), DORA)  # one frame jumps, as another person
    write_clip(world / "target.mkv", target)
    write_clip(world / "swapped.mkv", swapped)
    swaps = [triple(world, "anna.png", "target.mkv", "swapped.mkv")]
    found = collect(tools, swaps, frames=3, track=6)
    assert [row.frame for row in found.table.faces] == [1, 3, 5]
    curve = found.curves[0]
    # 16 px from eye to eye, one px off in frame 3: second differences 1, 2, 1.
    assert curve["jitter"][2:5].tolist() == pytest.approx([100 / 16, 200 / 16, 100 / 16], rel=1e-3)
    assert curve["jitter"][1].item() == pytest.approx(0, abs=1e-3)
    assert curve["id_drift"].argmax() == 3
    assert curve["flicker"][[3, 4]].min() > 5 * curve["flicker"][[1, 2, 5]].max()
    summary = found.table.summary()
    assert summary["jitter"].measured == 1  # one value a clip
    assert summary["id_cosine"].measured == 3


def test_clips_of_different_length_are_listed(tools, world):
    frames = [face(scene(), (30, 50), BERT)] * 4
    write_clip(world / "target.mkv", frames)
    write_clip(world / "swapped.mkv", frames[:3])
    found = collect(tools, [triple(world, "anna.png", "target.mkv", "swapped.mkv")])
    assert "differ in length" in found.table.faces[0].reason
    assert found.table.clips[0].values == {}


# ---------------------------------------------------------------- lists


def test_a_list(world):
    path = world / "list.csv"
    path.write_text("source,target,swapped\nanna.png, bert.png, carl.png\n\n")
    assert read_triples(path) == [triple(world, "anna.png", "bert.png", "carl.png")]
    path.write_text("anna.png,bert.png,carl.png,Anna\nbert.png,bert.png,carl.png,Anna\n")
    assert [each.person for each in read_triples(path)] == ["Anna", "Anna"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", ConfigError, "names no swaps"),
        ("source,target,swapped\n", ConfigError, "names no swaps"),
        ("anna.png,bert.png\n", ConfigError, "line 1: expected source,target,swapped.* got 2"),
        ("anna.png,bert.png,\n", ConfigError, "line 1"),
        ("anna.png,bert.png,gone.png\n", MissingMediaError, "1 files are missing.*gone.png"),
        ("anna.png,bert.png,clip.mp4\n", ConfigError, "both photos or both clips"),
        (b"\xff\xfe\x00\x01", MediaError, "cannot be read as a CSV list"),
    ],
)
def test_bad_lists(world, content, error, words):
    path = world / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words):
        read_triples(path)


def test_missing_list(tmp_path):
    with pytest.raises(MissingMediaError, match="no list"):
        read_triples(tmp_path / "none.csv")


def test_folders(world, tmp_path):
    for folder, names in (("s", "ab"), ("t", "abc")):
        (world / folder).mkdir()
        for name in names:
            (world / folder / f"{name}.png").touch()
    out = tmp_path / "swaps"
    cross = pair_folders(world / "s", world / "t", out)
    assert len(cross) == 6
    assert len({t.swapped for t in cross}) == 6
    assert len(pair_folders(world / "s", world / "t", out, limit=4)) == 4
    own = pair_folders(world / "t", world / "t", out)
    assert len(own) == 6  # nobody onto themselves
    with pytest.raises(ConfigError, match=r"2 files and .* 3"):
        pair_folders(world / "s", world / "t", out, pairing="zip")
    (world / "empty").mkdir()
    with pytest.raises(MissingMediaError, match="no photo or clip"):
        pair_folders(world / "empty", world / "t", out)
    with pytest.raises(MissingMediaError, match="no folder"):
        pair_folders(world / "gone", world / "t", out)
    (world / "s" / "clip.mp4").touch()
    with pytest.raises(ConfigError, match="a source is a photo"):
        pair_folders(world / "s", world / "t", out)


def test_faceforensics(tmp_path):
    originals = tmp_path / "original_sequences/youtube/c23/videos"
    made = tmp_path / "manipulated_sequences/Tool/c23/videos"
    originals.mkdir(parents=True)
    made.mkdir(parents=True)
    for name in ("000", "003"):
        (originals / f"{name}.mp4").touch()
    (made / "000_003.mp4").touch()
    (got,) = faceforensics(tmp_path, "Tool", tmp_path / "out")
    assert got == Triple(originals / "003.mp4", originals / "000.mp4", made / "000_003.mp4", "003")
    (tmp_path / "pairs.json").write_text('[["000", "003"]]')
    with pytest.raises(MissingMediaError, match="003_000"):
        faceforensics(tmp_path, "Tool", tmp_path / "out", pairs=tmp_path / "pairs.json")
    (made / "003_000.mp4").touch()
    got = faceforensics(tmp_path, "Tool", tmp_path / "out", pairs=tmp_path / "pairs.json")
    assert [each.swapped.stem for each in got] == ["000_003", "003_000"]
    (tmp_path / "pairs.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="expected a JSON list"):
        faceforensics(tmp_path, "Tool", tmp_path / "out", pairs=tmp_path / "pairs.json")
    with pytest.raises(MissingMediaError, match="not laid out"):
        faceforensics(tmp_path / "elsewhere", "Tool", tmp_path / "out")


def ffpp(root: Path) -> Path:
    """Three clips in the layout, each a person, and two of them swapped by a tool."""
    people = {"000": ANNA, "003": BERT, "071": CARL}
    originals = root / "original_sequences/youtube/c23/videos"
    made = root / "manipulated_sequences/Tool/c23/videos"
    originals.mkdir(parents=True)
    made.mkdir(parents=True)
    for name, person in people.items():
        write_clip(root / "clip.mkv", [face(scene(), (30, 50), person)] * 12)
        (root / "clip.mkv").rename(originals / f"{name}.mp4")  # lossless, so that colours survive
    for target, source in (("000", "003"), ("003", "000")):
        drawn = face(scene(), (30, 50), people[source], yaw=10)
        write_clip(root / "clip.mkv", [drawn] * 12)
        (root / "clip.mkv").rename(made / f"{target}_{source}.mp4")
    (root / "test.json").write_text('[["000", "003"]]')
    return root


def test_faceforensics_from_layout_to_report(tools, tmp_path):
    root = ffpp(tmp_path / "ff")
    options = EvaluateOptions(output=tmp_path / "out", faceforensics=root, method="Tool")
    (side,) = run_evaluation(options, tools=tools)["sides"]
    assert (side["clips"], side["faces"], side["people"]) == (2, 20, 2)  # ten frames a clip
    assert side["measures"]["id_retrieval"]["mean"] == 100
    assert side["measures"]["pose"]["mean"] == pytest.approx(10, abs=0.01)
    assert side["measures"]["jitter"]["measured"] == 2
    assert side["images"] == 24  # all of the 12 frames are needed for the track
    assert (
        "curves" in str(side["pictures"])
        or "matplotlib" in (tmp_path / "out/report.md").read_text()
    )


def test_faceforensics_pairs_are_swapped(tools, tmp_path):
    root = ffpp(tmp_path / "ff")
    made = []

    def swap(side: Side):
        def make(each: Triple) -> None:
            made.append((each.target.stem, each.source.stem, each.swapped.name))
            each.swapped.parent.mkdir(parents=True, exist_ok=True)
            each.swapped.write_bytes(each.source.read_bytes())

        return make

    options = EvaluateOptions(
        output=tmp_path / "out", faceforensics=root, pairs=root / "test.json", frames=3, track=5
    )
    (side,) = run_evaluation(options, tools=tools, make=swap)["sides"]
    assert made == [("000", "003", "000_003.mp4"), ("003", "000", "003_000.mp4")]
    assert side["faces"] == 6
    assert side["measures"]["id_cosine"]["mean"] == pytest.approx(1)


# ---------------------------------------------------------------- extractors


class Bins(nn.Module):
    """Hopenet as published: bins of yaw, pitch, roll."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.mean((1, 2, 3))[:, None] * 0
        a, b, c = (flat + 1e4 * (torch.arange(66) == i) for i in (40, 33, 23))
        return a, b, c


class Heat(nn.Module):
    """98 maps of a quarter of the side, all with their peak at column 5 of row 2."""

    def forward(self, x: Tensor) -> Tensor:
        peak = torch.zeros(98, 8, 8)
        peak[:, 2, 5] = 1
        return x.mean((1, 2, 3))[:, None, None, None] * 0 + peak


class Ringnet(nn.Module):
    """Camera 0, pose the mean red, shape the mean green, expression the mean blue."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        parts = [mean[:, :1].expand(-1, 3) * 0]
        parts += [mean[:, i : i + 1].expand(-1, n) for i, n in enumerate((6, 100, 50))]
        return torch.cat(parts, 1)


class Embed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def saved(module: nn.Module, path: Path, size: int) -> Path:
    torch.jit.trace(module, torch.rand(2, 3, size, size)).save(str(path))
    return path


def test_extractor_files(tmp_path):
    cpu = torch.device("cpu")
    path = saved(Bins(), tmp_path / "pose.ts", 32)
    hopenet, about = load_extractor(f"hopenet={path}@32", cpu)
    assert "sha256" in about
    frames = face(scene(), (30, 50), ANNA)[None]
    faces = detect(frames)
    mesh = landmarks(frames, faces)
    angles = hopenet(frames, faces, mesh)
    assert angles[0].tolist() == pytest.approx([40 * 3 - 99, 0, 23 * 3 - 99], abs=1e-4)
    eyes, _ = load_extractor(f"eyes={saved(Heat(), tmp_path / 'eyes.ts', 32)}@32", cpu)
    points = eyes(frames, faces, mesh)
    assert points.shape == (1, 18, 2)
    assert points[0, 0].tolist() == [5.5 * 4 - 0.5, 2.5 * 4 - 0.5]
    embed, _ = load_extractor(f"cosface={saved(Embed(), tmp_path / 'id.pt', 16)}@16", cpu)
    assert embed(frames, faces, mesh).shape == (1, 3)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("hopenet", ConfigError, "expected NAME=FILE"),
        ("hopnet=FILE", ConfigError, "did you mean hopenet"),
        ("hopenet=gone.ts", WeightError, "no file 'gone.ts'"),
        ("hopenet=FILE@16", WeightError, "does not give what it should"),
        ("cosface=BROKEN", WeightError, "no TorchScript file"),
    ],
)
def test_bad_extractors(tmp_path, text, error, words):
    file = saved(Embed(), tmp_path / "id.ts", 16)
    if text == "hopenet=FILE@16":
        file = saved(Heat(), tmp_path / "heat.ts", 16)
    (tmp_path / "broken.ts").write_bytes(b"PK nothing")
    text = text.replace("FILE", str(file)).replace("BROKEN", str(tmp_path / "broken.ts"))
    with pytest.raises(error, match=words):
        load_extractor(text, torch.device("cpu"))


def test_upright_crops_do_not_turn():
    mesh = torch.tensor([[[10.0, 20.0], [30.0, 60.0]]])
    at = extract.upright(mesh, 56)
    # The longer side is 40, the crop shows 56 px around (20, 40).
    assert at.points(
        torch.tensor([[[20.0, 40.0], [30.0, 60.0]]])
    ).flatten().tolist() == pytest.approx([27.5, 27.5, 37.5, 47.5])


def test_article_names_come_with_their_extractors_only(tools, world):
    swaps = [triple(world, "anna.png", "bert.png", "carl.png")]
    names = collect(tools, swaps).table.names()
    assert not {"ID retrieval", "poseHN", "eye_ldmk", "exp_ringnet"} & set(names)

    cpu = torch.device("cpu")
    files = [
        load_extractor(f"{name}={saved(net, world / f'{name}.ts', 16)}@16", cpu)[0]
        for name, net in (("cosface", Embed()), ("ringnet", Ringnet()), ("features", Embed()))
    ]
    with_files = Instruments(
        detect=detect, landmarks=landmarks, encode=encode, shape=tools.shape,
        extra=tuple(files), device=cpu,
    )  # fmt: skip
    found = collect(with_files, swaps * 2)
    got = means(found.table.summary())
    assert {"ID retrieval", "shape_ringnet", "exp_ringnet", "pose_ringnet"} <= set(got)
    assert got["ID retrieval"] == 100  # the only source there is
    assert got["pose_ringnet"] > 0
    assert found.sets["fid"] > 0
    assert found.crops == 2
    assert collect(tools, swaps * 2).sets == {}


# ---------------------------------------------------------------- the whole


def paste(side):
    """A swapper that puts the source's picture in place of the target's."""

    def make(each: Triple) -> None:
        if each.source.stem == "carl":
            raise NoFaceError("carl.png: no face found")
        each.swapped.parent.mkdir(parents=True, exist_ok=True)
        write_image(each.swapped, read_image(each.source).pixels, overwrite=True)

    return make


def folders(world: Path) -> dict[str, Path]:
    for folder, names in (("s", ("anna", "carl")), ("t", ("bert",))):
        (world / folder).mkdir()
        for name in names:
            (world / folder / f"{name}.png").write_bytes((world / f"{name}.png").read_bytes())
    return {"sources": world / "s", "targets": world / "t"}


def test_run_swaps_measures_and_tells(tools, world, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    options = EvaluateOptions(output=world / "out", **folders(world))
    lines = []
    report = run_evaluation(options, tools=tools, make=paste, progress=lines.append)
    assert len(lines) == 2
    (side,) = report["sides"]
    assert side["measures"]["id_retrieval"]["mean"] == 50  # Carl's swap failed, and counts
    assert side["measures"]["id_cosine"]["measured"] == 1
    (failure,) = side["failures"]
    assert "carl.png" in failure["source"]
    assert "not swapped" in failure["reason"]
    assert any("pip install" in note for note in report["notes"])
    told = json.loads((world / "out/report.json").read_text())
    assert told["sides"][0]["measures"]["pose"]["mean"] == pytest.approx(20, abs=0.01)
    assert told["sides"][0]["measures"]["id_cosine"]["low"] is None
    markdown = (world / "out/report.md").read_text()
    assert "| id_retrieval | 50.0 |" in markdown
    assert "not swapped: carl.png" in markdown
    for path in [p for paths in side["pictures"].values() for p in paths]:
        assert (world / "out" / path).is_file()
        assert path in markdown
    rows = list(csv.DictReader((world / "out/rows.csv").open()))
    assert [row["id_retrieval"] for row in rows] == ["100", "0"]
    assert "fid and kid are left out" in " ".join(report["notes"])
    assert "id_retrieval" in as_text(report)
    assert side["images"] == 1
    assert side["images_per_second"] > 0
    assert "1 images measured at" in as_text(report)
    assert "carl.png on " in as_text(report)
    assert "frame 0: not swapped: carl.png: no face found" in as_text(report)
    assert "a second on cpu (" in markdown
    with pytest.raises(MediaError, match="holds a report already"):
        run_evaluation(options, tools=tools, make=paste)


def test_histograms_and_curves(tools, world):
    pytest.importorskip("matplotlib")
    options = EvaluateOptions(output=world / "out", triples=_list(world, "a.csv", ("anna", "carl")))
    report = run_evaluation(options, tools=tools)
    pictures = report["sides"][0]["pictures"]
    assert "histograms/shape_target.png" in pictures["shape_target"]
    assert pictures["id_cosine"] == []  # 1 for both: there is nothing to see
    write_clip(world / "target.mkv", [face(scene(), (30, 50), BERT)] * 6)
    write_clip(world / "swapped.mkv", [face(scene(i), (30, 50), ANNA) for i in range(6)])
    (world / "clips.csv").write_text("anna.png,target.mkv,swapped.mkv\n")
    clips = EvaluateOptions(output=world / "clips", triples=world / "clips.csv")
    (side,) = run_evaluation(clips, tools=tools)["sides"]
    for name in ("jitter", "id_drift", "flicker"):
        assert f"curves/{name}.png" in side["pictures"][name]
        assert read_image(world / "clips/curves" / f"{name}.png").pixels.shape[1] == 300


def test_sheets_show_each_clip_once_where_they_can():
    def shown(*triples: int) -> list[list[tuple[int, int]]]:
        rows = [table.Row(number, frame, {"pose": 0.0}) for frame, number in enumerate(triples)]
        return [[(row.triple, row.frame) for row in group] for group in figures.picked(rows)]

    best, middle, worst = shown(0, 0, 0, 1, 2, 3, 4, *[5] * 7, *[6] * 4, 7, 7, 8)
    assert best == [(0, 0), (1, 3), (2, 4), (3, 5)]
    assert {number for number, _ in middle} == {5}
    assert worst == [(6, 17), (7, 18), (7, 19), (8, 20)]
    assert shown(0, 1) == [[(0, 0)], [(0, 0)], [(1, 1)]]


def _list(world: Path, name: str, swapped: tuple[str, ...]) -> Path:
    rows = [
        f"{who}.png,bert.png,{out}.png" for who, out in zip(("anna", "carl"), swapped, strict=True)
    ]
    (world / name).write_text("\n".join(rows))
    return world / name


def test_compare_two_lists(tools, world):
    a, b = _list(world, "a.csv", ("bert", "bert")), _list(world, "b.csv", ("anna", "carl"))
    lines = b.read_text().splitlines()
    b.write_text("\n".join(lines[::-1]))  # in another order
    options = EvaluateOptions(output=world / "out", compare=(str(a), str(b)))
    report = run_evaluation(options, tools=tools)
    assert [side["measures"]["id_retrieval"]["mean"] for side in report["sides"]] == [0, 100]
    assert report["difference"]["id_retrieval"]["mean"] == 100
    assert report["difference"]["pose"]["mean"] == pytest.approx(20, abs=0.01)
    assert (report["difference"]["pose"]["low"], report["difference"]["pose"]["measured"]) == (
        pytest.approx(20, abs=0.01),
        2,
    )
    markdown = (world / "out/report.md").read_text()
    assert "| difference | 95 % interval | pairs | not measured |" in markdown
    assert "| 100.0 | 100.0 to 100.0 | 2 | 0 | % | higher |" in markdown
    assert (world / "out/b/rows.csv").is_file()


def test_paired_difference_is_over_what_both_have():
    def rows(*values: float) -> table.Table:
        faces = [table.Row(i, 0, {"pose": v}) for i, v in enumerate(values)]
        return table.Table(torch.arange(3), torch.arange(3), faces, [])

    got = table.difference(rows(1, 2, math.nan), rows(2, 5, 6))["pose"]
    assert (got.mean, got.measured, got.unmeasured) == (2, 2, 1)


def test_damaged_files_are_listed(tools, world):
    (world / "torn.png").write_bytes((world / "anna.png").read_bytes()[:500])
    small = read_image(world / "bert.png").pixels[:, :-1]
    write_image(world / "small.png", small)
    swaps = [
        triple(world, "anna.png", "bert.png", "torn.png"),
        triple(world, "torn.png", "bert.png", "anna.png"),
        triple(world, "anna.png", "bert.png", "small.png"),
        triple(world, "anna.png", "bert.png", "anna.png"),
    ]
    found = collect(tools, swaps)
    reasons = [row.reason for row in found.table.faces]
    assert "damaged or cut short" in reasons[0]
    assert "damaged or cut short" in reasons[1]
    assert "120x119" in reasons[2]
    assert reasons[3] == ""
    assert found.table.summary()["pose"].measured == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "say what to measure"),
        ({"sources": Path("s")}, "go together"),
        ({"triples": Path("a.csv"), "faceforensics": Path("f")}, "in one way"),
        ({"triples": Path("a.csv"), "frames": 0}, "--frames is 0"),
        (
            {"compare": ("lite", "a.csv"), "sources": Path("s"), "targets": Path("t")},
            "two CSV lists",
        ),
        ({"compare": ("lite", "ghost"), "triples": Path("a.csv")}, "give --sources"),
        ({"compare": ("lite", "ghost")}, "say what to measure"),
    ],
)
def test_bad_options(given, words):
    with pytest.raises(ConfigError, match=words):
        EvaluateOptions(output=Path("out"), **given)


def test_a_mistake_leaves_no_folder(tools, world):
    (world / "list.csv").write_text("anna.png,bert.png,gone.png\n")
    with pytest.raises(MissingMediaError, match=r"gone\.png"):
        run_evaluation(
            EvaluateOptions(output=world / "out", triples=world / "list.csv"), tools=tools
        )
    config = SwapConfig(swapper="gone.safetensors")
    options = EvaluateOptions(output=world / "out", config=config, **folders(world))
    with pytest.raises(WeightError, match=r"gone\.safetensors"):
        run_evaluation(options, tools=tools)
    assert not (world / "out").exists()


def test_lists_that_do_not_fit_are_not_compared(world):
    a = _list(world, "a.csv", ("anna", "carl"))
    (world / "b.csv").write_text("anna.png,bert.png,bert.png\n")
    with pytest.raises(ConfigError, match=r"lists 2 swaps and .* 1"):
        plan(EvaluateOptions(output=world / "out", compare=(str(a), str(world / "b.csv"))))
    (world / "b.csv").write_text("anna.png,bert.png,bert.png\nbert.png,anna.png,bert.png\n")
    with pytest.raises(ConfigError, match="has no swap of"):
        plan(EvaluateOptions(output=world / "out", compare=(str(a), str(world / "b.csv"))))


def test_clips_are_written_so_that_the_swap_is_measured(tmp_path):
    options = EvaluateOptions(output=tmp_path, sources=tmp_path, targets=tmp_path)
    assert making(options).encode.codec == "ffv1"
    ff = {"output": tmp_path, "faceforensics": tmp_path, "pairs": tmp_path / "test.json"}
    assert making(EvaluateOptions(**ff)).encode.crf == 23  # as the data set's clips are
    assert making(EvaluateOptions(**ff, compression="c40")).encode.crf == 40
    own = VideoConfig(encode={"crf": 12})
    assert making(EvaluateOptions(**ff, config=own)).encode.crf == 12


def test_compare_of_packs_and_files(world):
    options = EvaluateOptions(
        output=world / "out", compare=("ghost-1", "runs/mine.safetensors"), **folders(world)
    )
    assert all(side.config.encode.codec == "ffv1" for side in plan(options))
    a, b = plan(options)
    assert (a.config.pack, a.config.swapper) == ("ghost-1", None)
    assert (b.config.pack, b.config.swapper) == ("lite", "runs/mine.safetensors")
    assert a.triples[0].swapped != b.triples[0].swapped


def test_what_makes_the_swaps(world, monkeypatch):
    calls = []

    def note(kind):
        def swap(swapper, source, target, output, *, overwrite):
            shown = source.name if isinstance(source, Path) else tuple(source.shape)
            calls.append((kind, swapper, shown, target.name, output.name, overwrite))

        return swap

    monkeypatch.setattr("faceswap.photo.swap_image", note("photo"))
    monkeypatch.setattr("faceswap.video.swap_video", note("clip"))
    monkeypatch.setattr(
        "faceswap.swap.Swapper.from_config", lambda config, *, video: (config.pack, video)
    )
    write_clip(world / "clip.mkv", [face(scene(), (30, 50), BERT)] * 3)
    swaps = [
        triple(world, "anna.png", "bert.png", "out.png"),
        triple(world, "anna.png", "clip.mkv", "out.mp4"),
        triple(world, "clip.mkv", "clip.mkv", "out.mp4"),
    ]
    make = make_with_pack(Side("lite", world, swaps, SwapConfig()))
    for each in swaps:
        make(each)
    assert calls == [
        ("photo", ("lite", False), "anna.png", "bert.png", "out.png", True),
        ("clip", ("lite", True), "anna.png", "clip.mkv", "out.mp4", True),
        ("clip", ("lite", True), (3, SIDE, SIDE), "clip.mkv", "out.mp4", True),
    ]


def test_every_measure_is_explained():
    for name, measure in table.MEASURES.items():
        assert measure.about, name
    assert set(table.CLIP_MEASURES) | set(table.FAILURE) <= set(table.MEASURES)
    assert protocol.COLUMNS == ("source", "target", "swapped")
