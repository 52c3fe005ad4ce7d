"""Following faces: crossing, leaving and returning, gaps, cuts; steadying without lag."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from faceswap.casting import Casting
from faceswap.faces.shots import Shots
from faceswap.faces.steady import radius, steady
from faceswap.faces.track import Place, Track, Tracker, quality
from faceswap.types import Faces

FIVE = torch.tensor([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]])


def faces(*found: tuple[float, float], size: float = 40.0, score: float = 0.9) -> Faces:
    """Faces of one frame with these corners."""
    if not found:
        return Faces.empty()
    corner = torch.tensor(found, dtype=torch.float32)
    points = corner[:, None] + FIVE * size
    scores = torch.full((len(found),), score)
    return Faces(
        torch.zeros(len(found), dtype=torch.int64),
        torch.cat([corner, corner + size], 1),
        points,
        scores,
    )


def nobody_asks(asked: Sequence[tuple[int, Place]]) -> Tensor:
    raise AssertionError(f"identity was asked for though places decide: {asked}")


def run(frames: Sequence[Faces], describe=nobody_asks, *, max_gap: int = 5, cuts=()) -> Tracker:
    tracker = Tracker(max_gap=max_gap, sure=0.5)
    for frame, table in enumerate(frames):
        tracker.update(frame, table, describe, cut=frame in cuts)
    return tracker


def left_edges(track: Track) -> list[float]:
    return [float(track.places[frame].box[0]) for frame in sorted(track.places)]


def test_one_face_is_one_track_and_needs_no_identity() -> None:
    tracker = run([faces((10.0 + 3 * t, 20.0)) for t in range(12)])
    (track,) = tracker.tracks
    assert sorted(track.places) == list(range(12))
    assert track.sudden
    assert track.open


def test_two_people_side_by_side_need_no_identity() -> None:
    tracker = run([faces((10.0, 20.0), (120.0 - 2 * t, 20.0)) for t in range(20)])
    assert [track.seen for track in tracker.tracks] == [20, 20]


def crossing(t: int) -> list[tuple[float, float]]:
    """Two people walk towards each other, turn round where they meet, and walk back.

    Their motion says that they pass through each other, so it takes identity to know better.
    """
    away = abs(t - 10) * 6.0
    return [(100.0 - away, 20.0), (112.0 + away, 22.0)]


@pytest.mark.parametrize("swapped_order", [False, True])
def test_identity_decides_where_two_meet(swapped_order: bool) -> None:
    def who(asked: Sequence[tuple[int, Place]]) -> Tensor:
        rows = []
        for frame, place in asked:
            ends = crossing(frame)
            near = min((0, 1), key=lambda i: abs(float(place.box[0]) - ends[i][0]))
            rows.append(torch.eye(2)[near])
        return torch.stack(rows)

    frames = []
    for t in range(21):
        ends = crossing(t)
        frames.append(faces(*(reversed(ends) if swapped_order and t % 2 else ends)))
    tracker = run(frames, who)
    assert len(tracker.tracks) == 2
    for track in tracker.tracks:
        person = 0 if left_edges(track)[0] < 100 else 1
        assert left_edges(track) == [crossing(t)[person][0] for t in range(21)]


def test_the_wrong_identities_would_exchange_them() -> None:
    """The counterpart: identity really is what decides above."""

    def liar(asked: Sequence[tuple[int, Place]]) -> Tensor:
        rows = []
        for frame, place in asked:
            ends = crossing(frame)
            near = min((0, 1), key=lambda i: abs(float(place.box[0]) - ends[i][0]))
            rows.append(torch.eye(2)[near if frame <= 10 else 1 - near])
        return torch.stack(rows)

    tracker = run([faces(*crossing(t)) for t in range(21)], liar)
    first = min(tracker.tracks, key=lambda track: left_edges(track)[0])
    assert left_edges(first)[-1] == crossing(20)[1][0]


def test_a_gap_is_bridged_with_places_between() -> None:
    frames = [faces((10.0 + 4 * t, 20.0)) for t in range(12)]
    frames[5] = frames[6] = Faces.empty()
    (track,) = run(frames).tracks
    assert left_edges(track) == pytest.approx([10.0 + 4 * t for t in range(12)])
    assert [frame for frame, place in track.places.items() if not place.seen] == [5, 6]
    assert track.seen == 10


def test_a_longer_absence_ends_the_track_and_begins_another() -> None:
    frames = [faces((10.0, 20.0))] * 4 + [Faces.empty()] * 7 + [faces((10.0, 20.0))] * 4
    first, second = run(frames, max_gap=5).tracks
    assert (first.first, first.last, first.open) == (0, 3, False)
    assert (second.first, second.sudden) == (11, False)
    assert sorted(first.places) == [0, 1, 2, 3]


def test_unsure_faces_carry_a_track_on_but_begin_and_end_none() -> None:
    weak = faces((10.0, 20.0), score=0.3)
    sure = faces((10.0, 20.0))
    (track,) = run([weak, sure, sure, weak, weak, sure, weak, weak]).tracks
    assert track.first == 1
    assert track.last == 5
    assert track.places[3].seen
    assert sorted(track.places) == [1, 2, 3, 4, 5]


def test_no_track_goes_over_a_cut() -> None:
    tracker = run([faces((10.0, 20.0))] * 8, cuts=(4,))
    first, second = tracker.tracks
    assert (first.last, first.cut_off, first.open) == (3, True, False)
    assert (second.first, second.sudden) == (4, True)


def test_a_face_of_another_size_is_another_face() -> None:
    tracker = run([faces((10.0, 20.0))] * 4 + [faces((0.0, 10.0), size=90.0)] * 4)
    assert len(tracker.tracks) == 2


def test_state_goes_on_as_if_nothing_had_been() -> None:
    frames = [faces((10.0 + 3 * t, 20.0), (150.0 - t, 30.0)) for t in range(20)]
    frames[9] = Faces.empty()
    whole = run(frames)
    half = run(frames[:10])
    again = Tracker(max_gap=5, sure=0.5)
    again.restore(half.state())
    for frame in range(10, 20):
        again.update(frame, frames[frame], nobody_asks)
    for a, b in zip(whole.tracks, again.tracks, strict=True):
        assert a.number == b.number
        assert left_edges(a) == left_edges(b)


def test_memory_does_not_grow() -> None:
    tracker = Tracker(max_gap=5, sure=0.5)
    for frame in range(300):
        tracker.update(frame, faces((10.0 + frame % 7, 20.0)), nobody_asks)
        tracker.forget(frame - 4)
    assert sum(len(track.places) for track in tracker.tracks) < 12


def test_quality_prefers_large_frontal_faces() -> None:
    def value(size: float, nose: float) -> float:
        points = FIVE * size
        points[2, 0] += nose * size
        return quality(Place(torch.tensor([0.0, 0.0, size, size]), points, 0.9))

    assert value(120.0, 0.0) > value(40.0, 0.0) > 0
    assert value(120.0, 0.0) > value(120.0, 0.2) > value(120.0, -0.3) > 0


def test_quality_prefers_level_faces() -> None:
    level, back = (
        FIVE * 100,
        (FIVE - torch.tensor([[0, 0], [0, 0], [0, 0.12], [0, 0], [0, 0]])) * 100,
    )
    box = torch.tensor([0.0, 0.0, 120.0, 120.0])
    assert quality(Place(box, back, 0.9)) < 0.7 * quality(Place(box, level, 0.9))


def test_who_shows_more_of_the_face_is_looked_at_again_before_the_review() -> None:
    """A head tilted back for a second: nobody by then, known as soon as the level face is ahead."""
    box = torch.tensor([0.0, 0.0, 120.0, 120.0])
    level, back = FIVE * 100, FIVE * 100
    back = back - torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 14.0], [0.0, 0.0], [0.0, 0.0]])
    track = Track(0, 0, 59, sudden=True)
    track.places = {t: Place(box, back if t < 24 else level, 0.9) for t in range(60)}

    def who(asked: Sequence[tuple[int, Place]]) -> Tensor:
        return torch.stack(
            [torch.tensor([1.0, 0.0] if at >= 24 else [0.0, 1.0]) for at, _ in asked]
        )

    casting = Casting(torch.tensor([[1.0, 0.0]]), threshold=0.6, review=30)
    given = []
    for frame in range(30):
        casting.decide(frame, [track], frame + 20, who)
        given.append(track.source)
    assert given[0] == -1
    assert 0 in given[:12]  # by the review alone not before frame 30
    assert given[given.index(0) :] == [0] * (30 - given.index(0))


def test_a_cut_is_found_and_a_pan_is_not() -> None:
    texture = torch.rand(3, 90, 400, generator=torch.Generator().manual_seed(0)) * 255
    texture = torch.nn.functional.avg_pool2d(texture[None], 15, 1, 7)[0]
    texture = ((texture - 127) * 8 + 127).clamp(0, 255).byte()
    pan = torch.stack([texture[:, :, 4 * t : 4 * t + 160] for t in range(12)])
    other = 255 - texture[:, :, 200:360].expand(4, 3, 90, 160)
    shots = Shots()
    found = shots.cuts(pan[:5]) + shots.cuts(torch.cat([pan[5:], other]))
    assert [frame for frame, cut in enumerate(found) if cut] == [12]


def noisy(values: Tensor, sigma: float) -> Tensor:
    return values + sigma * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))


def smoothed(values: Tensor, strength: float, rate: float = 30.0) -> Tensor:
    """All frames of one track ``(T, P, C)``, each from its window, for an eye distance of 50 px."""
    reach, out = radius(strength, rate), []
    for t in range(len(values)):
        frames = torch.arange(max(0, t - reach), min(len(values), t + reach + 1))
        out.append(steady(values[frames], (frames - t) / rate, 50.0, strength))
    return torch.stack(out)


def test_even_motion_is_followed_without_any_lag() -> None:
    t = torch.arange(40.0)[:, None, None]
    line = 3.7 * t + torch.tensor([[10.0, 20.0, 1.0]]).expand(6, 3)
    assert torch.allclose(smoothed(line, 1.0), line, atol=2e-3)


def test_noise_goes_down() -> None:
    still = torch.zeros(200, 20, 3)
    rough = noisy(still, 0.5)  # 1 % of the eye distance
    calm = smoothed(rough, 0.5)
    assert float(calm[10:-10].std()) < 0.55 * float(rough.std())
    assert float(smoothed(rough, 1.0)[20:-20].std()) < float(calm[10:-10].std())
    assert torch.equal(smoothed(rough, 0.0), rough)


def test_a_blink_keeps_its_depth_and_its_moment() -> None:
    """A lid that closes by 8 % of the eye distance within 0.13 s: a plain average halves that."""
    lid = torch.zeros(60, 10, 3)
    lid[28:33, 3, 1] = torch.tensor([2.0, 4.0, 4.0, 4.0, 2.0])
    calm = smoothed(lid, 0.5)[:, 3, 1]
    assert float(calm.max()) > 2.8
    assert 29 <= int(calm.argmax()) <= 31
    centre = float((calm * torch.arange(60)).sum() / calm.sum())
    assert centre == pytest.approx(30.0, abs=0.05)


def test_nodding_has_no_lag() -> None:
    """Zero lag: the best shift between input and output is none."""
    t = torch.arange(120.0)
    nod = (15 * torch.sin(2 * math.pi * t / 40))[:, None, None].expand(120, 8, 2).clone()
    calm = smoothed(noisy(nod, 0.4), 0.7)[:, :, 0].mean(1)
    error = [
        float((calm[20:100] - nod[20 + s : 100 + s, 0, 0]).square().mean()) for s in (-1, 0, 1)
    ]
    assert error.index(min(error)) == 1
    assert min(error) ** 0.5 < 0.8


def test_a_jerk_of_the_whole_face_is_followed_while_its_noise_goes_down() -> None:
    """Handheld: another course each frame, 8 % of the eye distance to either side.

    A window alone loses much of that, and the swapped face slides over the head.
    """
    generator = torch.Generator().manual_seed(0)
    jerk = 4 * torch.randn(120, 1, 3, generator=generator)
    jerk[60:] = 0  # and then nothing moves
    shape = 60 * torch.rand(1, 100, 3, generator=generator)
    rough = noisy(jerk + shape, 0.3)
    calm = smoothed(rough, 0.5)
    off = (calm - jerk - shape)[..., :2]
    slid = off.mean(1).norm(dim=1)
    assert float(slid[10:50].max()) < 0.5  # px; windows alone: 2
    still = off[70:110]
    assert float(still.std()) < 0.5 * 0.3


def test_convention_an_affine_movement_is_a_movement_of_the_whole() -> None:
    """Turned and grown in one frame only: each where it was seen, but for 1 % of it."""
    shape = 60 * torch.rand(1, 100, 3, generator=torch.Generator().manual_seed(0))
    values = shape.expand(31, -1, -1).clone()
    turned = torch.tensor([[0.95, -0.3, 0.0], [0.3, 0.95, 0.0], [0.0, 0.0, 1.0]])
    values[15] = (1.1 * values[15] - 30) @ turned.T + 30
    moved = float((values[15] - values[14])[:, :2].norm(dim=1).mean())
    missing = (smoothed(values, 0.5)[15] - values[15])[:, :2].norm(dim=1)  # depth is not affine
    assert float(missing.mean()) < 0.01 * moved
