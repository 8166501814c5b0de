"""What a model gets that asks for earlier messages by itself, and what it is told when it cannot have them."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from memory.identify import message_hint
from memory.prepared import Caller, Offer
from memory.prompts import hints_in
from memory.recall import LEAST_TOKENS, Recall, Recalled, read
from memory.similar import Similar
from proxy.wire import openai
from tests.conversations import TENANT, assistant, count, user
from tests.memory.test_reinject import FACT, NONCE, Search, search_of, talk

ROOM = 1_000


class NoPool:
    """Where nothing is embedded nobody asks the database."""


def ask(search: Search, room: int = ROOM, **arguments: object) -> Recalled:
    return told(search, json.dumps(arguments), room)


def told(search: Search, arguments: str, room: int = ROOM, prompt: Sequence[bytes] = ()) -> Recalled:
    recall = Recall(Similar(NoPool(), None), None)  # type: ignore[arg-type]
    return asyncio.run(recall.answer(Caller(TENANT), Offer(search, tuple(prompt), 0, 4_000, ROOM), arguments, room))


def folded() -> Search:
    return search_of(talk(FACT, assistant("Fine.")))


def test_a_message_comes_back_by_its_id_however_the_id_is_written():
    search = folded()
    hint = message_hint(search.line.nodes[0])
    for written in (hint, f"[#{hint}]", f"#{hint}", f" {hint.upper()} "):
        recalled = ask(search, id=written)
        assert recalled.found
        assert FACT["content"] in recalled.text
        assert f"[#{hint}] message 1\nuser: " in recalled.text


def test_a_stretch_comes_back_word_for_word_as_far_as_it_fits():
    search = folded()
    stretch = search.frozen.stretches[0]
    texts = [search.line.messages[i].text for i in range(stretch.start, stretch.stop)]

    whole = ask(search, room=50_000, id=stretch.id)
    part = ask(search, room=600, id=stretch.id)

    assert whole.found
    assert all(text in whole.text for text in texts)
    assert "not here in full" not in whole.text
    assert part.found
    assert texts[0] in part.text
    assert texts[-1] not in part.text
    assert f"of {len(texts)} messages are not here in full" in part.text
    assert count(part.text) <= 600


def test_it_tells_the_ids_of_all_that_it_brings_and_their_tokens():
    search = folded()
    stretch = search.frozen.stretches[0]
    ids = [message_hint(search.line.nodes[i]) for i in range(stretch.start, stretch.stop)]
    whole, part = ask(search, room=50_000, id=stretch.id), ask(search, room=600, id=stretch.id)

    assert list(whole.ids) == ids
    assert list(part.ids) == ids[: len(part.ids)]
    assert 0 < len(part.ids) < len(ids)
    assert all(recalled.tokens == count(recalled.text) for recalled in (whole, part))
    assert message_hint(search.line.nodes[0]) in ask(search, query="when does the otter pool open?").ids


def test_the_ids_of_what_did_not_fit_bring_it():
    search = folded()
    stretch = search.frozen.stretches[0]
    part = ask(search, room=600, id=stretch.id).text
    missing = hints_in(part.rpartition("\n(")[2])
    assert len(missing) > 3
    for hint in missing:
        position = next(i for i, node in enumerate(search.line.nodes) if message_hint(node) == hint)
        text = search.line.messages[position].text
        assert position in range(stretch.start, stretch.stop)
        assert text not in part
        assert text in ask(search, room=600, id=hint).text


def test_a_query_brings_what_answers_it_and_says_when_nothing_does():
    search = folded()
    assert FACT["content"] in ask(search, query="when does the otter pool open?").text
    nothing = ask(search, query="xylophone")
    assert not nothing.found
    assert "Try other words" in nothing.text


def test_a_query_looks_also_for_what_an_earlier_block_quotes():
    search = search_of(talk(FACT, assistant("Fine.")), quoted=frozenset({0}))
    assert FACT["content"] in ask(search, query="when does the otter pool open?").text


@pytest.mark.parametrize("room", [LEAST_TOKENS, 300, 700, 2_000])
def test_what_a_query_brings_fits_into_its_room(room):
    search = search_of(talk(*(user(f"The otter pool number {n} opens at {n}:45.") for n in range(40))))
    recalled = ask(search, room=room, query="when does the otter pool open?")
    assert recalled.found
    assert count(recalled.text) <= room
    assert recalled.text.count("otter pool number") >= min(room // 60, 20)


def test_quotes_stand_in_the_order_of_the_conversation_inside_our_frame():
    search = search_of(talk(*(user(f"otter {n}") for n in range(20))))
    text = ask(search, query="otter").text
    numbers = [int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("user: otter")]
    assert numbers == sorted(numbers)
    assert len(numbers) > 5
    assert text.startswith(f"<earlier-messages id={NONCE}>")
    assert text.endswith(f"</earlier-messages id={NONCE}>")


@pytest.mark.parametrize(
    "arguments",
    ["", "{", "[]", "null", "{}", '{"id": 7}', '{"query": ""}', '{"id": null, "query": null}', '{"words": "otter"}'],
)
def test_a_call_without_anything_to_look_for_is_told_how_to_ask(arguments):
    recalled = told(folded(), arguments)
    assert not recalled.found
    assert '{"id": "a2b3c4d5"} or {"query":' in recalled.text


def test_ids_that_name_nothing_are_told_so():
    search = folded()
    assert "Nothing here has the id aaaaaaaa" in ask(search, id="aaaaaaaa").text
    assert "is no id" in ask(search, id="the first one").text


def test_an_id_of_another_shape_does_not_stand_in_the_way_of_a_query():
    assert FACT["content"] in ask(folded(), id="first", query="when does the otter pool open?").text


def test_a_message_that_is_too_long_is_told_to_the_end_by_a_query_alone():
    long = " ".join(f"entry {n} of the ledger" for n in range(900)) + " the otter pool opens at 6:45"
    search = search_of(talk(user(long), assistant("Fine.")))
    hint = message_hint(search.line.nodes[0])
    recalled = ask(search, room=400, id=hint)
    assert "Only its beginning fits" in recalled.text
    assert hint not in recalled.text.rpartition("\n(")[2]
    assert count(recalled.text) <= 400
    assert "6:45" in ask(search, room=400, query="when does the otter pool open?").text


def test_what_was_asked_is_told_in_short():
    for recalled in (ask(folded(), id="a" * 20_000), ask(folded(), query="otter " * 4_000)):
        assert len(recalled.asked) <= 200
    assert count(ask(folded(), id="b" * 20_000).text) < 200


def test_without_room_it_says_so():
    recalled = ask(folded(), room=LEAST_TOKENS - 1, query="when does the otter pool open?")
    assert not recalled.found
    assert "no room" in recalled.text


def test_what_an_earlier_result_tells_word_for_word_is_not_told_again():
    search = folded()
    arguments = json.dumps({"id": message_hint(search.line.nodes[0])})
    first = told(search, arguments)
    (result,) = openai.results_json([("c1", f"{first.text}\n(A note.)")])
    again = told(search, arguments, prompt=(b'{"role":"user","content":"hi"}', result))

    assert again.found
    assert (again.asked, again.ids, again.tokens) == (first.asked, first.ids, 0)
    assert f"look for [#{first.ids[0]}]" in again.text
    assert first.text not in again.text
    assert count(again.text) < 50


@pytest.mark.parametrize("way", ["in part", "in a block", "under another id"])
def test_what_stands_in_the_prompt_in_another_way_is_told(way):
    search = folded()
    arguments = json.dumps({"id": message_hint(search.line.nodes[0])})
    first = told(search, arguments)
    standing = {
        "in part": openai.results_json([("c1", first.text[:-60])])[0],
        "in a block": openai.message_json("user", first.text),
        "under another id": openai.results_json([("c1", ask(search, id=search.frozen.stretches[0].id).text)])[0],
    }
    assert told(search, arguments, prompt=(standing[way],)) == first


def test_unknown_keys_do_not_matter():
    assert read('{"query": "otter", "limit": 5}').query == "otter"  # type: ignore[union-attr]
