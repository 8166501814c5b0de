"""From frozen parts, blocks and the client's own messages to one prompt, each message once and in its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memory.assemble import assemble, displaced, kept_asides, kept_parts, late_systems, stable_pieces, with_asides
from memory.types import Aside, Block, Form, Frozen, Part
from tests.conversations import assistant, counted_of, forwarded_tokens, system, user

DIGEST = b'{"role":"user","content":"told"}'
BLOCK = b'{"role":"user","content":"quoted"}'


def frozen(covers: int, *parts: Part) -> Frozen:
    return Frozen(covers, parts, (), sum(part.tokens for part in parts), covers + 1)


def digest(start: int, stop: int) -> Part:
    return Part(start, stop, 5, DIGEST, Form.SUMMARY, "old")


def raws(messages: list[dict], state: Frozen, blocks: dict[int, Block] | None = None) -> list[str]:
    """The prompt in short: the words of each message, `told` for the digest, `quoted` for a block."""
    counted = counted_of(messages)
    words = {message.raw: message.text for message in counted.asked.messages}
    return [words.get(piece.raw) or piece.raw.decode()[26:-2] for piece in assemble(counted, state, blocks or {})]


TALK = [user("u1"), assistant("a1"), user("u2"), assistant("a2"), user("u3")]


def test_what_is_folded_is_told_once_and_the_rest_is_the_clients_own():
    assert raws(TALK, frozen(4, digest(0, 2), Part(2, 4, 9))) == ["told", "u2", "a2", "u3"]


def test_system_messages_at_the_front_stand_before_the_digest():
    assert raws([system("s1"), system("s2", "developer"), *TALK], frozen(4, digest(0, 4))) == ["s1", "s2", "told", "u3"]


@pytest.mark.parametrize(
    ("place", "prompt"),
    [
        (0, ["s", "told", "u2", "a2", "u3"]),
        (1, ["told", "late", "u2", "a2", "u3"]),
        (2, ["told", "late", "u2", "a2", "u3"]),
        (3, ["told", "u2", "late", "a2", "u3"]),
        (4, ["told", "u2", "a2", "late", "u3"]),
        (5, ["told", "u2", "a2", "u3", "late"]),
    ],
)
def test_a_late_system_message_keeps_its_place_or_follows_the_digest_it_was_folded_into(place, prompt):
    messages = [*TALK[:place], system("late" if place else "s"), *TALK[place:]]
    assert raws(messages, frozen(4, digest(0, 2), Part(2, 4, 9))) == prompt


def test_of_several_folded_system_messages_the_newest_stays():
    messages = [TALK[0], system("old"), TALK[1], system("new"), *TALK[2:]]
    assert raws(messages, frozen(4, digest(0, 4))) == ["told", "new", "u3"]


def test_a_late_system_message_stays_where_it_is_when_the_conversation_goes_on():
    messages = [*TALK, system("late")]
    longer = [*messages, assistant("a3"), user("u4")]
    state = frozen(4, digest(0, 2), Part(2, 4, 9))
    assert raws(longer, state)[: len(raws(messages, state))] == raws(messages, state)


def test_a_block_stands_directly_before_its_user_message_and_behind_its_system_message():
    block = Block(4, 5, BLOCK, 4)
    messages = [*TALK[:4], system("late"), TALK[4]]
    assert raws(messages, frozen(4, digest(0, 4)), {4: block}) == ["told", "late", "quoted", "u3"]


def test_an_empty_block_is_no_message():
    assert raws(TALK, frozen(4, digest(0, 4)), {4: Block(4, 5, b"", 0)}) == ["told", "u3"]


def test_a_filled_block_goes_out_and_when_it_is_cut_the_smaller_one():
    block = Block(4, 5, BLOCK, 4, filled=b'{"role":"user","content":"filled"}', filled_tokens=9)
    state = frozen(4, digest(0, 4))
    assert raws(TALK, state, {4: block}) == ["told", "filled", "u3"]
    assert raws([*TALK, assistant("a3"), user("u4")], state, {4: block.cut()})[:3] == ["told", "quoted", "u3"]


ASIDE = Aside((b'{"role":"user","content":"asked"}', b'{"role":"user","content":"given"}'), (7, 30))


def with_aside(aside: Aside, position: int, state: Frozen) -> list[str]:
    counted = with_asides(counted_of(TALK), {position: aside}, state)
    words = {message.raw: message.text for message in counted.asked.messages}
    return [words.get(piece.raw) or piece.raw.decode()[26:-2] for piece in assemble(counted, state, {})]


def test_what_was_said_before_an_answer_stands_before_it_or_in_its_place():
    state = frozen(2, digest(0, 2))
    assert with_aside(ASIDE, 3, state) == ["told", "u2", "asked", "given", "a2", "u3"]
    assert with_aside(replace(ASIDE, whole=True), 3, state) == ["told", "u2", "asked", "given", "u3"]


def test_a_rollover_leaves_it_out_but_where_its_answer_stays_in_full():
    counted = with_asides(counted_of(TALK), {1: ASIDE, 3: ASIDE}, frozen(0))
    rolled = kept_asides(counted, frozen(4, digest(0, 2), Part(2, 4, 9)))
    assert rolled.asides == ((3, ASIDE),)
    assert with_aside(ASIDE, 1, rolled) == ["told", "u2", "asked", "given", "a2", "u3"]


def test_digests_and_another_dialect_leave_it_out():
    assert with_aside(ASIDE, 3, frozen(4, digest(0, 4))) == ["told", "u3"]
    assert with_aside(replace(ASIDE, dialect="messages"), 3, frozen(2, digest(0, 2))) == ["told", "u2", "a2", "u3"]
    assert with_asides(counted_of(TALK), {3: ASIDE}, None).asides == {}


def test_its_tokens_count_in_the_prompt_and_not_in_what_the_client_asked():
    state, plain = frozen(2, digest(0, 2)), counted_of(TALK)
    beside, instead = (with_asides(plain, {3: aside}, state) for aside in (ASIDE, replace(ASIDE, whole=True)))
    assert (beside.weights[3], instead.weights[3]) == (37 + plain.tokens[3], 37)
    assert beside.total == instead.total == plain.total
    for counted in (beside, instead):
        told = sum(piece.placement.tokens for piece in assemble(counted, state, {}))
        assert told == 5 + sum(counted.weights[2:])


def test_it_is_no_part_of_what_stays_until_the_next_rollover():
    state = frozen(3, digest(0, 2), Part(2, 3, 9))
    assert stable_pieces(assemble(with_asides(counted_of(TALK), {3: ASIDE}, state), state, {})) == 2


def test_a_pinned_user_message_stands_between_digest_and_tail():
    state = frozen(4, digest(0, 3), Part(0, 1, 4), Part(3, 4, 4))
    assert raws(TALK, state) == ["told", "u1", "a2", "u3"]


@given(st.integers(0, 6), st.data())
def test_a_prompt_in_full_is_the_clients_own_byte_for_byte(late, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(TALK)), min_size=late, max_size=late)))
    messages = list(TALK)
    for n, place in enumerate(places):
        messages.insert(place + n, system(f"s{n}"))
    counted = counted_of(messages)
    covers = data.draw(st.integers(0, len(TALK)))
    state = frozen(covers, Part(0, covers, sum(counted.tokens[:covers])))

    assert [piece.raw for piece in assemble(counted, state, {})] == [m.raw for m in counted.asked.messages]


@given(st.integers(0, 4), st.integers(0, 4))
def test_the_placements_add_up_to_what_the_bytes_have(folded, kept):
    counted = counted_of([system("front"), *TALK, system("late")])
    folded, kept = min(folded, kept), max(folded, kept)
    parts = (digest(0, folded),) if folded else ()
    state = frozen(kept, *parts, Part(folded, kept, sum(counted.tokens[folded:kept])))
    pieces = assemble(counted, state, {})
    exact = {DIGEST: forwarded_tokens([DIGEST]) - 3}
    told = sum(exact.get(piece.raw, piece.placement.tokens) for piece in pieces)

    assert told + counted.fixed == forwarded_tokens([piece.raw for piece in pieces])


def test_displaced_is_what_stands_in_no_part_in_full():
    state = frozen(6, digest(0, 4), Part(1, 2, 3), Part(4, 5, 3), Part(5, 6, 3, b"{}", Form.SUMMARY))
    assert displaced(state) == (0, 2, 3, 5)
    assert [part.start for part in kept_parts(state)] == [1, 4]


def test_late_systems_are_told_with_the_message_that_follows_them():
    messages = counted_of([system("s"), TALK[0], system("x"), system("y"), TALK[1], system("z")]).asked.messages
    assert late_systems(messages, 1) == [(2, 1), (3, 1), (5, 2)]
