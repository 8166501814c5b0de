"""Signs of vectors, kept in this process: which passages are near, to be compared in full by the database. Pure.

A bit tells on which side of zero a number is, and vectors that point the same way agree in most of them. Comparing bits
takes the database half a microsecond a passage, for it has to visit each row, and numpy a hundredth of that.

What is kept says nothing for certain: items go, come back and change their words. So each passage carries when its
vector came, and the database, which reads it under the tenant's policy anyway, says whether it is still the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memory.bounded import Bounded
from memory.nouns import NIL
from memory.segments import MOST

MOST_BYTES = 64 * 2**20  # that a process keeps: some 700,000 short items, or 300,000 passages of long ones
LOOSE = 8  # times as many as are wanted go by bits alone

Floats = NDArray[np.float32]

HEAD = np.dtype([("item", "V16"), ("ordinal", ">i4"), ("kind", ">i4"), ("count", ">i4"), ("arrived", ">i8")])
LENGTH_BYTES, WORDS = 4, 6  # before the bits of a vector; 64 bits each
OCTETS = 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) - 1  # (256, 8)
OCTET_STARTS = 256 * np.arange(8 * WORDS)
LEAST_BYTES = 256  # of a session of which nothing is known yet


class Mark(NamedTuple):
    """How far a session's vectors were read, in the order in which they came."""

    arrived: int = -1
    item: UUID = NIL
    ordinal: int = -1


BEGINNING = Mark()


class Page(NamedTuple):
    """What came after a mark, as `infold.load_signs` gives it."""

    horizon: int
    ahead: int
    heads: bytes
    signs: bytes


