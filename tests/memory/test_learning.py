"""What may be learnt from, who allows it, and that what is taken away is used no more from that moment on."""

from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from memory.errors import Conflict, InvalidRequest
from memory.identify import new_id, place
from memory.learning import Learning, recipe_for
from memory.models import ModelTable
from memory.recorder import Recorder
from memory.settings import Settings, Slm
from memory.spool import Spool
from memory.store import adapters
from memory.store.learning import list_learning, load_learnt
from memory.store.pool import show
from memory.store.portable import erase
from memory.store.quarantine import save_seals
from memory.tokens import Counter
from memory.whole import memory
from memory.written import said
from tests.clock import NOON, Hands
from tests.conversations import TENANT, assistant, user
from tests.memory.store.test_turns import OTHER, answers, asked_for, whole_turn
from tests.memory.taught import LEARNING, record_talks, recorded
from tests.slm.talks import talks

KEY = "sk-ant-abc123DEF456ghi789JKL0"


@pytest.fixture
def recorder(pool, tmp_path):
    return Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=30))


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def learning(pool, hands):
    return Learning(pool, Slm(learning=LEARNING), hands)


def by(upstream, *texts):
    """The answers of an upstream."""
    return structs.replace(answers(*texts), record={"upstream": upstream})


async def reasons(pool, tenant=TENANT):
    async with pool.tenant(tenant) as connection:
        rows = await connection.fetch(
            "select n.raw, s.reason from infold.samples s join infold.nodes n on n.node = s.node and n.tenant = $1"
            " where s.tenant = $1", tenant,
        )  # fmt: skip
    return {said(row["raw"]): row["reason"] for row in rows}


async def test_a_message_is_learnt_from_only_where_nothing_speaks_against_it(pool, recorder, learning):
    await learning.switch(TENANT, True)
    tool = {"role": "tool", "tool_call_id": "c", "content": "a stranger's page"}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        user("The lamp is in Aarhus."),
        assistant("brought along by the client"),
        user(f"my key is {KEY}"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        tool,
    ]
    await whole_turn(recorder, asked_for(history), by("default", "It shines.", "It glows."))
    await whole_turn(recorder, asked_for([user("Elsewhere?")]), by("other", "No."))
    assert await learning.scan(TENANT) == 9

    assert await reasons(pool) == {
        "The lamp is in Aarhus.": "",
        "brought along by the client": "provider",
        f"my key is {KEY}": "secret",
        "look({})": "provider",
        "a stranger's page": "tool",
        "It shines.": "",
        "It glows.": "",
        "Elsewhere?": "",
        "No.": "provider",
    }
    state = await learning.state(TENANT)
    assert (state.samples, state.excluded) == (4, {"provider": 3, "secret": 1, "tool": 1})
    assert await learning.scan(TENANT) == 0


async def test_nothing_is_looked_at_for_who_does_not_allow_it(pool, recorder, learning, owner):
    await record_talks(recorder, 1)
    assert await learning.scan(TENANT) == 0
    await learning.switch(TENANT, True)
    await learning.switch(TENANT, False)
    assert await learning.scan(TENANT) == 0
    assert await owner.fetchval("select count(*) from infold.samples") == 0
    await learning.switch(TENANT, True, past=True)
    assert await learning.scan(TENANT) == 8
    assert await learning.scan(OTHER) == 0
    async with pool.connection(5) as connection:
        assert await list_learning(connection) == [TENANT]


async def test_what_was_said_before_it_was_allowed_is_not_learnt_from_unless_that_is_wanted(recorder, learning, hands):
    hands.now += timedelta(days=36_500)  # later than whatever the database's clock says
    await record_talks(recorder, 1)
    await learning.switch(TENANT, True)
    assert await learning.scan(TENANT) == 0
    await learning.switch(TENANT, True, past=True)
    assert await learning.scan(TENANT) == 8


async def test_a_word_that_was_given_stands_when_a_program_allows_it(learning):
    await learning.switch(TENANT, False)
    await learning.allow(TENANT)
    assert not (await learning.state(TENANT)).enabled
    await learning.allow(OTHER)
    assert (await learning.state(OTHER)).enabled
    for wrong in ({"enabled": 1}, {"enabled": True, "past": "yes"}):
        with pytest.raises(InvalidRequest):
            await learning.switch(TENANT, **wrong)


# What is taken away


