"""Which sessions have items, as last seen: so that who stores nothing is asked nothing."""

import time
from collections.abc import Callable
from uuid import UUID

from memory.bounded import Bounded

SEEN_SECONDS = 600.0  # should a signal be lost


class Presence:
    """Remembers what was seen of a tenant's sessions until it is told that something changed, or for ten minutes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._seen: Bounded[tuple[bytes, UUID], tuple[float, bool]] = Bounded(65_536)
        self._changed: Bounded[bytes, float] = Bounded(4_096)  # tenants, and when

    def get(self, tenant: bytes, session: UUID) -> bool | None:
        """None: look yourself."""
        at, has = self._seen.get((tenant, session)) or (None, False)
        if at is None or self.now() - at > SEEN_SECONDS or at <= (self._changed.get(tenant) or at - 1):
            return None
        return has

    def put(self, tenant: bytes, session: UUID, has: bool, since: float) -> None:
        """What was seen by a look that began at `since`: a change after that makes it void."""
        self._seen.put((tenant, session), (since, has))

    def changed(self, tenant: bytes | None) -> None:
        """A tenant has stored or removed something; None: anybody may have."""
        if tenant is None:
            self._seen.clear()
        else:
            self._changed.put(tenant, self.now())
