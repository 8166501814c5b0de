"""What becomes of adapters: trial, use, retirement; what an engine is to load; what leaves the disk."""

import pytest

from memory.errors import ModelError
from memory.identify import new_id
from memory.learning import Learning
from memory.recorder import Recorder
from memory.slm.adapters import publish
from memory.slm.bases import Bases
from memory.slm.naming import adapter_name
from memory.spool import Spool
from memory.store import adapters
from memory.store.learning import load_learnt
from memory.store.portable import erase
from memory.store.quarantine import save_seals
from memory.tending import Tending
from tests.clock import Hands
from tests.conversations import TENANT
from tests.memory.store.test_turns import OTHER
from tests.memory.taught import record_talks, slm, write_adapter
from tests.slm.small import small_model


def mine(number):
    """An adapter of the tenant's, as engines call it."""
    return adapter_name("small", number, TENANT)


class Engine:
    """Takes adapters, as one with an interface for that does."""

    def __init__(self, *names, refuses=()):
        self.names, self.refuses, self.loaded = list(names), refuses, []

    async def list(self):
        return tuple(self.names)

    async def load(self, name, adapter):
        if name in self.refuses:
            raise ModelError("no room")
        self.names.append(name)
        self.loaded.append((name, adapter.r, adapter.folder.name))

    async def unload(self, name):
        self.names.remove(name)


class House:
    """A tenant's adapters, real folders of a small model."""

    def __init__(self, pool, home, base, engine=None):
        self.pool, self.home, self.hands, self.engine = pool, home, Hands(), engine or Engine()
        self.slm = slm(base)
        self.bases = Bases(self.slm, home / "models", {})
        self.learning = Learning(pool, self.slm, self.hands)
        self.made = 0

    async def tend(self, engine=None):
        await Tending(self.pool, self.home, self.slm, self.hands, self.bases, engine or self.engine).tend()

    async def add(self, state, tenant=TENANT, recent="", standard=None):
        """An adapter in a state, newer than all before."""
        self.hands.forward(hours=1)
        self.made += 1
        base = await self.bases.base()
        trained = write_adapter(self.home / "trained" / str(self.made), self.made)
        folder = publish(self.home / "adapters", tenant.hex(), base.foundation, trained, {}).folder
        id, now = new_id(), self.hands()
        async with self.pool.tenant(tenant) as connection:
            sources = [(row.node, row.digest) for row in await load_learnt(connection, tenant)]
            await adapters.begin_adapter(connection, tenant, id, base.foundation.hash, "none", sources, now)
            more = {"number": int(folder.name), "folder": str(folder.relative_to(self.home)), "recent": recent}
            await adapters.set_state(connection, tenant, id, state, ["training"], now, standard=standard, **more)
        return id

    async def states(self, tenant=TENANT):
        """Number, state, loaded; oldest first."""
        return [(a.number, a.state, a.served) for a in reversed(await self.learning.adapters(tenant))]

    @property
    def folders(self):
        return sorted(int(path.name) for path in self.home.glob("adapters/*/*/*"))

    async def bare(self, recent, tenant=TENANT):
        async with self.pool.tenant(tenant) as connection:
            await connection.execute("update infold.learners set recent = $2 where tenant = $1", tenant, recent)


@pytest.fixture
async def house(pool, tmp_path):
    made = House(pool, tmp_path / "home", small_model(tmp_path / "small"))
    await made.learning.switch(TENANT, True)
    await record_talks(Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=30)), 1)
    await made.learning.scan(TENANT)
    return made


async def test_what_is_in_use_or_on_trial_is_loaded_and_nothing_else_of_ours(house):
    await house.add("active")
    await house.add("canary")
    house.engine.names += [mine(9), "somebody-elses-adapter", "small"]
    await house.tend()
    assert house.engine.loaded == [(mine(1), 2, "1"), (mine(2), 2, "2")]
    assert house.engine.names == ["somebody-elses-adapter", "small", mine(1), mine(2)]
    assert await house.states() == [(1, "active", True), (2, "canary", True)]
    await house.tend()
    assert len(house.engine.loaded) == 2


async def test_what_an_engine_does_not_take_is_not_used(house):
    await house.add("active")
    await house.tend()
    await house.add("canary")
    house.engine.refuses = (mine(2),)
    await house.tend()
    assert await house.states() == [(1, "active", True), (2, "canary", False)]
    await Tending(house.pool, house.home, house.slm, house.hands, house.bases, None).tend()
    assert await house.states() == [(1, "active", False), (2, "canary", False)]


async def test_who_turned_learning_off_has_no_adapter_loaded_and_has_it_again(house):
    await house.add("active")
    await house.tend()
    await house.learning.switch(TENANT, False)
    await house.tend()
    assert house.engine.names == []
    assert await house.states() == [(1, "active", False)]
    await house.learning.switch(TENANT, True)
    await house.tend()
    assert house.engine.names == [mine(1)]


# Trial


