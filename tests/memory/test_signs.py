"""Signs that a process keeps: what is near by them, and how they stay those of all that is there."""

import itertools
from uuid import UUID

import numpy as np
import pytest

from memory.signs import BEGINNING, HEAD, Kept, Page, Shelf, Signs, bits_of, nearest, read
from tests.memory.vectors import cloud

KEY = (b"tenant", 7, UUID(int=1))
LENGTH = (384).to_bytes(4, "big")
LATER = 10**9


def signs_of(vector) -> bytes:
    return LENGTH + bits_of(vector).tobytes()


def page(vectors, counts=None, *, arrived=0, first=0, kinds=(5,), horizon=LATER, ahead=LATER) -> Page:
    """Passages in order, each with the next so many vectors."""
    counts = counts or [1] * len(vectors)
    heads = np.zeros(len(counts), HEAD)
    heads["item"] = [UUID(int=first + n).bytes for n in range(len(counts))]
    heads["count"], heads["arrived"] = counts, arrived
    heads["kind"] = [kind for kind, _ in zip(itertools.cycle(kinds), counts, strict=False)]
    return Page(horizon, ahead, heads.tobytes(), b"".join(map(signs_of, vectors)))


def ids(heads) -> set[int]:
    return {int.from_bytes(item.tobytes(), "big") for item in heads["item"]}


def all_of(parts) -> list[int]:
    return [int.from_bytes(item.tobytes(), "big") for part in parts for item in part.heads["item"]]


def test_of_the_nearest_ten_nearly_all_are_near_by_their_signs():
    here, hits = cloud(3_000, 1), 0
    kept = read(page(here))
    for query in cloud(20, 2):
        true = np.argsort(-(here @ query))[:10]
        hits += len(set(true.tolist()) & ids(nearest([kept], query, 40)))
    assert hits >= 190


def test_a_passage_is_as_near_as_the_nearest_of_its_vectors():
    here, counts = cloud(600, 3), [1, 3, 2] * 100
    kept = read(page(here, counts))
    owners = np.repeat(np.arange(300), counts)
    for vector in range(0, 600, 37):
        assert owners[vector] in ids(nearest([kept], here[vector], 5))
    assert (kept.apart(bits_of(here[4])) == 0).nonzero()[0].tolist() == [owners[4]]


def test_parts_tell_what_the_whole_would_tell():
    here, query = cloud(500, 4), cloud(1, 5)[0]
    whole = ids(nearest([read(page(here))], query, 30))
    parts = [read(page(here[start : start + 100], first=start)) for start in range(0, 500, 100)]
    assert ids(nearest(parts, query, 30)) == whole
    assert len(whole) == 30


def test_only_the_kinds_that_are_asked_for_are_near():
    here = cloud(90, 6)
    found = ids(nearest([read(page(here, kinds=(1, 2, 3)))], here[0], 60, [2, 3]))
    assert found == {n for n in range(90) if n % 3}
    assert ids(nearest([read(page(here))], here[0], 60, [9])) == set()


def test_a_session_is_read_page_by_page_and_nothing_twice():
    here, shelf = cloud(25, 7), Shelf()
    for start in (0, 10, 20):
        shelf, parts = shelf.with_page(page(here[start : start + 10], first=start), 10)
        assert (parts is None) == (start < 20)
        if parts is None:
            assert shelf.mark == (0, UUID(int=start + 9), 0)
    assert all_of(parts) == list(range(25))
    assert shelf.mark.arrived == LATER
    again, parts = shelf.with_page(page([], horizon=LATER + 5), 10)
    assert (all_of(parts), again.mark.arrived) == (list(range(25)), LATER + 5)


def test_what_others_may_still_come_before_is_used_and_read_again():
    here = cloud(4, 8)
    shelf, parts = Shelf().with_page(page(here, arrived=[1, 1, 5, 6], horizon=5), 10)
    assert all_of(parts) == [0, 1, 2, 3]
    assert (all_of(shelf.parts), shelf.mark.arrived) == ([0, 1], 5)


def test_rows_of_another_cluster_are_not_kept():
    shelf, parts = Shelf().with_page(page(cloud(1, 9), arrived=100, horizon=50, ahead=60), 10)
    assert (shelf.mark, parts) == (None, None)


@pytest.mark.parametrize("vectors", [1, 3])
def test_small_parts_are_joined(vectors: int):
    here, shelf = cloud(60 * vectors, 10), Shelf()
    for n in range(60):
        mine = here[n * vectors : (n + 1) * vectors]
        shelf, parts = shelf.with_page(page(mine, [vectors], first=n, arrived=n, horizon=n + 1), 10)
    assert len(parts) < 6
    assert all_of(parts) == list(range(60))
    assert ids(nearest(parts, here[40 * vectors], 1)) == {40}
    assert sum(layer.words.shape[1] for part in parts for layer in part.layers) == 60 * vectors


def kept_shelf(kept: Kept) -> Shelf | None:
    return next(iter(kept.shelves([KEY])), None)


def filled(shelf: Shelf, count: int) -> Shelf:
    return shelf.with_page(page(cloud(count, 11)), count + 1)[0]


def test_nothing_is_kept_until_it_is_asked_for():
    kept = Kept()
    assert kept.shelves([KEY]) == []
    kept.begin([KEY])
    assert kept_shelf(kept).mark == BEGINNING


def test_the_search_that_was_quicker_is_not_overwritten():
    kept = Kept()
    kept.begin([KEY])
    old = kept.shelves([KEY])
    kept.put([KEY], old, [filled(old[0], 5)])
    kept.put([KEY], old, [filled(old[0], 3)])
    assert len(all_of(kept_shelf(kept).parts)) == 5


def test_what_is_too_large_is_not_kept_nor_read_again():
    kept = Kept(most_bytes=5_000)
    kept.begin([KEY])
    kept.put([KEY], kept.shelves([KEY]), [filled(Shelf(), 200)])
    assert kept.shelves([KEY]) == []
    kept.begin([KEY])
    assert kept.shelves([KEY]) == []


def test_what_was_searched_longest_ago_goes_first():
    kept, keys = Kept(most_bytes=7_000), [(b"tenant", 7, UUID(int=n)) for n in range(5)]
    for key in keys:
        kept.begin([key])
        kept.put([key], kept.shelves([key]), [filled(Shelf(), 20)])
    assert [bool(kept.shelves([key])) for key in keys] == [False, False, True, True, True]


def test_what_has_gone_is_read_anew():
    kept = Kept()
    kept.begin([KEY])
    kept.put([KEY], kept.shelves([KEY]), [filled(Shelf(), 5)])
    kept.drop([KEY])
    assert (kept_shelf(kept).mark, kept_shelf(kept).parts) == (BEGINNING, ())


def test_an_empty_page_is_no_signs():
    assert isinstance(read(page([])), Signs)
    assert Shelf().with_page(page([]), 10)[1] == ()
