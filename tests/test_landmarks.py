"""Dense landmarks: crops cut as the networks expect them, points mapped back to the frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from faceswap.faces.landmarks import Insight106Landmarker, MeshLandmarker
from faceswap.models.mesh import MARGIN, POINTS, TEMPLATE
from faceswap.ops.geometry import align
from faceswap.ops.topology import five_points
from faceswap.types import Faces

WEIGHTS = Path(__file__).parents[1] / "weights" / "lite" / "lite-landmarks.safetensors"


def faces(count: int = 3) -> tuple[Tensor, Faces]:
    """Random frames and faces of different size, place and tilt in them."""
    generator = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (2, 3, 200, 260), generator=generator).to(torch.uint8)
    base = torch.tensor([[-16.0, -15], [16, -15], [0, 2], [-13, 20], [13, 20]])
    points = []
    for i in range(count):
        angle = torch.tensor(0.4 * i - 0.3)
        turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
        points.append(base @ turn.T * (0.8 + 0.5 * i) + torch.tensor([70.0 + 50 * i, 90]))
    stacked = torch.stack(points)
    box = torch.cat((stacked.amin(1), stacked.amax(1)), 1)
    return frames, Faces(torch.arange(count) * 2 // count, box, stacked, torch.ones(count))


class Fixed(nn.Module):
    """A mesh network that says the same points of every crop and remembers what it saw."""

    size = 128

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.answer = torch.rand(POINTS, 3, generator=generator) * 128
        self.seen: list[Tensor] = []

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(crop)
        return self.answer.expand(len(crop), -1, -1), torch.ones(len(crop))


def test_mesh_points_come_back_in_frame_pixels() -> None:
    frames, table = faces()
    model = Fixed()
    mesh = MeshLandmarker(model, refinements=0)(frames, table)
    alignment = align(table.points, 128, template=TEMPLATE, margin=MARGIN)
    assert torch.equal(model.seen[0], alignment.crop(frames, table.frame))
    assert mesh.shape == (3, POINTS, 3)
    answer = model.answer.expand(3, -1, -1)
    assert torch.allclose(alignment.points(mesh[..., :2]), answer[..., :2], atol=1e-3)
    # The mesh is a rigid copy at the scale of the face: distances in 3D scale alike.
    ratio = (mesh[:, 0] - mesh[:, 1]).norm(dim=1) / (answer[:, 0] - answer[:, 1]).norm(dim=1)
    assert torch.allclose(ratio, 1 / alignment.scale, rtol=1e-4)


def test_mesh_is_looked_at_again_where_it_was_found() -> None:
    frames, table = faces()
    model = Fixed()
    first = MeshLandmarker(model, refinements=0)(frames, table)
    MeshLandmarker(model, refinements=1)(frames, table)
    again = align(five_points(first).contiguous(), 128, template=TEMPLATE, margin=MARGIN)
    assert torch.allclose(model.seen[2], again.crop(frames, table.frame), atol=1e-3)


def test_no_faces_no_points() -> None:
    frames, _ = faces()
    assert MeshLandmarker(Fixed())(frames, Faces.empty()).shape == (0, POINTS, 3)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the lite pack is not trained yet")
def test_lite_mesh_on_a_photo() -> None:
    """Eyes, nose and mouth of the astronaut, read off the picture; the detector may be coarse."""
    from skimage import data

    from faceswap.models import load_model

    frames = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].contiguous()
    points = torch.tensor([[[203.5, 100.5], [246.5, 102.5], [223, 126], [203, 139.5], [244, 141]]])
    score, box = torch.ones(1), torch.tensor([[180.0, 62, 269, 176]])
    model = load_model(WEIGHTS)
    moved = []  # how far the mesh goes along when the detector's points move by 5 px
    for refinements in (0, 1):
        landmarker = MeshLandmarker(model, refinements=refinements)
        meshes = [
            landmarker(frames, Faces(torch.zeros(1, dtype=torch.int64), box, at, score))
            for at in (points, points + torch.tensor([4.0, -3.0]))
        ]
        moved.append(float((meshes[0] - meshes[1]).norm(dim=2).mean()))
    for mesh in meshes:
        assert (five_points(mesh) - points).norm(dim=2).mean() < 0.12 * 43  # eye distance
    assert moved[1] < moved[0]
    assert moved[1] < 2.5


def landmarks106(path: Path, batch: int | str) -> None:
    """A network with the shape of 2d106det whose x, y are the mean red and blue of the crop."""
    mean = np.zeros((212, 3), np.float32)
    mean[::2, 0] = mean[1::2, 2] = 1 / 255
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "mean"], ["fc1"], transB=1),
        ],
        "landmarks",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, 192, 192])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [batch, 212])],
        [numpy_helper.from_array(mean, "mean")],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.mark.parametrize("batch", [1, "n"])
def test_106_points_through_the_onnx_runtime(tmp_path: Path, batch: int | str) -> None:
    path = tmp_path / "2d106det.onnx"
    landmarks106(path, batch)
    frames, table = faces()
    frames[:, 0], frames[:, 1], frames[:, 2] = 200, 0, 40  # the borders of a crop are black
    found = Insight106Landmarker(path)(frames, table)
    assert found.shape == (3, 106, 3)
    assert (found[..., 2] == 0).all()
    alignment = align(table.points, 192, template="ghost", margin=1.5)
    crops = alignment.crop(frames, table.frame).mean((2, 3))
    expected = (crops[:, [0, 2]] + 1) * 96  # GHOST: (p + 1) * 96
    in_crop = alignment.points(found[..., :2])
    assert torch.allclose(in_crop, expected[:, None].expand(-1, 106, -1), atol=0.02)
    assert Insight106Landmarker(path)(frames, Faces.empty()).shape == (0, 106, 3)


def test_convention_106_crop_is_that_of_ghost() -> None:
    """GHOST scales its 224 crop (template x 2) by 0.5714 and adds 32; ours within a tenth px."""
    _, table = faces(1)
    wide = align(table.points, 192, template="ghost", margin=1.5)
    plain = align(table.points, 112, template="ghost")
    grid = torch.tensor([[[0.0, 0], [111, 0], [55.5, 80]]])
    at = wide.points(plain.inverse_points(grid))
    assert torch.allclose(at, grid * 2 * 0.5714 + 32, atol=0.1)
