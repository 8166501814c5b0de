"""Learning from conversations, as a tenant has it: allowed or not, what may be learnt, what was, and back again.

Nothing here trains: `trainer` does, and `tending` looks after what was trained.
"""

import asyncio
import json
from uuid import UUID

import asyncpg
import structlog

from memory import check
from memory.errors import Conflict, StoreError
from memory.identify import new_id
from memory.nouns import AdapterTold, Clock, LearningState, Training
from memory.settings import Learning as Settings
from memory.settings import Slm
from memory.slm.eligible import due, importance, reason
from memory.slm.recipe import Recipe, recipe_of
from memory.store import adapters, learning
from memory.store.learning import LONG_AGO, Sample, Undecided
from memory.store.pool import Pool
from memory.store.said import may_be_told
from memory.written import said

log = structlog.get_logger()

WAIT_SECONDS = 30.0
DECIDED_AT_ONCE = 200  # messages in a transaction
ROLLED_BACK = "it was rolled back"


class Learning:
    def __init__(self, pool: Pool, slm: Slm, clock: Clock) -> None:
        self._pool = pool
        self._slm = slm
        self._clock = clock

    @property
    def settings(self) -> Settings:
        return self._slm.learning

    async def switch(self, tenant: bytes, enabled: object, past: object = False) -> LearningState:
        """A tenant's word, which holds until it says otherwise.

        Args:
            past: learn from what is stored already, too; else from what is said from now on.

        Raises:
            InvalidRequest: a value is no boolean.
            StoreError: the database did not take it.
        """
        wanted, now = check.flag(enabled, "enabled"), self._clock()
        since = LONG_AGO if check.flag(past, "past") and wanted else now
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await learning.save_learner(connection, tenant, wanted, since, now)
        return await self.state(tenant)

    async def allow(self, tenant: bytes) -> None:
        """Turn it on for who has not decided yet; a word that was given stands.

        Raises:
            StoreError: the database did not take it.
        """
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            if await learning.load_learner(connection, tenant) is None:
                now = self._clock()
                await learning.save_learner(connection, tenant, True, now, now)

    async def state(self, tenant: bytes) -> LearningState:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            learner = await learning.load_learner(connection, tenant)
            counts = await learning.count_samples(connection, tenant)
            waiting = await learning.load_waiting(connection, tenant)
            trainings = await learning.list_trainings(connection, tenant)
            rows = await adapters.list_adapters(connection, tenant)
        return LearningState(
            enabled=learner is not None and learner.enabled,
            allowed=self.settings.enabled,
            trigger=self.settings.trigger,
            since=learner.since if learner and learner.enabled else None,
            samples=counts.pop("", 0),
            excluded=counts,
            new_samples=waiting.samples if waiting else 0,
            new_conversations=waiting.conversations if waiting else 0,
            trainings=trainings,
            adapters=[adapters.told(row) for row in rows],
        )

    async def adapters(self, tenant: bytes) -> list[AdapterTold]:
        """Newest first."""
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            return [adapters.told(row) for row in await adapters.list_adapters(connection, tenant)]

    # What may be learnt from

    async def scan(self, tenant: bytes) -> int:
        """Decide about messages that nobody has decided about; gives how many. Nothing where learning is off."""
        now, done = self._clock(), 0
        while True:
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                learner = await learning.load_learner(connection, tenant)
                if learner is None or not learner.enabled:
                    return done
                await learning.share_the_door(connection, tenant)
                found = await learning.load_undecided(connection, tenant, learner, DECIDED_AT_ONCE)
                told = await may_be_told(connection, tenant, [one.node for one in found])
                samples = await asyncio.to_thread(self._decided, found, told)
                await learning.save_samples(connection, tenant, samples, now)
                if len(found) < DECIDED_AT_ONCE:
                    await learning.mark_scanned(connection, tenant, now)
                    return done + len(found)
            done += len(found)

    def _decided(self, found: list[Undecided], told: set[bytes]) -> list[Sample]:
        return [self._sample(one, one.node not in told) for one in found]

    def _sample(self, one: Undecided, held: bool) -> Sample:
        text = said(one.raw)
        why = reason(one.role, text, held, upstreams_of(one.records), self.settings.trainable)
        return Sample(one.node, one.session, one.digest, 0 if why else importance(text), why)

    async def look(self) -> None:
        """What is done each minute: decide about what was said, and see whether a training is due, for each tenant."""
        if not self.settings.enabled:
            return
        async with self._pool.connection(WAIT_SECONDS) as connection:
            tenants = await learning.list_learning(connection)
        for tenant in tenants:
            try:
                await self.scan(tenant)
                await self._begin_if_due(tenant)
            except StoreError as error:
                log.warning("not looked at for learning", tenant=tenant.hex(), reason=str(error))

    async def _begin_if_due(self, tenant: bytes) -> None:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            learner = await learning.load_learner(connection, tenant)
            waiting = await learning.load_waiting(connection, tenant)
            why = due(self.settings, waiting, self._clock()) if learner and learner.enabled and waiting else None
            if why is not None and await self._queue(connection, tenant, why, force=False):
                log.info("a training is due", why=why)

    # Wishes

    async def want(self, tenant: bytes, force: object = False) -> Training:
        """Queue a training, or find the one that waits or runs; one that was stopped goes on where it stood.

        Args:
            force: also with few samples, and with a model that is too large for a processor.

        Raises:
            Conflict: learning is off, or there is too little to learn from.
        """
        forced = check.flag(force, "force")
        await self._check_allowed(tenant)
        await self.scan(tenant)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            samples = (await learning.count_samples(connection, tenant)).get("", 0)
            if samples < (1 if forced else self.settings.least_samples):
                raise Conflict(too_few(samples, self.settings.least_samples))
            queued = await self._queue(connection, tenant, "manual", forced)
            trainings = await learning.list_trainings(connection, tenant)
        wanted = str(queued) if queued else None
        return next(one for one in trainings if one.id == wanted or (not wanted and one.state in ("queued", "running")))

    async def _check_allowed(self, tenant: bytes) -> None:
        if not self.settings.enabled:
            raise Conflict("learning is off for all: the operator turns it on with `slm.learning.enabled: true`")
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            learner = await learning.load_learner(connection, tenant)
        if learner is None or not learner.enabled:
            raise Conflict("learning is off for this tenant: `infold slm learning on` turns it on")

    async def _queue(self, connection: asyncpg.Connection, tenant: bytes, why: str, force: bool) -> UUID | None:
        recipe = recipe_for(self._slm)
        return await learning.queue_training(
            connection, tenant, new_id(), why, force, recipe.text(), recipe.seed, self._clock()
        )

    async def training(self, tenant: bytes, id: str) -> Training | None:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            return await learning.load_training(connection, tenant, UUID(id))

    async def roll_back(self, tenant: bytes) -> list[AdapterTold]:
        """Take back the adapter on trial, else the one in use: then the one before reads again, or the bare model.

        Returns:
            All adapters, newest first.

        Raises:
            Conflict: none is on trial or in use.
        """
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows, now = await adapters.lock(connection, tenant), self._clock()
            state = next((s for s in ("canary", "active") if any(row.state == s for row in rows)), None)
            if state is None:
                raise Conflict("no adapter is in use or on trial: the bare model reads")
            await adapters.retire(connection, tenant, state, now, ROLLED_BACK)
            if state == "active":
                active = next(row for row in rows if row.state == "active")
                await adapters.restore(connection, tenant, rows, active, now)
            return [adapters.told(row) for row in await adapters.list_adapters(connection, tenant)]


def upstreams_of(records: list[bytes]) -> list[str]:
    """Which upstreams gave an answer; what a record does not tell is nobody's."""
    found = []
    for record in records:
        told = json.loads(record)
        where = told.get("upstream") if isinstance(told, dict) else None
        found.append(str(where or ""))
    return found


def recipe_for(slm: Slm) -> Recipe:
    """The recipe of the settings; the weights are quantized as they are when they serve."""
    quantization = slm.quantization if slm.backend == "transformers" else "none"
    return recipe_of({**slm.learning.recipe, "quantization": quantization})


def too_few(samples: int, least: int) -> str:
    return (
        f"{samples:,} messages may be learnt from, and {least:,} are needed; `infold slm learning` tells why others "
        "may not, and --force trains with few"
    )
