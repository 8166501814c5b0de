"""How large the prompt stands, whether it must roll over, which blocks stand, and what goes when the store is away."""

import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memory.assemble import Counted, assemble
from memory.budget import budget
from memory.errors import CannotFit
from memory.fold import (
    LOOP_TOKENS,
    ROLLOVERS,
    Standing,
    block_room,
    cut_to_fit,
    saved_input,
    standing_blocks,
    without_store,
)
from memory.prompts import HELD_BACK
from memory.types import Block, Budget, Form, Frozen, Model, Part, Prices
from proxy.wire.openai import message_json
from tests.conversations import (
    agent,
    assistant,
    calling,
    chat,
    counted_of,
    forwarded_tokens,
    prose,
    result,
    system,
    user,
)

BUDGET = Budget(window=8_192, reserve=1_024, limit=7_086, trigger=6_144, target=2_048)
HALF = Prices(1.0, 0.5, 1.0, 4.0)
TENTH = Prices(1.0, 0.1, 1.0, 4.0)


def standing(counted: Counted, **more: object) -> Standing:
    return replace(Standing(counted, BUDGET, HALF, None, {}, cold=False), **more)  # type: ignore[arg-type]


def talk_of(tokens: int, seed: int = 1) -> Counted:
    """A chat of about so many tokens."""
    rng = random.Random(seed)
    said = [user("begin")]
    while (counted := counted_of([*said, user("and?")])).total < tokens:
        said += [assistant(prose(rng, 40)), user(prose(rng, 20))]
    return counted


# When to roll over


def test_below_the_trigger_nothing_is_due():
    assert standing(talk_of(5_000), cold=True).why() is None


def test_over_the_limit_it_happens_whatever_it_costs():
    assert standing(talk_of(7_200), prices=Prices(1.0, 0.0, 1.0, 1.0)).why() == "over the limit"


def test_between_trigger_and_limit_a_cold_cache_decides_at_once():
    assert standing(talk_of(6_400), cold=True).why() == "due, and the provider's cache is cold"


def test_between_trigger_and_limit_with_a_warm_cache_the_bill_decides():
    long = talk_of(6_400)
    assert standing(long).why() == "due, and it lowers the bill"
    assert standing(long, prices=Prices(1.0, 0.0, 1.0, 1.0)).why() is None


def test_after_a_rollover_the_frozen_prompt_counts_and_not_the_clients():
    counted = talk_of(20_000)
    frozen = Frozen(len(counted.line) - 1, (Part(0, 5, 100, b"{}"),), (), 100, len(counted.line))
    now = standing(counted, frozen=frozen)

    assert now.tokens == counted.front + 100 + counted.tokens[-1]
    assert not now.due


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_what_stands_is_what_would_be_forwarded(seed, covers):
    """Counted from the bytes, with system messages at the front and late ones, without blocks."""
    rng = random.Random(seed)
    messages = [system("front"), *chat(rng, 4, 20)]
    messages.insert(rng.randrange(2, len(messages)), system("late"))
    counted = counted_of(messages)
    state = Frozen(
        covers, (Part(0, covers, sum(counted.tokens[:covers])),), (), sum(counted.tokens[:covers]), covers + 1
    )
    bytes_tokens = forwarded_tokens([piece.raw for piece in assemble(counted, state, {})])

    assert standing(counted, frozen=state).tokens == bytes_tokens


# Blocks


def loop() -> tuple[Counted, Frozen]:
    """Ten folded messages, a question with a long loop behind it, another question."""
    rng = random.Random(3)
    messages = [*chat(rng, 5, 20)[:-1], *agent(rng, 5, 200), assistant("so"), user("next?")]
    counted = counted_of(messages)
    return counted, Frozen(10, (Part(0, 10, 100, b"{}", Form.SUMMARY),), (), 100, 11)


def standing_at(counted: Counted, frozen: Frozen, *blocks: Block, prices: Prices = TENTH) -> set[int]:
    return set(standing_blocks(counted, frozen, blocks, BUDGET, prices))


def test_the_newest_user_messages_block_always_stands_even_where_it_is_empty():
    counted, frozen = loop()
    newest = len(counted.line) - 1
    assert standing_at(counted, frozen, Block(newest, newest + 1, b"", 0)) == {newest}


def test_an_older_block_stands_where_taking_it_out_would_cost_more():
    counted, frozen = loop()
    assert standing_at(counted, frozen, Block(10, 11, b"{}", 50)) == {10}
    assert standing_at(counted, frozen, Block(10, 11, b"{}", 4_000)) == set()