@pytest.mark.parametrize(
    ("canary", "bare", "state"),
    [
        ("1" * 9, "1" * 15, "canary"),  # too few answers
        ("1" * 8 + "00", "1" * 14 + "0" * 6, "active"),
        ("1" * 3 + "0" * 7, "1" * 14 + "0" * 6, "retired"),
        ("1" * 10, "1" * 9, "canary"),  # nothing to compare with yet
    ],
)
async def test_one_on_trial_is_promoted_where_no_fewer_of_its_answers_hold(house, canary, bare, state):
    await house.add("canary", recent=canary)
    await house.bare(bare)
    await house.tend()
    ((_, found, _),) = await house.states()
    assert found == state


async def test_a_promotion_retires_the_one_before_which_is_kept_and_older_ones_are_not(house):
    await house.add("retired")
    await house.add("active", recent="10" * 20)
    await house.add("canary", recent="1" * 12)
    await house.tend()
    assert await house.states() == [(1, "retired", False), (2, "retired", False), (3, "active", True)]
    assert house.folders == [2, 3]
    assert house.engine.names == [mine(3)]


async def test_one_that_was_rolled_back_takes_nobodys_place_on_the_disk(house):
    await house.add("retired")
    await house.add("active")
    await house.add("canary")
    await house.learning.roll_back(TENANT)
    await house.tend()
    assert house.folders == [1, 2]
    await house.learning.roll_back(TENANT)
    assert [state for _, state, _ in await house.states()] == ["active", "retired", "retired"]


async def test_one_in_use_goes_back_by_itself_when_fewer_of_its_answers_hold(house):
    await house.add("retired", standard=0.5)
    await house.add("active", recent="1" * 150 + "1" * 25 + "0" * 25, standard=0.8)
    await house.tend()
    assert await house.states() == [(1, "active", True), (2, "retired", False)]
    await house.tend()
    assert [state for _, state, _ in await house.states()] == ["active", "retired"]


async def test_one_that_reads_as_well_as_before_stays(house):
    await house.add("active", recent="1" * 36 + "0" * 14, standard=0.8)
    await house.tend()
    assert await house.states() == [(1, "active", True)]


# Gone


async def test_what_is_stale_leaves_engine_and_disk(house):
    await house.add("active")
    await house.add("canary")
    await house.tend()
    async with house.pool.tenant(TENANT) as connection:
        (row, *_) = await load_learnt(connection, TENANT)
        await save_seals(connection, TENANT, "thread", [row.digest])
    await house.tend()
    assert house.engine.names == []
    assert house.folders == []
    assert await house.states() == [(1, "stale", False), (2, "stale", False)]


async def test_erasing_empties_engine_and_disk_of_that_tenant_alone(house, pool, tmp_path):
    await house.learning.switch(OTHER, True)
    await house.add("active")
    await house.add("active", OTHER)
    (house.home / "trainings" / "left").mkdir(parents=True)
    await house.tend()
    async with pool.tenant(TENANT) as connection:
        await erase(connection, TENANT)
    await house.tend()
    assert house.engine.names == [adapter_name("small", 1, OTHER)]
    assert [path.parts[-3] for path in house.home.glob("adapters/*/*/*")] == [OTHER.hex()]
    async with pool.connection(5) as connection:
        assert await adapters.list_litter(connection) == []


async def test_a_folder_outside_of_ours_is_never_deleted(house, owner, tmp_path):
    precious = house.home / "models"
    precious.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    for folder in ("../elsewhere", "models", "adapters/../models", "."):
        await owner.execute("insert into infold.litter values ($1)", folder)
    await house.tend()
    assert precious.is_dir()
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("harm", ["missing", "pickle", "other base", "cut off"])
async def test_a_hostile_or_broken_folder_is_refused_and_the_one_before_reads(house, harm):
    await house.add("retired")
    broken = await house.add("active")
    folder = next(house.home.glob("adapters/*/*/2"))
    folder.chmod(0o755)
    match harm:
        case "missing":
            folder.rename(folder.parent / "gone")
        case "pickle":
            (folder / "weights.bin").write_bytes(b"x")
        case "other base":
            (folder / "meta.json").unlink()
            (folder / "meta.json").write_text('{"base_hash": "x"}')
        case "cut off":
            weights = folder / "adapter_model.safetensors"
            held = weights.read_bytes()
            weights.unlink()
            weights.write_bytes(held[:-9])
    await house.tend()
    assert await house.states() == [(1, "active", True), (2, "refused", False)]
    assert house.engine.loaded == [(mine(1), 2, "1")]
    async with house.pool.tenant(TENANT) as connection:
        row = await adapters.load_adapter(connection, TENANT, broken)
    assert row.error


async def test_another_base_retires_all(house, tmp_path):
    await house.add("retired")
    await house.add("active")
    await house.add("canary")
    other = small_model(tmp_path / "new" / "small", rope_theta=5.0)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    house.bases = Bases(slm(other), house.home / "models", {})
    await house.tend()
    assert {state for _, state, _ in await house.states()} == {"retired"}
    assert house.engine.names == []


async def test_a_base_that_is_missing_is_no_reason_to_take_an_adapter_away(house, tmp_path):
    await house.add("active")
    house.bases = Bases(slm(tmp_path / "nowhere"), house.home / "models", {})
    await house.tend()
    assert await house.states() == [(1, "active", False)]
    assert house.folders == [1]
