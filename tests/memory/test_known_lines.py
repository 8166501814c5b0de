"""What this process holds of lines, and when it has to ask the database in spite of it."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

from memory.errors import StoreUnavailable
from memory.held import Known
from memory.identify import Line
from memory.known_lines import FOLDS_BYTES, KnownLines
from memory.store.turns import LineState
from memory.types import Aside, Block, Frozen
from tests.conversations import TENANT, assistant, line_of, user

TALK = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
FROZEN = Frozen(2, (), (), 10, 3)
ASIDE = Aside((b"call", b"result"), (1, 2))
SPECK = 2_000_000  # bytes: some of them fill a cache


class Away:
    """A pool whose database is away: whoever asks it is told so."""

    @asynccontextmanager
    async def connection(self) -> Any:
        raise StoreUnavailable("asked")
        yield


class Stored:
    """A recorder that has stored every answer a second ago."""

    def age(self, line: Line) -> float:
        return 1.0


class Current:
    def is_current(self, tenant: bytes, known: Known) -> bool:
        return True


def lines() -> KnownLines:
    return KnownLines(Away(), Stored(), Current())  # type: ignore[arg-type]


def state(known: KnownLines, path: Line) -> tuple[LineState, str | None]:
    return asyncio.run(known.of(TENANT, path, "chat", Known()))


def folded() -> tuple[KnownLines, Line]:
    known, path = lines(), line_of(TALK)
    known.remember(TENANT, path, LineState(), FROZEN, Block(2, 3, b"block", 1), Known())
    known.remember_aside(TENANT, path, path.nodes[3], ASIDE, Known())
    return known, path


def test_what_this_process_made_it_knows_without_the_database():
    known, path = folded()
    found, away = state(known, path)
    assert away is None
    assert [frozen for _, frozen in found.frozen] == [FROZEN]
    assert found.asides == ((path.nodes[3], ASIDE),)
    assert len(found.blocks) == 1


def test_a_line_of_which_something_was_evicted_is_asked_for():
    known, path = folded()
    for n in range(FOLDS_BYTES // SPECK + 1):
        other = line_of([user(f"other {n}"), *TALK[1:]])
        known.remember_aside(TENANT, other, other.nodes[3], Aside((bytes(SPECK),), (1,)), Known())
    found, away = state(known, path)
    assert away == "asked"
    assert found.asides == ()


def test_what_others_lose_does_not_matter():
    known, path = folded()
    for n in range(2 * FOLDS_BYTES // SPECK):
        state(known, path)  # used, so it is not the oldest
        other = line_of([user(f"other {n}"), *TALK[1:]])
        known.remember_aside(TENANT, other, other.nodes[3], Aside((bytes(SPECK),), (1,)), Known())
    found, away = state(known, path)
    assert away is None
    assert found.asides == ((path.nodes[3], ASIDE),)


def test_of_two_asides_before_the_same_answer_the_first_stays_as_in_the_database():
    known, path = folded()
    known.remember_aside(TENANT, path, path.nodes[3], Aside((b"another",), (1,)), Known())
    assert state(known, path)[0].asides == ((path.nodes[3], ASIDE),)
