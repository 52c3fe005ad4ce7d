"""The pipeline on a real photo (NASA, public domain), with the pack that ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from faceswap import Swapper, swap_image
from faceswap.config import SwapConfig
from faceswap.errors import DeviceError, MediaError, NoFaceError
from faceswap.faces.select import Selection
from faceswap.media.provenance import COMPOSITE, read_provenance
from faceswap.swap import choose_device, merge
from faceswap.weights import Pack

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def swapper(lite_pack: Pack) -> Swapper:
    return Swapper.from_pack("lite")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut())


@pytest.fixture(scope="module")
def mirrored(astronaut: np.ndarray) -> np.ndarray:
    """The other public-domain face at hand: the same one, mirrored and darker."""
    return np.ascontiguousarray((astronaut[:, ::-1] * 0.7).astype(np.uint8))


def test_three_lines_swap_a_face_and_touch_nothing_else(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray, tmp_path
) -> None:
    Pillow.fromarray(astronaut).save(tmp_path / "target.png")
    report = swap_image(swapper, mirrored, tmp_path / "target.png", tmp_path / "out.png")
    assert (report.faces_seen, report.faces_swapped) == (1, 1)
    assert report.pack == "lite"
    assert report.output == str(tmp_path / "out.png")
    swapped = np.asarray(Pillow.open(tmp_path / "out.png").convert("RGB")).astype(int)
    changed = np.abs(swapped - astronaut).max(2)
    rows, columns = np.nonzero(changed)
    assert changed.max() > 30, "the face is another one"
    assert rows.min() > 40
    assert rows.max() < 240
    assert columns.min() > 130
    assert columns.max() < 320
    mark = read_provenance(tmp_path / "out.png")
    assert mark is not None
    assert mark.source_type == COMPOSITE


def test_arrays_in_array_out_and_the_same_twice(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    first = swap_image(swapper, mirrored, astronaut)
    again = swap_image(swapper, mirrored, astronaut)
    assert first.image is not None
    assert again.image is not None
    assert first.image.shape == (3, 512, 512)
    assert torch.equal(first.image, again.image)
    assert first.output == ""
    assert {"detect", "landmarks", "swap", "mask", "paste"} <= set(first.seconds)


def test_a_large_face_is_rendered_larger(swapper: Swapper, astronaut: np.ndarray) -> None:
    """A face of 400 px gets texture, not a blown-up 128 px crop."""
    head = Pillow.fromarray(astronaut[0:256, 100:356]).resize(
        (1024, 1024), Pillow.Resampling.LANCZOS
    )
    report = swap_image(swapper, np.asarray(head), np.asarray(head))
    assert report.image is not None
    swapped = report.image.float().mean(0)
    original = torch.from_numpy(np.asarray(head).copy()).permute(2, 0, 1).float().mean(0)

    def detail(picture: torch.Tensor) -> float:
        face = picture[300:800, 300:700]
        return float((face[1:] - face[:-1]).abs().mean())

    assert detail(swapped) > 0.6 * detail(original)


def test_batches_of_frames_equal_single_frames(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    person = swapper.identify([torch.from_numpy(mirrored).permute(2, 0, 1)])
    frame = torch.from_numpy(astronaut).permute(2, 0, 1)
    frames = torch.stack([frame, torch.zeros_like(frame), frame.roll(40, 2)])
    together = swapper(frames, person, Selection(all_faces=True))
    assert together.faces.frame.tolist() == [0, 2]
    assert torch.equal(together.frames[1], frames[1])
    for i in (0, 2):
        alone = swapper(frames[i : i + 1], person, Selection(all_faces=True))
        gap = (alone.frames[0].int() - together.frames[i].int()).abs()
        assert gap.max() <= 1


def test_every_face_or_one_by_number(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    two = np.concatenate([astronaut, astronaut[:, ::-1]], 1)
    every = swap_image(swapper, mirrored, two, select=Selection(all_faces=True))
    assert (every.faces_seen, every.faces_swapped) == (2, 2)
    right = swap_image(swapper, mirrored, two, select=Selection(face=1))
    assert right.image is not None
    changed = (right.image.int() - torch.from_numpy(two).permute(2, 0, 1).int()).abs().amax((0, 1))
    assert changed[:512].max() == 0
    assert changed[512:].max() > 20
    with pytest.raises(NoFaceError, match="2 faces, there is no number 7"):
        swap_image(swapper, mirrored, two, select=Selection(face=6))


def test_a_reference_nobody_matches_says_how_near_it_came(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray, tmp_path
) -> None:
    config = SwapConfig.model_validate({"match": {"threshold": 1.0}})
    strict = Swapper.from_config(config)
    dark = (astronaut * 0.5).astype(np.uint8)
    with pytest.raises(
        NoFaceError, match=r"nobody matches the reference \(best similarity 0\.\d\d"
    ):
        swap_image(strict, mirrored, astronaut, tmp_path / "x.png", reference=dark)
    assert not (tmp_path / "x.png").exists()
    found = swap_image(swapper, mirrored, astronaut, reference=dark)
    assert found.faces_swapped == 1


def test_two_references_to_one_person_meet_once_and_say_so(
    swapper: Swapper, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    dark = (astronaut * 0.5).astype(np.uint8)
    report = swap_image(swapper, [(mirrored, astronaut), (mirrored, dark)], astronaut)
    assert report.faces_swapped == 1
    (warning,) = (w for w in report.warnings if "nobody in the target is left for it" in w)
    assert "best similarity 0." in warning or "best similarity 1." in warning


def test_no_face_anywhere_writes_nothing(swapper: Swapper, astronaut: np.ndarray, tmp_path) -> None:
    empty = np.full((64, 64, 3), 128, np.uint8)
    with pytest.raises(NoFaceError, match="no face found"):
        swap_image(swapper, empty, astronaut, tmp_path / "a.png")
    with pytest.raises(NoFaceError, match="no face found"):
        swap_image(swapper, astronaut, empty, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_before_any_work(
    swapper: Swapper, astronaut: np.ndarray, tmp_path
) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(MediaError, match="overwrite"):
        swap_image(swapper, astronaut, astronaut, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_alpha_zero_changes_nothing(
    lite_pack: Pack, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    nothing = Swapper.from_config(SwapConfig.model_validate({"blend": {"alpha": 0.0}}))
    report = swap_image(nothing, mirrored, astronaut)
    assert report.image is not None
    assert torch.equal(report.image, torch.from_numpy(astronaut).permute(2, 0, 1))


def test_the_mask_of_ghost_runs_on_a_mesh_and_ends_at_the_brows(
    swapper: Swapper, lite_pack: Pack, astronaut: np.ndarray, mirrored: np.ndarray
) -> None:
    ghost = Swapper.from_config(SwapConfig.model_validate({"mask": {"kind": "ghost"}}))
    before = torch.from_numpy(astronaut).permute(2, 0, 1).int()
    rows = []
    for each in (swapper, ghost):
        report = swap_image(each, mirrored, astronaut)
        assert report.image is not None
        changed = (report.image.int() - before).abs().amax(0) > 2
        assert changed.float().mean() > 0.01
        rows.append(torch.nonzero(changed)[:, 0])
    # 106 points have no forehead, so that mask begins lower than the adaptive one
    assert rows[1].min() > rows[0].min()


def test_half_precision_that_overflows_is_done_again(swapper: Swapper) -> None:
    calls = []

    def run() -> torch.Tensor:
        calls.append(torch.is_autocast_enabled("cpu"))
        return torch.tensor([float("nan") if calls[-1] else 1.0])

    before = swapper.dtype
    swapper.dtype = torch.bfloat16
    try:
        assert swapper._safely(run).item() == 1.0
    finally:
        swapper.dtype = before
    assert calls == [True, False]
    assert swapper.reruns == 1


def test_people_merge_in_order(swapper: Swapper, astronaut: np.ndarray) -> None:
    photo = torch.from_numpy(astronaut).permute(2, 0, 1)
    a, b = swapper.identify([photo], "a"), swapper.identify([photo, photo], "b")
    both = merge([a, b])
    assert both.names == ("a", "b")
    torch.testing.assert_close(both.embedding[0], both.embedding[1], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_never_replaced_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DeviceError, match="--device cuda"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
