"""Tools over much that is stored: what they read is bounded, and nobody waits for them."""

import asyncio

import httpx

ITEMS, SUMMARY_CHARS = 1_000, 3_000


async def fill(owner, caller):
    """Many items with long summaries, as copies of one."""
    caller.add("The lighthouse keeper counts ships.")
    summary = " ".join(f"Ship {n} passed the cape at {n % 24}:00 with {n * 7} barrels." for n in range(60))
    columns = [row["column_name"] for row in await owner.fetch(
        "select column_name from information_schema.columns where table_schema = 'infold' and table_name = 'items'"
    )]  # fmt: skip
    new = {"id": "gen_random_uuid()", "summary": "$1", "created_at": "created_at - n * interval '1 second'"}
    await owner.execute(
        f"insert into infold.items ({', '.join(columns)}) select {', '.join(new.get(name, name) for name in columns)}"
        " from infold.items, generate_series(1, $2) as n",
        summary[:SUMMARY_CHARS], ITEMS - 1,
    )  # fmt: skip


async def test_a_summary_of_much_is_bounded_and_holds_nobody_up(timed, owner):
    await fill(owner, timed)
    asked = asyncio.create_task(asyncio.to_thread(timed.post, "tools/summarize_memory"))
    answered = 0
    async with httpx.AsyncClient() as client:
        while not asked.done():
            answered += (await client.get(f"{timed.url}/healthz")).is_success
    result = (await asked)["result"]
    assert answered > 3, "the loop went on: a blocked one answers the first and the last"
    assert "Ship" in result["summary"]
    assert 300 < result["items"] < 400, "as many as a million characters hold"
    assert (await asyncio.to_thread(timed.post, "tools/summarize_memory", topics=["NO ship"]))["result"]["items"] == 0
    found = await asyncio.to_thread(timed.post, "tools/summarize_memory", topics=["Counts SHIPS"], time_range="day")
    assert found["result"]["items"] > 300
