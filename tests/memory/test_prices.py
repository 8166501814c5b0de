"""What a prompt costs, and whether a rollover lowers the bill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.models import RELATIVE_PRICES
from memory.prices import best_level, block_allowance, block_stays, input_cost, rollover_pays, weighed_with
from memory.types import Budget, Prices

BUDGET = Budget(window=8_192, reserve=1_024, limit=7_086, trigger=6_144, target=2_048)
TENTH = Prices(input=1.0, cached=0.1, write=1.0, output=4.0)
HALF = Prices(input=1.0, cached=0.5, write=1.0, output=4.0)
NONE = Prices(input=1.0, cached=1.0, write=1.0, output=4.0)
FREE = Prices(0.0, 0.0, 0.0, 0.0)

tokens = st.integers(0, 200_000)
price = st.floats(0, 100)


@pytest.mark.parametrize(
    ("asked", "cached", "cost"),
    [(1_000, 0, 1_000), (1_000, 1_000, 100), (1_000, 400, 640), (1_000, 5_000, 100), (0, 0, 0)],
)
def test_cached_tokens_cost_their_own_price(asked, cached, cost):
    assert input_cost(asked, cached, TENTH) == pytest.approx(cost)


@given(tokens, tokens, tokens)
def test_more_cached_tokens_never_cost_more(asked, few, more):
    assert input_cost(asked, max(few, more), TENTH) <= input_cost(asked, min(few, more), TENTH) + 1e-6


def session_cost(level: int, front: int, growth: int, prices: Prices, turns: int = 4_000) -> float:
    """A session played turn by turn that rolls over whenever it reaches `level`: what its input costs a turn."""
    prompt, cost = float(BUDGET.target), 0.0
    for _ in range(turns):
        if prompt + growth > level:
            prompt = float(BUDGET.target)
            cost += input_cost(BUDGET.target, front, prices)
        else:
            cost += prompt * prices.cached
        prompt += growth
        cost += growth * prices.write
    return cost / turns


@pytest.mark.parametrize("prices", [TENTH, HALF], ids=["tenth", "half"])
@pytest.mark.parametrize("front", [0, 500, 1_500])
@pytest.mark.parametrize("growth", [50, 200])
def test_the_best_level_is_about_the_cheapest_of_all_when_a_session_is_played(prices, front, growth):
    best = best_level(front, BUDGET, growth, prices)
    levels = range(BUDGET.target + 2 * growth, 20_000, 200)
    cheapest = min(session_cost(level, front, growth, prices) for level in levels)
    assert session_cost(int(best), front, growth, prices) <= 1.1 * cheapest


def test_without_a_price_for_reading_the_cache_a_rollover_waits_for_the_limit():
    assert best_level(0, BUDGET, 100, FREE) == BUDGET.limit


@given(st.integers(0, 3_000), st.floats(1, 5_000), st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_best_level_is_never_below_the_target(front, growth, cached, extra):
    prices = Prices(1.0, cached, cached + extra, 4.0)
    assert best_level(front, BUDGET, growth, prices) >= BUDGET.target


def test_a_long_session_rolls_over_and_a_short_one_does_not():
    assert rollover_pays(7_000, 100, 500, 60, BUDGET, HALF)
    assert not rollover_pays(7_000, 100, 500, 1, BUDGET, TENTH)


def test_where_a_cache_read_costs_as_much_as_a_write_a_smaller_prompt_always_pays():
    assert rollover_pays(6_200, 100, 500, 1, BUDGET, NONE)


@given(st.integers(6_145, 7_086), st.integers(0, 2_000), st.integers(0, 1_500), st.integers(0, 100))
def test_more_turns_never_make_a_rollover_pay_less(prompt, fresh, front, turns):
    """At the same growth a turn: the longer a session is, the longer it is expected to go on."""
    if rollover_pays(prompt, fresh, front, turns, BUDGET, TENTH):
        assert rollover_pays(prompt, fresh, front, turns + 10, BUDGET, TENTH)


@given(st.integers(6_145, 7_086), st.integers(0, 2_000), st.integers(0, 1_500), st.integers(0, 100), price, price)
def test_a_rollover_is_decided_for_any_prices(prompt, fresh, front, turns, cached, write):
    assert rollover_pays(prompt, fresh, front, turns, BUDGET, Prices(write, cached, write, 1.0)) in (True, False)


def test_a_small_block_before_a_long_loop_stays_and_a_large_one_before_a_short_answer_goes():
    assert block_stays(100, 3_000, BUDGET, TENTH)
    assert not block_stays(2_000, 100, BUDGET, TENTH)


@given(st.integers(1, 2_000), st.integers(1, 6_000), st.integers(1, 2_000))
def test_a_smaller_block_stays_where_a_larger_one_does(block, behind, less):
    if block_stays(block, behind, BUDGET, TENTH):
        assert block_stays(max(block - less, 0), behind, BUDGET, TENTH)


def test_where_nothing_is_cached_a_block_never_stays():
    assert not block_stays(100, 3_000, BUDGET, NONE)


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=30),
    st.integers(0, 1_000),
    st.integers(0, 3_000),
    st.integers(0, 9_000),
)
def test_an_allowance_is_never_negative_grows_with_the_session_and_shrinks_as_it_is_spent(sizes, front, first, spent):
    answers = list(range(1, len(sizes), 2))
    now = block_allowance(front, sizes, answers, first, spent)
    later = block_allowance(front, [*sizes, 100, 100], [*answers, len(sizes)], first, spent)

    assert 0 <= now <= later
    assert block_allowance(front, sizes, answers, first, spent + 10) <= now


def test_what_costs_nothing_is_decided_as_where_prices_are_unknown():
    """A model that runs here still takes its time to read: a cached prefix is worth keeping."""
    assert weighed_with(None) == weighed_with(FREE) == RELATIVE_PRICES
    assert weighed_with(Prices(0.0, 0.0, 0.0, 0.0, cache_seconds=7.0)).cache_seconds == 7.0
    assert weighed_with(TENTH) is TENTH
    assert weighed_with(Prices(0.0, 0.0, 0.0, output=4.0)).output == 4.0
