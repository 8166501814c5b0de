"""A rollover takes the frozen prompt down to the target: old and cheap things first, pinned words never."""

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memory.assemble import Counted, assemble, displaced
from memory.budget import budget
from memory.errors import CannotFit
from memory.identify import message_hint
from memory.plan import fair_shares, roll
from memory.prompts import hints_in
from memory.reinject import every
from memory.seal import HELD, without_sealed
from memory.types import Budget, Form, Frozen, Model
from tests.conversations import (
    agent,
    assistant,
    calling,
    chat,
    counted_of,
    forwarded_tokens,
    prose,
    result,
    rollover_of,
    system,
    user,
)
from tests.proxied import problems

Json = dict[str, Any]
SLACK = 60  # tokens by which a digest may miss its share: its heading and a line for each new stretch
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def budget_of(counted: Counted, window: int = 8_192, reserve: int = 1_024) -> Budget:
    return budget(Model("m", window), reserve, counted.front)


def rolled(messages: list[Json], old: Frozen | None = None, window: int = 8_192) -> tuple[Counted, Frozen]:
    counted = counted_of(messages)
    return counted, roll(rollover_of(counted, budget_of(counted, window)), old)


def prompt_of(counted: Counted, frozen: Frozen) -> list[Json]:
    return [json.loads(piece.raw) for piece in assemble(counted, frozen, {})]


def tokens_of(counted: Counted, frozen: Frozen) -> int:
    return forwarded_tokens([piece.raw for piece in assemble(counted, frozen, {})], counted.asked.schemas)


@st.composite
def talks(draw: st.DrawFn) -> list[Json]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    words = draw(st.sampled_from([5, 40, 150]))
    said = [system(prose(rng, 20)), *chat(rng, draw(st.integers(0, 40)), words)]
    if draw(st.booleans()):
        said = [*said[:-1], *agent(rng, draw(st.integers(1, 25)), words)]
    return said


# The size


@quick
@given(talks())
def test_the_frozen_part_ends_at_the_target_and_the_whole_within_the_limit(messages):
    counted, frozen = rolled(messages)
    bounds = budget_of(counted)
    user_tokens = max(
        (t for t, m in zip(counted.tokens, counted.line.messages, strict=True) if m.role == "user"), default=0
    )

    assert counted.front + frozen.tokens <= max(bounds.target + SLACK, counted.front + user_tokens + 400)
    assert tokens_of(counted, frozen) <= bounds.limit


@quick
@given(talks())
def test_what_frozen_says_of_its_tokens_is_no_less_than_its_bytes_have(messages):
    counted, frozen = rolled(messages)
    said = counted.front + frozen.tokens + sum(counted.tokens[frozen.covers :])
    assert tokens_of(counted, frozen) <= said <= tokens_of(counted, frozen) + 5 * len(frozen.parts)


# The content


@quick
@given(talks())
def test_every_message_is_in_full_or_told_of_and_none_is_both(messages):
    counted, frozen = rolled(messages)
    in_full = [i for part in frozen.parts if part.raw is None for i in range(part.start, part.stop)]
    told = {i for stretch in frozen.stretches for i in range(stretch.start, stretch.stop)}

    assert len(in_full) == len(set(in_full))
    assert set(in_full) | told >= set(range(frozen.covers))
    assert set(displaced(frozen)) == set(range(frozen.covers)) - set(in_full)
    assert {i for i in told if i in in_full} <= {i for i in in_full if counted.line.messages[i].role == "user"}


@quick
@given(talks())
def test_roles_stay_valid_and_pinned_words_their_own(messages):
    counted, frozen = rolled(messages)
    prompt = prompt_of(counted, frozen)
    newest = next(message for message in reversed(messages) if message["role"] == "user")

    assert problems(prompt) == []
    assert prompt[0] == messages[0]
    assert newest in prompt


def test_what_is_folded_first_is_what_is_oldest():
    _counted, frozen = rolled(chat(random.Random(1), 40, 80))
    tail = next(part for part in frozen.parts if part.raw is None)

    assert tail.stop == frozen.covers
    assert [stretch.start for stretch in frozen.stretches] == sorted(stretch.start for stretch in frozen.stretches)
    assert max(stretch.stop for stretch in frozen.stretches) == tail.start


def test_what_the_client_cut_off_is_told_and_not_sent_again():
    """It may have been said in another dialect, whose messages this one's provider does not take."""
    counted = counted_of(chat(random.Random(3), 40, 20))
    whole, cut = len(counted.line), 75
    line = dataclasses.replace(counted.line, cut=cut)
    frozen = roll(rollover_of(replace(counted, line=line), budget_of(counted, 2_048, 256)), None)

    kept = [part for part in frozen.parts if part.raw is None]
    assert roll(rollover_of(counted, budget_of(counted, 2_048, 256)), None).parts[-1].start < cut < whole
    assert min(part.start for part in kept) >= cut