def test_an_older_empty_block_is_gone():
    counted, frozen = loop()
    assert standing_at(counted, frozen, Block(10, 11, b"", 0)) == set()


def test_a_rollover_takes_the_blocks_before_it_away():
    counted, frozen = loop()
    assert standing_at(counted, replace(frozen, asked=15), Block(10, 11, b"{}", 50)) == set()


def test_a_block_of_a_message_that_has_left_the_prompt_is_gone():
    counted, frozen = loop()
    assert standing_at(counted, frozen, Block(4, 12, b"{}", 50)) == set()


def test_the_latest_of_two_blocks_for_one_message_counts():
    counted, frozen = loop()
    blocks = standing_blocks(counted, frozen, [Block(10, 14, b"new", 5), Block(10, 11, b"old", 5)], BUDGET, TENTH)
    assert blocks[10].kept == b"new"


def test_whether_an_older_block_stands_does_not_change_as_the_conversation_goes_on():
    """Else the prompt would lose its prefix in between."""
    rng = random.Random(4)
    counted, frozen = loop()
    said = [json_of(message) for message in counted.line.messages]
    for size in (50, 300, 600, 1_500):
        block = Block(10, 11, b"{}", size)
        decisions = set()
        longer = list(said)
        for step in range(6):
            decisions.add(10 in standing_at(counted_of(longer), frozen, block))
            longer += [assistant(prose(rng, 30)), user(f"{step}")]
        assert len(decisions) == 1


def blocks_of_a_loop(block: Block, frozen: Frozen, steps: int) -> list[tuple[Block, int]]:
    """A block at each call of its loop, and the tokens of the prompt with it."""
    rng = random.Random(9)
    said = [*chat(rng, 5, 20)[:-1], user("go")]
    found = []
    for step in range(steps):
        counted = counted_of(said)
        now = standing(counted, frozen=frozen, blocks=standing_blocks(counted, frozen, [block], BUDGET, HALF))
        blocks = cut_to_fit(now)
        found.append((blocks[10], now.tokens - block.kept_tokens + blocks[10].tokens))
        said += [calling((f"c{step}", "{}")), result(f"c{step}", prose(rng, 200))]
    return found


LOOP_START = Frozen(10, (Part(0, 10, 100, b"{}", Form.SUMMARY),), (), 100, 11)


def test_what_filled_a_block_stays_until_the_loop_needs_its_place_and_is_cut_once():
    """Cutting it with the next call cost evidence and a second reading, while the place it had made stayed empty."""
    block = Block(10, 11, b"kept", 500, b"filled", 2_500)
    steps = blocks_of_a_loop(block, LOOP_START, 25)
    shown = [found.raw for found, _ in steps]
    full = shown.count(b"filled")

    assert shown == [b"filled"] * full + [b"kept"] * (len(shown) - full)
    assert 5 < full < len(shown)
    assert steps[full - 1][1] <= BUDGET.limit < steps[full][1] + 2_000


def test_much_that_filled_a_block_is_cut_with_the_next_call():
    """Read again on each call of a loop it costs more than it did once."""
    block = Block(10, 11, b"kept", 500, b"filled", 501 + LOOP_TOKENS)
    assert [found.raw for found, _ in blocks_of_a_loop(block, LOOP_START, 3)] == [b"filled", b"kept", b"kept"]


def test_a_block_without_a_share_is_gone_with_the_next_call():
    """`recall.max_share` 0: blocks come back in the request of a rollover only."""
    block = Block(10, 11, b"", 0, b"filled", 700)
    assert [found.raw for found, _ in blocks_of_a_loop(block, LOOP_START, 3)] == [b"filled", b"", b""]


def test_a_block_whose_filling_stood_to_the_end_goes_when_its_user_message_is_no_longer_the_newest():
    """Cut or taken out, what follows it is read anew in any case; one that was cut before may stay."""
    counted, frozen = loop()
    filled, cut = Block(10, 11, b"kept", 5, b"filled", 50), Block(10, 12, b"kept", 5)

    assert standing_blocks(counted, frozen, [filled], BUDGET, TENTH) == {}
    assert standing_blocks(counted, frozen, [filled, cut], BUDGET, TENTH) == {10: cut}


def json_of(message: object) -> dict:
    return json.loads(message.raw)  # type: ignore[attr-defined]


# The bill


def test_a_rollover_is_said_to_cost_more_than_the_next_turn():
    counted = talk_of(7_500)
    direct, rolled = saved_input(standing(counted), 2_500, True, 0)
    _, later = saved_input(standing(counted), 2_500, False, 0)

    assert direct == pytest.approx(HALF.cached * (counted.total - counted.tokens[-1]) + HALF.write * counted.tokens[-1])
    assert later < rolled < direct


