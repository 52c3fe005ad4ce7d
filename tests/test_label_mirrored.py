"""The teacher's answers to mirrored crops (scripts/label_mirrored.py), and training by them."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import pytest
import synthetic
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import label_mirrored

from faceswap.errors import MediaError
from faceswap.ops.geometry import align
from faceswap.train.config import TrainConfig
from faceswap.train.data import MIRRORED, load_crops
from faceswap.train.label import cut_each
from faceswap.train.mesh import mirror_order, unmirrored, wanted_points
from faceswap.train.run import run_training
from faceswap.train.views import View

pytestmark = pytest.mark.usefixtures("one_thread")
OFF = 2.0  # px that the teacher sees everything too far to the right


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.home(tmp_path_factory.mktemp("mirrored")) / "data"


class Crooked:
    """A teacher with a fault: 478 points at the left eye it is given, and a little to the right."""

    def __init__(self):
        self.seen = []

    def __call__(self, photos, points):
        self.seen += list(photos)
        mesh = torch.zeros(len(photos), 478, 3)
        mesh[..., :2] = points[:, :1] + torch.tensor([OFF, 0.0])
        return mesh, torch.ones(len(photos))


def test_the_teacher_is_asked_about_the_mirrored_crop(folder):
    data, teacher = load_crops(folder), Crooked()
    mesh = label_mirrored.mirror_labels(data, teacher, torch.device("cpu"))
    assert mesh.shape == (len(data), 478, 3)
    assert torch.equal(torch.stack(teacher.seen), data.pixels(torch.arange(len(data))).flip(3))
    right = data.points[:, 1]  # in the mirror it is the eye on the left
    torch.testing.assert_close(mesh[:, 0, 0], data.size - 1 - right[:, 0] + OFF)
    torch.testing.assert_close(mesh[:, 0, 1], right[:, 1])


def test_a_mirrored_view_wants_what_the_teacher_says_of_it(folder):
    """Its fault is to the right in every view, also where the picture is mirrored."""
    data = load_crops(folder)
    n, size = len(data), data.size
    order = torch.arange(478)
    truth = data.points[:, 2:3].expand(n, 478, 2)  # noses
    mesh = torch.cat([truth + torch.tensor([OFF, 0.0]), torch.zeros(n, 478, 1)], -1)
    seen = mesh.clone()
    seen[..., 0] = size - 1 - truth[..., 0] + OFF
    flip = torch.arange(n) % 2 == 1
    matrix = torch.eye(2, 3).repeat(n, 1, 1)
    matrix[flip, 0, 0], matrix[flip, 0, 2] = -1.0, size - 1.0
    view = View(torch.arange(n), matrix, flip, None)
    found = wanted_points(mesh, unmirrored(seen, size), view, order)
    nose = torch.where(flip[:, None], size - 1 - truth[..., 0], truth[..., 0])
    torch.testing.assert_close(found[..., 0], nose + OFF)
    without = wanted_points(mesh, None, view, order)  # the fault is mirrored too
    torch.testing.assert_close(without[flip][..., 0], nose[flip] - OFF)


def test_training_takes_the_answers_and_refuses_those_of_another_folder(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    crops = load_crops(data)
    config = TrainConfig.model_validate(
        {
            "task": "mesh",
            "data": str(data),
            "model": {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "rank": 8, "size": 64},
            "batch_size": 8,
            "steps": 2,
            "log_every": 1,
            "workers": 0,
        }
    )
    losses = []
    order = mirror_order(crops.mesh)
    own = crops.mesh[:, order].clone()
    own[..., 0] = crops.size - 1 - own[..., 0]
    for shift in (None, 0.0, 30.0):
        if shift is not None:
            save_file({"mesh": own + shift}, data / MIRRORED)
        run_training(config, tmp_path / f"run{shift}")
        lines = (tmp_path / f"run{shift}" / "metrics.jsonl").read_text().splitlines()
        losses.append(float(lines[0].split('"points": ')[1].split(",")[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # a teacher without a fault
    assert losses[2] > losses[0] + 0.05
    save_file({"mesh": own[1:]}, data / MIRRORED)
    with pytest.raises(MediaError, match=rf"labels of {len(crops) - 1} faces, .* has {len(crops)}"):
        load_crops(data)


def test_photos_in_one_tensor_are_cut_as_each_alone():
    random = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (3, 3, 60, 80), dtype=torch.uint8, generator=random)
    points = torch.rand(3, 5, 2, generator=random) * 4 + torch.tensor(
        [[30.0, 20.0], [50.0, 20.0], [40.0, 30.0], [32.0, 40.0], [48.0, 40.0]]
    )
    # The smaller one is low-passed, whatever way it is asked for.
    for size, shown in itertools.product((48, 12), (photos, photos[..., 10:70])):
        alignment = align(points, size)
        alone = cut_each(list(shown), alignment)
        torch.testing.assert_close(cut_each(shown, alignment), alone, atol=1e-4, rtol=0)
        assert alone.std() > 0.02