def test_in_a_loop_the_newest_user_message_and_the_open_call_stay_in_full():
    messages = [*chat(random.Random(2), 10, 50)[:-1], *agent(random.Random(3), 40, 80)]
    counted, frozen = rolled(messages)
    prompt = prompt_of(counted, frozen)

    assert next(m for m in reversed(messages) if m["role"] == "user") in prompt
    assert prompt[-2:] == messages[-2:]


def test_users_words_outlive_the_output_of_tools():
    """Of a stretch with both, the digest keeps what the user said and lets the log go."""
    rng = random.Random(4)
    wishes = [f"Always ship the crates for customer {n} with label LX-{n}-{rng.randrange(1000)}." for n in range(6)]
    messages: list[Json] = []
    for n, wish in enumerate(wishes):
        messages += [user(wish), calling((f"c{n}", "{}")), result(f"c{n}", prose(rng, 400)), assistant(prose(rng, 60))]
    counted, frozen = rolled([*messages, *chat(rng, 12, 100)])
    digest = prompt_of(counted, frozen)[0]["content"]

    assert [wish for wish in wishes if wish.split("label ")[1].rstrip(".") not in digest] == []


def test_ids_in_a_digest_are_of_eight_characters_unique_and_name_what_they_stand_for():
    frozen = None
    said = chat(random.Random(5), 30, 80)
    for seed in range(6, 12):
        counted, frozen = rolled(said, frozen)
        said += [assistant("ok"), *chat(random.Random(seed), 30, 80)]
    ids = [stretch.id for stretch in every(frozen.stretches)]
    told = hints_in(prompt_of(counted, frozen)[0]["content"])

    assert len(ids) == len(set(ids))
    assert set(told) <= set(ids)
    assert {stretch.id for stretch in frozen.stretches} <= set(told)


def test_the_id_of_a_shortened_result_goes_on_to_name_it_with_its_call():
    """Both ids are made from a node; a stretch that happens to end with the result must not take its id over."""
    rng = random.Random(6)
    messages = [user("find it"), *agent(rng, 12, 60)[1:], calling(("c", "{}")), result("c", prose(rng, 9_000))]
    position = len(messages) - 1
    _, frozen = rolled(messages)
    (shortened,) = [part for part in frozen.parts if part.raw and part.start == position]
    (hint,) = hints_in(json.loads(shortened.raw)["content"])
    _, later = rolled([*messages, calling(("d", "{}")), result("d", prose(rng, 9_000))], frozen)
    spans = {stretch.id: (stretch.start, stretch.stop) for stretch in every(later.stretches)}

    assert spans.get(hint) in (None, (position, position + 1), (position - 1, position + 1))


# Again and again


def test_ten_windows_of_history_still_leave_three_quarters_of_the_window_free():
    rng = random.Random(7)
    said: list[Json] = [system("be brief")]
    frozen, rollovers = None, 0
    while counted_of(said).total < 100_000:
        for _ in range(12):
            said += [user(prose(rng, 90)), assistant(prose(rng, 120))]
        counted, frozen = rolled([*said, user("and?")], frozen)
        rollovers += 1
        assert counted.front + frozen.tokens <= 0.25 * 8_192 + SLACK
    assert rollovers >= 10
    assert frozen.rollovers == rollovers
    assert {i for s in every(frozen.stretches) for i in range(s.start, s.stop)} >= set(displaced(frozen))


