"""Training: from recorded conversations to a verdict, one at a time; what is cut goes on, what goes wrong is told."""

import asyncio
import json
import shutil
from dataclasses import replace
from uuid import UUID

import pytest

from memory.errors import InvalidRequest, ModelError
from memory.identify import new_id
from memory.learning import Learning
from memory.recorder import Recorder
from memory.slm.adapters import WEIGHTS
from memory.slm.bases import Bases
from memory.slm.children import Died
from memory.slm.lessons import ROWS
from memory.slm.samples import Split, rows_from
from memory.spool import Spool
from memory.store import adapters
from memory.store.learning import leave_lease, load_learnt, take_lease
from memory.store.quarantine import save_seals
from memory.trainer import LEASE, LEASE_SECONDS, Trainer
from tests.clock import Hands
from tests.conversations import TENANT
from tests.memory.store.test_turns import OTHER
from tests.memory.taught import LEARNING, RULES, Script, record_talks, slm
from tests.slm.small import small_model

KEY = "sk-ant-abc123DEF456ghi789JKL0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("base") / "small")


class School:
    """A tenant's learning with a scripted trainer."""

    def __init__(self, pool, base, home, tenant=TENANT, learning=LEARNING):
        self.pool, self.home, self.tenant, self.hands = pool, home, tenant, Hands()
        self.slm, self.script = slm(base, learning), Script()
        self.learning = Learning(pool, self.slm, self.hands)

    def trainer(self, script=None, beat_seconds=0.05):
        bases = Bases(self.slm, self.home / "models", {})
        return Trainer(
            self.pool, self.home, self.slm, self.hands, bases, script or self.script, RULES, beat_seconds=beat_seconds
        )  # fmt: skip

    async def run(self, script=None, **more):
        return await self.trainer(script).run(**more)

    async def adapters(self):
        return [(a.number, a.state) for a in await self.learning.adapters(self.tenant)]

    async def row(self, id):
        async with self.pool.tenant(self.tenant) as connection:
            return await adapters.load_adapter(connection, self.tenant, UUID(id))

    @property
    def left(self):
        """Work folders that are there."""
        return [path.name for path in (self.home / "trainings").glob("*")]


@pytest.fixture
async def school(pool, base, tmp_path):
    made = School(pool, base, tmp_path / "home")
    await made.learning.switch(TENANT, True)
    await record_talks(Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=30)))
    return made


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_proves_better_is_on_trial_with_its_table_and_nothing_else_is_left(school):
    told = []
    wanted = await school.learning.want(TENANT)
    ended = await school.run(tell=told.append)

    assert (ended.id, ended.state, ended.error) == (wanted.id, "done", None)
    assert (ended.metrics["rows"], ended.metrics["last_loss"]) == (9, 1.0)
    assert [event["event"] for event in told] == ["loaded", "step", "saved", "done", "measuring"]
    row = await school.row(wanted.id)
    assert (row.state, row.number) == ("canary", 1)
    assert (school.home / row.folder / WEIGHTS).is_file()
    meta = json.loads((school.home / row.folder / "meta.json").read_text())
    assert meta["training"] == wanted.id
    verdict = json.loads(row.verdict)
    assert verdict["passed"]
    assert {line["against"] for line in verdict["table"]} == {"", "base"}
    assert school.left == []
    assert await school.run() is None


async def test_rows_are_of_allowed_messages_and_the_newest_conversations_are_only_asked_about(school, tmp_path):
    kept = {}

    async def keep():
        order = school.script.orders[0]
        kept["rows"] = rows_from(order.rows.read_text())
        kept["mode"] = order.rows.parent.stat().st_mode & 0o777

    school.script.before_end = keep
    await school.learning.want(TENANT)
    ended = await school.run()
    assert kept["mode"] == 0o700
    learnt = {row.conversation for row in kept["rows"] if row.split is Split.TRAIN and row.conversation}
    (asked,) = school.script.measured
    held = {question.conversation for question in asked.questions}
    assert learnt
    assert held
    assert not learnt & held
    async with school.pool.tenant(TENANT) as connection:
        sources = await connection.fetch("select node from infold.adapter_sources where tenant = $1", TENANT)
    assert len(sources) == ended.samples == 64  # of eight of ten conversations


async def test_what_the_gate_refuses_is_gone_and_its_table_stays(school):
    school.script.losses = {"base": 2.0, "candidate": 2.0}
    wanted = await school.learning.want(TENANT)
    ended = await school.run()
    assert ended.state == "refused"
    assert "answers whose likelihood it changes against base: 0 -> 0, must be > 0" in ended.error
    row = await school.row(wanted.id)
    assert row.state == "refused"
    assert json.loads(row.verdict)["reasons"]