class Layer(NamedTuple):
    """A vector of each passage that has so many."""

    owners: NDArray[np.intp]  # (m,), ascending
    words: NDArray[np.uint64]  # (6, m)


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """Of n passages, in the order in which they came."""

    heads: NDArray[np.void]  # (n,) of HEAD
    layers: tuple[Layer, ...]  # the first vectors, the second ones, the third ones

    @property
    def size_bytes(self) -> int:
        return self.heads.nbytes + sum(layer.owners.nbytes + layer.words.nbytes for layer in self.layers)

    def apart(self, asked: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """In how many bits each passage's nearest vector differs from the query's: (n,)."""
        bits = differing(self.layers[0].words, asked)
        for owners, words in self.layers[1:]:
            bits[owners] = np.minimum(bits[owners], differing(words, asked))
        return bits

    def along(self, chosen: NDArray[np.intp], table: Floats) -> Floats:
        """How far the query goes in the direction of the signs of each chosen passage's nearest vector."""
        scores = summed(self.layers[0].words[:, chosen], table)
        for owners, words in self.layers[1:]:
            places = np.searchsorted(owners, chosen)
            having = np.flatnonzero(np.append(owners, -1)[places] == chosen)
            scores[having] = np.maximum(scores[having], summed(words[:, places[having]], table))
        return scores

    def first(self, count: int) -> "Signs":
        cuts = [int(np.searchsorted(owners, count)) for owners, _ in self.layers]
        layers = (Layer(o[:cut], w[:, :cut]) for (o, w), cut in zip(self.layers, cuts, strict=True))
        return Signs(self.heads[:count], tuple(layers))


def differing(words: NDArray[np.uint64], asked: NDArray[np.uint64]) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = np.bitwise_count(words[0] ^ asked[0]).astype(np.uint16)
    for mine, other in zip(words[1:], asked[1:], strict=True):
        bits += np.bitwise_count(mine ^ other)
    return bits


def summed(words: NDArray[np.uint64], table: Floats) -> Floats:
    octets = np.ascontiguousarray(words.T).view(np.uint8)
    sums: Floats = np.take(table, octets + OCTET_STARTS).sum(axis=1)
    return sums


def read(page: Page) -> Signs:
    heads = np.frombuffer(page.heads, HEAD)
    rows = np.frombuffer(page.signs, np.uint8).reshape(-1, LENGTH_BYTES + 8 * WORDS)[:, LENGTH_BYTES:]
    words, counts = np.ascontiguousarray(rows).view(np.uint64), heads["count"].astype(np.intp)
    starts = np.cumsum(counts) - counts
    owners = [np.flatnonzero(counts > place) for place in range(MOST)]
    layers = (Layer(o, np.ascontiguousarray(words[starts[o] + place].T)) for place, o in enumerate(owners))
    return Signs(heads, tuple(layers))


def joined(one: Signs, other: Signs) -> Signs:
    layers = (
        Layer(np.concatenate([a.owners, b.owners + len(one.heads)]), np.concatenate([a.words, b.words], axis=1))
        for a, b in zip(one.layers, other.layers, strict=True)
    )
    return Signs(np.concatenate([one.heads, other.heads]), tuple(layers))


def bits_of(vector: Floats) -> NDArray[np.uint64]:
    """(6,), as pgvector makes them of a halfvec."""
    return np.packbits(vector.astype(np.float16) > 0).view(np.uint64)


def table_of(vector: Floats) -> Floats:
    """(48 * 256,): what each octet of signs adds to the dot product of a query with them."""
    return (vector.reshape(-1, 8) @ OCTETS.T).ravel()


def nearest(parts: Sequence[Signs], vector: Floats, most: int, kinds: Collection[int] = ()) -> NDArray[np.void]:
    """The heads of at most so many passages that are near by their signs, in no order.

    Bits against bits tell which may be, the query's own numbers against bits which are: of these half as many find
    more of what is nearest.

    Args:
        kinds: hashes of content types; none: all.
    """
    asked, table = bits_of(vector), table_of(vector)
    apart = np.concatenate([part.apart(asked) for part in parts])
    chosen = lowest(apart, LOOSE * most, of_kinds(parts, kinds) if kinds else None)
    ends = np.cumsum([len(part.heads) for part in parts])
    heads, scores = [], []
    for part, end, mine in zip(parts, ends, np.split(chosen, np.searchsorted(chosen, ends[:-1])), strict=True):
        if len(mine):
            mine = mine - (end - len(part.heads))
            heads.append(part.heads[mine])
            scores.append(part.along(mine, table))
    if not heads:
        return np.empty(0, HEAD)
    return np.concatenate(heads)[lowest(-np.concatenate(scores), most)]


def of_kinds(parts: Sequence[Signs], kinds: Collection[int]) -> NDArray[np.bool_]:
    return np.concatenate([np.isin(part.heads["kind"], list(kinds)) for part in parts])


def lowest(values: NDArray[Any], most: int, among: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """Where the lowest values are, at most so many, ascending."""
    if among is not None:
        places = np.flatnonzero(among)
        return places[lowest(values[places], most)]
    if len(values) <= most:
        return np.arange(len(values))
    last = np.partition(values, most - 1)[most - 1]  # a tenth of argpartition's time
    lower, alike = np.flatnonzero(values < last), np.flatnonzero(values == last)
    return np.sort(np.append(lower, alike[: most - len(lower)]))


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """The signs of a session, as far as they were read for good."""

    parts: tuple[Signs, ...] = ()  # the largest first
    mark: Mark | None = BEGINNING  # None: they are not kept

    @property
    def size_bytes(self) -> int:
        return LEAST_BYTES + sum(part.size_bytes for part in self.parts)

    def with_page(self, page: Page, most: int) -> "tuple[Shelf, tuple[Signs, ...] | None]":
        """This and what came, as far as nothing can come before it any more; and all there is, None before its end.

        Args:
            most: that a page holds.
        """
        new = read(page)
        arrived, is_last = new.heads["arrived"], len(new.heads) < most
        if len(arrived) and arrived[-1] >= page.ahead:
            return Shelf(mark=None), None
        for_good = new.first(int(np.searchsorted(arrived, page.horizon)))
        parts = grown(self.parts, for_good)
        shelf = Shelf(parts, past(page.horizon) if is_last else mark_of(for_good) or self.mark)
        if not is_last:
            return shelf, None
        return shelf, parts if len(for_good.heads) == len(new.heads) else (*self.parts, new)


def past(horizon: int) -> Mark:
    """Behind all that came before it."""
    return Mark(horizon, NIL, -1)


def mark_of(signs: Signs) -> Mark | None:
    """Behind the last one."""
    if not len(signs.heads):
        return None
    item, ordinal, _, _, arrived = signs.heads[-1].tolist()
    return Mark(arrived, UUID(bytes=item), ordinal)


def grown(parts: tuple[Signs, ...], new: Signs) -> tuple[Signs, ...]:
    """Parts that are few, and seldom copied."""
    if len(new.heads):
        parts = (*parts, new)
    while len(parts) > 1 and len(parts[-2].heads) <= 4 * len(parts[-1].heads):
        parts = (*parts[:-2], joined(*parts[-2:]))
    return parts


Key = tuple[bytes, int, UUID]  # tenant, space of the embedder, session


class Kept:
    """The signs of sessions that were searched and have too many vectors for each to be compared in full."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._shelves: Bounded[Key, Shelf] = Bounded(most_bytes, lambda shelf: shelf.size_bytes)

    def begin(self, keys: Sequence[Key]) -> None:
        """From now on they are kept, as far as they are not yet."""
        for key in keys:
            if key not in self._shelves:
                self._shelves.put(key, Shelf())

    def shelves(self, keys: Sequence[Key]) -> list[Shelf]:
        """How far each was read; [] where one of them is not kept."""
        found = [shelf for key in keys if (shelf := self._shelves.get(key)) and shelf.mark]
        return found if len(found) == len(keys) else []

    def put(self, keys: Sequence[Key], old: Sequence[Shelf], new: Sequence[Shelf]) -> None:
        """Keep what was read, unless another search was quicker."""
        for key, before, after in zip(keys, old, new, strict=True):
            if self._shelves.get(key) is before:
                self._shelves.put(key, after if after.size_bytes <= self._most_bytes else Shelf(mark=None))

    def drop(self, keys: Sequence[Key]) -> None:
        """Something of them is there no longer: read them anew."""
        for key in keys:
            self._shelves.put(key, Shelf())
