"""Who gets which source, on hand-made tables of faces and embeddings."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faceswap.errors import ConfigError
from faceswap.faces.select import Selection, by_order, by_reference, largest
from faceswap.types import Faces


def faces(*rows: tuple[int, float, float]) -> Faces:
    """Faces from (frame, x of the middle, side)."""
    frame, x, side = (torch.tensor(column) for column in zip(*rows, strict=True))
    x, side = x.float(), side.float()
    box = torch.stack((x - side / 2, torch.zeros_like(x), x + side / 2, side), 1)
    return Faces(frame, box, torch.zeros(len(rows), 5, 2), torch.ones(len(rows)))


def people(*degrees: float) -> Tensor:
    """Embeddings as directions in the plane, so that a cosine is that of an angle."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


def test_largest_of_each_frame() -> None:
    table = faces((0, 10, 20), (0, 50, 30), (2, 10, 5), (2, 40, 4))
    assert largest(table).tolist() == [-1, 0, 0, -1]


def test_number_counts_from_the_left_whatever_the_row_order() -> None:
    table = faces((0, 90, 20), (0, 10, 30), (0, 50, 5), (1, 10, 5))
    assert by_order(table, 0).tolist() == [-1, 0, -1, 0]
    assert by_order(table, 2).tolist() == [0, -1, -1, -1]
    assert by_order(table, 7).tolist() == [-1, -1, -1, -1]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [-1, 0]),
        (Selection(all_faces=True), [0, 0]),
        (Selection(face=0), [0, -1]),
        (Selection(references=people(80.0, 0.0)), [1, 0]),
        (Selection(references=people(200.0)), [-1, -1]),
    ],
)
def test_selection_is_the_choice_of_the_pipeline(selection: Selection, expected: list[int]) -> None:
    table = faces((0, 10, 20), (0, 50, 30))
    assert selection(table, people(0.0, 90.0)).tolist() == expected
    nobody = Faces.empty()
    assert selection(nobody, torch.zeros(0, 2)).shape == (0,)
    assert selection.needs_embedding == (selection.references is not None)


def test_choices_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        Selection(face=1, all_faces=True)


def test_references_are_met_one_to_one() -> None:
    """Both references are nearest to face 0; the pair with the larger sum wins, nobody twice."""
    table = faces((0, 10, 20), (0, 50, 20))
    embedding = people(0.0, 40.0)
    match = by_reference(table, embedding, people(2.0, 15.0), threshold=0.5)
    assert match.assignment.tolist() == [0, 1]
    assert match.best.tolist() == pytest.approx(people(2.0, 15.0)[:, 0].tolist())


def test_pairs_under_the_threshold_push_nobody_out() -> None:
    table = faces((0, 10, 20), (0, 50, 20))
    # Reference 1 is like nobody (100 degrees off at least); reference 0 is like both faces.
    match = by_reference(table, people(0.0, 10.0), people(4.0, 190.0), threshold=0.3)
    assert match.assignment.tolist() == [0, -1]


def test_margin_refuses_what_could_be_either() -> None:
    table = faces((0, 10, 20), (0, 50, 20), (1, 10, 20))
    embedding, reference = people(20.0, 30.0, 28.0), people(0.0)
    assert by_reference(table, embedding, reference, threshold=0.3).assignment.tolist() == [
        0,
        -1,
        0,
    ]
    strict = by_reference(table, embedding, reference, threshold=0.3, margin=0.2)
    assert strict.assignment.tolist() == [-1, -1, 0]  # alone in frame 1: no rival
    cosine = people(20.0, 30.0)[:, 0]
    assert strict.best.item() == pytest.approx(cosine[0].item())
    assert strict.margin.item() == pytest.approx((cosine[0] - cosine[1]).item())


def test_margin_counts_rivals_only_not_faces_that_are_somebody_else() -> None:
    """Two references, each sure of its face, though the faces are alike: neither is in doubt."""
    table = faces((0, 10, 20), (0, 50, 20))
    match = by_reference(table, people(0.0, 20.0), people(0.0, 20.0), threshold=0.3, margin=0.2)
    assert match.assignment.tolist() == [0, 1]


def test_frames_are_assigned_each_by_itself() -> None:
    table = faces((0, 10, 20), (1, 10, 20), (1, 50, 20))
    match = by_reference(table, people(0.0, 90.0, 0.0), people(0.0, 90.0), threshold=0.5)
    assert match.assignment.tolist() == [0, 1, 0]


def test_no_faces_and_no_references() -> None:
    match = by_reference(Faces.empty(), torch.zeros(0, 2), people(0.0), threshold=0.5)
    assert match.assignment.shape == (0,)
    assert match.best.tolist() == [-1]
    none = by_reference(faces((0, 1, 1)), people(0.0), torch.zeros(0, 2), threshold=0.5)
    assert none.assignment.tolist() == [-1]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_assignment_is_the_best_of_all(n: int, k: int, seed: int) -> None:
    """Against brute force: no other one-to-one assignment of allowed pairs is worth more."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, 3, generator=generator)
    references = torch.randn(k, 3, generator=generator)
    threshold = 0.2
    cosine = torch.cosine_similarity(embedding[:, None], references[None], dim=2)
    table = faces(*((0, float(i), 1.0) for i in range(n)))
    got = by_reference(table, embedding, references, threshold=threshold).assignment.tolist()
    used = [j for j in got if j >= 0]
    assert len(used) == len(set(used))

    def worth(rows: tuple[int, ...]) -> float:
        pairs = [(i, j) for i, j in enumerate(rows) if j >= 0]
        return sum(float(cosine[i, j]) - threshold for i, j in pairs)

    best = 0.0
    for rows in itertools.product(range(-1, k), repeat=n):
        taken = [j for j in rows if j >= 0]
        allowed = all(cosine[i, j] >= threshold for i, j in enumerate(rows) if j >= 0)
        if len(taken) == len(set(taken)) and allowed:
            best = max(best, worth(rows))
    assert worth(tuple(got)) == pytest.approx(best, abs=1e-4)
    assert all(cosine[i, j] >= threshold for i, j in enumerate(got) if j >= 0)


def test_who_asks_for_small_faces_too() -> None:
    """The largest face needs no second look at the photo, every other rule does."""
    assert not Selection().needs_everyone
    assert Selection(all_faces=True).needs_everyone
    assert Selection(face=0).needs_everyone
    assert Selection(references=torch.ones(1, 4)).needs_everyone
