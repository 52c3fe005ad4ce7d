"""Which photo of a source is shown: the one turned most like the target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from faceswap import Swapper
from faceswap.config import TrackConfig
from faceswap.faces.looks import Shown, angles, nearest, show
from faceswap.faces.track import Track
from faceswap.media.image import read_image
from faceswap.render import Placed, Renderer, Row
from faceswap.swap import merge
from faceswap.types import Faces, Identities
from tests.test_source import PHOTO, head


def people(*person: int) -> Identities:
    count = max(person) + 1
    names = tuple(f"p{i}" for i in range(count))
    return Identities(names, torch.zeros(count, 4), None, None, torch.tensor(person))


def track() -> Track:
    return Track(number=1, first=0, last=0, sudden=True)


def test_angles_are_those_of_the_heads() -> None:
    mean = head()[1]
    targets = torch.cat([head(yaw=yaw)[0] for yaw in (0.0, 30.0)])
    sources = torch.cat([head(scale=20, yaw=yaw, at=(9, 9))[0] for yaw in (0.0, -20.0, 25.0)])
    want = torch.tensor([[0.0, 20.0, 25.0], [30.0, 50.0, 5.0]])
    torch.testing.assert_close(angles(targets, sources, mean), want, atol=0.2, rtol=0)


def test_another_photo_has_to_be_nearer_by_much() -> None:
    person = torch.tensor([0, 0, 1, 1, 1])
    apart = torch.tensor(
        [
            [20.0, 6.0, 0.0, 0.0, 0.0],  # 14 degrees nearer: the first stays
            [20.0, 4.0, 0.0, 0.0, 0.0],  # 16
            [0.0, 0.0, 50.0, 30.0, 20.0],  # another person's are out of the question
        ]
    )
    assert nearest(apart, torch.tensor([0, 0, 1]), person).tolist() == [0, 1, 4]


def test_one_photo_fades_into_another_and_stays() -> None:
    one, own = track(), people(0, 0)
    near, far = torch.tensor([0.0, 30.0]), torch.tensor([30.0, 0.0])
    seen = [show(one, frame, near, 0, own, 3) for frame in range(2)]
    assert seen == [Shown(0), Shown(0)]
    seen = [show(one, frame, far, 0, own, 3) for frame in range(2, 7)]
    assert seen == [Shown(0, 1, 0.25), Shown(0, 1, 0.5), Shown(0, 1, 0.75), Shown(1), Shown(1)]
    close = torch.tensor([0.0, 14.0])  # back, but not far enough
    assert show(one, 7, close, 0, own, 3) == Shown(1)
    assert show(one, 8, near, 0, own, 3) == Shown(1, 0, 0.25)


def test_a_track_begins_with_the_nearest_and_another_person_without_a_fade() -> None:
    one, own = track(), people(0, 0, 1, 1)
    apart = torch.tensor([30.0, 0.0, 40.0, 10.0])
    assert show(one, 0, apart, 0, own, 3) == Shown(1)
    assert show(one, 1, apart, 1, own, 3) == Shown(3)


def test_of_a_person_with_one_photo_nothing_changes() -> None:
    one, own = track(), people(0, 1, 1)
    assert show(one, 0, torch.tensor([90.0, 0.0, 0.0]), 0, own, 3) == Shown(0)


@pytest.fixture(scope="module")
def swapper() -> Swapper:
    return Swapper.from_pack("lite")


def test_people_know_their_photos(swapper: Swapper) -> None:
    photo = read_image(PHOTO).pixels
    one, two = swapper.identify([photo], "one"), swapper.identify([photo, photo.flip(2)], "two")
    assert one.person is None
    assert two.person is not None
    assert two.person.tolist() == [0, 0]
    assert two.crop is not None
    assert two.mesh is not None
    assert len(two.crop) == len(two.mesh) == 2
    both = merge([one, two, one])
    assert both.person is not None
    assert both.person.tolist() == [0, 1, 1, 2]
    assert both.crop is not None
    assert len(both.crop) == 4


def test_a_swap_shows_the_photo_that_is_turned_like_the_target(
    swapper: Swapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = read_image(PHOTO).pixels
    mirrored = photo.flip(2)
    frames = read_image(PHOTO.with_name("target.jpg")).pixels[None]
    faces = swapper.detect(frames)[torch.tensor([0])]
    two = swapper.identify([photo, mirrored])
    nobody = torch.zeros(1, dtype=torch.int64)

    def swap(own: Identities, look: int | None) -> torch.Tensor:
        rows = None if look is None else torch.tensor([look])
        return swapper.replace(frames, faces, own, nobody, look=rows).float()

    assert two.crop is not None
    assert two.mesh is not None
    alone = [Identities(("x",), two.embedding, two.crop[[i]], two.mesh[[i]]) for i in (0, 1)]
    first, second = (swap(each, None) for each in alone)
    assert float((first - second).abs().max()) > 20
    for look, want in ((0, first), (1, second)):
        assert float((swap(two, look) - want).abs().max()) <= 1
    for look, want in ((0, first), (1, second)):
        apart = torch.tensor([[40.0 * look, 40.0 - 40.0 * look]])
        monkeypatch.setattr("faceswap.swap.angles", lambda *_, apart=apart: apart)
        assert float((swap(two, None) - want).abs().max()) <= 1


def test_in_a_clip_the_photo_that_comes_in_is_painted_over_the_one_that_goes() -> None:
    given: dict[str, torch.Tensor] = {}

    def replace(_frames, faces, _people, role, **options):
        given.update(options, frame=faces.frame, role=role)
        return torch.zeros(2, 3, 8, 8, dtype=torch.uint8)

    swapper = SimpleNamespace(replace=replace, device=torch.device("cpu"), generator=None)
    lane = SimpleNamespace(swapper=swapper, with_room=lambda run: run(8))
    waiting = SimpleNamespace(frames=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), lane=lane)
    renderer = Renderer(swapper, people(0, 0), config=TrackConfig(), rate=25.0)  # type: ignore[arg-type]
    rows = [Row(frame, track(), 0, 0.5) for frame in range(2)]
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(2, 4)
    faces = Faces(torch.tensor([0, 1]), box.contiguous(), torch.zeros(2, 5, 2), torch.ones(2))
    mesh, side = torch.arange(2.0).view(2, 1, 1).expand(2, 478, 3), torch.tensor([128, 256])
    shown = [Shown(0), Shown(0, 1, 0.4)]
    renderer.swap(waiting, Placed(rows, faces, mesh, side, None, None, shown))  # type: ignore[arg-type]
    assert given["frame"].tolist() == [0, 1, 1]
    assert given["look"].tolist() == [0, 0, 1]
    assert given["opacity"].tolist() == pytest.approx([0.5, 0.5, 0.2])
    assert given["side"].tolist() == [128, 256, 256]
    assert given["mesh"][:, 0, 0].tolist() == [0, 1, 1]
    renderer.swap(waiting, Placed(rows, faces, mesh, side, None))  # type: ignore[arg-type]
    assert given["look"] is None
    assert given["frame"].tolist() == [0, 1]
