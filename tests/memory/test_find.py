"""Rare words count more, both sides decide, and a tenant's terms are its own."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.find import Candidate, Vocabulary, fuse, passage_scores, term_id, term_ids, wanted

TENANT, OTHER = bytes(16), bytes(range(16))


def vocabulary(passages: int = 1_000, **shares: float) -> Vocabulary:
    return Vocabulary(passages, 100.0, {term_id(TENANT, term): share for term, share in shares.items()}, 1_000, 0.0)


def candidate(number: int, words: str = "", distance: float | None = None, length: int = 100, ordinal: int = 0):
    return Candidate(UUID(int=number), ordinal, 0, 1, length, distance, tuple(term_ids(TENANT, words.split())))


def test_a_term_is_another_number_for_another_tenant():
    assert term_id(TENANT, "apple") != term_id(OTHER, "apple")
    assert -(2**31) <= term_id(TENANT, "apple") < 2**31


def test_the_rarest_terms_are_looked_up_until_they_are_too_common():
    known = vocabulary(100_000, appl=0.5, banana=0.01)
    found = wanted(TENANT, "What apple, banana, zyzzyva?", known)
    assert term_id(TENANT, "what") not in found.terms
    assert found.searched == (term_id(TENANT, "zyzzyva"), term_id(TENANT, "banana"))
    assert wanted(TENANT, "apple", known).searched == ()
    assert wanted(TENANT, "what is it", vocabulary()).terms


def test_no_passages_no_trouble():
    empty = Vocabulary(0, 0.0, {}, 0, 0.0)
    found = wanted(TENANT, "apple banana", empty)
    assert len(found.searched) == 2
    assert fuse([candidate(1, "appl", 0.2)], found, empty, 5)[0].score > 0


def test_rare_words_beat_common_ones_and_nearness_decides_between_equals():
    known = vocabulary(appl=0.5, zyzzyva=0.001)
    found = wanted(TENANT, "apple zyzzyva", known)
    by_words = fuse([candidate(1, "appl"), candidate(2, "zyzzyva")], found, known, 5)
    assert [hit.item.int for hit in by_words] == [2, 1]
    equals = fuse([candidate(1, "appl", 0.9), candidate(2, "appl", 0.3)], found, known, 5)
    assert [hit.item.int for hit in equals] == [2, 1]


def test_what_was_counted_weighs_as_it_was_and_the_others_by_the_sample():
    known = vocabulary(100_000, common=0.2)
    found = wanted(TENANT, "zyzzyva week common", known)
    once, often = term_id(TENANT, "zyzzyva"), term_id(TENANT, "week")
    before = dict(zip(found.terms, found.weights, strict=True))
    counted = found.counted([{once: 1, often: 60}[term] for term in found.searched], known)
    after = dict(zip(counted.terms, counted.weights, strict=True))
    assert before[once] == before[often]
    assert after[once] > before[once] > after[often] + 0.1
    common = term_id(TENANT, "common")
    assert after[common] == before[common]
    assert found.counted((), known) == found
    assert counted.rare(8) == {once}
    unseen = Vocabulary(0, 0.0, {}, 0, 0.0)  # all was added since
    assert unseen.rarity(once, 1) > unseen.rarity(often, 60)


def test_an_item_ranks_by_its_best_passage_and_a_little_of_the_second():
    known = vocabulary()
    found = wanted(TENANT, "apple", known)
    hits = fuse([candidate(1, "", 0.4), candidate(2, "", 0.4), candidate(2, "", 0.5, ordinal=1)], found, known, 1)
    (best,) = hits
    assert (best.item.int, best.distance, best.best.ordinal) == (2, 0.4, 0)


@pytest.mark.parametrize(("distance", "words"), [(None, "appl"), (0.1, ""), (0.1, "appl")])
def test_either_side_alone_is_enough(distance, words):
    known = vocabulary()
    found = wanted(TENANT, "apple", known)
    (score,) = passage_scores([candidate(1, words, distance, length=1)], found, known)
    assert 0 < score <= 1


@given(st.text(), st.floats(0, 2), st.integers(0, 500))
def test_scores_are_between_0_and_1(query, distance, length):
    known = vocabulary()
    found = wanted(TENANT, query, known)
    passage = Candidate(UUID(int=1), 0, 0, 1, length, distance, found.terms)
    (hit,) = fuse([passage], found, known, 3)
    assert 0 <= hit.score <= 1
