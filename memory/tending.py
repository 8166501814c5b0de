"""What becomes of adapters after they were trained: trial, use, retirement, and the engine that loads them.

Each minute, and again with the same result: what a quarantine made stale leaves engine and disk, what is no longer
needed too, and what serves worse than what was before goes back.
"""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

import structlog

from memory.errors import LLMMemoryError, ModelError, StoreError
from memory.nouns import Clock
from memory.settings import Slm
from memory.slm.adapters import Adapter, open_adapter
from memory.slm.adapting import Adapting, base_name
from memory.slm.bases import Base, Bases
from memory.slm.header import BadWeights
from memory.slm.naming import adapter_name, is_adapter_of
from memory.slm.trial import Record, canary_step, fails
from memory.store import adapters, learning
from memory.store.adapters import AdapterRow
from memory.store.pool import Pool

log = structlog.get_logger()

WAIT_SECONDS = 30.0
KEPT = 2  # adapters of a tenant whose folders stay: the one in use and the one before
STANDING = ("active", "canary")


class Tending:
    def __init__(
        self, pool: Pool, home: Path, slm: Slm, clock: Clock, bases: Bases, engine: Adapting | None = None
    ) -> None:
        """
        Args:
            home: the data directory.
            engine: None: it takes no adapters, so none is used.
        """
        self._pool, self._home, self._slm, self._clock, self._bases = pool, home, slm, clock, bases
        self._engine = engine
        self._one = asyncio.Lock()
        self._has_looked = False  # at what the engine has

    async def tend(self) -> None:
        """Look after all tenants' adapters.

        Raises:
            StoreError: the database is away.
        """
        async with self._one:
            async with self._pool.connection(WAIT_SECONDS) as connection:
                tenants = await learning.list_learning(connection)
                litter = await adapters.list_litter(connection)
            for folder in litter:
                await self._clear(folder)
            wanted: dict[str, Adapter] = {}
            standing: dict[bytes, dict[str, AdapterRow]] = {}
            for tenant in tenants:
                try:
                    standing[tenant] = await self._tenant(tenant, wanted)
                except StoreError as error:
                    log.warning("adapters are not looked after", tenant=tenant.hex(), reason=str(error))
            if standing or litter or not self._has_looked:
                await self._serve(wanted, standing)

    async def _clear(self, folder: str) -> None:
        await self._remove(folder)
        async with self._pool.connection(WAIT_SECONDS) as connection:
            await adapters.forget_litter(connection, folder)

    async def _remove(self, folder: str) -> None:
        """Delete a folder of ours; a name that leads elsewhere is left alone."""
        place = (self._home / folder).resolve()
        if any(place.is_relative_to((self._home / ours).resolve()) for ours in ("adapters", "trainings")):
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def _tenant(self, tenant: bytes, wanted: dict[str, Adapter]) -> dict[str, AdapterRow]:
        """Adds what the engine is to load; gives the rows of these by name."""
        await self._judge(tenant)
        found: dict[str, tuple[AdapterRow, Adapter]] | None = None
        while found is None:  # where one had to be taken away, another may read in its place
            found = await self._standing(tenant)
        await self._clean(tenant)
        wanted.update({name: adapter for name, (_, adapter) in found.items()})
        return {name: row for name, (row, _) in found.items()}

    async def _standing(self, tenant: bytes) -> dict[str, tuple[AdapterRow, Adapter]] | None:
        """Those in use and on trial, by the engine's name; None: one had to be taken away."""
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows = await adapters.list_adapters(connection, tenant)
            learner = await learning.load_learner(connection, tenant)
        rows = [row for row in rows if row.state in STANDING]
        base = await self._base() if rows and learner is not None and learner.enabled else None
        if base is None:
            return {}
        found = {}
        for row in rows:
            adapter = await self._usable(tenant, row, base)
            if adapter is None:
                return None
            found[adapter_name(base_name(self._slm), row.number or 0, tenant)] = (row, adapter)
        return found

    async def _base(self) -> Base | None:
        try:
            return await self._bases.base()
        except (LLMMemoryError, OSError) as error:
            log.warning("the base model is not there", reason=str(error))
            return None

    async def _usable(self, tenant: bytes, row: AdapterRow, base: Base) -> Adapter | None:
        """The adapter's folder, looked at. One of another base is retired, one that must not be loaded refused."""
        if row.base != base.foundation.hash:
            await self._take_away(tenant, row, "retired", "the base model was changed")
            return None
        try:
            return await asyncio.to_thread(open_adapter, self._home / (row.folder or "-"), base.foundation)
        except BadWeights as error:
            await self._take_away(tenant, row, "refused", str(error))
            return None

    async def _take_away(self, tenant: bytes, row: AdapterRow, state: str, why: str) -> None:
        log.warning("an adapter is taken away", adapter=str(row.id), state=state, reason=why)
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows, now = await adapters.lock(connection, tenant), self._clock()
            await adapters.set_state(connection, tenant, row.id, state, STANDING, now, error=why)
            if row.state == "active" and state == "refused":
                await adapters.restore(connection, tenant, rows, row, now)

    async def _judge(self, tenant: bytes) -> None:
        """Whether the one on trial is promoted or withdrawn, and whether the one in use goes back."""
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows, now = await adapters.lock(connection, tenant), self._clock()
            learner = await learning.load_learner(connection, tenant)
            active = next((row for row in rows if row.state == "active"), None)
            canary = next((row for row in rows if row.state == "canary"), None)
            if active is not None and fails(active.record, active.standard):
                log.warning("an adapter reads worse than what was before it", adapter=str(active.id))
                why = "fewer of its answers held than before it was in use"
                await adapters.set_state(connection, tenant, active.id, "retired", ["active"], now, error=why)
                await adapters.restore(connection, tenant, rows, active, now)
                return
            if canary is None:
                return
            before = active.record if active is not None else Record(learner.recent if learner else "")
            match canary_step(canary.record, before, self._slm.learning.canary_answers):
                case "promote":
                    await adapters.promote(connection, tenant, canary.id, before.share, now)
                case "withdraw":
                    why = "fewer of its answers held than of those of the reader in use"
                    await adapters.set_state(connection, tenant, canary.id, "retired", ["canary"], now, error=why)

    async def _clean(self, tenant: bytes) -> None:
        """Delete folders of what is stale or refused, and of older ones than the last two."""
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows = await adapters.list_adapters(connection, tenant)
        whole = [row for row in rows if row.state in ("active", "retired") and row.folder]
        kept = sorted(whole, key=lambda row: row.error is not None)[:KEPT]  # first those that may read again
        for row in rows:
            gone = row.state in ("stale", "refused") or (row.state == "retired" and row not in kept)
            if gone and row.folder:
                await self._remove(row.folder)
                async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                    await adapters.forget_folder(connection, tenant, row.id)

    async def _serve(self, wanted: Mapping[str, Adapter], standing: Mapping[bytes, Mapping[str, AdapterRow]]) -> None:
        """Let the engine have what is wanted and nothing else of ours."""
        loaded: set[str] = set()
        if self._engine is not None:
            try:
                loaded = await self._reconcile(self._engine, wanted)
                self._has_looked = True
            except (ModelError, BadWeights) as error:  # the latter where it refuses to let one go
                log.warning("the engine does not take adapters", reason=str(error))
        for tenant, rows in standing.items():
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                await adapters.set_served(connection, tenant, [row.id for name, row in rows.items() if name in loaded])

    async def _reconcile(self, engine: Adapting, wanted: Mapping[str, Adapter]) -> set[str]:
        there = set(await engine.list())
        for name in sorted(there - set(wanted)):
            if is_adapter_of(base_name(self._slm), name):
                await engine.unload(name)
        for name, adapter in sorted(wanted.items()):
            if name not in there:
                try:
                    await engine.load(name, adapter)
                except (ModelError, BadWeights) as error:
                    log.warning("the engine did not take an adapter", adapter=name, reason=str(error))
                else:
                    there.add(name)
        return there & set(wanted)