def test_with_a_cold_cache_both_sides_are_written_whole():
    counted = talk_of(7_500)
    assert saved_input(standing(counted, cold=True), 2_500, True, 300) == (counted.total, 2_500)


# Without a store


def shown(messages: Sequence[dict], limit: int = BUDGET.limit) -> list[dict]:
    pieces = without_store(counted_of(messages), replace(BUDGET, limit=limit), message_json)
    return [json.loads(piece.raw) for piece in pieces]


def test_without_a_store_the_front_the_newest_turn_and_as_much_tail_as_fits_go():
    rng = random.Random(5)
    messages = [system("s"), *chat(rng, 40, 80)]
    prompt = shown(messages)

    assert prompt[0] == messages[0]
    assert prompt[1]["content"] == HELD_BACK
    kept = prompt[2:]
    assert kept == messages[-len(kept) :]
    more = messages[-len(kept) - 1]
    assert forwarded_tokens_of([*prompt, more]) > BUDGET.limit - 60


def forwarded_tokens_of(messages: Sequence[dict]) -> int:
    return forwarded_tokens([json.dumps(message).encode() for message in messages])


def test_without_a_store_calls_keep_their_results_and_the_user_their_words():
    rng = random.Random(6)
    messages = [user("the task is to count"), *agent(rng, 60, 80)[1:]]
    prompt = shown(messages)

    assert prompt[1] == messages[0]
    assert prompt[2]["tool_calls"]
    assert forwarded_tokens_of(prompt) <= BUDGET.limit


def test_without_a_store_the_newest_late_system_message_stays():
    rng = random.Random(7)
    messages = chat(rng, 40, 80)
    messages.insert(3, system("old rule"))
    messages.insert(9, system("new rule"))
    prompt = shown(messages)

    assert system("new rule") in prompt
    assert forwarded_tokens_of(prompt) <= BUDGET.limit


@given(st.integers(0, 2**32), st.integers(300, 7_086), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_without_a_store_it_fits_or_says_that_it_cannot(seed, limit, steps):
    rng = random.Random(seed)
    messages = [system(prose(rng, 10)), *chat(rng, rng.randrange(20), 40)[:-1], *agent(rng, steps, 60)]
    try:
        prompt = shown(messages, limit)
    except CannotFit:
        return
    assert forwarded_tokens_of(prompt) <= limit


def test_without_a_store_a_huge_newest_result_cannot_fit():
    with pytest.raises(CannotFit):
        shown([user("read"), calling(("c", "{}")), result("c", prose(random.Random(8), 9_000))])


def test_budgets_of_these_tests_are_those_of_the_product():
    assert budget(Model("m", 8_192), 1_024, 0) == BUDGET


# What a block may have


@pytest.mark.parametrize("window", [2_048, 4_096, 8_192, 32_768, 131_072])
@pytest.mark.parametrize("rolled", [False, True])
def test_a_block_in_a_loop_leaves_rollovers_rare_and_every_block_fits(window, rolled):
    budget = Budget(window, window // 8, window * 7 // 8, window * 3 // 4, window // 4)
    now = standing(talk_of(1_000), budget=budget)
    most = budget.limit - now.tokens
    inside = block_room(now, True, 0.6, 10**9, rolled)
    outside = block_room(now, False, 0.6, 10**9, rolled)

    between = budget.trigger - budget.target
    assert 0 < inside.stays <= inside.once <= most
    assert inside.once <= max(LOOP_TOKENS, between // 8)
    assert between / (budget.limit - budget.target - inside.stays) <= ROLLOVERS * 1.01
    assert inside.stays <= outside.stays <= outside.once <= most
    assert block_room(replace(now, cold=True), False, 0.6, 10**9, True).once == most


def test_in_a_loop_a_part_of_the_room_stays_free_for_the_calls_that_follow():
    """A block that filled it all was cut by the next call: written twice for one call."""
    budget = Budget(4_352, 256, 4_052, 3_264, 1_664)
    now = standing(talk_of(1_700), budget=budget)
    room = block_room(now, True, 0.6, 10**9, False)

    assert room.stays < room.once <= (budget.limit - now.tokens) * 4 // 5 + 1


def test_a_session_that_can_afford_little_spends_half_of_it_and_none_without():
    now = standing(talk_of(1_000))
    poor = block_room(now, False, 0.6, 1_000, rolled=False)

    assert (poor.stays, poor.once, poor.scarce) == (500, 500, True)
    assert block_room(now, False, 0.6, 0, rolled=True).once == 0
    assert not block_room(now, False, 0.6, 10**9, rolled=False).scarce