async def trained_on(pool, tenant=TENANT, states=("active", "canary", "retired", "training", "refused")):
    """Adapters in several states, each made of all that may be learnt from."""
    made = {}
    async with pool.tenant(tenant) as connection:
        sources = [(row.node, row.digest) for row in await load_learnt(connection, tenant)]
        for state in states:
            made[state] = new_id()
            await adapters.begin_adapter(connection, tenant, made[state], "base", "none", sources, NOON)
            folder = {"folder": f"adapters/{state}"} if state != "training" else {}
            await adapters.set_state(connection, tenant, made[state], state, ["training"], NOON, **folder)
    return made


async def states_of(pool, tenant=TENANT):
    async with pool.tenant(tenant) as connection:
        return {row.id: row.state for row in await adapters.list_adapters(connection, tenant)}


async def test_a_quarantine_makes_stale_what_learnt_from_it_at_once_and_nothing_else(pool, dsn, recorder, learning):
    await learning.switch(TENANT, True)
    await learning.switch(OTHER, True)
    await record_talks(recorder, 2)
    await record_talks(recorder, 2, OTHER)
    await learning.scan(TENANT)
    await learning.scan(OTHER)
    made, others = await trained_on(pool), await trained_on(pool, OTHER)
    text = talks(1)[0].utterances[2].text
    whole = memory(pool, dsn, Counter(), ModelTable(), Settings())
    await whole.quarantine.isolate(place(TENANT, "home"), text, "note", "odd")

    assert (await states_of(pool)) == {id: "refused" if s == "refused" else "stale" for s, id in made.items()}
    assert (await states_of(pool, OTHER)) == {id: state for state, id in others.items()}
    assert (await reasons(pool))[text] == "quarantined"
    assert (await reasons(pool, OTHER))[text] == ""


async def test_a_seal_of_something_else_changes_nothing_and_one_that_is_rolled_back_neither(pool, recorder, learning):
    await learning.switch(TENANT, True)
    await record_talks(recorder, 1)
    await learning.scan(TENANT)
    made = await trained_on(pool)
    async with pool.tenant(TENANT) as connection:
        await save_seals(connection, TENANT, "thread", [bytes(16)])
    async with pool.connection(5) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await show(connection, TENANT)
        (row, *_) = await load_learnt(connection, TENANT)
        await save_seals(connection, TENANT, "thread", [row.digest])
        await transaction.rollback()
    assert await states_of(pool) == {id: state for state, id in made.items()}


async def test_a_message_that_is_deleted_by_whomever_spoils_what_learnt_from_it(pool, recorder, learning, owner):
    await learning.switch(TENANT, True)
    await record_talks(recorder, 1)
    await learning.scan(TENANT)
    made = await trained_on(pool, states=("active",))
    await owner.execute("delete from infold.nodes where depth = 3")
    assert await states_of(pool) == {made["active"]: "stale"}
    assert (await learning.state(TENANT)).samples == 7


async def test_erasing_leaves_only_the_names_of_folders_to_delete(pool, recorder, learning, owner):
    await learning.switch(TENANT, True)
    await record_talks(recorder, 3)
    training = await learning.want(TENANT)
    await trained_on(pool)
    async with pool.tenant(TENANT) as connection:
        await erase(connection, TENANT)
    for table in ("samples", "adapters", "adapter_sources", "trainings", "learners"):
        assert await owner.fetchval(f"select count(*) from infold.{table}") == 0, table
    litter = {row["folder"] for row in await owner.fetch("select folder from infold.litter")}
    assert litter == {
        f"trainings/{training.id}",
        *(f"adapters/{s}" for s in ("active", "canary", "retired", "refused")),
    }


# When


async def test_a_training_is_queued_once_and_only_where_all_allow_it(pool, recorder, learning, hands):
    with pytest.raises(Conflict, match="slm learning on"):
        await learning.want(TENANT)
    with pytest.raises(Conflict, match=r"slm\.learning\.enabled"):
        await Learning(pool, Slm(), hands).want(TENANT)
    await learning.switch(TENANT, True)
    await recorded(recorder, replace(talks(1)[0], utterances=talks(1)[0].utterances[:4]))
    with pytest.raises(Conflict, match="4 messages may be learnt from, and 5 are needed"):
        await learning.want(TENANT)
    forced = await learning.want(TENANT, force=True)
    assert (forced.state, forced.why, forced.force) == ("queued", "manual", True)
    assert (await learning.want(TENANT, force=True)).id == forced.id


