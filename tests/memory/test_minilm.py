"""The graph that we draw gives what the graph gives that comes with the weights."""

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from memory.embed import TOKENIZER
from memory.minilm import CLS, DIMENSIONS, MODEL_PIECES, SEP, MiniLM, packaged

TEXTS = (
    "a",
    "The gateway keeps 40 connections to PostgreSQL.",
    "def total(rows):\n    return sum(row.cents for row in rows) / 100",
    "Der Zug nach Bremen f\u00e4llt heute aus, der n\u00e4chste geht um 17:42.",
    "Refunds over 500 need a second signature. " * 12,
)


@pytest.fixture(scope="module")
def minilm():
    return MiniLM()


@pytest.fixture(scope="module")
def as_packaged():
    session = onnxruntime.InferenceSession(str(packaged()), providers=["CPUExecutionProvider"])

    def vector(pieces):
        ids = np.array([[CLS, *pieces, SEP]], dtype=np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = session.run(None, given)[0][0].mean(axis=0)
        return mean / np.linalg.norm(mean)

    return vector


@pytest.fixture(scope="module")
def pieces_of():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def test_vectors_are_those_of_the_packaged_graph_but_for_rounding(minilm, as_packaged, pieces_of):
    for text in TEXTS:
        ours, theirs = minilm.vector(pieces_of(text)), as_packaged(pieces_of(text))

        assert ours.shape == (DIMENSIONS,)
        assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-5)
        assert ours @ theirs > 0.98


def test_near_texts_are_as_near_as_in_the_packaged_graph(minilm, as_packaged, pieces_of):
    ours = np.array([minilm.vector(pieces_of(text)) for text in TEXTS])
    theirs = np.array([as_packaged(pieces_of(text)) for text in TEXTS])

    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=0.03)


def test_no_more_pieces_are_read_than_the_model_knows_places_for(minilm):
    many = [2_000 + n for n in range(MODEL_PIECES)]

    np.testing.assert_array_equal(minilm.vector(many), minilm.vector(many[: MODEL_PIECES - 2]))
