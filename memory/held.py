"""What is in quarantine, as this process knows it; and when it has to forget what it made of messages."""

import time
from collections.abc import Callable
from typing import NamedTuple

from memory.bounded import Bounded
from memory.errors import StoreError
from memory.store.pool import WAIT_SECONDS, Pool
from memory.store.quarantine import load_held

SEALS_SECONDS = 1.0  # how long nobody asks again whether a tenant that holds nothing holds something


class Known(NamedTuple):
    """What was known when a request was planned."""

    number: int = 0  # how often something was isolated
    seals: frozenset[bytes] = frozenset()
    epoch: int = 0  # of this process: another one, and what was made under this may not be kept


class Held:
    def __init__(self, pool: Pool, forget: Callable[[], None]) -> None:
        """`forget` drops what this process made of messages."""
        self._pool = pool
        self._forget = forget
        self._known: Bounded[bytes, tuple[float, Known]] = Bounded(4_096)  # of tenants, and when it was read
        self._epoch = 0

    async def of(self, tenant: bytes, anew: bool = False) -> Known:
        """Digests of what is in quarantine, at most a second old; those last read while the database is away."""
        at, known = self._known.get(tenant) or (0.0, Known())
        if at and not anew and time.monotonic() - at < SEALS_SECONDS:
            return known._replace(epoch=self._epoch)
        epoch = self._epoch
        try:
            async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
                number, seals = await load_held(connection, tenant)
        except StoreError:
            return known._replace(epoch=epoch)  # what was never folded here has left nothing here
        if epoch != self._epoch:
            return Known(number, seals, epoch)  # something happened while we read: for this request, not for others
        if number != known.number:
            self._drop()
        found = Known(number, seals, self._epoch)
        self._known.put(tenant, (time.monotonic(), found))
        return found

    def is_current(self, known: Known) -> bool:
        """Has nothing been heard of since?"""
        return known.epoch == self._epoch

    def clear(self) -> None:
        """Something was isolated, or may have been."""
        self._known.clear()
        self._drop()

    def _drop(self) -> None:
        self._epoch += 1
        self._forget()
