"""A passage's lines in a few runs: what is unlike its neighbours stays alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory.embed import OnnxEmbedder, embed_segmented
from memory.segments import LEAST_PIECES, MOST, Segmented, segments
from tests.memory.vectors import WordVectors

CODE = """\
def forward(self, batch, mask=None):
    hidden = self.embed(batch) + self.places(batch)
    for layer in self.layers:
        hidden = layer(hidden, mask)
"""
SENTENCE = "The dentist plays chess by mail with a lighthouse keeper.\n"
MORE = """\
    return self.norm(hidden)

def __len__(self):
    return len(self.layers)
"""
QUESTION = "Who has a board game by post with a man guarding a beacon?"


def lines_of(*sizes: int, apart: tuple[int, ...] = ()) -> tuple[np.ndarray, list[int]]:
    """Pieces in lines; those of the lines `apart` point elsewhere than all others."""
    noise = np.random.default_rng(0).standard_normal((sum(sizes), 8)) / 10
    rows = [[0.0, 1.0] if line in apart else [1.0, 0.0] for line, size in enumerate(sizes) for _ in range(size)]
    pieces = np.hstack([np.array(rows), np.zeros((sum(sizes), 6))]) + noise
    return pieces.astype(np.float32), [0, *np.cumsum(sizes)[:-1].tolist()]


def test_a_line_that_is_unlike_its_neighbours_stays_alone():
    pieces, lines = lines_of(8, 8, 9, 8, 8, apart=(2,))
    (before, alone, behind), stops = segments(pieces, lines)
    assert stops == (16, 25, 41)
    np.testing.assert_allclose(alone, pieces[16:25].sum(0) / np.linalg.norm(pieces[16:25].sum(0)), rtol=1e-5)
    np.testing.assert_allclose(before, pieces[:16].sum(0) / np.linalg.norm(pieces[:16].sum(0)), rtol=1e-5)
    assert alone @ before < 0.2 < 0.9 < before @ behind


def test_a_line_that_says_nothing_joins_the_neighbour_that_is_like_it():
    pieces, lines = lines_of(8, 2, 8, apart=(1, 2))
    (first, second), stops = segments(pieces, lines)
    assert stops == (8, 18)
    np.testing.assert_allclose(second, pieces[8:].sum(0) / np.linalg.norm(pieces[8:].sum(0)), rtol=1e-5)
    assert first @ second < 0.2


@pytest.mark.parametrize("sizes", [(1,), (200,), (LEAST_PIECES - 1, LEAST_PIECES - 1), (50, 2)])
def test_what_is_one_thing_has_no_segments(sizes):
    vectors, stops = segments(*lines_of(*sizes))
    assert (vectors.shape, stops) == ((0, 8), ())


@example(sizes=[5, 1, 6], apart={1, 2})
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), apart=st.sets(st.integers(0, 39)))
def test_segments_are_few_and_of_unit_length(sizes, apart):
    pieces, lines = lines_of(*sizes, apart=tuple(apart))
    kept = pieces.copy()
    made, stops = segments(pieces, lines)
    assert len(made) == len(stops)
    assert len(made) in (0, *range(2, MOST + 1))
    assert set(stops) <= {*lines, len(pieces)}
    assert stops == () or stops[-1] == len(pieces)
    assert min(np.diff([0, *stops]), default=LEAST_PIECES) >= LEAST_PIECES
    assert len(made) or sum(size >= LEAST_PIECES for size in sizes) < 2
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-4)
    assert (pieces == kept).all()


@pytest.fixture(scope="module")
def minilm():
    return OnnxEmbedder()


async def test_a_question_about_a_sentence_among_code_is_near_to_its_segment_alone(minilm):
    (found,) = await minilm.embed_segmented([CODE + SENTENCE + MORE])
    (question,) = await minilm.embed([QUESTION])
    before, sentence, behind = found.segments @ question  # 0.21, 0.36, 0.23; the whole has 0.28
    text = CODE + SENTENCE + MORE
    assert [text[a:b].strip() for a, b in pairwise((0, *found.stops))] == [CODE.strip(), SENTENCE.strip(), MORE.strip()]
    assert sentence > found.whole @ question + 0.05 > max(before, behind) + 0.05


async def test_the_vector_of_the_whole_is_the_one_of_a_text_without_segments(minilm):
    texts = [CODE + SENTENCE + MORE, "one line", "", "first line of some words \ud800\n" * 30, SENTENCE * 100]
    found = await minilm.embed_segmented(texts)
    np.testing.assert_allclose([one.whole for one in found], await minilm.embed(texts), atol=1e-5)
    assert [len(one.segments) for one in found][1:3] == [0, 0]
    assert all(len(one.segments) == len(one.stops) for one in found)
    assert all(one.stops == () or one.stops[-1] == len(text) for text, one in zip(texts[:4], found, strict=False))
    assert found[4].stops[-1] < len(texts[4])  # the model reads no further


async def test_an_embedder_that_knows_no_segments_gives_whole_vectors():
    embedder = WordVectors()
    (found,) = await embed_segmented(embedder, [CODE + SENTENCE])
    assert isinstance(found, Segmented)
    assert (found.whole == (await embedder.embed([CODE + SENTENCE]))[0]).all()
    assert len(found.segments) == 0