async def test_the_number_of_one_that_is_gone_is_not_given_again(school):
    """An engine that could not be reached may still carry the old one under that name."""
    await school.learning.want(TENANT)
    await school.run(Script(losses={"base": 2.0, "candidate": 2.0}))
    for folder in school.home.glob("adapters/*/*/1"):
        shutil.rmtree(folder)
    school.hands.forward(hours=1)
    await school.learning.want(TENANT)
    await school.run()
    assert await school.adapters() == [(2, "canary"), (1, "refused")]


async def test_a_second_adapter_has_to_beat_the_first_one(school, pool):
    await school.learning.want(TENANT)
    first = await school.run()
    async with pool.tenant(TENANT) as connection:
        await adapters.promote(connection, TENANT, UUID(first.id), 0.5, school.hands())
    school.hands.forward(hours=1)
    await school.learning.want(TENANT, force=True)
    second = await school.run(Script(losses={"base": 2.0, "candidate": 1.6, "current": 1.5}))
    assert second.state == "refused"
    assert "against current" in second.error
    assert await school.adapters() == [(2, "refused"), (1, "active")]


async def test_a_broken_adapter_in_use_is_nothing_to_compare_with_and_no_reason_not_to_train(school, pool):
    await school.learning.want(TENANT)
    first = await school.run()
    async with pool.tenant(TENANT) as connection:
        await adapters.promote(connection, TENANT, UUID(first.id), 0.5, school.hands())
    folder = school.home / (await school.row(first.id)).folder
    (folder / "meta.json").unlink()
    (folder / "evil.pkl").write_bytes(b"x")
    school.hands.forward(hours=1)
    await school.learning.want(TENANT, force=True)
    assert (await school.run()).state == "done"


# Too little


async def test_without_conversations_to_judge_by_nothing_is_trained(school, pool, base, tmp_path):
    little = School(pool, base, tmp_path / "other", OTHER)
    await little.learning.switch(OTHER, True)
    await record_talks(Recorder(pool, Spool(tmp_path / "more", timeout_seconds=30)), 1, OTHER)
    wanted = await little.learning.want(OTHER)
    ended = await little.run()
    assert (ended.id, ended.state) == (wanted.id, "refused")
    assert "there is nothing to learn: 1 conversations" in ended.error
    assert little.script.orders == []
    assert little.left == []


async def test_missing_weights_are_told(school, pool, tmp_path):
    lost = School(pool, tmp_path / "nowhere", tmp_path / "home")
    await school.learning.want(TENANT)
    ended = await lost.run()
    assert ended.state == "failed"
    assert "there is no file or folder" in ended.error
    assert lost.left == []


# One at a time


async def test_two_trainers_never_work_at_once(school):
    school.script.hold = asyncio.Event()
    await school.learning.want(TENANT)
    working = asyncio.create_task(school.run())
    await until(lambda: school.script.orders)
    assert await school.run(Script()) is None
    school.script.hold.set()
    assert (await working).state == "done"


async def test_a_lease_is_taken_over_only_when_it_has_lapsed(pool):
    hands, one, two = Hands(), new_id(), new_id()
    async with pool.connection(5) as connection:

        async def take(holder):
            return await take_lease(connection, LEASE, holder, hands(), LEASE_SECONDS)

        assert await take(one)
        assert not await take(two)
        hands.forward(seconds=LEASE_SECONDS - 1)
        assert await take(one)
        hands.forward(seconds=LEASE_SECONDS)
        assert await take(two)
        assert not await take(one)
        await leave_lease(connection, LEASE, one)
        assert not await take(one)
        await leave_lease(connection, LEASE, two)
        assert await take(one)


# Cut


async def test_a_trainer_that_is_killed_goes_on_from_its_folder_and_not_for_ever(school):
    wanted = await school.learning.want(TENANT)
    deadly = Script(fault=Died("by SIGKILL"))
    first = await school.run(deadly)
    assert (first.state, first.error, first.tries) == ("queued", "by SIGKILL", 1)
    rows = school.home / "trainings" / wanted.id / ROWS
    before = rows.read_text()
    second = await school.run(deadly)
    assert second.state == "queued"
    assert rows.read_text() == before
    assert {order.folder for order in deadly.orders} == {rows.parent / "run"}
    third = await school.run(deadly)
    assert (third.state, third.tries) == ("failed", 3)
    assert school.left == []


