"""What is in quarantine, as this process knows it; and when it has to forget what it made of messages."""

import time
from collections.abc import Callable
from typing import NamedTuple

from memory.bounded import Bounded
from memory.errors import StoreError
from memory.store.pool import Pool
from memory.store.quarantine import load_held

HEARD_SECONDS = 600.0  # how long what was read holds while signals are heard, should one be lost
UNHEARD_SECONDS = 1.0  # and while they are not


class Known(NamedTuple):
    """What was known when a request was planned."""

    number: int = 0  # how often something was isolated
    seals: frozenset[bytes] = frozenset()
    epoch: int = 0  # of this process, when it was read


class Held:
    def __init__(
        self,
        pool: Pool,
        forget: Callable[[bytes | None], None],
        is_hearing: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            forget: drops what this process made of a tenant's messages; None: of everybody's.
            is_hearing: whether an isolation by another process would be heard, and with it `clear` be called.
            now: seconds.
        """
        self._pool = pool
        self._forget = forget
        self._is_hearing = is_hearing
        self._now = now
        self._known: Bounded[bytes, tuple[float, Known]] = Bounded(4_096)  # of tenants, and when it was read
        self._epoch = 0  # grows with each drop
        self._all_dropped = 0  # at which epoch
        self._dropped: Bounded[bytes, int] = Bounded(4_096)  # of tenants, at which epoch

    async def of(self, tenant: bytes, anew: bool = False) -> Known:
        """Digests of what is in quarantine. Those last read while the database is away.

        What was read holds until `clear`, for a second at most where no signals are heard.
        """
        at, known = self._known.get(tenant) or (None, Known())
        seconds = HEARD_SECONDS if self._is_hearing() else UNHEARD_SECONDS
        if at is not None and not anew and self._now() - at < seconds:
            return known
        epoch, began = self._epoch, self._now()
        try:
            async with self._pool.tenant(tenant, self._pool.wait_seconds) as connection:
                number, seals = await load_held(connection, tenant)
        except StoreError:
            return known._replace(epoch=epoch)  # what was never folded here has left nothing here
        found = Known(number, seals, epoch)
        if not self.is_current(tenant, found):
            return found  # something happened while we read: for this request, not for others
        if number != known.number:
            self._drop(tenant)
        found = found._replace(epoch=self._epoch)
        self._known.put(tenant, (began, found))
        return found

    def is_current(self, tenant: bytes, known: Known) -> bool:
        """Has nothing been heard of the tenant since?"""
        return known.epoch >= max(self._all_dropped, self._dropped.get(tenant) or 0)

    def clear(self, tenant: bytes | None) -> None:
        """Something of a tenant was isolated, or may have been; None: of anybody."""
        if tenant is None:
            self._known.clear()
        else:
            self._known.drop(tenant)
        self._drop(tenant)

    def _drop(self, tenant: bytes | None) -> None:
        self._epoch += 1
        if tenant is None:
            self._all_dropped = self._epoch
        else:
            self._dropped.put(tenant, self._epoch)
        self._forget(tenant)
