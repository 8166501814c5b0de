"""Terms, and BM25 over them."""

import time

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.lexical import bm25, frequencies, rarity, stem, terms

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "A dog sleeps; the fox does not, and the other dog barks.",
    "Deploy version 4.18.2 of the service on port 3000.",
    "Nothing here speaks of animals at all, only of ports and services on machines that nobody owns any more.",
    "",
)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("She paints on Sundays", "painting"),
        ("We hiked up there", "hiking"),
        ("Caroline's sister", "caroline"),
        ("two stories", "story"),
        ("call parseDate(text)", "parse date"),
        ("call parseDate(text)", "parsedate"),
        ("set max_tokens", "tokens"),
        ("set max_tokens", "MAX_TOKENS"),
        ("in src/main/ReflectUtils.java, line 3", "ReflectUtils.java"),
        ("in src/main/ReflectUtils.java, line 3", "reflect"),
        ("express v4.18.2", "v4.18.2"),
        ('{"user_id":"mia_li_3668"}', "mia_li_3668"),
        ("HTTPServer failed", "server"),
        ("don\u2019t stop", "don't"),
        ("東京都庁に行く", "東京"),
        ("서울특별시", "서울"),
        ("Größe ändern", "größe"),
    ],
)
def test_what_was_said_is_found_in_the_words_of_the_question(said, asked):
    assert terms(asked).counts.keys() & terms(said).counts.keys()


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("[1:56 pm on 8 May, 2023] Caroline: hi", "d:2023-05-08"),
        ("on May 8th, 2023", "d:2023-05-08"),
        ("March-15-2024", "d:2024-03-15"),
        ("2023/02/14 (Tue) 12:45", "d:2023-02-14"),
        ("due 2024-05-20.", "d:2024-05-20"),
        ("the 3rd of June", "d:06-03"),
        ("in July 2022", "d:2022-07"),
    ],
)
def test_a_date_is_one_term_however_it_is_written(text, date):
    assert date in terms(text).counts


@pytest.mark.parametrize("text", ["it may rain", "march on", "version 2023-99-99", "second to none"])
def test_what_is_no_date_makes_none(text):
    assert not [term for term in terms(text).counts if term.startswith("d:")]


@pytest.mark.parametrize("word", ["bus", "class", "analysis", "is", "news1", "größen"])
def test_a_word_that_only_looks_like_an_ending_keeps_it(word):
    assert stem(word) == word


def test_compounds_do_not_lengthen_a_text():
    assert terms("max_tokens").length == 2
    assert terms("parseDate in src/app.py").length == 6


def test_scores_are_those_of_bm25s():
    tokens = [[t for t, n in terms(text).counts.items() for _ in range(n)] for text in TEXTS]
    wanted = sorted(terms("dog fox port services").counts)
    oracle = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    oracle.index(tokens, show_progress=False)
    counted = [terms(text) for text in TEXTS]
    tf = frequencies(counted, wanted)
    lengths = np.array([len(text) for text in tokens], dtype=np.float32)

    ours = bm25(tf, lengths, rarity(tf))

    np.testing.assert_allclose(ours, oracle.get_scores(wanted), rtol=1e-4)
    assert ours[:3].all()
    assert not ours[4]


def test_empty_texts_score_nothing():
    tf = frequencies([terms(""), terms("")], ["dog"])

    assert not bm25(tf, np.zeros(2, dtype=np.float32), rarity(tf)).any()


@given(st.text())
def test_any_text_has_terms_and_at_least_one_for_each_word(text):
    found = terms(text)

    assert sum(found.counts.values()) >= found.length >= 0


@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6, "x9_" * 300_000, "a/" * 300_000, "aB" * 300_000, "." * 10**6]
)
def test_a_megabyte_of_anything_is_counted_in_linear_time(text):
    start = time.process_time()
    terms(text[: len(text) // 4])
    quarter = time.process_time() - start
    terms(text)

    assert time.process_time() - start < 12 * quarter + 0.5
