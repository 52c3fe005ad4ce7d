"""From photos to a training set."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import SafetensorError

from faceswap.errors import ConfigError, MediaError, MissingMediaError, NoFaceError
from faceswap.ops.geometry import TEMPLATES
from faceswap.train import part, shards
from faceswap.train import prepare as module
from faceswap.train.clean import copies, perceptual_hash, sharpness, strangers
from faceswap.train.data import load_crops
from faceswap.train.label import Recogniser, main_face
from faceswap.train.photos import Photo, crowds, decode, find_photos
from faceswap.train.prepare import PrepareOptions, prepare
from faceswap.types import Faces

SHARED = Path(__file__).parents[1] / ".." / "shared"
OPTIONS = PrepareOptions(size=64, min_size=80, min_similarity=0.2)


# ---------------------------------------------------------------- photos


def photo(seed: int, size: tuple[int, int] = (96, 90)) -> PIL.Image.Image:
    """A picture unlike those of other seeds: coarse noise, enlarged."""
    cells = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    return PIL.Image.fromarray(cells).resize(size, PIL.Image.Resampling.NEAREST)


def save(path: Path, seed: int, **arguments: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, **arguments).save(path)


def names(photos: list[Photo]) -> dict[str, str]:
    return {each.name: each.person for each in photos}


def test_people_are_folders(tmp_path):
    save(tmp_path / "set" / "train" / "n000002" / "0001_01.png", 0)
    save(tmp_path / "set" / "train" / "n000003" / "0001_01.JPG", 1)
    save(tmp_path / "set" / "alone.png", 2)
    (tmp_path / "set" / "notes.txt").write_text("no photo")
    assert names(find_photos([tmp_path / "set"])) == {
        "set/alone.png": "set/alone.png",
        "set/train/n000002/0001_01.png": "set/train/n000002",
        "set/train/n000003/0001_01.JPG": "set/train/n000003",
    }


def test_flat_folders_are_no_people(tmp_path):
    save(tmp_path / "ffhq" / "00000" / "1.png", 0)
    save(tmp_path / "ffhq" / "00000" / "2.png", 1)
    flat = names(find_photos([], [tmp_path / "ffhq"]))
    assert all(name == person for name, person in flat.items())


def test_celeba_hq_people_come_from_its_lists(tmp_path):
    root = tmp_path / "CelebAMask-HQ"
    for i in range(3):
        save(root / "CelebA-HQ-img" / f"{i}.jpg", i)
    assert len(set(names(find_photos([root])).values())) == 3
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx orig_idx orig_file\n0 119613 119614.jpg\n1 99094 099095.jpg\n2 7 000008.jpg\n"
    )
    (root / "identity_CelebA.txt").write_text("119614.jpg 27\n099095.jpg 27\n000008.jpg 3\n")
    assert list(names(find_photos([root])).values()) == [
        "CelebAMask-HQ/27",
        "CelebAMask-HQ/27",
        "CelebAMask-HQ/3",
    ]


def test_numbered_tars_share_people_and_decode_in_place(tmp_path):
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"lfw-{shard}.tar", "w") as tar:
            data = io.BytesIO()
            photo(shard).save(data, "PNG")
            member = tarfile.TarInfo(f"./Ann/Ann_000{shard}.png")
            member.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(member, data)
    found = find_photos([tmp_path / "lfw-0.tar", tmp_path / "lfw-1.tar"])
    assert names(found) == {
        "lfw-0/Ann/Ann_0000.png": "lfw/Ann",
        "lfw-1/Ann/Ann_0001.png": "lfw/Ann",
    }
    for seed, each in enumerate(found):
        expected = torch.from_numpy(np.array(photo(seed))).permute(2, 0, 1)
        assert torch.equal(decode(each), expected)


def test_photos_are_turned_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    photo(1, (96, 40)).save(tmp_path / "a.png", exif=exif)
    (found,) = find_photos([tmp_path])
    assert decode(found).shape == (3, 96, 40)


def test_sources_that_cannot_be(tmp_path):
    with pytest.raises(MissingMediaError, match="no such folder or tar"):
        find_photos([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match=r"empty: no photo in it \(.jpg"):
        find_photos([tmp_path / "empty"])
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(MediaError, match="compressed one has to be unpacked"):
        find_photos([tmp_path / "a.tar.gz"])
    save(tmp_path / "x" / "set" / "a.png", 0)
    save(tmp_path / "y" / "set" / "a.png", 0)
    with pytest.raises(MediaError, match=r"set/a\.png comes twice"):
        find_photos([tmp_path / "x" / "set", tmp_path / "y" / "set"])


def test_a_folder_of_many_people_is_noticed():
    assert crowds([Photo(f"a/{i}", "a/all", "") for i in range(1001)]) == ["a/all"]
    assert crowds([Photo(f"a/{i}", "a/all", "") for i in range(1000)]) == []


# ---------------------------------------------------------------- what is dropped


def test_sharpness_falls_with_blur_and_not_with_contrast():
    sharp = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(sharp, 9, stride=1, padding=4)
    stack = torch.cat([sharp, blurred, 0.4 + 0.2 * sharp]).mul(255).byte()
    values = sharpness(stack, 1.6).tolist()
    assert values[1] < 0.5 * values[0]
    assert values[2] == pytest.approx(values[0], rel=0.05)


def crops(*seeds: int) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(np.array(photo(s, (64, 64)))).permute(2, 0, 1) for s in seeds]
    )


def test_copies_survive_recompression_and_light():
    data = io.BytesIO()
    photo(1, (64, 64)).save(data, "JPEG", quality=60)
    again = torch.from_numpy(np.array(PIL.Image.open(data))).permute(2, 0, 1)[None]
    darker = (crops(1).float() * 0.8).byte()
    hashes = perceptual_hash(torch.cat([crops(0, 1, 2), again, darker]))
    assert hashes.shape == (5, 256)
    assert copies(hashes).tolist() == [False, False, False, True, True]


def test_copies_counts_bits():
    """Seven bits apart is a copy, eight is not, wherever they are."""
    first = torch.rand(256, generator=torch.Generator().manual_seed(1)) < 0.5
    for places, expected in ((range(0, 7 * 32, 32), True), (range(0, 256, 32), False)):
        second = first.clone()
        second[list(places)] ^= True
        assert copies(torch.stack([first, second])).tolist() == [False, expected]
    assert not copies(first[None]).any()


def test_strangers_by_hand():
    """Ann's third photo is at a right angle to her others; of Bob's two nobody can tell."""
    embedding = torch.tensor([[1.0, 0], [2, 0.2], [0, 3], [1, 0], [0, 1], [5, 5]])
    people = ["ann", "ann", "ann", "bob", "bob", "eve"]
    assert strangers(embedding, people, least=0.2).tolist() == [0, 0, 1, 1, 1, 0]
    assert not strangers(embedding, people, least=-1).any()


def test_main_face_is_the_one_in_the_middle():
    box = torch.tensor([[0.0, 0, 40, 40], [30, 30, 70, 70], [45, 45, 55, 55]])
    faces = Faces(torch.zeros(3, dtype=torch.int64), box, torch.zeros(3, 5, 2), torch.ones(3))
    assert main_face(faces, 100, 100) == 1
    assert main_face(Faces.empty(), 100, 100) is None


# ---------------------------------------------------------------- the whole


class FakeTools:
    """In place of the networks: a face in the middle of every photo but green ones."""

    calls = 0

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.recogniser = Recogniser(torch.nn.Module(), 32)
        self.recogniser.model.forward = self.embed

    @staticmethod
    def embed(views):
        return views.mean((2, 3)) - 0.5 + torch.tensor([2.0, 0, 0])

    def detector(self, frames):
        FakeTools.calls += 1
        if frames[0, 1].float().mean() > 250:
            return Faces.empty()
        h, w = frames.shape[2:]
        points = TEMPLATES["ghost_frontal"] * 0.5 + torch.tensor([w / 2 - 28, h / 2 - 28])
        box = torch.tensor([[20.0, 20, w - 20, h - 20]])
        return Faces(torch.zeros(1, dtype=torch.int64), box, points, torch.ones(1))

    def labeler(self, photos, points):
        """All 478 points on the nose, but those the five points are made of."""
        mesh = points[:, 2:3].expand(-1, 478, -1).clone()
        mesh[:, [33, 133, 159, 145]] = points[:, 0:1]
        mesh[:, [362, 263, 386, 374]] = points[:, 1:2]
        mesh[:, 61], mesh[:, 291] = points[:, 3], points[:, 4]
        return torch.cat([mesh, torch.zeros(len(mesh), 478, 1)], 2), torch.ones(len(mesh))


@pytest.fixture
def networks(monkeypatch):
    FakeTools.calls = 0
    monkeypatch.setattr(part, "_tools", lambda options, device: FakeTools())


@pytest.fixture
def folder(tmp_path):
    """Six good photos of two people, and one of each kind that is dropped."""
    root = tmp_path / "photos"
    for i in range(3):
        save(root / "ann" / f"{i}.png", i)
        save(root / "bob" / f"{i}.png", 10 + i)
    save(root / "ann" / "small.png", 20, size=(96, 70))
    save(root / "bob" / "copy.png", 0)
    PIL.Image.new("RGB", (96, 90), (10, 255, 10)).save(root / "bob" / "noface.png")
    PIL.Image.new("RGB", (96, 90), (90, 90, 90)).save(root / "bob" / "smooth.png")
    (root / "ann" / "broken.jpg").write_bytes(b"no picture at all")
    return root


def test_a_set_is_made_and_says_what_it_dropped(folder, tmp_path, networks):
    lines: list[str] = []
    out = tmp_path / "out"
    report = prepare([folder], out, OPTIONS, report=lines.append)
    assert (report.photos, report.kept, report.people) == (11, 6, 2)
    assert report.dropped == {
        "unreadable": 1,
        "small": 1,
        "no face": 1,
        "blurred": 1,
        "duplicate": 1,
    }
    dropped = json.loads((out / "report.json").read_text())["photos_dropped"]
    assert dropped["photos/bob/copy.png"] == "duplicate"
    assert dropped["photos/ann/small.png"] == "small: 96x70"
    assert dropped["photos/ann/broken.jpg"] == "unreadable: no picture, or a damaged one"
    with PIL.Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (6 * 64, 64)
    assert not (out / "parts").exists()
    assert len(lines) == 2
    data = load_crops(out)
    assert data.names[0] == "photos/ann/0.png"
    assert data.identity.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images[0].shape == (6, 3, 64, 64)
    assert (data.size, data.template, data.margin) == (64, "ghost_frontal", 1.6)
    assert data.embedding.shape == (6, 3)
    # The template's points, in a crop of 64 px that is 1.6 times as wide as the template's view.
    expected = (TEMPLATES["ghost_frontal"][0] - 55.5) * 64 / 112 / 1.6 + 31.5
    assert torch.allclose(data.points[0], expected, atol=1e-3)
    assert torch.allclose(data.mesh[0, 4, :2], expected[2], atol=1e-3)


def test_a_killed_run_goes_on(folder, tmp_path, networks, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    monkeypatch.setattr(shards, "SHARD", 4)
    prepare([folder], tmp_path / "whole", OPTIONS)
    out = tmp_path / "killed"
    real = module.make_part
    monkeypatch.setattr(module, "make_part", lambda job: 1 / 0 if "000002" in job[0] else real(job))
    with pytest.raises(ZeroDivisionError):
        prepare([folder], out, OPTIONS)
    monkeypatch.setattr(module, "make_part", real)
    FakeTools.calls = 0
    prepare([folder], out, OPTIONS)
    assert FakeTools.calls == 3  # the last part only
    for name in ("index.json", "shard-00000.safetensors", "shard-00001.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    data = load_crops(out)
    assert [len(shard) for shard in data.images] == [4, 2]
    assert data.pixels(torch.tensor([5])).shape == (1, 3, 64, 64)


def test_several_processes_share_the_parts(tmp_path, lite_pack, monkeypatch):
    """With the networks that are used for real, which each process loads."""
    for i in range(4):
        save(tmp_path / "photos" / "ann" / f"{i}.png", i, size=(96, 70))
    monkeypatch.setattr(module, "PART", 2)
    lines: list[str] = []
    with pytest.raises(NoFaceError, match="no usable face in 4 photos: 4 small"):
        prepare([tmp_path / "photos"], tmp_path / "out", workers=2, report=lines.append)
    assert [line.split(",")[0] for line in lines[1:]] == [
        "part 1 of 2: part-000000.safetensors",
        "part 2 of 2: part-000001.safetensors",
    ]


def test_other_settings_do_not_mix(folder, tmp_path, networks, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(module, "PART", 4)
    real = module.make_part
    monkeypatch.setattr(module, "make_part", lambda job: 1 / 0 if "000001" in job[0] else real(job))
    with pytest.raises(ZeroDivisionError):
        prepare([folder], out, OPTIONS)
    with pytest.raises(ConfigError, match="begun with other photos or settings"):
        prepare([folder], out, PrepareOptions(size=32))


def test_settings_that_came_to_nothing_may_change(folder, tmp_path, networks, monkeypatch):
    """Such as a mistyped teacher, which fails before the first part."""
    out, real = tmp_path / "out", module.make_part
    monkeypatch.setattr(module, "make_part", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([folder], out, PrepareOptions(size=32))
    monkeypatch.setattr(module, "make_part", real)
    assert prepare([folder], out, OPTIONS).kept == 6


def test_a_folder_that_cannot_be_written(folder, tmp_path, networks, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match=r"file: cannot be written \(Not a directory\)"):
        prepare([folder], tmp_path / "file", OPTIONS)

    def full(tensors, path, metadata=None):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_file", full)
        with pytest.raises(MediaError, match=r"part-000000.* cannot be written .*No space left"):
            prepare([folder], out, OPTIONS)
    assert not list(out.rglob("part-*"))
    assert prepare([folder], out, OPTIONS).kept == 6  # when there is room


def test_a_set_without_its_report_is_not_finished(folder, tmp_path, networks, monkeypatch):
    def full(path, value):
        raise MediaError(f"{path}: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(MediaError, match="No space left"):
            prepare([folder], tmp_path / "out", OPTIONS)
    FakeTools.calls = 0
    assert prepare([folder], tmp_path / "out", OPTIONS).kept == 6
    assert FakeTools.calls == 0  # its parts were all there
    assert (tmp_path / "out" / "report.json").exists()


def test_others_may_read_the_shards(folder, tmp_path, networks):
    """As far as the umask lets them; safetensors alone writes for the owner only."""
    prepare([folder], tmp_path / "out", OPTIONS)
    mode = (tmp_path / "out" / "shard-00000.safetensors").stat().st_mode
    assert mode == (tmp_path / "out" / "index.json").stat().st_mode


def test_a_finished_set_is_not_overwritten(folder, tmp_path, networks):
    prepare([folder], tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match="already prepared"):
        prepare([folder], tmp_path / "out", OPTIONS)


def test_no_face_in_any_photo(tmp_path, networks):
    root = tmp_path / "photos"
    root.mkdir()
    PIL.Image.new("RGB", (96, 90), (10, 255, 10)).save(root / "green.png")
    with pytest.raises(NoFaceError, match="no usable face in 1 photos: 1 no face"):
        prepare([root], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="go together"):
        PrepareOptions(mesh_teacher="facemesh.ts")
    with pytest.raises(ConfigError, match=r"margin 0\.5"):
        PrepareOptions(margin=0.5)


# Made by the script that prepared the lite pack's training set, which used CenterFace through
# onnxruntime at 224 px, cv2 for warps, and the same teachers: points 10, 152, 234, 454, 468, 473,
# 13, 14 of the mesh in crop px, and the first numbers of the embedding.
GOLDEN = {
    "Aaron_Patterson/Aaron_Patterson_0001.webp": (
        [
            [111.8, 70.1, 3.5],
            [112.5, 181.1, -4.9],
            [75.9, 123.2, 50.0],
            [164.6, 120.7, 34.5],
            [95.1, 106.9, -2.7],
            [135.0, 106.4, 2.3],
            [110.7, 149.4, -10.0],
            [110.9, 150.2, -10.1],
        ],
        [-0.815, 0.472, -0.133, -0.863, -1.589, 0.92],
        1.0178,
    ),
    "Abdul_Rahman/Abdul_Rahman_0001.webp": (
        [
            [111.9, 72.8, 3.2],
            [112.1, 183.1, -5.9],
            [71.2, 124.8, 44.9],
            [157.9, 123.4, 40.7],
            [91.9, 107.2, -6.8],
            [134.8, 106.7, -4.1],
            [111.5, 149.4, -9.8],
            [111.5, 149.2, -10.2],
        ],
        [0.278, 0.331, 0.172, -0.925, 1.816, -0.188],
        0.9772,
    ),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: teachers and photos")
def test_labels_are_those_the_lite_pack_was_trained_on(tmp_path):
    with (
        tarfile.open(SHARED / "data" / "lfw-0.tar") as whole,
        tarfile.open(tmp_path / "lfw-0.tar", "w") as few,
    ):
        for name in GOLDEN:
            member = whole.getmember(name)
            few.addfile(member, whole.extractfile(member))
    teachers = SHARED / "teachers"
    options = PrepareOptions(
        mesh_teacher=str(teachers / "facemesh.ts"),
        iris_teacher=str(teachers / "iris.ts"),
        identity_teacher=str(teachers / "omz_reid.ts"),
    )
    prepare([tmp_path / "lfw-0.tar"], tmp_path / "out", options)
    data = load_crops(tmp_path / "out")
    scale = json.loads((tmp_path / "out" / "index.json").read_text())["scale"]
    eye_distance = 40  # crop px
    for row, (name, (points, embedding, expected)) in enumerate(GOLDEN.items()):
        assert data.names[row] == f"lfw-0/{name}"
        own = data.mesh[row][[10, 152, 234, 454, 468, 473, 13, 14]]
        assert (own - torch.tensor(points)).abs().mean() < 0.03 * eye_distance
        first = torch.tensor(embedding)
        assert torch.cosine_similarity(data.embedding[row][:6], first, 0) > 0.95
        assert scale[row] == pytest.approx(expected, rel=0.02)
