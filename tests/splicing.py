"""Answers through a splice, cut as a test likes.

bytes_of(ChunkSplice, [first, second]) == what the client gets
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from proxy.wire.splice import Splice

NAME = "recall"
LINE_END = re.compile(rb"[\r\n]+")


def bytes_of(make: Callable[[str], Splice], answers: Sequence[bytes], cut: Callable[[bytes], Iterable[bytes]]) -> bytes:
    """One stream of several: each answer but the last ends in calls of ours."""
    splice = make(NAME)
    out = b""
    for number, answer in enumerate(answers):
        if number:
            splice.again()
        for piece in cut(answer):
            out += splice.feed(piece)
    return out + splice.end()


def whole(answer: bytes) -> list[bytes]:
    return [answer]


def by_bytes(answer: bytes) -> list[bytes]:
    return [answer[at : at + 1] for at in range(len(answer))]


def at(*places: int) -> Callable[[bytes], list[bytes]]:
    """Cut at these places, in each of the answers."""

    def cut(answer: bytes) -> list[bytes]:
        return [answer[a:b] for a, b in pairwise([0, *(min(place, len(answer)) for place in places), len(answer)])]

    return cut


def is_the_same_wherever_cut(make: Callable[[str], Splice], answers: Sequence[bytes]) -> bool:
    """By single bytes, and cut in two where lines end and in between."""
    expected = bytes_of(make, answers, whole)
    ends = {match.end() + step for answer in answers for match in LINE_END.finditer(answer) for step in (-2, -1, 0, 1)}
    places = sorted({*ends, *range(1, max(map(len, answers)), 97)})
    return bytes_of(make, answers, by_bytes) == expected and all(
        bytes_of(make, answers, at(max(place, 0))) == expected for place in places
    )
