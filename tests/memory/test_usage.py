"""What was spent is summed by day, model and session, for one tenant."""

from uuid import UUID

import pytest

from memory.errors import InvalidRequest
from memory.identify import new_id
from memory.spending import MOST_NOTED, Spending
from memory.store.usage import Spent, save_usage
from memory.usage import UsageBook
from tests.clock import NOON, Hands
from tests.conversations import TENANT

STRANGER = bytes(16)


@pytest.fixture
async def book(pool):
    hands, book = Hands(), UsageBook(pool)
    for session, model, cost in (
        ("a", "gpt-4o", 0.5),
        ("a", "gpt-4o-mini", 0.25),
        ("b", "gpt-4o", 1.0),
        ("b", "odd", None),
    ):
        spent = Spent(
            attempt=new_id(), at=hands.now, session=session, model=model, input_tokens=100, cached_tokens=10,
            output_tokens=5, cost_usd=cost, direct_usd=None if cost is None else 2 * cost,
        )  # fmt: skip
        async with pool.tenant(TENANT) as connection:
            await save_usage(connection, TENANT, [spent])
            await save_usage(connection, TENANT, [spent])
        hands.forward(hours=12)
    return book


async def test_turns_are_noted_up_to_a_bound_while_nothing_can_be_written(pool):
    """Of too many the oldest are forgotten; a tenant's stay in their order."""
    spending = Spending(pool)
    for number in range(MOST_NOTED + 5):
        spent = Spent(attempt=UUID(int=number), at=NOON, session="s", model="m", input_tokens=1)
        spending.note(TENANT if number % 2 else STRANGER, spent, None)
    await spending.write()
    sums = [await UsageBook(pool).sums(tenant) for tenant in (TENANT, STRANGER)]
    assert sum(row.calls for (row,) in sums) == MOST_NOTED
    async with pool.tenant(TENANT) as connection:
        assert await connection.fetchval("select attempt from infold.usage order by attempt limit 1") == UUID(int=5)


@pytest.mark.parametrize(
    ("by", "sums"),
    [
        ("day", [("2026-01-07", 1, 0.0), ("2026-01-06", 2, 1.25), ("2026-01-05", 1, 0.5)]),
        ("model", [("gpt-4o", 2, 1.5), ("gpt-4o-mini", 1, 0.25), ("odd", 1, 0.0)]),
        ("session", [("b", 2, 1.0), ("a", 2, 0.75)]),
    ],
)
async def test_sums(book, by, sums):
    assert [(row.key, row.calls, row.bill_usd) for row in await book.sums(TENANT, by)] == sums


async def test_a_sum_has_all_that_was_spent(book):
    (row, *_) = await book.sums(TENANT, "session")
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (200, 20, 10)
    assert (row.bill_usd, row.counterfactual_usd, row.own_usd, row.unpriced_calls) == (1.0, 2.0, 0.0, 1)


async def test_a_time_and_a_session_narrow(book):
    assert [row.key for row in await book.sums(TENANT, "day", "2026-01-06", "2026-01-07T00:00:00+00:00")] == [
        "2026-01-06"
    ]
    assert [row.calls for row in await book.sums(TENANT, "day", NOON, None, "a")] == [1, 1]
    assert await book.sums(STRANGER) == ()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("week",), "by"),
        (("day", "soon"), "from"),
        (("day", None, 7), "to"),
        (([],), "by"),
        (("day", "0001-01-01T00:00:00+05:00"), "from"),
        (("day", None, "9999-12-31T23:59:59-05:00"), "to"),
    ],
)
async def test_bad_input_names_its_field(book, arguments, field):
    with pytest.raises(InvalidRequest) as refused:
        await book.sums(TENANT, *arguments)
    assert refused.value.field == field