def test_old_stretches_shrink_before_new_ones_and_the_oldest_first():
    rng = random.Random(8)
    said = chat(rng, 40, 80)
    frozen = None
    for _ in range(4):
        _counted, frozen = rolled(said, frozen)
        said += [assistant("ok"), *chat(rng, 40, 80)]
    lengths = [len(stretch.text) for stretch in frozen.stretches]

    assert lengths[-1] > 0
    assert sum(lengths[: len(lengths) // 2]) < sum(lengths[len(lengths) // 2 :])


def test_a_merged_line_opens_the_list_of_its_members():
    rng = random.Random(9)
    said, frozen = chat(rng, 40, 80), None
    for _ in range(12):
        _counted, frozen = rolled(said, frozen)
        said += [assistant("ok"), *chat(rng, 40, 80)]
    merged = [stretch for stretch in frozen.stretches if stretch.members]

    assert merged
    for stretch in merged:
        assert (stretch.members[0].start, stretch.members[-1].stop) == (stretch.start, stretch.stop)
        assert stretch.tokens == sum(member.tokens for member in stretch.members)


def test_when_no_message_can_leave_any_more_the_digest_itself_shrinks():
    """The newest message was edited and needs more room than the last rollover left."""
    rng = random.Random(10)
    history = [m for _ in range(40) for m in (user(prose(rng, 80)), assistant(prose(rng, 120)))]
    bounds = Budget(window=8_192, reserve=1_024, limit=7_086, trigger=6_144, target=4_000)
    counted = counted_of([*history, user("short")])
    first = roll(replace(rollover_of(counted, bounds), digest_share=1.0), None)
    assert [part.why for part in first.parts if part.raw is None] == []

    room = bounds.limit - first.tokens + 500  # so much that the digest is 500 tokens in the way
    edited = counted_of([*history, user(prose(random.Random(11), room * 2 // 3))])
    while edited.tokens[-1] < room:
        edited = counted_of([*history, user(edited.line.messages[-1].text + " more")])
    again = roll(rollover_of(edited, bounds), first)
    assert tokens_of(edited, again) <= bounds.limit


def test_the_same_case_gives_the_same_frozen_prompt():
    messages = chat(random.Random(12), 40, 80)
    assert rolled(messages)[1] == rolled(messages)[1]


# What users say beside results


def interrupted(words: Mapping[int, str], steps: int = 40, size: int = 80) -> list[Json]:
    """A loop in which the user speaks beside some results; by step."""
    rng, said = random.Random(16), [user("find out")]
    for step in range(steps):
        call = {"type": "tool_use", "id": f"c{step}", "name": "look", "input": {"step": step}}
        found = {"type": "tool_result", "tool_use_id": f"c{step}", "content": prose(rng, size)}
        beside = [{"type": "text", "text": words[step]}] if step in words else []
        said += [{"role": "assistant", "content": [call]}, user([found, *beside])]
    return said


def alone(frozen: Frozen) -> list[str]:
    """What stands in the place of messages with words beside results."""
    return [json.loads(part.raw)["content"] for part in frozen.parts if part.raw and part.stop == part.start + 1]


def test_the_newest_words_beside_results_stay_and_earlier_ones_while_they_are_few():
    """Clients remind the model beside results, too; a reminder does not displace what the user said before."""
    reminder = prose(random.Random(17), 90)
    words = {2: prose(random.Random(18), 300), 4: "rather in teal", 6: reminder, 8: "and soon"}
    _, frozen = rolled(interrupted(words))

    assert [block["text"] for (block,) in alone(frozen)] == ["rather in teal", reminder, "and soon"]
    assert [part.start for part in frozen.parts] == sorted(part.start for part in frozen.parts)


def test_a_digest_tells_words_beside_results_as_the_users():
    wish = "Always label the crates LX-4711."
    counted, frozen = rolled([*interrupted({3: wish}, 30), assistant("done"), *chat(random.Random(19), 20, 80)])
    digest = prompt_of(counted, frozen)[0]["content"]

    assert alone(frozen) == []
    assert f"user: {wish}" in digest.splitlines()


@pytest.mark.parametrize("new", [80, 9_000])
def test_words_beside_results_that_are_too_large_are_shortened_in_place_and_have_an_id(new):
    messages = [
        *interrupted({3: prose(random.Random(20), 8_000)}),
        calling(("z", "{}")),
        result("z", prose(random.Random(21), new)),
    ]
    counted, frozen = rolled(messages)
    (text,) = alone(frozen)[:1]

    assert hints_in(text) == (message_hint(counted.line.nodes[8]),)
    assert text.startswith(messages[8]["content"][1]["text"][:40])
    assert 0.3 * budget_of(counted).limit < tokens_of(counted, frozen) <= budget_of(counted).limit


def test_new_results_are_shortened_around_what_users_say_beside_them():
    """Each result keeps something, and the words all of theirs: they were counted as if they could be shortened."""
    words = prose(random.Random(22), 4_000)
    small = {"type": "tool_result", "tool_use_id": "b", "content": "nothing"}
    calls = [{"type": "tool_use", "id": id, "name": "look", "input": {}} for id in "ab"]
    large = {"type": "tool_result", "tool_use_id": "a", "content": prose(random.Random(23), 9_000)}
    asked = [
        user("go"),
        {"role": "assistant", "content": calls},
        user([large]),
        user([small, {"type": "text", "text": words}]),
    ]
    counted, frozen = rolled(asked)

    assert prompt_of(counted, frozen)[-1] == asked[-1]
    assert tokens_of(counted, frozen) <= budget_of(counted).limit
    with pytest.raises(CannotFit):
        rolled([*asked[:-1], user([small, {"type": "text", "text": words[:-1] * 2}])])


def test_many_small_results_in_one_message_are_no_reason_to_give_up():
    """Each by itself takes more than its share of the message, so that all of them seemed not to fit into it."""
    calls = [{"type": "tool_use", "id": f"c{n}", "name": "look", "input": {}} for n in range(31)]
    found = [{"type": "tool_result", "tool_use_id": call["id"], "content": "no"} for call in calls]
    large = {**found[0], "content": prose(random.Random(24), 9_000)}
    counted, frozen = rolled([user("go"), {"role": "assistant", "content": calls}, user([large]), user(found[1:])])

    assert json.loads(frozen.parts[-1].raw or b"{}").get("content") == found[1:] or frozen.parts[-1].raw is None
    assert tokens_of(counted, frozen) <= budget_of(counted).limit


def test_sealed_words_beside_results_are_not_told():
    counted = counted_of(interrupted({2: "the password is swordfish", 4: "rather in teal"}))
    line = without_sealed(counted.line, {counted.line.messages[6].digest})
    frozen = roll(rollover_of(replace(counted, line=line), budget_of(counted)), None)

    assert [block["text"] for (block,) in alone(frozen)] == ["rather in teal"]
    assert b"swordfish" not in b"".join(part.raw or b"" for part in frozen.parts)


# Results larger than what is left


@pytest.mark.parametrize("sizes", [[9_000], [9_000, 100], [4_000, 4_000, 4_000], [20_000, 20]])
def test_new_results_are_shortened_until_the_prompt_fits_the_largest_first(sizes):
    rng = random.Random(13)
    calls = [(f"c{n}", "{}") for n in range(len(sizes))]
    messages = [
        user("read"),
        calling(*calls),
        *(result(id, prose(rng, s)) for (id, _), s in zip(calls, sizes, strict=True)),
    ]
    counted, frozen = rolled(messages)
    prompt = prompt_of(counted, frozen)

    assert tokens_of(counted, frozen) <= budget_of(counted).limit
    assert tokens_of(counted, frozen) > 0.5 * budget_of(counted).limit
    assert problems(prompt) == []
    for sent, got in zip(messages[2:], prompt[-len(sizes) :], strict=True):
        assert got == sent or hints_in(got["content"])
        assert got == sent or len(sent["content"]) > 1_000


def test_a_shortened_result_keeps_its_other_fields():
    message = {**result("c", prose(random.Random(14), 9_000)), "name": "look", "extra": {"a": 1}}
    counted, frozen = rolled([user("read"), calling(("c", "{}")), message])
    shortened = prompt_of(counted, frozen)[-1]

    assert {key: shortened[key] for key in message if key != "content"} == {
        k: v for k, v in message.items() if k != "content"
    }


def test_a_sealed_result_is_shortened_without_a_word_of_it():
    secret = "the password is swordfish. "
    counted = counted_of([user("read"), calling(("c", "{}")), result("c", secret * 3_000)])
    line = without_sealed(counted.line, {counted.line.messages[-1].digest})
    frozen = roll(rollover_of(replace(counted, line=line), budget_of(counted)), None)
    told = prompt_of(counted, frozen)[-1]["content"]

    assert HELD in told
    assert hints_in(told)
    assert "swordfish" not in told


@pytest.mark.parametrize(
    "messages",
    [
        [system(prose(random.Random(1), 8_000)), user("hi")],
        [user(prose(random.Random(1), 8_000))],
        [user("go"), calling(("c", json.dumps({"q": prose(random.Random(1), 8_000)}))), result("c", "x")],
    ],
    ids=["system", "user", "open call"],
)
def test_what_may_not_shrink_and_does_not_fit_is_said(messages):
    with pytest.raises(CannotFit):
        rolled(messages)


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=8), st.integers(-100, 20_000))
def test_shares_are_fair(wants, room):
    shares = fair_shares(wants, room)
    left_out = [share for share, want in zip(shares, wants, strict=True) if share < want]

    assert all(0 <= share <= want for share, want in zip(shares, wants, strict=True))
    assert sum(shares) <= max(room, 0)
    assert not left_out or sum(shares) > max(room, 0) - len(wants)
    assert not left_out or max(left_out) - min(left_out) <= 1
    assert not left_out or all(share <= min(left_out) + 1 for share in shares)


def test_forms_tell_what_happened():
    counted, frozen = rolled(chat(random.Random(15), 40, 80))
    forms = [(piece.placement.form, piece.placement.why) for piece in assemble(counted, frozen, {})]
    assert forms[0] == (Form.SUMMARY, "old")
    assert forms[-1] == (Form.FULL, "new")
