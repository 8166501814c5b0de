"""What a question reads of conversations: those of a scope, the newest within bounds, never what is held."""

import json

from memory.identify import child
from memory.store.quarantine import save_seals
from memory.store.said import load_said, may_be_told, turns_of
from memory.written import said
from proxy.wire.content import message_of
from tests.conversations import TENANT, assistant, line_of, system, user
from tests.memory.store.test_turns import OTHER


async def words(pool, session=None, tenant=TENANT, **bounds):
    async with pool.tenant(tenant) as connection:
        return [said(row.raw) for row in await load_said(connection, tenant, session, **bounds)]


async def test_a_label_names_its_conversations_and_all_of_a_tenant_are_all(pool, tell):
    await tell("home", system("be kind"), user("the lamp is blue"))
    await tell("away", user("the boat is red"))
    await tell(None, user("the door is green"))
    await tell("home", user("a stranger's lamp"), tenant=OTHER)

    assert await words(pool, "home") == ["the lamp is blue", "Noted."]
    assert set(await words(pool)) == {"the lamp is blue", "the boat is red", "the door is green", "Noted."}
    assert await words(pool, "home", OTHER) == ["a stranger's lamp", "Noted."]
    assert await words(pool, "nowhere") == []


async def test_a_conversation_without_a_label_is_a_session_by_its_own_id(pool, tell, owner):
    await tell(None, user("the door is green"))
    id = await owner.fetchval("select id from infold.sessions")
    assert await words(pool, id) == ["the door is green", "Noted."]


async def test_a_conversation_is_told_in_its_order_and_the_newest_fit_the_bounds(pool, tell):
    messages = [m for n in range(6) for m in (user(f"question {n}"), assistant(f"answer {n}"))][:-1]
    await tell("home", *messages, answer="answer 5")
    everything = [json.loads(json.dumps(m["content"])) for m in messages] + ["answer 5"]

    assert await words(pool, "home") == everything
    assert await words(pool, "home", most=3) == everything[-3:]
    assert await words(pool, most=3) == everything[-3:]
    one = len(json.dumps(assistant("answer 5")))
    assert await words(pool, "home", most_bytes=2 * one + 10) == everything[-2:]


async def test_what_is_sealed_is_not_read(pool, tell):
    await tell("home", user("the lamp is blue"), answer="It is swordfish.")
    digest = message_of(json.dumps(assistant("It is swordfish.")).encode()).digest
    async with pool.tenant(TENANT) as connection:
        await save_seals(connection, TENANT, "thread", [digest])
    assert await words(pool) == ["the lamp is blue"]


async def test_a_message_that_holds_what_is_in_quarantine_may_not_be_told_though_it_is_not_sealed_yet(
    pool, tell, owner
):
    await tell("home", user("the lamp is blue"), answer="the password is swordfish-4711")
    nodes = [row["node"] for row in await owner.fetch("select node from infold.nodes order by depth")]
    async with pool.tenant(TENANT) as connection:
        assert await may_be_told(connection, TENANT, [*nodes, b"x" * 16]) == set(nodes)
    await owner.execute(
        "insert into infold.quarantine (tenant, id, thread, session, state, context_type, reason, content, tokens,"
        " created_at, updated_at, plain) values ($1, gen_random_uuid(), 't', gen_random_uuid(), 'isolated', 'note',"
        " 'odd', $2, 1, now(), now(), array[$3]::bytea[])",
        TENANT, "swordfish-4711", b"swordfish-4711",
    )  # fmt: skip
    await owner.execute("insert into infold.seals values ($1, $2, 't')", TENANT, bytes(16))

    async with pool.tenant(TENANT) as connection:
        assert await may_be_told(connection, TENANT, nodes) == {nodes[0]}
    async with pool.tenant(OTHER) as connection:
        assert await may_be_told(connection, OTHER, nodes) == set()


async def test_a_message_belongs_to_the_turn_that_brought_it(pool, tell):
    history = [user("one"), assistant("two"), user("three")]
    await tell("home", *history, answer="four")
    line = line_of(history)
    answer = child(TENANT, line.tip, message_of(json.dumps(assistant("four")).encode()))
    await tell("home", *history, assistant("four"), user("five"), answer="six")
    later = line_of([*history, assistant("four"), user("five")])

    async with pool.tenant(TENANT) as connection:
        turns = await turns_of(connection, TENANT, [*line.nodes, answer, later.tip])
    assert turns == dict.fromkeys([*line.nodes, answer], line.tip) | {later.tip: later.tip}
    async with pool.tenant(OTHER) as connection:
        assert await turns_of(connection, OTHER, list(line.nodes)) == {}
