"""Who reads for a tenant when it asks its memory: the bare model, its adapter, or now and then the one on trial."""

import random
from collections.abc import Callable
from typing import NamedTuple, Protocol
from uuid import UUID

import structlog

from memory.errors import StoreError
from memory.slm.client import ModelAt
from memory.slm.naming import adapter_name
from memory.store.adapters import count_answer, load_reading
from memory.store.pool import Pool

log = structlog.get_logger()

WAIT_SECONDS = 2.0


class Reader(NamedTuple):
    model: ModelAt
    adapter: UUID | None = None  # None: the bare model


class Readers(Protocol):
    async def reader(self, tenant: bytes) -> Reader: ...

    async def heard(self, tenant: bytes, reader: Reader, held: bool) -> None:
        """Whether an answer held."""


class Bare:
    """The model without adapters, for everybody."""

    def __init__(self, model: ModelAt) -> None:
        self._reader = Reader(model)

    async def reader(self, tenant: bytes) -> Reader:
        return self._reader

    async def heard(self, tenant: bytes, reader: Reader, held: bool) -> None:
        """Nobody counts."""


class Adapted:
    """Those that learnt from a tenant's conversations read for that tenant; what happens is counted."""

    def __init__(
        self, pool: Pool, model: ModelAt, base: str, with_adapter: Callable[[str], ModelAt], share: float,
        draw: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        """
        Args:
            base: the base model in names of adapters.
            with_adapter: the model under the name of an adapter.
            share: of questions that go to the one on trial.
        """
        self._pool, self._model, self._base, self._with_adapter = pool, model, base, with_adapter
        self._share, self._draw = share, draw

    async def reader(self, tenant: bytes) -> Reader:
        """Where the database does not tell, the bare model."""
        try:
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                found = await load_reading(connection, tenant)
        except StoreError as error:
            log.warning("reading without an adapter", reason=str(error))
            return Reader(self._model)
        chosen = found.get("active")
        if "canary" in found and self._draw() < self._share:
            chosen = found["canary"]
        if chosen is None:
            return Reader(self._model)
        name = adapter_name(self._base, chosen.number, tenant)
        return Reader(self._with_adapter(name), chosen.id)

    async def heard(self, tenant: bytes, reader: Reader, held: bool) -> None:
        try:
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                await count_answer(connection, tenant, reader.adapter, held)
        except StoreError as error:
            log.warning("an answer is not counted", reason=str(error))
