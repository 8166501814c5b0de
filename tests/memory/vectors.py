"""An embedder without a model: a text is where its words are."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from memory.embed import DIMENSIONS


def vector(text: str) -> NDArray[np.float32]:
    """(384,) of unit length; texts that share words are near each other."""
    total = sum((direction(word) for word in text.lower().split()), np.zeros(DIMENSIONS))
    return (total / (np.linalg.norm(total) or 1)).astype(np.float32)


def direction(word: str) -> NDArray[np.float64]:
    return np.random.default_rng(crc32(word.encode("utf-8", "replace"))).standard_normal(DIMENSIONS)


def cloud(count: int, seed: int) -> NDArray[np.float32]:
    """Points that vary in 16 directions, as texts do in some dozens: then signs tell near from far."""
    directions = np.random.default_rng(0).standard_normal((16, 384))
    points = np.random.default_rng(seed).standard_normal((count, 16)) @ directions
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


class WordVectors:
    """Counts what it was asked, so that a test sees what is embedded twice."""

    name = "words"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.extend(texts)
        return np.array([vector(text) for text in texts], np.float32).reshape(len(texts), DIMENSIONS)