@pytest.mark.parametrize(
    ("trigger", "queued"),
    [
        ({"trigger": "manual"}, []),
        ({"trigger": "fixed", "conversations": 3}, ["conversations"]),
        ({"trigger": "fixed", "conversations": 4}, []),
        ({"trigger": "adaptive", "importance": 10}, ["importance"]),
        ({"trigger": "adaptive", "importance": 100_000}, []),
    ],
)
async def test_a_training_begins_by_itself_when_there_is_enough(pool, recorder, hands, trigger, queued):
    learning = Learning(pool, Slm(learning=replace(LEARNING, **trigger)), hands)
    await learning.switch(TENANT, True)
    await record_talks(recorder, 3)
    await learning.look()
    assert [one.why for one in (await learning.state(TENANT)).trainings] == queued
    await learning.look()
    assert len((await learning.state(TENANT)).trainings) == len(queued)


async def test_by_the_hours_one_begins_only_where_something_is_new(pool, recorder, hands, owner):
    learning = Learning(pool, Slm(learning=replace(LEARNING, trigger="fixed", hours=24)), hands)
    await learning.switch(TENANT, True)
    await record_talks(recorder, 2)
    await learning.look()
    hands.forward(hours=23)
    await learning.look()
    assert not (await learning.state(TENANT)).trainings
    hands.forward(hours=1)
    await learning.look()
    assert [one.why for one in (await learning.state(TENANT)).trainings] == ["hours"]
    await owner.execute("update infold.trainings set state = 'refused'")
    hands.forward(hours=48)
    await learning.look()
    assert len((await learning.state(TENANT)).trainings) == 1


def test_the_weights_are_quantized_for_learning_as_they_are_for_serving():
    given = replace(LEARNING, recipe={"r": 4})
    assert recipe_for(Slm(backend="transformers", quantization="4bit", learning=given)).quantization == "4bit"
    made = recipe_for(Slm(backend="llamacpp", learning=given))
    assert (made.r, made.quantization) == (4, "none")


# Back


async def an_adapter(pool, hands, number, state):
    id = new_id()
    hands.forward(hours=1)
    async with pool.tenant(TENANT) as connection:
        await adapters.begin_adapter(connection, TENANT, id, "base", "none", (), hands.now)
        more = {"number": number, "folder": f"adapters/{number}"}
        await adapters.set_state(connection, TENANT, id, state, ["training"], hands.now, **more)
    return id


async def rolled_back(learning):
    """States after a rollback, oldest first."""
    return [a.state for a in reversed(await learning.roll_back(TENANT))]


async def test_a_rollback_takes_the_one_on_trial_then_the_one_in_use_then_there_is_none(pool, learning, hands):
    for number, state in enumerate(("retired", "active", "canary"), 1):
        await an_adapter(pool, hands, number, state)
    assert await rolled_back(learning) == ["retired", "active", "retired"]
    assert await rolled_back(learning) == ["active", "retired", "retired"]
    assert await rolled_back(learning) == ["retired", "retired", "retired"]
    with pytest.raises(Conflict, match="the bare model reads"):
        await learning.roll_back(TENANT)


async def test_what_was_rolled_back_reads_no_more_when_a_later_one_is_rolled_back_too(pool, learning, hands):
    """The one before was the bare model; an adapter that a person had taken back came again."""
    await an_adapter(pool, hands, 1, "active")
    assert await rolled_back(learning) == ["retired"]
    await an_adapter(pool, hands, 2, "active")
    assert await rolled_back(learning) == ["retired", "retired"]
    assert [a.error for a in await learning.adapters(TENANT)] == ["it was rolled back"] * 2


async def test_what_never_was_in_use_is_not_gone_back_to(pool, learning, hands):
    await an_adapter(pool, hands, 1, "canary")
    newer = await an_adapter(pool, hands, 2, "evaluated")
    async with pool.tenant(TENANT) as connection:
        await adapters.put_on_trial(connection, TENANT, newer, hands.now)
        await adapters.promote(connection, TENANT, newer, None, hands.now)
    assert await rolled_back(learning) == ["retired", "retired"]


async def test_row_level_security_alone_hides_what_another_tenant_learns(pool, recorder, learning):
    await learning.switch(TENANT, True)
    await record_talks(recorder, 1)
    await learning.want(TENANT)
    await trained_on(pool)
    for tenant, there in ((TENANT, True), (OTHER, False)):
        async with pool.tenant(tenant) as connection:
            for table in ("learners", "samples", "trainings", "adapters", "adapter_sources"):
                assert (await connection.fetchval(f"select count(*) from infold.{table}") > 0) is there, table