async def test_a_process_that_is_gone_leaves_its_training_to_the_next_holder(school, owner):
    wanted = await school.learning.want(TENANT)
    await school.run(Script(fault=Died("by SIGKILL")))
    await owner.execute("update infold.trainings set state = 'running'")  # as a whole worker leaves it that is killed
    ended = await school.run()
    assert (ended.id, ended.state) == (wanted.id, "done")


async def test_what_is_stopped_keeps_its_place_and_the_same_wish_goes_on(school):
    school.script.hold, stop = asyncio.Event(), asyncio.Event()
    wanted = await school.learning.want(TENANT)
    working = asyncio.create_task(school.run(stop=stop))
    await until(lambda: school.script.orders)
    stop.set()
    ended = await working
    assert ended.state == "stopped"
    assert "goes on where it stood" in ended.error
    assert school.script.stopped == 1
    assert school.left == [wanted.id]
    assert await school.run() is None

    again = await school.learning.want(TENANT)
    assert (again.id, again.state) == (wanted.id, "queued")
    assert (await school.run(Script())).state == "done"


async def test_a_worker_that_ends_leaves_the_training_in_the_queue(school):
    school.script.hold = asyncio.Event()
    wanted = await school.learning.want(TENANT)
    working = asyncio.create_task(school.run())
    await until(lambda: school.script.orders)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert school.script.stopped == 1
    assert (await school.learning.training(TENANT, wanted.id)).state == "queued"
    assert (await school.run(Script())).state == "done"


# Taken away meanwhile


async def sealed(pool):
    """Seal what the oldest conversation says, as a quarantine does."""
    async with pool.tenant(TENANT) as connection:
        rows = await load_learnt(connection, TENANT)
        await save_seals(connection, TENANT, "thread", [rows[-1].digest])


async def test_what_is_quarantined_while_it_is_learnt_ends_the_training_and_leaves_nothing(school, pool):
    school.script.hold = asyncio.Event()
    wanted = await school.learning.want(TENANT)
    working = asyncio.create_task(school.run())
    await until(lambda: school.script.orders)
    await sealed(pool)
    ended = await working
    assert (ended.state, school.script.stopped) == ("refused", 1)
    assert "taken away meanwhile" in ended.error
    assert (await school.row(wanted.id)).state == "stale"
    assert school.left == []
    assert not list(school.home.glob(f"adapters/**/{WEIGHTS}"))


async def test_what_is_quarantined_in_the_last_moment_is_not_published(school, pool):
    school.script.before_end = lambda: sealed(pool)
    await school.learning.want(TENANT)
    trainer = school.trainer(beat_seconds=60)
    ended = await trainer.run()
    assert ended.state == "refused"
    assert "taken away meanwhile" in ended.error
    assert not list(school.home.glob(f"adapters/**/{WEIGHTS}"))


async def test_who_turns_learning_off_ends_what_is_being_learnt(school):
    school.script.hold = asyncio.Event()
    await school.learning.want(TENANT)
    working = asyncio.create_task(school.run())
    await until(lambda: school.script.orders)
    await school.learning.switch(TENANT, False)
    assert (await working).state == "refused"


# Wrong


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (ModelError("the model needs more memory than there is of 500 MB; lower batch_size"), "failed"),
        (InvalidRequest("every row is longer than row_tokens (16); raise it"), "refused"),
    ],
)
async def test_what_a_trainer_complains_about_stands_in_the_history_and_what_reads_goes_on_reading(
    school, pool, fault, state
):
    await school.learning.want(TENANT)
    first = await school.run()
    async with pool.tenant(TENANT) as connection:
        await adapters.promote(connection, TENANT, UUID(first.id), 0.5, school.hands())
    school.hands.forward(hours=1)
    await school.learning.want(TENANT)
    ended = await school.run(Script(fault=fault))
    assert (ended.state, ended.error) == (state, str(fault))
    assert await school.adapters() == [(None, "refused"), (1, "active")]
    assert school.left == []


async def test_a_trainer_that_leaves_no_adapter_is_told(school, tmp_path):
    class Elsewhere(Script):
        def train(self, order):
            return super().train(replace(order, folder=tmp_path / "elsewhere"))

    await school.learning.want(TENANT)
    ended = await school.run(Elsewhere())
    assert ended.state == "failed"
    assert "FileNotFoundError" in ended.error
    assert not list(school.home.glob(f"adapters/**/{WEIGHTS}"))
