"""What a passage speaks of, thing by thing: its lines gathered into a few runs, each with a vector of its own.

A sentence among code weighs little in the mean of all word pieces, and a question about it finds other passages. The
model has made a vector of every piece anyway, so the mean over a line costs nothing, and it still knows what stands
around the line. Neighbours that are most alike are joined until few are left; what is like neither stays alone.

Sources: Günther et al. 2024, arXiv:2409.04701 (late chunking: pool after the model, not before); the joining is
agglomerative clustering of neighbours alone, by the cosine of their means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 3  # columns of infold.vectors; with four a question finds no more
LEAST_PIECES = 6  # of a run: fewer say nothing

Floats = NDArray[np.float32]


class Segmented(NamedTuple):
    """A text's vector, and those of the things that it speaks of."""

    whole: Floats  # (384,)
    segments: Floats | tuple[()] = ()  # (k, 384), k 0 or 2 to `MOST`
    stops: tuple[int, ...] = ()  # characters of the text at which each segment ends


class Runs(NamedTuple):
    """In the order of the text: 2 to `MOST`, or none where all is one."""

    vectors: Floats  # (k, 384), of unit length
    stop_pieces: tuple[int, ...] = ()  # the piece behind the last one of each


def segments(pieces: Floats, lines: Sequence[int], most: int = MOST) -> Runs:
    """Gather a passage's lines into at most so many runs.

    Args:
        pieces: (n, 384), what the model made of each word piece.
        lines: the first piece of each line or sentence, ascending, 0 the first.
    """
    if len(lines) < 2:
        return Runs(pieces[:0])
    sums = np.add.reduceat(pieces, lines, axis=0)
    sizes = np.diff([*lines, len(pieces)])
    while len(sums) > 1 and (len(sums) > most or sizes.min() < LEAST_PIECES):
        at = joint(sums, sizes)
        sums[at] += sums[at + 1]
        sizes[at] += sizes[at + 1]
        sums, sizes = np.delete(sums, at + 1, axis=0), np.delete(sizes, at + 1)
    return Runs(unit(sums), tuple(np.cumsum(sizes).tolist())) if len(sums) > 1 else Runs(pieces[:0])


def joint(sums: Floats, sizes: NDArray[np.int_]) -> int:
    """Which run is joined with the one behind it: the smallest while it says nothing, else the most alike two."""
    rows = unit(sums)
    alike = np.einsum("ij,ij->i", rows[:-1], rows[1:])
    small = int(sizes.argmin())
    if sizes[small] >= LEAST_PIECES:
        return int(alike.argmax())
    before = alike[small - 1] if small > 0 else -np.inf
    behind = alike[small] if small < len(alike) else -np.inf
    return small - 1 if before >= behind else small


def unit(rows: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths
